"""Memory that a training step frees is kept for the next one, where the C library is glibc.

A step on CPU makes and drops tensors of megabytes. glibc maps such blocks one by one and unmaps them when they are
freed, so that the system clears every page of every step anew: up to a third of a step's processor time.
"""

import contextlib
import ctypes
import platform
import signal
import threading
from collections.abc import Iterator

import torch

from onepiece_comp.environment import available_cores
from onepiece_comp.errors import InputError

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # names of malloc.h, as mallopt's numbers
_KEEP = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2 ** 31 - 1))
# where glibc's own thresholds end after large blocks were freed; set by hand they do not move any more
_USUAL = ((_MMAP_MAX, 1 << 16), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20))


@contextlib.contextmanager
def kept_heap(wanted: bool = True) -> Iterator[None]:
    """Freed blocks stay with the process inside, and go back to the system at the end; nothing where it is not glibc.

    Of the whole process, all threads.
    """
    library = ctypes.CDLL(None) if wanted and platform.libc_ver()[0] == "glibc" else None
    _set(library, _KEEP)
    try:
        yield
    finally:
        _set(library, _USUAL)
        if library is not None:
            library.malloc_trim(0)


def _set(library: ctypes.CDLL | None, options: tuple[tuple[int, int], ...]) -> None:
    for name, value in options if library is not None else ():
        library.mallopt(name, value)


class EndAsked:
    """Within the block SIGINT and SIGTERM are only noted, so that a step is never cut in two; a second one passes.

    One that is ignored, as SIGINT is in what a script starts with `&`, stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "EndAsked":
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
                            if signal.getsignal(number) is not signal.SIG_IGN}
        return self

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *exc: object) -> None:
        self._put_back()
        if self.signal is not None and exc[0] is None:
            signal.raise_signal(self.signal)


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; asking for a GPU that is not there is an InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise InputError("device", found=f"{cards} CUDA devices",
                         expected=f"one, as device={name} asks" if device.index is None else
                         f"card {device.index}, as device={name} asks", do="use device=cpu or auto")
    return device


def set_threads(threads: int) -> int:
    """Use `threads` CPU threads, or as many as this process may."""
    threads = threads or available_cores()
    torch.set_num_threads(threads)
    return threads


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On CPU: sums into shared rows in one order, however many threads there are. The settings are put back."""
    before, fill = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # ours is never read before it is written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill
