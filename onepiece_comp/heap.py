"""Memory that a training step frees is kept for the next one, where the C library is glibc.

A step on CPU makes and drops tensors of megabytes. glibc maps such blocks one by one and unmaps them when they are freed,
so that the system clears every page of every step anew: up to a third of a step's processor time.
"""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

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
