"""USER_CACHE_PATH as a store of stages: each made once by the fingerprint of what it depends on, within a quota.

Jobs may share the folder: who makes or uses an entry holds a lock on the file beside it, so that a second job waits and
finds it made. Locks are the file system's (flock) and go with their process; numbers of processes mean nothing here,
since every container counts its own.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from onepiece_comp.artefacts import fingerprint, half_written
from onepiece_comp.console import say

_PREFIX = "onepiece-"


class JobCache:
    """Entries `onepiece-{name}-{key}` of a folder; this job's stay locked until `close` or its end."""

    def __init__(self, root: Path, *, quota_bytes: float):
        self.root, self.quota, self._held = Path(root), quota_bytes, {}
        self.root.mkdir(parents=True, exist_ok=True)

    def made(self, name: str, key: Sequence[object], marker: str, make: Callable[[Path], object]) -> Path:
        """The entry's folder, which `make` fills unless its marker says that it is whole."""
        path = self.root / f"{_PREFIX}{name}-{fingerprint(*key)}"
        if path not in self._held:
            self._held[path] = _locked(path, wait=True)
        os.utime(_lock_of(path))  # its last use
        _remove_halves(path)
        if (path / marker).is_file():
            say(f"{name}: reused {path}")
            return path
        self._make_room()
        make(path)
        self._make_room()
        return path

    def close(self) -> None:
        """Let other jobs remove this one's entries."""
        for lock in self._held.values():
            lock.close()
        self._held = {}

    def _make_room(self) -> None:
        """Remove what killed jobs left half-written, then what was not used for longest and no job uses,
        until the quota holds.
        """
        for half in list(half_written(self.root / f"{_PREFIX}*")):
            path = self.root / half.name[1:].partition(".writing-")[0]
            with _unless_used(path) as free:
                if free:
                    _remove_halves(path)
        entries = sorted((path for path in self.root.glob(f"{_PREFIX}*") if path.is_dir()), key=_last_use)
        sizes = {path: _bytes(path) for path in entries}
        for path in entries:
            if sum(sizes.values()) <= self.quota:
                return
            with _unless_used(path) as free:
                if free:
                    say(f"cache: {sizes.pop(path) / 2**30:.2f} GiB of {path.name} removed, not used for longest")
                    shutil.rmtree(path)
        if sum(sizes.values()) > self.quota:
            say(f"warning: {self.root} holds {sum(sizes.values()) / 2**30:.2f} GiB of {self.quota / 2**30:.2f} that "
                f"its quota "
                "allows, all of it in use")


def _remove_halves(path: Path) -> None:
    """What a killed job left of an entry whose lock we hold, so that nobody is writing it."""
    for half in half_written(path):
        say(f"cache: {half.name} removed, half-written by a job that was killed")
        shutil.rmtree(half)


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _last_use(path: Path) -> float:
    lock = _lock_of(path)
    return lock.stat().st_mtime if lock.exists() else path.stat().st_mtime


def _locked(path: Path, *, wait: bool) -> TextIO:
    """An open lock file; BlockingIOError where another job has it and we do not wait."""
    lock = open(_lock_of(path), "a", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            lock.close()
            raise
        say(f"waiting for another job that uses {path}")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


@contextlib.contextmanager
def _unless_used(path: Path) -> Iterator[bool]:
    """Whether nobody uses an entry, who then cannot begin to."""
    try:
        lock = _locked(path, wait=False)
    except BlockingIOError:  # this job or another one
        yield False
        return
    with lock:
        yield True


def _bytes(folder: Path) -> int:
    """Files may go while they are counted: another job's."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
