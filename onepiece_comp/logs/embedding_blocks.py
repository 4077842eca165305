"""Embedding tables in blocks of vectors, streamed from any of their three forms; memory is bounded by a block.

Says the same as `embeddings.read_embedding`, record for record and error for error, many times faster: JSON lines by
a compiled scanner where numba is installed and the table is large, a pickle entry by entry, Parquet without a Python
object per number.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onepiece_comp.logs.embeddings import (
    LONGEST_LINE, WIDEST, EmbeddingSource, not_a_record, numbered_id, open_parquet, parse_embedding_line, pickled_id,
    to_vector,
    unreadable_parquet)
from onepiece_comp.logs.pickle_stream import stream_dict

if TYPE_CHECKING:
    import pyarrow

_BLOCK_BYTES = 8 << 20  # of the file in a block of JSON lines, of float32 in the others
_WORTH_COMPILING = 32 << 20  # bytes; the plain parser is through with less before numba is loaded


class VectorBlock(NamedTuple):
    """Consecutive records of a table: those with a vector, and how many had none."""

    creative_id: np.ndarray  # int64 [n]
    vectors: np.ndarray  # float32 [n, w]; [0, 0] where no record of the table had a vector so far
    empty: int


def read_blocks(source: EmbeddingSource, *, parts: Iterable[Path] | None = None, width: int | None = None,
                reader: str = "auto") -> Iterator[VectorBlock]:
    """The records of a table, or of some of its `parts`, in the order of the files.

    `width` is what the vectors must have (None = what the first has). `reader` is compiled, plain or auto, which is
    compiled where numba is there and the table large. InputError as of `read_embedding`.
    """
    for part in source.parts() if parts is None else parts:
        if source.kind == "pickle":
            blocks = _pickle_blocks(part, width)
        elif source.kind == "parquet":
            blocks = _parquet_blocks(part, width)
        else:
            blocks = _line_blocks(part, width, _kernels(source, reader))
        for block in blocks:
            if len(block.creative_id):
                width = block.vectors.shape[1]
            yield block


def table_width(source: EmbeddingSource, *, reader: str = "auto") -> int | None:
    """The width of the first vector of a table; None where no record has one."""
    for block in read_blocks(source, reader=reader):
        if len(block.creative_id):
            return block.vectors.shape[1]
    return None


def _kernels(source: EmbeddingSource, reader: str) -> ModuleType | None:
    if reader == "plain" or reader == "auto" and sum(part.stat().st_size for part in source.parts()) < _WORTH_COMPILING:
        return None
    try:
        from onepiece_comp.logs import embedding_kernels as vector_kernels
    except ImportError:  # numba is an option
        return None
    return vector_kernels


class _Gathering:
    """A block that is being filled from something that holds at most `room` numbers."""

    def __init__(self, width: int | None, room: int):
        self.filled, self.empty, self._room = 0, 0, room
        self._open(width or 0)

    def _open(self, width: int) -> None:
        places = self._room // width + 1 if width else 0
        self.creative_id, self.vectors = np.empty(places, np.int64), np.empty((places, width), np.float32)

    @property
    def width(self) -> int | None:
        return self.vectors.shape[1] or None

    @property
    def full(self) -> bool:
        return 0 < len(self.vectors) == self.filled

    def add(self, creative_id: int, vector: np.ndarray | None) -> None:
        if vector is None:
            self.empty += 1
            return
        if self.width is None:
            self._open(vector.size)
        self.creative_id[self.filled], self.vectors[self.filled] = creative_id, vector
        self.filled += 1

    def block(self) -> VectorBlock:
        return VectorBlock(self.creative_id[:self.filled], self.vectors[:self.filled], self.empty)


def _whole_lines(part: Path) -> Iterator[tuple[bytearray, int]]:
    """A file in pieces of whole lines: a buffer that is used again, and how much of it is the piece.

    A line that is too long comes in a piece without a newline at its end.
    """
    buffer, kept = bytearray(_BLOCK_BYTES + LONGEST_LINE + 1), 0
    with open(part, "rb") as file:
        while read := file.readinto(memoryview(buffer)[kept:kept + _BLOCK_BYTES]):
            filled = kept + read
            end = buffer.rfind(b"\n", kept, filled) + 1
            if end or filled > LONGEST_LINE:
                end = end or filled
                yield buffer, end
                buffer[:filled - end] = buffer[end:filled]
            kept = filled - end
    if kept:
        buffer[kept] = ord("\n")
        yield buffer, kept + 1


def _line_blocks(part: Path, width: int | None, kernels: ModuleType | None) -> Iterator[VectorBlock]:
    number = 0
    for buffer, size in _whole_lines(part):
        block = _Gathering(width, size // 2)  # a number takes two bytes or more
        scanned, at = np.frombuffer(buffer, np.uint8, size), 0
        while at < size:
            if kernels is not None and block.width and scanned[-1] == ord("\n"):
                at, read, block.filled, empty = kernels.scan_vectors(
                    scanned, at, block.creative_id, block.vectors, block.filled)
                number, block.empty = number + read, block.empty + empty
            if at < size:
                end = buffer.find(b"\n", at, size) + 1 or size
                number += 1
                place = f"{part}:{number}"
                record = parse_embedding_line(bytes(memoryview(buffer)[at:end]), place)
                if record:
                    block.add(record[0], to_vector(record[1], place=place, width=block.width))
                at = end
        width = block.width
        yield block.block()


def _pickle_blocks(path: Path, width: int | None) -> Iterator[VectorBlock]:
    block = _Gathering(width, _BLOCK_BYTES // 4)
    for key, values in stream_dict(path):
        creative_id = pickled_id(key, path)
        block.add(creative_id, to_vector(values, place=f"{path}: id {creative_id}", width=block.width))
        if block.full:
            yield block.block()
            block = _Gathering(block.width, _BLOCK_BYTES // 4)
    yield block.block()


def _parquet_blocks(path: Path, width: int | None) -> Iterator[VectorBlock]:
    import pyarrow

    try:
        with open_parquet(path) as file:
            names, row = ["anonymous_cid", "emb"], 0
            missing = [name for name in names if name not in file.schema_arrow.names]
            if missing:
                raise not_a_record(path, f"no column {missing[0]}; there are {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(batch_size=_rows_per_batch(file, width), columns=names):
                block = _batch_block(batch, width, path=path, row=row)
                width, row = block.vectors.shape[1] or None, row + len(batch)
                yield block
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable_parquet(path, error) from error


def _rows_per_batch(file: "pyarrow.parquet.ParquetFile", width: int | None) -> int:
    """As many rows as make a block, from the sizes that the file itself states.

    Row groups alone are asked: pyarrow ends the process when the figures of a column are damaged.
    """
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    taken, rows = sum(group.total_byte_size for group in groups), sum(group.num_rows for group in groups)
    return max(1, min(1 << 17, _BLOCK_BYTES * rows // max(taken, 8 * (width or 1) * rows, 1)))


def _batch_block(batch: "pyarrow.RecordBatch", width: int | None, *, path: Path, row: int) -> VectorBlock:
    """A batch of (id, list) rows; `row` rows of the file stand before it."""
    import pyarrow
    from pyarrow import compute

    ids, lists = batch.column("anonymous_cid"), batch.column("emb")
    try:
        creative_id = np.asarray(compute.cast(ids, pyarrow.int64()).to_numpy(zero_copy_only=False))
        length = compute.fill_null(compute.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        numbers = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, ValueError):  # no numbers: the rows tell which
        return _plain_batch(batch, width, path=path, row=row)
    there = length > 0
    width = width or (int(length[there][0]) if there.any() else None)
    fits = ids.null_count == 0 and bool((creative_id >= 0).all()) and bool((length[there] == width).all())
    if not fits or (width or 0) > WIDEST or not np.isfinite(numbers).all():
        return _plain_batch(batch, width, path=path, row=row)
    return VectorBlock(creative_id[there], numbers.reshape(int(there.sum()), width or 0), int((~there).sum()))


def _plain_batch(batch: "pyarrow.RecordBatch", width: int | None, *, path: Path, row: int) -> VectorBlock:
    """The same row by row, for what is not as it should be: the first row that is wrong is named."""
    vectors = batch.column("emb").to_pylist()
    block = _Gathering(width, sum(len(values) for values in vectors if isinstance(values, list)))
    for number, (key, values) in enumerate(zip(batch.column("anonymous_cid").to_pylist(), vectors), start=row + 1):
        place = f"{path}: row {number}"
        try:
            creative_id = numbered_id(key)
        except (ValueError, TypeError, OverflowError) as error:
            raise not_a_record(place, error) from error
        block.add(creative_id, to_vector(values, place=place, width=block.width))
    return block.block()
