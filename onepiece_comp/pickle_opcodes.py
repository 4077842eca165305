"""A walk over a pickle's opcodes before it is opened: lengths that lie and memo tricks are found without obeying them.

Python's unpickler makes room for a memo index before it looks at what it is (an index of 2 ** 32 costs 64 GB) and
turns a number of any length into an integer. Here every argument must lie within the file, a memo index must not run
ahead of the values stored, and numbers are short. The walk is compiled for large files where numba is installed.
"""

import functools
import pickletools
from collections.abc import Callable

import numpy as np

_NEWLINE, _TWO_LINES = -1, -2  # how an argument ends
_LENGTH = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
           pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
_WORTH_COMPILING = 4 << 20
_LONGEST_NUMBER = 40  # bytes
UNKNOWN, BEYOND_END, MEMO, NUMBER, NO_END = range(1, 6)
REASONS = {UNKNOWN: "a byte that is no opcode", BEYOND_END: "an argument that is longer than the file",
           MEMO: "a memo index that runs ahead", NUMBER: "a number of more digits than any id has",
           NO_END: "no end: the file is cut short"}


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each opcode: fixed size of its argument or how it ends; bytes of a length before it; what it is."""
    size, prefix, role = np.full(256, -9, np.int64), np.zeros(256, np.int64), np.zeros(256, np.int64)
    roles = {"PUT": 1, "BINPUT": 1, "LONG_BINPUT": 1, "MEMOIZE": 2, "INT": 3, "LONG": 3, "LONG1": 3, "LONG4": 3,
             "STOP": 4}
    for opcode in pickletools.opcodes:
        code, argument = ord(opcode.code), opcode.arg
        role[code] = roles.get(opcode.name, 0)
        if argument is None:
            size[code] = 0
        elif argument.n >= 0:
            size[code] = argument.n
        elif argument.n == pickletools.UP_TO_NEWLINE:
            size[code] = _TWO_LINES if argument is pickletools.stringnl_noescape_pair else _NEWLINE
        else:
            size[code], prefix[code] = 0, _LENGTH[argument.n]
    return size, prefix, role


def _walk(data: bytes | np.ndarray, size: np.ndarray, prefix: np.ndarray, role: np.ndarray) -> tuple[int, int]:
    """(reason, position) of the first thing wrong, (0, position of the end) if there is none."""
    at, end, stored = 0, len(data), 0
    while at < end:
        code, start = data[at], at + 1
        if size[code] == -9:
            return UNKNOWN, at
        length, begin = size[code], start + prefix[code]
        if prefix[code]:
            if begin > end:
                return BEYOND_END, at
            length = 0
            for place in range(prefix[code] - 1, -1, -1):
                if length >= end:
                    return BEYOND_END, at
                length = length * 256 + data[start + place]
        elif length < 0:
            newlines, stop = -length, start
            while stop < end and newlines > 0:
                newlines -= data[stop] == 10
                stop += 1
            if newlines:
                return BEYOND_END, at
            length = stop - start
        if length > end - begin:
            return BEYOND_END, at
        if role[code] == 1:
            index = 0
            if size[code] == _NEWLINE:
                for place in range(begin, begin + length - 1):
                    if not 48 <= data[place] <= 57 or index > end:
                        return MEMO, at
                    index = index * 10 + (data[place] - 48)
            else:
                for place in range(length - 1, -1, -1):
                    index = index * 256 + data[begin + place]
            if index > stored + 1:
                return MEMO, at
            stored = max(stored, index + 1)
        elif role[code] == 2:
            stored += 1
        elif role[code] == 3 and length > _LONGEST_NUMBER:
            return NUMBER, at
        elif role[code] == 4:
            return 0, at
        at = begin + length
    return NO_END, at


@functools.cache
def _compiled() -> Callable:
    try:
        import numba
    except ImportError:
        return _walk
    return numba.njit(cache=True)(_walk)


def refusal(data: bytes) -> str | None:
    """What is wrong with a pickle's opcodes, None if nothing is; what they build is not looked at."""
    walk = _compiled() if len(data) >= _WORTH_COMPILING else _walk
    reason, position = walk(data if walk is _walk else np.frombuffer(data, np.uint8), *_tables())
    return f"{REASONS[reason]}, at byte {position}" if reason else None
