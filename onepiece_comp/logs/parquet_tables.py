"""A folder of Parquet files as one table: checked column by column, read in batches, whole numbers as numpy.

What `release.py` reads with. Files are taken in the order of their names; what is no `.parquet` beside them
is left alone. Memory is bounded by a batch and a page per column, whatever the size of a row group.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from pyarrow import compute, types

from onepiece_comp.errors import InputError
from onepiece_comp.logs.user_blocks import Part

NULL = np.iinfo(np.int64).min  # stands for null among whole numbers
_BUFFER = 1 << 20  # bytes read ahead per column
_BATCH_BYTES = 4 << 20
_MOST_ROWS = 1 << 14
_DO = "use the files of the release as they are published; a file that is cut short must be copied again"


class Batch(NamedTuple):
    """Consecutive rows of one file."""

    path: Path
    first_row: int  # rows of the file before it
    columns: dict[str, pa.Array]
    rows: int

    def place(self, row: int) -> str:
        """File and row (from 1) of a row of the batch, for an error."""
        return f"{self.path}: row {self.first_row + row + 1}"


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return types.is_list(kind) or types.is_large_list(kind)


def is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind)


def is_whole(kind: pa.DataType) -> bool:
    """Whole numbers that int64 holds."""
    return types.is_integer(kind) and not types.is_uint64(kind)


def is_struct(kind: pa.DataType, **fields: Callable[[pa.DataType], bool]) -> bool:
    """A record with at least these fields."""
    if not types.is_struct(kind):
        return False
    held = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    return all(name in held and fits(held[name]) for name, fits in fields.items())


WHOLE = ("int64", is_whole)
WHOLE_OR_LIST = ("int64 or list<int64>", lambda kind: is_whole(kind) or is_list(kind) and is_whole(kind.value_type))
Kind = tuple[str, Callable[[pa.DataType], bool]]


class ParquetTable:
    """The Parquet files of one folder; InputError where there is none."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.parts = sorted(self.folder.glob("*.parquet")) if self.folder.is_dir() else []
        if not self.parts:
            raise InputError(self.folder, found="no .parquet file" if self.folder.is_dir() else "no such folder",
                             expected=f"the Parquet files of {self.folder.name}/", do=_DO)

    def columns(self) -> list[str]:
        """The names of the first file's columns."""
        with _readable(self.parts[0]):
            return parquet.read_schema(self.parts[0]).names

    def features(self) -> list[str]:
        """The columns that are features: their names are numbers."""
        found = (name for name in self.columns() if name.isascii() and name.isdigit())
        return sorted(found, key=lambda fid: (len(fid), fid))

    def row_groups(self, count: int) -> list[Part]:
        """The row groups of all files in about `count` parts of about as many rows, in order."""
        rows = {}
        for path in self.parts:
            with _readable(path):
                metadata = parquet.read_metadata(path)
                rows[path.name] = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        enough, parts = sum(map(sum, rows.values())) / max(1, count), []
        for name, groups in rows.items():
            start, held = 0, 0
            for stop, group_rows in enumerate(groups, start=1):
                held += group_rows
                if held >= enough or stop == len(groups):
                    parts.append(Part(name, start, stop))
                    start, held = stop, 0
        return parts

    def batches(self, kinds: dict[str, Kind], *, threads: int = 1, part: Part | None = None) -> Iterator[Batch]:
        """The rows of all files, or of one part, columns `kinds` of them; InputError where a column does not fit."""
        for path in self.parts if part is None else [self.folder / part.file]:
            with _readable(path), parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
                _check_columns(path, file.schema_arrow, kinds)
                groups = range(*(part[1:] if part else (0, file.num_row_groups)))
                first = sum(file.metadata.row_group(i).num_rows for i in range(groups.start))
                for batch in file.iter_batches(batch_size=_rows_per_batch(file.metadata), columns=list(kinds),
                                               row_groups=list(groups), use_threads=threads != 1):
                    yield Batch(path, first, {name: batch.column(name) for name in kinds}, batch.num_rows)
                    first += batch.num_rows


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a name that is no text
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(path, found=f"no readable Parquet ({reason})", expected="a whole Parquet file",
                         do=_DO) from error


def _check_columns(path: Path, schema: pa.Schema, kinds: dict[str, Kind]) -> None:
    for name, (expected, fits) in kinds.items():
        if schema.names.count(name) != 1:
            there = ", ".join(map(str, schema.names[:30]))
            raise InputError(path, found=f"{schema.names.count(name) or 'no'} columns {name!r} (there are: {there})",
                             expected=f"the columns {', '.join(kinds)}", do=_DO)
        if not fits(schema.field(name).type):
            raise InputError(f"{path}: column {name!r}", found=str(schema.field(name).type), expected=expected, do=_DO)


def _rows_per_batch(metadata: parquet.FileMetaData) -> int:
    """As many rows as take some megabytes when unpacked, as the file itself states.

    Row groups alone are asked: pyarrow ends the process when the figures of a column are damaged.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    taken, rows = sum(group.total_byte_size for group in groups), sum(group.num_rows for group in groups)
    return max(1, min(_MOST_ROWS, _BATCH_BYTES * rows // max(taken, 1)))


def whole_numbers(column: pa.Array, null: int = NULL) -> np.ndarray:
    """A column of whole numbers as int64 [n], `null` where it has none."""
    column = column.cast(pa.int64())
    return (compute.fill_null(column, null) if column.null_count else column).to_numpy(zero_copy_only=False)


def lengths(column: pa.Array) -> np.ndarray:
    """How long each list of a column is, int64 [n]; 0 for null."""
    return whole_numbers(compute.list_value_length(column), 0)


def fields(column: pa.StructArray) -> dict[str, pa.Array]:
    """The fields of a column of records; null where the record is."""
    return dict(zip((field.name for field in column.type), column.flatten()))
