"""A walk over a pickle's opcodes before it is opened: lengths that lie and memo tricks are found without obeying them.

Python's unpickler makes room for a memo index before it looks at what it is (an index of 2 ** 32 costs 64 GB) and
turns a number of any length into an integer. Here every argument must lie within the file, a memo index must not run
ahead of the values stored, and numbers are short. It is told too whether the opcodes make anything but plain containers
of numbers and texts, whose keys can then be nothing worse. The walk is compiled for large files where numba is installed.
"""

import functools
import pickletools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_NEWLINE, _TWO_LINES = -1, -2  # how an argument ends
_LENGTH = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
           pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
_WORTH_COMPILING = 4 << 20
_LONGEST_NUMBER = 40  # bytes
_PLAIN = frozenset("""PROTO FRAME STOP MARK EMPTY_DICT EMPTY_LIST DICT LIST SETITEM SETITEMS APPEND APPENDS NONE NEWTRUE NEWFALSE
    INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET""".split())
UNKNOWN, BEYOND_END, MEMO, NUMBER, NO_END = range(1, 6)
REASONS = {UNKNOWN: "a byte that is no opcode", BEYOND_END: "an argument that is longer than the file",
           MEMO: "a memo index that runs ahead", NUMBER: "a number of more digits than any id has",
           NO_END: "no end: the file is cut short"}


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each opcode: fixed size of its argument or how it ends; bytes of a length before it; what it is; whether plain."""
    size, prefix, role = np.full(256, -9, np.int64), np.zeros(256, np.int64), np.zeros(256, np.int64)
    plain = np.zeros(256, np.bool_)
    roles = {"PUT": 1, "BINPUT": 1, "LONG_BINPUT": 1, "MEMOIZE": 2, "INT": 3, "LONG": 3, "LONG1": 3, "LONG4": 3,
             "STOP": 4}
    for opcode in pickletools.opcodes:
        code, argument = ord(opcode.code), opcode.arg
        role[code], plain[code] = roles.get(opcode.name, 0), opcode.name in _PLAIN
        if argument is None:
            size[code] = 0
        elif argument.n >= 0:
            size[code] = argument.n
        elif argument.n == pickletools.UP_TO_NEWLINE:
            size[code] = _TWO_LINES if argument is pickletools.stringnl_noescape_pair else _NEWLINE
        else:
            size[code], prefix[code] = 0, _LENGTH[argument.n]
    return size, prefix, role, plain


def _walk(data: bytes | np.ndarray, size: np.ndarray, prefix: np.ndarray, role: np.ndarray, plain: np.ndarray,
          ) -> tuple[int, int, bool]:
    """(reason, position, all plain) of the first thing wrong, reason 0 at the end if there is none."""
    at, end, stored, all_plain = 0, len(data), 0, True
    while at < end:
        code, start = data[at], at + 1
        all_plain = all_plain and plain[code]
        if size[code] == -9:
            return UNKNOWN, at, all_plain
        length, begin = size[code], start + prefix[code]
        if prefix[code]:
            if begin > end:
                return BEYOND_END, at, all_plain
            length = 0
            for place in range(prefix[code] - 1, -1, -1):
                if length >= end:
                    return BEYOND_END, at, all_plain
                length = length * 256 + data[start + place]
        elif length < 0:
            newlines, stop = -length, start
            while stop < end and newlines > 0:
                newlines -= data[stop] == 10
                stop += 1
            if newlines:
                return BEYOND_END, at, all_plain
            length = stop - start
        if length > end - begin:
            return BEYOND_END, at, all_plain
        if role[code] == 1:
            index = 0
            if size[code] == _NEWLINE:
                for place in range(begin, begin + length - 1):
                    if not 48 <= data[place] <= 57 or index > end:
                        return MEMO, at, all_plain
                    index = index * 10 + (data[place] - 48)
            else:
                for place in range(length - 1, -1, -1):
                    index = index * 256 + data[begin + place]
            if index > stored + 1:
                return MEMO, at, all_plain
            stored = max(stored, index + 1)
        elif role[code] == 2:
            stored += 1
        elif role[code] == 3 and length > _LONGEST_NUMBER:
            return NUMBER, at, all_plain
        elif role[code] == 4:
            return 0, at, all_plain
        at = begin + length
    return NO_END, at, all_plain


@functools.cache
def _compiled() -> Callable:
    try:
        import numba
    except ImportError:
        return _walk
    return numba.njit(cache=True)(_walk)


class Opcodes(NamedTuple):
    """What a walk has found."""

    wrong: str | None  # with its place; None if nothing is
    plain: bool  # no tuples, sets, bytes, names or calls: dicts and lists of numbers and texts alone


def walk_opcodes(data: bytes) -> Opcodes:
    """What is wrong with a pickle's opcodes, and whether they are plain; what they build is not looked at."""
    walk = _compiled() if len(data) >= _WORTH_COMPILING else _walk
    reason, position, plain = walk(data if walk is _walk else np.frombuffer(data, np.uint8), *_tables())
    return Opcodes(f"{REASONS[reason]}, at byte {position}" if reason else None, bool(plain))
