"""The two folders that a participant uploads, and a manifest of what is in them.

training/ has run.sh, train.py, config.json and the package; evaluation/ has infer.py and the package, since a
checkpoint brings its configuration. Flat folders have plain files alone: a module of the package is a file of its
dotted name, and `onepiece_comp.py` beside them finds it there.
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

PACKAGE = Path(__file__).resolve().parents[1]
ENTRY_POINTS = {"training": ("run.sh", "train.py"), "evaluation": ("infer.py",)}
_LIBRARIES = ("torch", "numpy", "faiss-cpu", "pyarrow", "numba")
_FLAT = '''"""The package as plain files: the module {package}.a.b lies beside this one as {package}.a.b.py."""

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location

__version__ = "{version}"
__path__ = []
_HERE = os.path.dirname(os.path.abspath(__file__))
_FILES = os.listdir(_HERE)


class _Beside:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith("{package}.") and name + ".py" in _FILES:
            return spec_from_file_location(name, os.path.join(_HERE, name + ".py"))
        if name.startswith("{package}.") and any(file.startswith(name + ".") for file in _FILES):
            return ModuleSpec(name, None, is_package=True)
        return None


sys.meta_path.insert(0, _Beside)
'''


def write_upload(out: Path, config: Config, *, preset: str, flat: bool = False, cache_gib: float = 20.0) -> Path:
    """Write OUT/training, OUT/evaluation and OUT/pack.json; returns OUT."""
    frozen = {"preset": preset, "cache_gib": cache_gib, **to_dict(config)}
    with atomic_folder(out, MARKERS["pack"], frozen) as folder:
        for side, names in ENTRY_POINTS.items():
            _copy(_entry_points(names) + _modules(flat), folder / side)
            if flat:
                (folder / side / f"{PACKAGE.name}.py").write_text(_FLAT.format(package=PACKAGE.name,
                                                                               version=__version__), "utf-8")
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
        found.append(f"train.average={config.train.average:g} averages weights: the rules barred ensembles, and this "
                     f"looks "
                     "like one; train.average=0 is safe")
    if config.ranker.use:
        found.append("ranker.use=true has no effect there: the training job trains no ranker")
    if config.preprocess.engine != "local":
        found.append(f"preprocess.engine={config.preprocess.engine} needs processes that talk over TCP, which the "
                     f"container "
                     "bars; preprocess.engine=local is safe")
    return found


def _entry_points(names: tuple[str, ...]) -> list[tuple[Path, str]]:
    missing = [name for name in names if not (PACKAGE.parent / name).is_file()]
    if missing:
        raise InputError(PACKAGE.parent / missing[0], found="no such file",
                         expected="the entry points beside the package",
                         do="pack from a checkout of the project, with the package installed by `pip install -e .`")
    return [(PACKAGE.parent / name, name) for name in names]


def _modules(flat: bool) -> list[tuple[Path, str]]:
    """The package's files and their names in the folder; a flat one has no place for those with underscores."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if not (flat and path.stem.startswith("__")))
    names = [(PACKAGE.name, *path.relative_to(PACKAGE).parts) for path in paths]
    return [(path, (".".join if flat else "/".join)(name)) for path, name in zip(paths, names)]


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
            raise InputError(folder / side / wrong[0],
                             found="a file that is missing, new or not the one that was packed",
                             expected="the files of pack.json", do="pack again")
