"""Pickles from outside: plain containers, numbers, strings and numeric numpy arrays, nothing that runs.

The competition ships `indexer.pkl`, `*_offsets.pkl` and `emb_81_32.pkl` as pickles. A pickle is a program;
this unpickler refuses every name in it except the few that rebuild containers and arrays.
"""

import collections
import io
import pickle
from pathlib import Path

import numpy as np

from onepiece_comp.errors import InputError
from onepiece_comp.pickle_opcodes import refusal


def _array_rebuilders() -> dict[tuple[str, str], object]:
    """numpy's own rebuild functions, under the module names of numpy 1 and 2."""
    rebuild = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    names = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[module, "_reconstruct"] = rebuild
        names[module, "scalar"] = scalar
    for module in ("numpy.core.numeric", "numpy._core.numeric"):
        names[module, "_frombuffer"] = _frombuffer
    return names


def _frombuffer(buffer: bytes, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    if dtype.hasobject:
        raise pickle.UnpicklingError("an array of Python objects")
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


_CONTAINERS = {
    ("collections", "defaultdict"): collections.defaultdict,
    ("collections", "OrderedDict"): collections.OrderedDict,
    **{("builtins", name): kind for name, kind in
       {"dict": dict, "list": list, "set": set, "tuple": tuple, "int": int, "float": float, "str": str}.items()},
    **{("__builtin__", name): kind for name, kind in {"dict": dict, "list": list, "int": int}.items()},
}


class PlainUnpickler(pickle.Unpickler):
    """Admits the names in `allowed` and no other."""

    allowed = {**_CONTAINERS, **_array_rebuilders()}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 stores the bytes of an array
            return lambda text, encoding: text.encode("latin-1")
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"the name {module}.{name}")
        return self.allowed[module, name]

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("a persistent id")


def load_pickle(path: Path, expected: type) -> object:
    """Read a pickle that holds an `expected` container of plain values; InputError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise InputError(path, found="no such file", expected=f"a pickled {expected.__name__}", do="check the path")
    data = path.read_bytes()
    try:
        if reason := refusal(data):
            raise pickle.UnpicklingError(reason)
        value = PlainUnpickler(io.BytesIO(data)).load()
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
