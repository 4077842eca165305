"""Files of other logs as columns: delimited texts, Parquet and JSON lines, each may be gzipped.

What the converters read with; `event_log.py` makes a log of the columns. Large files go through Arrow with the types
given, so that a row of another width, a cut archive or a word among numbers is an error with its row, never a guess.
"""

import ast
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json
import pyarrow.parquet as parquet

from onepiece_comp.errors import InputError

UNREADABLE = (ValueError, OSError, EOFError, zlib.error, pa.ArrowException)  # what broken files raise
TEXT = pa.dictionary(pa.int32(), pa.string())  # a number per row and each text once
BLOCK_BYTES = 1 << 22
LONGEST_RECORD = 1 << 24  # characters of a record of JSON lines
LONGEST_LINE = 1 << 28  # characters
_DEEPEST = 50  # brackets within brackets of a record that is a Python literal
_STRING, _BRACKET = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""), re.compile(r"[()\[\]{}]")
_FORMULA = re.compile(r"(?<![\[({,:])(?<!\d[eE])[-+~]")  # a sign that neither starts a value nor an exponent


class Rows(NamedTuple):
    """Columns of one or more files of a log, and where each row stands."""

    table: pa.Table
    parts: list[tuple[Path, int]]  # file and its number of rows, in the order of the table
    first_line: int = 2  # line of a text file that holds its first row

    def place(self, row: int) -> str:
        """File and line of a row, for an error."""
        for path, rows in self.parts:
            if row < rows:
                return f"{path}: row {row + 1}" if is_parquet(path) else f"{path}:{row + self.first_line}"
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


def delimiter_of(path: Path) -> str:
    """A tab for .tsv, else a comma."""
    return "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","


def candidates(folder: Path, pattern: str) -> list[Path]:
    """The files of this name, plain or gzipped."""
    return sorted([*folder.glob(pattern), *folder.glob(f"{pattern}.gz")])


def one_file(folder: Path, pattern: str) -> Path:
    """The one file of this name, plain or gzipped."""
    paths = candidates(folder, pattern)
    if len(paths) != 1:
        raise InputError(folder, found=f"{len(paths)} files {pattern}(.gz)", expected="one", do="check the folder")
    return paths[0]


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text file, gzipped if its name ends in .gz; a break names the line that it is in."""
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a text file", do="check the path")
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding=encoding) as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), ""), start=1):
                if len(line) > LONGEST_LINE:  # an archive of a few bytes may hold a line without an end
                    raise ValueError(f"a line of more than {LONGEST_LINE:,} characters")
                yield line
    except UNREADABLE as error:
        raise InputError(
            f"{path}:{number + 1}",
            found=f"no readable text ({error})",
            expected=f"{encoding.removesuffix('-sig')} text",
            do="the file may be cut short: copy it again",
        ) from error


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


def header(path: Path, delimiter: str) -> list[str]:
    """The names in the first line of a delimited text."""
    first = next(text_lines(path, "utf-8-sig"), "")
    if not first.strip():
        raise InputError(path, found="an empty file", expected="a header and rows", do="check the path")
    try:
        return next(csv.reader([first.rstrip("\r\n")], delimiter=delimiter))
    except csv.Error as error:
        raise InputError(f"{path}:1", found=f"no header ({error})", expected="names of columns",
                         do="check that this is the right file") from error


def column_names(path: Path) -> list[str]:
    """The names of the columns of a Parquet, CSV or TSV file."""
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a Parquet or CSV file", do="check the path")
    if not is_parquet(path):
        return header(path, delimiter_of(path))
    try:
        return parquet.read_schema(path).names
    except UNREADABLE as error:
        raise _broken(path, error, "a Parquet file") from error


def missing_columns(path: Path, missing: Sequence[str], present: Sequence[str], wanted: Sequence[str]) -> InputError:
    """The error that names columns that are not there and those that are."""
    return InputError(path, found=f"no column {', '.join(missing)} (but {', '.join(present)})",
                      expected=", ".join(wanted), do="check that this is the right file")


def delimited(path: Path, columns: dict[str, pa.DataType], *, delimiter: str = ",", names: Sequence[str] | None = None,
              quoted: bool = True) -> Rows:
    """These columns, with their types, of a text with a header, or of one without whose columns are `names`.

    In columns of texts an empty field is an empty text; in others it, NA and the like are null. InputError for a
    missing column, a row of another width, a value of another type, an archive that is cut short.
    """
    present = list(names or header(path, delimiter))
    missing = [name for name in columns if name not in present]
    if missing:
        raise missing_columns(path, missing, present, list(columns))
    reading = arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names)
    form = arrow_csv.ParseOptions(delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted)
    kinds = arrow_csv.ConvertOptions(column_types=columns, include_columns=list(columns))
    try:
        with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as file:
            with arrow_csv.open_csv(file, read_options=reading, parse_options=form, convert_options=kinds) as reader:
                table = reader.read_all()
    except UNREADABLE as error:
        raise _broken(path, error, f"rows of {delimiter.join(present)!r}") from error
    return Rows(table, [(path, table.num_rows)], 1 if names else 2)


def _broken(path: Path, error: Exception, expected: str) -> InputError:
    """Arrow's refusal with its row; the header counts as a row."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    row = re.search(r"Row #(\d+): ", text)
    place = f"{path}:{row[1]}" if row else path
    return InputError(place, found=f"no readable row ({text})" if row else f"no readable table ({text})",
                      expected=expected, do="correct the row" if row else "the file may be cut short: copy it again")


def parquet_columns(path: Path, columns: Sequence[str]) -> Rows:
    """These columns of a Parquet file, in the types that it gives them."""
    present = column_names(path)
    missing = [name for name in columns if name not in present]
    if missing:
        raise missing_columns(path, missing, present, columns)
    try:
        table = parquet.ParquetFile(path).read(columns=list(columns))
    except UNREADABLE as error:
        raise _broken(path, error, "a Parquet file") from error
    return Rows(table.select(list(columns)), [(path, table.num_rows)])


def read_frame(path: Path, columns: Sequence[str] | None = None, *, texts: Sequence[str] = (),
               missing_words: Sequence[str] = ()) -> pd.DataFrame:
    """These columns (default: all) of a small Parquet, CSV or TSV file, for features.

    In texts, `missing_words` stand for missing values too, and columns in `texts` are not read as numbers.
    """
    present = column_names(path)
    wanted = list(columns or present)
    missing = [name for name in wanted if name not in present]
    if missing:
        raise missing_columns(path, missing, present, wanted)
    try:
        return (
            pd.read_parquet(path, columns=wanted)
            if is_parquet(path)
            else pd.read_csv(
                path,
                usecols=wanted,
                sep=delimiter_of(path),
                na_values=list(missing_words),
                dtype=dict.fromkeys(texts, str),
            )
        )
    except UNREADABLE as error:
        raise InputError(
            path,
            found=f"no readable table ({error})",
            expected="a Parquet or CSV file",
            do="the file may be cut short: copy it again",
        ) from error


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


def json_columns(path: Path, columns: dict[str, pa.DataType]) -> Rows:
    """These fields of JSON lines, null where a line lacks one; InputError with the line for what is no record."""
    reading = arrow_json.ReadOptions(use_threads=False, block_size=LONGEST_RECORD)
    form = arrow_json.ParseOptions(explicit_schema=pa.schema(list(columns.items())), unexpected_field_behavior="ignore")
    try:
        with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as file:
            table = arrow_json.read_json(file, read_options=reading, parse_options=form)
    except UNREADABLE:  # Arrow tells no line and refuses some texts that Python admits
        table = _json_columns_by_line(path, columns)
    return Rows(table, [(path, table.num_rows)], first_line=1)


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
