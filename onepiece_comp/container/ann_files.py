"""The files of the platform's neighbour search: vectors (.fbin), ids and answers (.u64bin), written in blocks.

Little-endian: two 32-bit whole numbers, then rows. Vectors: count, width, float32; ids: count, 1, uint64; answers:
queries, k, ids of 8 bytes. The tool compares a file's size with its header, wants a width above 1 of vectors, and has
two faults that these functions respect: it multiplies count by width in 32 bits, and what its index finds, an id, it
takes for a place in the id file. So ids must be 0, 1, 2, ... in the order of the vectors, and where it finds fewer than
k neighbours it reads from before the ids and anything may stand there.
Legend: N rows, D width, Q queries, K neighbours.
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from onepiece_comp.artefacts import atomic_file
from onepiece_comp.errors import InputError

_VECTOR, _ID = np.dtype("<f4"), np.dtype("<u8")
_HEADER = struct.Struct("<II")
_LIMIT = 1 << 32  # numbers that the tool can count
_ROWS_PER_BLOCK = 1 << 16


def write_vectors(path: Path, blocks: Iterable[np.ndarray]) -> int:
    """Write blocks [n, D] as one file; returns N. Memory holds one block.

    InputError for more numbers than the tool can count, a width below 2, and a number that is not finite.
    """
    return _write(Path(path), blocks, _VECTOR)


def write_ids(path: Path, blocks: Iterable[np.ndarray]) -> int:
    """Write blocks [n] of ids, none negative, as one file; returns N."""
    return _write(Path(path), (np.asarray(block)[:, None] for block in blocks), _ID)


def read_vectors(path: Path) -> np.ndarray:
    """float32 [N, D], memory-mapped; InputError where header and size disagree or it is a file of ids."""
    return _checked_width(path, _rows(path, _VECTOR))


def read_ids(path: Path) -> np.ndarray:
    """int64 [N], memory-mapped; InputError where header and size disagree or it is a file of answers."""
    rows = _rows(path, _ID)
    if rows.shape[1] != 1:
        raise InputError(path, found=f"{rows.shape[1]} ids a row", expected="one", do="give the file of ids")
    return rows[:, 0].view("<i8")


def read_answers(path: Path, *, candidates: int) -> np.ndarray:
    """int64 [Q, K], best first; -1 where no id of 0..candidates - 1 stands."""
    found = np.array(_rows(path, _ID))
    return np.where(found < candidates, found, candidates).astype(np.int64) - (found >= candidates) * (candidates + 1)


def check_search_files(*, vectors: Path, ids: Path, queries: Path) -> None:
    """InputError for what the tool refuses, and for ids that it would answer wrongly."""
    base, number, query = read_vectors(vectors), read_ids(ids), read_vectors(queries)
    if len(number) != len(base):
        raise InputError(ids, found=f"{len(number):,} ids", expected=f"{len(base):,}, one for each vector of {vectors}",
                         do="write both again")
    if query.shape[1] != base.shape[1]:
        raise InputError(queries, found=f"vectors of width {query.shape[1]}",
                         expected=f"{base.shape[1]}, as in {vectors}", do="write both again")
    for start in range(0, len(number), _ROWS_PER_BLOCK):
        block = number[start:start + _ROWS_PER_BLOCK]
        wrong = np.flatnonzero(block != np.arange(start, start + len(block)))
        if len(wrong):
            raise InputError(ids, found=f"id {block[wrong[0]]} in row {start + wrong[0]}",
                             expected="the row's own number: the tool takes an id for a place",
                             do="number the candidates from 0 and keep their ids beside")


def _write(path: Path, blocks: Iterable[np.ndarray], kind: np.dtype) -> int:
    rows = width = 0
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.write(_HEADER.pack(0, 0))
        for block in blocks:
            assert block.ndim == 2 and width in (0, block.shape[1]), f"a block of shape {block.shape}, width {width}"
            rows, width = rows + len(block), block.shape[1]
            _check_block(path, block, kind, rows=rows, width=width)
            file.write(np.ascontiguousarray(block, kind))
        if not rows:
            raise InputError(path, found="no rows to write", expected="at least one", do="check what is exported")
        file.seek(0)
        file.write(_HEADER.pack(rows, width))
    return rows


def _check_block(path: Path, block: np.ndarray, kind: np.dtype, *, rows: int, width: int) -> None:
    if rows * width >= _LIMIT:
        raise InputError(path, found=f"{rows:,} rows of width {width} or more", expected=f"below {_LIMIT:,} numbers",
                         do="the tool counts them in 32 bits: export fewer candidates or narrower vectors")
    if kind == _ID:
        assert (block >= 0).all(), "a negative id"
        return
    _checked_width(path, block)
    if not np.isfinite(block).all():
        bad = rows - len(block) + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
        raise InputError(path, found=f"a number that is not finite in row {bad}", expected="finite vectors",
                         do="check the checkpoint")


def _checked_width(path: Path, vectors: np.ndarray) -> np.ndarray:
    if vectors.shape[1] < 2:
        raise InputError(path, found=f"vectors of width {vectors.shape[1]}", expected="at least 2, as the tool demands",
                         do="give the file of vectors")
    return vectors


def _rows(path: Path, kind: np.dtype) -> np.ndarray:
    """The rows of a file, memory-mapped."""
    path = Path(path)
    if not path.is_file():
        raise InputError(path, found="no such file", expected="vectors or ids with a header", do="check the path")
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise InputError(path, found=f"{size} bytes", expected=f"a header of {_HEADER.size}", do="write it again")
    rows, width = _HEADER.unpack(head)
    expected = _HEADER.size + rows * width * kind.itemsize
    if size != expected or not rows * width:
        raise InputError(path, found=f"{size:,} bytes", do="it is cut short or of another kind: write or copy it again",
                         expected=f"{expected:,} for the {rows:,} x {width} of its header, {kind.itemsize} bytes each")
    return np.memmap(path, kind, "r", offset=_HEADER.size, shape=(rows, width))
