"""The two folders that a participant uploads, and a manifest of what is in them.

training/ has run.sh, train.py, config.json and the package; evaluation/ has infer.py and the package, since a
checkpoint brings its configuration. Flat folders have plain files alone: there the package is one file,
`onepiece_comp.py`, that names its own folder as the place of its modules.
"""

import hashlib
import platform
from importlib import metadata
from pathlib import Path

from onepiece_comp import __version__
from onepiece_comp.artefacts import MARKERS, atomic_folder, write_json
from onepiece_comp.config import Config
from onepiece_comp.config_reading import to_dict
from onepiece_comp.console import say, table
from onepiece_comp.errors import InputError

PACKAGE = Path(__file__).resolve().parent
ENTRY_POINTS = {"training": ("run.sh", "train.py"), "evaluation": ("infer.py",)}
_LIBRARIES = ("torch", "numpy", "faiss-cpu", "pyarrow", "numba")
_FLAT = '''"""The package as plain files: its modules lie beside this one."""

import os

__path__ = [os.path.dirname(os.path.abspath(__file__))]
__version__ = "{version}"
'''


def write_upload(out: Path, config: Config, *, preset: str, flat: bool = False, cache_gib: float = 20.0) -> Path:
    """Write OUT/training, OUT/evaluation and OUT/pack.json; returns OUT."""
    frozen = {"preset": preset, "cache_gib": cache_gib, **to_dict(config)}
    with atomic_folder(out, MARKERS["pack"], frozen) as folder:
        for side, names in ENTRY_POINTS.items():
            _copy(_entry_points(names) + _modules(flat), folder / side)
            if flat:
                (folder / side / f"{PACKAGE.name}.py").write_text(_FLAT.format(version=__version__), "utf-8")
        write_json(folder / "training" / "config.json", frozen)
        sides = {side: _files(folder / side) for side in ENTRY_POINTS}
        write_json(folder / MARKERS["pack"], {
            "version": __version__, "layout": "flat" if flat else "package", "python": platform.python_version(),
            "libraries": {name: _version(name) for name in _LIBRARIES}, "preset": preset, "configuration": frozen,
            "folders": sides})
    rows = [(f"{out / side}/", len(files), f"{sum(file['bytes'] for file in files.values()) / 1024:,.0f} KiB")
            for side, files in sides.items()]
    table("pack", ("folder", "files", "size"), rows)
    for line in warnings(config):
        say(f"warning: {line}")
    return Path(out)


def warnings(config: Config) -> list[str]:
    """What of a configuration the rules or the container may not allow."""
    found = []
    if config.train.average:
        found.append(f"train.average={config.train.average:g} averages weights: the rules barred ensembles, and this looks "
                     "like one; train.average=0 is safe")
    if config.ranker.use:
        found.append("ranker.use=true has no effect there: the training job trains no ranker")
    if config.preprocess.engine != "local":
        found.append(f"preprocess.engine={config.preprocess.engine} needs processes that talk over TCP, which the container "
                     "bars; preprocess.engine=local is safe")
    return found


def _entry_points(names: tuple[str, ...]) -> list[tuple[Path, str]]:
    missing = [name for name in names if not (PACKAGE.parent / name).is_file()]
    if missing:
        raise InputError(PACKAGE.parent / missing[0], found="no such file", expected="the entry points beside the package",
                         do="pack from a checkout of the project, with the package installed by `pip install -e .`")
    return [(PACKAGE.parent / name, name) for name in names]


def _modules(flat: bool) -> list[tuple[Path, str]]:
    """The package's files and their names in the folder; a flat one has no place for those with underscores."""
    paths = sorted(path for path in PACKAGE.glob("*.py") if not (flat and path.stem.startswith("__")))
    return [(path, path.name if flat else f"{PACKAGE.name}/{path.name}") for path in paths]


def _copy(files: list[tuple[Path, str]], folder: Path) -> None:
    names = [name for _, name in files]
    assert len(set(names)) == len(names), "a module has the name of an entry point"
    for source, name in files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())


def _files(folder: Path) -> dict[str, dict]:
    """Size and sha256 of each file, by its path in the folder."""
    return {str(path.relative_to(folder)): {"bytes": path.stat().st_size,
                                            "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in sorted(folder.rglob("*")) if path.is_file()}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # the jobs do without it, or say so
        return None


def check_upload(folder: Path, stored: dict) -> None:
    """InputError when a file of a pack is not the one that was packed."""
    for side, files in stored["folders"].items():
        held = _files(folder / side)
        held = {name: file for name, file in held.items() if not name.endswith(".pyc")}
        wrong = sorted(name for name in {*files, *held} if files.get(name) != held.get(name))
        if wrong:
            raise InputError(folder / side / wrong[0], found="a file that is missing, new or not the one that was packed",
                             expected="the files of pack.json", do="pack again")
