"""What this machine and these folders are good for, on one screen: versions, devices, room, variables, data."""

import platform
import shutil
from importlib import metadata
from pathlib import Path

import torch

from onepiece_comp import __version__
from onepiece_comp.console import table
from onepiece_comp.container.sandbox import network_namespace
from onepiece_comp.converters.convert import detect_log
from onepiece_comp.environment import PLATFORM_VARIABLES, available_cores, stated_variables
from onepiece_comp.errors import InputError
from onepiece_comp.logs.open_log import open_log

_NEEDED = ("torch", "numpy", "faiss-cpu")
_USEFUL = {"numba": "slow readers", "pyarrow": "no Parquet", "pandas": "no converters", "tensorboard": "no events",
           "typer": "no command line", "rich": "plain tables", "pyyaml": "no --config", "matplotlib": "no plots"}


def doctor(data: Path | None = None) -> None:
    """Print the table; InputError after it for a data folder that is not recognised."""
    rows = [("onepiece_comp", __version__), ("Python", platform.python_version())]
    rows += [(name, _version(name) or "MISSING: nothing runs") for name in _NEEDED]
    rows += [(name, _version(name) or f"missing: {without}") for name, without in _USEFUL.items()]
    cards = [f"{torch.cuda.get_device_name(number)}, "
             f"{torch.cuda.get_device_properties(number).total_memory / 2**30:.1f} GiB"
             for number in range(torch.cuda.device_count())]
    rows += [("devices", "; ".join(cards) or "CPU alone"), ("cores", available_cores()), ("memory", _memory()),
             ("disk here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free"),
             ("network namespace", "permitted" if network_namespace() else "not permitted: rehearse refuses by a hook")]
    stated = stated_variables()
    rows += [(name, _place(stated[name]) if name in stated else "not set") for name in PLATFORM_VARIABLES]
    layout, wrong = ("", None) if data is None else _data(Path(data))
    if data is not None:
        rows.append((str(data), layout))
    table("doctor", ("what", "found"), rows)
    if wrong is not None:
        raise wrong


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # told in the table
        return None


def _memory() -> str:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return "unknown here"
    kib = {line.split(":")[0]: int(line.split()[1]) for line in path.read_text().splitlines() if line.endswith("kB")}
    return f"{kib['MemAvailable'] / 2**20:.1f} of {kib['MemTotal'] / 2**20:.1f} GiB free"


def _place(text: str) -> str:
    path = Path(text)
    return f"{text} ({f'{shutil.disk_usage(path).free / 2**30:.1f} GiB free' if path.is_dir() else 'no such folder'})"


def _data(folder: Path) -> tuple[str, InputError | None]:
    """The layout that a folder is recognised as, or why it is not."""
    try:
        if (folder / "predict_seq.jsonl").is_file():
            missing = [name for name in ("predict_set.jsonl", "indexer.pkl") if not (folder / name).is_file()]
            if missing:
                raise InputError(folder, found=f"no {missing[0]} beside predict_seq.jsonl",
                                 expected="an evaluation folder",
                                 do="copy the folder again")
            return "an evaluation folder", None
        if kind := detect_log(folder):
            return f"a log of kind {kind}: onepiece-comp convert {kind} {folder} RAW", None
        log = open_log(folder)
        log.index()
    except InputError as error:  # told in the table first: the other rows stand
        return "not recognised", error
    size = sum(path.stat().st_size for path in log.files())
    return f"a log in the layout {log.layout}, {size / 2**30:.2f} GiB of sequences", None
