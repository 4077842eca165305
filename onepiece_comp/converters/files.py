"""Files of other logs: texts line by line, gzipped or not, JSON lines as columns, and where each row of columns stands.

What the converters read with; `tables.py` reads delimited texts and Parquet, `event_log.py` makes a log of the
columns. An archive that is cut short, another encoding, a line that is no record are errors with their line.
"""

import ast
import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.json as arrow_json

from onepiece_comp.errors import InputError

UNREADABLE = (ValueError, OSError, EOFError, zlib.error, pa.ArrowException)  # what broken files raise
TEXT = pa.dictionary(pa.int32(), pa.string())  # a number per row and each text once
BLOCK_BYTES = 1 << 22
LONGEST_RECORD = 1 << 24  # characters of a record of JSON lines
LONGEST_LINE = 1 << 28  # characters
_GZIP = b"\x1f\x8b"
_NO_TEXT = {b"PK\x03\x04": "a zip archive or a workbook", b"PAR1": "a Parquet file under another name",
            b"\x28\xb5\x2f\xfd": "a zstd archive", b"BZh91AY": "a bzip2 archive", b"\xfd7zXZ": "an xz archive",
            b"\xd0\xcf\x11\xe0": "a workbook", b"SQLite f": "a database"}  # by the first bytes
_ENCODINGS = ("GBK", "Latin-1")  # those that are no UTF-8 are told apart by a guess, and Latin-1 admits anything
_DEEPEST = 50  # brackets within brackets of a record that is a Python literal
_STRING, _BRACKET = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""), re.compile(r"[()\[\]{}]")
_FORMULA = re.compile(r"(?<![\[({,:])(?<!\d[eE])[-+~]")  # a sign that neither starts a value nor an exponent


class SourceRows(NamedTuple):
    """Columns of one or more files of a log, and where each row stands."""

    table: pa.Table
    parts: list[tuple[Path, int]]  # file and its number of rows, in the order of the table
    first_line: int = 2  # line of a text file that holds its first row
    lines: Mapping[Path, np.ndarray] = {}  # line of each row, of a text that has empty lines or breaks within rows

    def place(self, row: int) -> str:
        """File and line of a row, for an error."""
        for path, rows in self.parts:
            if row < rows:
                line = self.lines[path][row] if path in self.lines else row + self.first_line
                return f"{path}: row {row + 1}" if is_parquet(path) else f"{path}:{line}"
            row -= rows
        raise AssertionError(f"row {row} beyond the table")

    def require(self, *names: str) -> None:
        """InputError where there are no rows, or with the place of the first where one of these columns has nothing."""
        if not self.table.num_rows:
            raise InputError(self.parts[0][0], found="a log without events", expected="events", do="check the source")
        for name in names:
            column = self.table.column(name)
            if column.null_count:
                row = compute.index(compute.is_null(column), True).as_py()
                raise InputError(self.place(row), found=f"no {name}", expected=f"a {name} in every row",
                                 do="correct or remove the row")


def is_parquet(path: Path) -> bool:
    """Whether the name says Parquet."""
    return path.suffix == ".parquet"


def candidates(folder: Path, pattern: str) -> list[Path]:
    """The files of this name, plain or gzipped."""
    return sorted([*folder.glob(pattern), *folder.glob(f"{pattern}.gz")])


def one_file(folder: Path, pattern: str) -> Path:
    """The one file of this name, plain or gzipped."""
    paths = candidates(folder, pattern)
    if len(paths) != 1:
        raise InputError(folder, found=f"{len(paths)} files {pattern}(.gz)", expected="one", do="check the folder")
    return paths[0]


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a text file, unpacked where they are gzip, whatever the name says; InputError for other archives."""
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a text file", do="check the path")
    with open(path, "rb") as file:
        start = file.read(8)
    for mark, what in _NO_TEXT.items():
        if start.startswith(mark):
            raise InputError(path, found=what, expected="a text file, plain or gzipped", do="write it as UTF-8 text")
    return (gzip.open if start.startswith(_GZIP) else open)(path, "rb")


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text file, plain or gzipped; a break or a byte of another encoding names the line that it is
    in.
    """
    number = 0
    try:
        with io.TextIOWrapper(open_bytes(path), encoding) as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), ""), start=1):
                if len(line) > LONGEST_LINE:  # an archive of a few bytes may hold a line without an end
                    raise ValueError(f"a line of more than {LONGEST_LINE:,} characters")
                yield line
    except UnicodeDecodeError as error:
        raise _other_encoding(path, encoding) from error
    except UNREADABLE as error:
        raise InputError(
            f"{path}:{number + 1}",
            found=f"no readable text ({error})",
            expected=f"{encoding.removesuffix('-sig')} text",
            do="the file may be cut short: copy it again",
        ) from error


def _other_encoding(path: Path, encoding: str) -> InputError:
    """The error for a text that is not `encoding`, with the first line that is not and what it may be."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                break
    wide = line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    perhaps = ["UTF-16"] if wide else [name for name in _ENCODINGS if _decodes(line, name)]
    return InputError(f"{path}:{number}", found=f"bytes that are no UTF-8 (perhaps {' or '.join(perhaps)})",
                      expected="UTF-8 text", do=f"write it as UTF-8: iconv -f {perhaps[0]} -t UTF-8 {path.name}")


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        return bool(line.decode(encoding))
    except UnicodeDecodeError:  # not this one
        return False


def split_lines(path: Path, form: str, *, delimiter: str, encoding: str = "latin-1") -> list[list[str]]:
    """The fields of a small file without quotes, blank lines left out; `form` is what a line must look like."""
    rows = []
    for number, line in enumerate(text_lines(path, encoding), start=1):
        if not line.strip():
            continue
        rows.append(row := line.rstrip("\r\n").split(delimiter))
        if len(row) != form.count(delimiter) + 1:
            raise InputError(f"{path}:{number}", found=f"{len(row)} fields", expected=form, do="copy the file again")
    return rows


def json_records(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, record) of each line: JSON, or a Python dictionary of plain values as old Amazon files have it."""
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = _record(line)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise InputError(
                f"{path}:{number}",
                found=f"no record ({str(error) or type(error).__name__})",
                expected="one JSON object a line",
                do="the file may be cut short: copy it again",
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}", found=f"a {type(record).__name__}", expected="one JSON object a line",
                             do="check that this is the right file")
        yield f"{path}:{number}", record


def _record(line: str) -> object:
    if len(line) > LONGEST_RECORD:
        raise ValueError(f"a line of {len(line):,} characters")
    try:
        return json.loads(line)
    except ValueError:  # single quotes: a Python literal; literal_eval runs no code
        _refuse_formulas(line)
        return ast.literal_eval(line.strip())


def _refuse_formulas(line: str) -> None:
    """ValueError for signs that belong to no number, and for deep nesting: either can end an old Python's parser."""
    bare = "".join(_STRING.sub("''", line).split())
    depth = deepest = 0
    for bracket in _BRACKET.findall(bare):
        depth += 1 if bracket in "([{" else -1
        deepest = max(depth, deepest)
    if deepest > _DEEPEST or _FORMULA.search(bare):
        raise ValueError("no plain values")


def json_columns(path: Path, columns: dict[str, pa.DataType]) -> SourceRows:
    """These fields of JSON lines, null where a line lacks one; InputError with the line for what is no record."""
    reading = arrow_json.ReadOptions(use_threads=False, block_size=LONGEST_RECORD)
    form = arrow_json.ParseOptions(explicit_schema=pa.schema(list(columns.items())), unexpected_field_behavior="ignore")
    try:
        with open_bytes(path) as file:
            table = arrow_json.read_json(file, read_options=reading, parse_options=form)
    except UNREADABLE:  # Arrow tells no line and refuses some texts that Python admits
        table = _json_columns_by_line(path, columns)
    return SourceRows(table, [(path, table.num_rows)], first_line=1)


def _json_columns_by_line(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    """What `json_columns` gives, line by line: slower, and it knows the line that is broken."""
    values: dict[str, list] = {name: [] for name in columns}
    for place, record in json_records(path):
        for name, kind in columns.items():
            value = record.get(name)
            try:
                values[name].append(pa.scalar(value, kind).as_py())
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise InputError(place, found=f"{name} {value!r:.80}", expected=f"a {kind}",
                                 do="correct the line") from error
    return pa.table({name: pa.array(held, columns[name]) for name, held in values.items()})
