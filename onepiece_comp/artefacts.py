"""Artefacts on disk: written under a temporary name, renamed when whole, described by a marker file.

A folder is whole when its marker (`schema.json`, `tokenizer.json`, ...) is in it: the marker is written last and the
folder appears under its name by one rename. The marker lists the files that the stage wrote and what they were made of:
a folder that holds anything else, or was made of something else, is never replaced; `moving_aside` gives it a dated
name.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path

import numpy as np

from onepiece_comp.errors import InputError

MARKERS = {
    "raw": "raw.json",
    "split": "split.json",
    "dataset": "schema.json",
    "tokenizer": "tokenizer.json",
    "run": "run.json",
    "ranker": "ranker.json",
    "neighbour search": "ann.json",
    "pack": "pack.json",
    "rehearsal": "rehearsal.json",
}
_WROTE = "wrote"  # entry of a marker: the stage's files, and what they were made of
_SHOWN = 5
_moved_aside: ContextVar[Callable[[str], object] | None] = ContextVar("moved_aside", default=None)


def _temporary(out: Path) -> Path:
    return out.with_name(f".{out.name}.writing-{os.getpid()}")


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def half_written(out: Path) -> Iterator[Path]:
    """What is being written of `out`, whose name may be a pattern, or was when its process was killed."""
    return out.parent.glob(f".{out.name}.writing-*")


def _sweep(out: Path) -> None:
    """Remove what killed processes left of earlier writes of `out`; those of living ones stay."""
    for left in half_written(out):
        pid = left.name.rpartition("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            _remove(left)


@contextlib.contextmanager
def _named_os_errors(out: Path) -> Iterator[None]:
    """Turn the operating system's refusals into errors that say what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        refused = _refusal(error)
        if refused is None:
            raise
        if refused.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _cut_short(refused):
            raise InputError(out, found="a full disk while writing", expected="room for the output",
                             do="free some space or choose another folder; nothing was left behind") from error
        if refused.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise InputError(refused.filename or out, found=f"no permission ({refused.strerror})",
                             expected="a readable input and a writable output", do="choose another path") from error
        raise


def _refusal(error: BaseException | None) -> OSError | None:
    """The operating system's error, or the one that led to this:
    PyTorch's writer ends with a RuntimeError of its own.
    """
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _cut_short(error: OSError) -> bool:
    """Whether numpy wrote less than it had, which it tells in words alone."""
    return error.errno is None and "requested and" in str(error)


@contextlib.contextmanager
def atomic_file(out: Path) -> Iterator[Path]:
    """Yield a temporary path beside `out`; when the block ends well it becomes `out`, else it is removed."""
    temporary = _temporary(out)
    with _named_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        try:
            yield temporary
            os.replace(temporary, out)
        finally:
            _remove(temporary)


@contextlib.contextmanager
def moving_aside(say: Callable[[str], object]) -> Iterator[None]:
    """Within it an output that stands in the way is moved aside under a dated name, and said, instead of refused."""
    token = _moved_aside.set(say)
    try:
        yield
    finally:
        _moved_aside.reset(token)


def move_aside(path: Path, error: InputError) -> None:
    """Give what stands at `path` a dated name beside it; raises `error` unless within `moving_aside`."""
    if (say := _moved_aside.get()) is None:
        raise error
    dated = path.with_name(f"{path.name}.{datetime.now():%Y-%m-%d-%H%M%S-%f}")
    with _named_os_errors(path):
        os.replace(path, dated)
    say(f"{path}: moved aside to {dated.name} ({error.found})")


def _in_the_way(out: Path, marker: str, made_of: Mapping[str, object]) -> InputError | None:
    """Why an earlier output must not be replaced: entries that its stage did not write, or other settings."""
    wrote = read_json(out / marker)
    wrote = wrote.get(_WROTE) if isinstance(wrote, dict) else None
    do = "--force moves the folder aside under a dated name; or choose another one"
    if not isinstance(wrote, dict):
        return InputError(out, found="an output that does not list its files (of an earlier version)",
                          expected="a new or empty folder, or an earlier output of the same stage and settings", do=do)
    strange = sorted(set(_entries(out)) - set(wrote["files"]))
    if strange:
        shown = ", ".join(strange[:_SHOWN]) + (f" and {len(strange) - _SHOWN:,} others" if len(strange) > _SHOWN
                                               else "")
        return InputError(out, found=f"entries that this stage did not write: {shown}", expected="its own files alone",
                          do=do)
    if changed := differences(wrote["made_of"], made_of):
        return InputError(out, found=f"an output made of something else: {changed}", expected="the same", do=do)
    return None


def _entries(folder: Path) -> list[str]:
    """Every file, folder and link below a folder, links not entered."""
    return sorted(os.path.relpath(os.path.join(place, name), folder)
                  for place, folders, files in os.walk(folder) for name in (*folders, *files))


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The entries that differ between two settings, with both values; empty where none does."""
    before, now = (json.loads(json.dumps(each, default=str)) for each in (before, now))
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    shown = [f"{name} {_brief(before.get(name))}, now {_brief(now.get(name))}" for name in names[:_SHOWN]]
    return "; ".join(shown + ([f"{len(names) - _SHOWN} others"] if len(names) > _SHOWN else []))


def _brief(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"...{text[-57:]}"


def check_output(out: Path, marker: str, made_of: Mapping[str, object] | None) -> InputError | None:
    """InputError where an `atomic_folder` could not replace `out`;
    within `moving_aside` why it must move aside, or None.
    """
    stands = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if stands and not (out / marker).is_file():
        raise InputError(out, found=f"something that this tool did not write (no {marker} in it)",
                         expected="a new or empty folder, or an earlier output of the same stage",
                         do="choose another output folder or move that one away")
    refusal = _in_the_way(out, marker, made_of) if stands and made_of is not None else None
    if refusal and _moved_aside.get() is None:
        raise refusal
    return refusal


@contextlib.contextmanager
def atomic_folder(out: Path, marker: str, made_of: Mapping[str, object] | None = None) -> Iterator[Path]:
    """Yield a temporary folder that replaces `out` when the block ends well.

    `marker` is the name of the JSON file that makes the folder whole; an existing `out` without it is not ours and is
    never replaced (InputError). `made_of` are the stage's settings and inputs: `out` is replaced only where it was made
    of the same and holds nothing else, or within `moving_aside`. None: part of another artefact, replaced as a whole.
    """
    out = Path(out) if Path(out).name else Path(out).resolve()  # `.` has no name
    temporary, refusal = _temporary(out), check_output(out, marker, made_of)
    with _named_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        _remove(temporary)
        temporary.mkdir()
        try:
            yield temporary
            assert (temporary / marker).is_file(), f"a stage ended without writing its {marker}"
            if made_of is not None:
                wrote = {"files": _entries(temporary), "made_of": dict(made_of)}
                write_json(temporary / marker, {**read_json(temporary / marker), _WROTE: wrote})
            if refusal:
                move_aside(out, refusal)
            if out.exists():
                aside = out.with_name(f".{out.name}.writing-old-{os.getpid()}")
                os.replace(out, aside)
                os.replace(temporary, out)
                _remove(aside)
            else:
                os.replace(temporary, out)
        finally:
            _remove(temporary)


def write_json(path: Path, value: object, *, indent: int | None = 1) -> None:
    """Write `value` as JSON with sorted keys, atomically; `indent=None` for what only programs read."""
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path) -> object:
    """Read a JSON file; InputError when it is missing, is cut short or is not JSON."""
    path = Path(path)
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a JSON file", do="check the path")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        raise InputError(path, found=f"no valid JSON ({error})", expected="one JSON value",
                         do="the file may be cut short: write or copy it again") from error


def read_marker(folder: Path, kind: str) -> dict:
    """The marker of an artefact folder of `kind` (a key of MARKERS); InputError when it is not one."""
    folder = Path(folder)
    marker = MARKERS[kind]
    if not folder.exists():
        raise InputError(folder, found="no such folder", expected=f"a {kind} folder", do="check the path")
    if not (folder / marker).is_file():
        held = [name for name, file in MARKERS.items() if (folder / file).is_file()]
        found = f"a {held[0]} folder" if held else f"a folder without {marker}"
        raise InputError(folder, found=found, expected=f"a {kind} folder (with {marker})",
                         do="check the path and the order of the arguments")
    value = read_json(folder / marker)
    if not isinstance(value, dict):
        raise InputError(folder / marker, found=type(value).__name__, expected="a JSON object", do="make it again")
    return value


def fingerprint(*parts: object) -> str:
    """Sixteen hex digits over files (name, size, content), arrays and JSON values: equal inputs, equal digits."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            digest.update(f"{part.name}:{part.stat().st_size}:".encode())
            with open(part, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        elif isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            for start in range(0, len(part), 1 << 18):
                digest.update(np.ascontiguousarray(part[start:start + (1 << 18)]).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def is_made_of(note: Path, made_of: str) -> bool:
    """Whether the note of `make_unless_made` stands and says that."""
    return note.is_file() and read_json(note)["made_of"] == made_of


def make_unless_made(note: Path, made_of: str, *, whole: bool, make: Callable[[], object]) -> None:
    """Call `make` unless what it makes is `whole` and `note` says that it was made of the same; then write the note.

    The note goes before what it tells of is touched, so that it never tells of something half-made.
    """
    if whole and is_made_of(note, made_of):
        return
    note.unlink(missing_ok=True)
    make()
    write_json(note, {"made_of": made_of})


def files_under(folder: Path) -> list[Path]:
    """All files below a folder, in order of their paths; folders that are links are entered."""
    return sorted(Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names)


def names_apart(paths: Sequence[Path], place: str) -> list[str]:
    """As much of the paths' ends as tells them apart, for example a/tiny and b/tiny; InputError for one given twice."""
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise InputError(place, found="a path twice", expected="each once", do="leave one of them out")
    depth = next(depth for depth in range(1, max(map(len, parts)) + 1)
                 if len({path[-depth:] for path in parts}) == len(parts))
    return ["/".join(path[-depth:]) for path in parts]


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system cannot link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another device, or a file system without hard links
        shutil.copyfile(source, target)


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
