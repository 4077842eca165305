"""Pickles from outside: plain containers, numbers, strings and numeric numpy arrays, nothing that runs.

The competition ships `indexer.pkl`, `*_offsets.pkl` and `emb_81_32.pkl` as pickles. A pickle is a program: containers
of numbers and texts alone are read by Python's own unpickler, anything else by one that admits a few calls with checked
arguments, scalars as keys, no sets, and no more bytes copied than a file of that size can need.
"""

import functools
import io
import pickle
import pickletools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.errors import InputError

_SCALARS = (str, bytes, int, float, type(None), np.generic)
_FREE_BYTES, _TIMES_THE_FILE = 64 << 20, 4  # what calls may copy
_NEWLINE, _TWO_LINES = -1, -2  # how an argument ends
_LENGTH = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
           pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
_WORTH_COMPILING = 4 << 20
_LONGEST_NUMBER = 40  # bytes
_PLAIN = frozenset("""
    PROTO FRAME STOP MARK EMPTY_DICT EMPTY_LIST DICT LIST SETITEM SETITEMS APPEND APPENDS NONE NEWTRUE NEWFALSE INT
    LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET""".split())
UNKNOWN, BEYOND_END, MEMO, NUMBER, NO_END = range(1, 6)
REASONS = {UNKNOWN: "a byte that is no opcode", BEYOND_END: "an argument that is longer than the file",
           MEMO: "a memo index that runs ahead", NUMBER: "a number of more digits than any id has",
           NO_END: "no end: the file is cut short"}


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each opcode: fixed size of its argument or how it ends; bytes of a length before it; what it is;
    whether plain.
    """
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


class _Name:
    """A name that may be passed on, as numpy's rebuilding does with `ndarray`, and never called."""

    def __init__(self, name: str):
        self.name = name


def _reconstruct(kind: object, shape: tuple, code: object) -> np.ndarray:
    if not isinstance(kind, _Name) or shape != (0,):
        raise pickle.UnpicklingError("an array that is not rebuilt from its values")
    return np.empty(0, np.int8)


def _frombuffer(buffer: bytes, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(buffer, dtype=_numeric(dtype)).reshape(shape, order=order)


def _scalar(dtype: np.dtype, value: bytes) -> np.generic:
    return np.frombuffer(value, _numeric(dtype), 1)[0]


def _dtype(text: str, align: int = 0, copy: int = 1) -> np.dtype:
    return _numeric(np.dtype(text))


def _numeric(dtype: np.dtype) -> np.dtype:
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf":
        raise pickle.UnpicklingError("an array of Python objects, texts or records")
    return dtype


def _mapping(*arguments: object) -> dict:
    """A dict type of `collections`; a default factory is dropped, and Python 2's pairs are keys and values."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    check_keys(pair[0] for pair in pairs)
    return {key: value for key, value in pairs}


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 stores the bytes of an array."""
    return text.encode("latin-1")


def check_keys(keys: Iterable[object]) -> None:
    """Keys are scalars: a tuple that holds itself many times over, by memo, takes ages to hash."""
    for key in keys:
        if not isinstance(key, _SCALARS):
            raise pickle.UnpicklingError(f"a {type(key).__name__} as a key")


_NAMES: dict[tuple[str, str], object] = {
    ("collections", "defaultdict"): _mapping, ("collections", "OrderedDict"): _mapping, ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _Name("ndarray"), ("numpy", "dtype"): _dtype,
    **{(module, name): _Name(name) for module in ("builtins", "__builtin__") for name in ("dict", "list", "tuple",
        "int", "float", "str")},
    **{(f"numpy.{core}.multiarray", name): call for core in ("core", "_core")
       for name, call in (("_reconstruct", _reconstruct), ("scalar", _scalar))},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class PlainUnpickler(pickle._Unpickler):  # the one in Python: the compiled one cannot be asked about keys
    """Admits the names of `_NAMES`, called with what they check; scalars alone are keys, and there are no sets."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: object, size: int):
        """`size` is the file's in bytes: of it follows how much calls may copy."""
        super().__init__(file)
        self._left = _FREE_BYTES + _TIMES_THE_FILE * size

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"the name {module}.{name}")
        return _NAMES[module, name]

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("a persistent id")

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("a set, or an object of a class")

    for _opcode in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ,
                    pickle.INST):
        dispatch[_opcode[0]] = _refuse

    def _spend(self, arguments: object) -> None:
        parts = arguments if isinstance(arguments, tuple) else ()
        self._left -= sum(len(part) for part in parts if isinstance(part, (str, bytes, bytearray)))
        if self._left < 0:
            raise pickle.UnpicklingError("calls that copy the same bytes over and over")

    def load_reduce(self) -> None:
        call, arguments = self.stack[-2:]
        if isinstance(call, _Name) or not callable(call) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError(f"a call of {getattr(call, 'name', type(call).__name__)}")
        self._spend(arguments)
        super().load_reduce()
    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        state, built = self.stack[-1], self.stack[-2]
        if not isinstance(built, (np.ndarray, np.dtype)) or not isinstance(state, tuple):
            raise pickle.UnpicklingError(f"the state of a {type(built).__name__}")
        if isinstance(built, np.ndarray):
            _numeric(state[2])
        self._spend(state)
        super().load_build()
    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self) -> None:
        check_keys(self.stack[-2:-1])
        super().load_setitem()
    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        check_keys(self.stack[::2])
        super().load_setitems()
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        check_keys(self.stack[::2])
        super().load_dict()
    dispatch[pickle.DICT[0]] = load_dict


def load_pickle(path: Path, expected: type) -> object:
    """Read a pickle that holds an `expected` container of plain values; InputError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise InputError(path, found="no such file", expected=f"a pickled {expected.__name__}", do="check the path")
    data = path.read_bytes()
    try:
        opcodes = walk_opcodes(data)
        if opcodes.wrong:
            raise pickle.UnpicklingError(opcodes.wrong)
        value = pickle.loads(data) if opcodes.plain else PlainUnpickler(io.BytesIO(data), len(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError,
            ImportError, MemoryError, OverflowError, RecursionError) as error:  # what broken pickle bytes raise
        raise InputError(path, found=f"a pickle that cannot be admitted ({error or type(error).__name__})",
                         expected="plain containers, numbers and numeric arrays",
                         do="if it is cut short, copy it again; do not open it with pickle.load") from error
    if not isinstance(value, expected):
        raise InputError(path, found=f"a pickled {type(value).__name__}", expected=f"a {expected.__name__}",
                         do="check that this is the right file")
    return value


def save_pickle(path: Path, value: object) -> None:
    """Write `value` with protocol 2, as the organisers' files are."""
    with open(path, "wb") as file:
        pickle.dump(value, file, protocol=2)
