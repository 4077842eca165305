"""Columns of artefacts: plain `.npy` files, mapped into memory, written row by row, loaded without pickle."""

import os
import tokenize
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from onepiece_comp.errors import InputError


def load_column(folder: Path, name: str) -> np.ndarray:
    """Memory-map `folder/name.npy` for reading; never runs code (pickles are refused)."""
    path = Path(folder) / f"{name}.npy"
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a column of this artefact", do="make it again")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError, SyntaxError, tokenize.TokenError) as error:  # a header is Python text
        raise InputError(path, found=f"no readable array ({error})", expected="a whole .npy file",
                         do="the file may be cut short: make the artefact again") from error


class ColumnWriter:
    """Append rows to one `.npy` file without knowing how many will come; use as a context manager.

    Memory holds only what one `append` brings.
    """

    def __init__(self, folder: Path, name: str, dtype: str, width: int | None = None):
        self.dtype, self.width, self.rows = np.dtype(dtype), width, 0
        self._file = open(Path(folder) / f"{name}.npy", "wb")
        self._header()
        self._data_start = self._file.tell()

    def _header(self) -> None:
        shape = (self.rows,) if self.width is None else (self.rows, self.width)
        npy.write_array_header_1_0(self._file, {
            "descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape})

    def append(self, values: np.ndarray) -> None:
        block = np.ascontiguousarray(values, self.dtype)
        expected = block.ndim == 1 if self.width is None else block.shape[1:] == (self.width,)
        assert expected, f"rows of shape {block.shape[1:]} for a column of width {self.width}"
        self._file.write(block.tobytes())
        self.rows += len(block)

    def close(self) -> None:
        """Write the true length into the header; numpy leaves room for it to grow."""
        self._file.seek(0)
        self._header()
        assert self._file.tell() == self._data_start, "the header outgrew the room left for it"
        self._file.close()

    def __enter__(self) -> "ColumnWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def create_mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """A .npy file of zeros, mapped, whose space is reserved: a mapped file on a full disk would kill the process."""
    mapped = npy.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # Linux
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return mapped
