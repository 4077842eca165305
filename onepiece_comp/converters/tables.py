"""Tables of other logs: delimited text (plain or gzipped) and Parquet as columns,
with what quotes and empty fields mean.

Large files go through Arrow with the types given, so that a row of another width, a cut archive or a word among numbers
is an error with its row, never a guess. A text is quoted where fields stand between commas: there a quote that takes
rows into its field is an error. Between tabs a quote is a character like others.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet

from onepiece_comp.console import say
from onepiece_comp.converters.files import BLOCK_BYTES, UNREADABLE, SourceRows, is_parquet, open_bytes, text_lines
from onepiece_comp.errors import InputError

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
UNQUOTED = "none"  # instead of a character that quotes
LONGEST_QUOTED = 1 << 16  # characters of a quoted field that may hold line breaks and separators
# in a column of numbers: a missing one
NO_NUMBER = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "none", "-")
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")


def separator_of(path: Path) -> str:
    """What stands between the fields of a text: by its name a tab or a comma,
    unless the first line has another alone.
    """
    usual = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
    first = _first_line(path)
    return usual if usual in first else next((each for each in SEPARATORS if each in first), usual)


def _first_line(path: Path) -> str:
    first = next(text_lines(path, "utf-8-sig"), "")
    if not first.strip():
        raise InputError(path, found="an empty file", expected="a header and rows", do="check the path")
    if "\0" in first:
        raise InputError(f"{path}:1", found="zero bytes", expected="UTF-8 text",
                         do="write it as UTF-8 text (it may be UTF-16)")
    return first.rstrip("\r\n")


def header(path: Path, separator: str, quote: str = "") -> list[str]:
    """The names in the first line of a delimited text; `quote` as for `delimited`."""
    try:
        return next(csv.reader([_first_line(path)], **_form(separator, quote)))
    except csv.Error as error:
        raise InputError(f"{path}:1", found=f"no header ({error})", expected="names of columns",
                         do="check that this is the right file") from error


def _form(separator: str, quote: str) -> dict:
    """What `csv` has to know; by default only texts between tabs are without quotes."""
    quote = quote or (UNQUOTED if separator == "\t" else '"')
    return {"delimiter": separator, **({"quoting": csv.QUOTE_NONE} if quote == UNQUOTED else {"quotechar": quote})}


def column_names(path: Path, quote: str = "") -> list[str]:
    """The names of the columns of a Parquet file or a delimited text."""
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a Parquet or CSV file", do="check the path")
    if not is_parquet(path):
        return header(path, separator_of(path), quote)
    try:
        return parquet.read_schema(path).names
    except UNREADABLE as error:
        raise _broken(path, error, "a Parquet file") from error


def missing_columns(path: Path, missing: Sequence[str], present: Sequence[str], wanted: Sequence[str]) -> InputError:
    """The error that names columns that are not there and those that are."""
    do = "check that this is the right file"
    if any(_is_number(name) for name in present):
        do += "; if its first line is no header, name the columns with --columns"
    if any(name.startswith('"') for name in present):
        do += "; if quotes stand around its fields, give --quote '\"'"
    return InputError(path, found=f"no column {', '.join(missing)} (but {', '.join(present)})",
                      expected=", ".join(wanted), do=do)


def _chosen(path: Path, wanted: Sequence[str], present: Sequence[str]) -> list[str]:
    """The wanted columns; InputError where one is missing or stands twice."""
    missing = [name for name in wanted if name not in present]
    if missing:
        raise missing_columns(path, missing, present, wanted)
    twice = [name for name in wanted if list(present).count(name) > 1]
    if twice:
        raise InputError(path, found=f"the column {twice[0]} {list(present).count(twice[0])} times",
                         expected="names that differ",
                         do="rename one of them")
    return list(wanted)


def delimited(path: Path, columns: dict[str, pa.DataType], *, separator: str = ",", names: Sequence[str] | None = None,
              quote: str = "") -> SourceRows:
    """These columns, with their types, of a text with a header, or of one without whose columns are `names`.

    `quote` is the character that quotes fields, or UNQUOTED; by default `"` unless tabs separate. What it is by default
    is watched: InputError with its line for a quote that takes rows into its field. In columns of texts an empty field
    is an empty text; in others it, NA and the like are null. InputError for a missing column, a row of another width, a
    value of another type, an archive that is cut short.
    """
    present = list(names or header(path, separator, quote))
    wanted, csv_form = _chosen(path, list(columns), present), _form(separator, quote)
    quoted = "quotechar" in csv_form
    reading = arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names)
    form = arrow_csv.ParseOptions(delimiter=separator, quote_char=csv_form.get("quotechar", False),
                                  newlines_in_values=quoted)
    kinds = arrow_csv.ConvertOptions(column_types=columns, include_columns=wanted)
    rows_of = lambda: _row_lines(path, csv_form, watched=quoted and not quote, width=len(present))
    first = 1 if names else 2
    try:
        with open_bytes(path) as file:
            counted = _Counted(file)
            with arrow_csv.open_csv(counted, read_options=reading, parse_options=form, convert_options=kinds) as reader:
                table = reader.read_all()
    except UNREADABLE as error:
        lines = list(rows_of())  # another encoding and a quote that is not closed are said as what they are
        raise _broken(path, error, f"rows of {separator.join(present)!r}", lines) from error
    if counted.lines == table.num_rows + first - 1 and not counted.escaped:
        return SourceRows(table, [(path, table.num_rows)], first)
    lines = np.fromiter(rows_of(), np.int64)[first - 1:]
    return SourceRows(table, [(path, table.num_rows)], first, {path: lines} if len(lines) == table.num_rows else {})


class _Counted:
    """A binary file that counts the lines that are read from it, and quotes behind backslashes."""

    def __init__(self, file: object):
        self._file, self._breaks, self._end, self.escaped = file, 0, b"\n", 0
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._breaks += data.count(b"\n")
        self.escaped += data.count(b'\\"')
        self._end = data[-1:] or self._end
        return data

    def close(self) -> None:
        self.closed = True

    @property
    def lines(self) -> int:
        return self._breaks + (self._end != b"\n")


class _Taken:
    """Lines that remember those of the row that is being read."""

    def __init__(self, lines: Iterator[str]):
        self._lines, self.of_row, self.number = lines, [], 0

    def __iter__(self) -> "_Taken":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self.of_row.append(line)
        return line


def _row_lines(path: Path, form: dict, *, watched: bool, width: int) -> Iterator[int]:
    """The line that each row begins with; InputError, where `watched`, for a quoted field that swallows rows."""
    lines = _Taken(text_lines(path, "utf-8-sig"))
    start = 1
    try:
        for row in csv.reader(lines, **form):
            if watched and (len(lines.of_row) > 1 or '\\"' in lines.of_row[0]):
                _refuse_swallowed(path, start, lines.of_row, width=width, **form)
            if row:
                yield start
            start = lines.number + 1
            lines.of_row.clear()
    except csv.Error as error:
        raise InputError(f"{path}:{start}", found=f"a row that cannot be read ({error})",
                         expected=f"quoted fields of at most {csv.field_size_limit():,} characters",
                         do="correct the row") from error


def _refuse_swallowed(path: Path, line: int, taken: list[str], *, width: int, delimiter: str, quotechar: str) -> None:
    inside = next((each for each in taken[1:] if each.count(delimiter) == width - 1), None)
    found = None
    if any('\\"' in each for each in taken):
        found = f"a quote behind a backslash in {taken[0].strip()!r:.60}, which ends the field here"
    elif sum(each.count(quotechar) for each in taken) % 2:
        found = "a quote that is never closed"
    elif inside is not None and width > 1:
        found = f"a quoted field with what looks like rows in it, such as {inside.strip()!r:.60}"
    elif sum(map(len, taken)) > LONGEST_QUOTED:
        found = f"a quoted field of {len(taken):,} lines and more than {LONGEST_QUOTED:,} characters"
    if found:
        raise InputError(f"{path}:{line}", found=found,
                         expected="a quoted field that ends where it should, with quotes in it doubled",
                         do=f"correct it; --quote {UNQUOTED} if quotes are part of the texts, --quote '{quotechar}' "
                            f"if the field is right")


def _broken(path: Path, error: Exception, expected: str, lines: Sequence[int] = ()) -> InputError:
    """Arrow's refusal with its row; the header counts as a row."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    row = re.search(r"Row #(\d+): ", text)
    if not row:
        return InputError(path, found=f"no readable table ({text})", expected=expected,
                          do="the file may be cut short: copy it again")
    number = int(row[1])
    line = lines[number - 1] if number <= len(lines) else number
    return InputError(f"{path}:{line}", found=f"no readable row ({text})", expected=expected, do="correct the row")


def parquet_columns(path: Path, columns: Sequence[str]) -> SourceRows:
    """These columns of a Parquet file, in the types that it gives them."""
    wanted = _chosen(path, columns, column_names(path))
    try:
        table = parquet.ParquetFile(path).read(columns=wanted)
    except UNREADABLE as error:
        raise _broken(path, error, "a Parquet file") from error
    return SourceRows(table.select(wanted), [(path, table.num_rows)])


def read_frame(path: Path, columns: Sequence[str] | None = None, *, texts: Sequence[str] = (),
               missing_words: Sequence[str] = (), quote: str = "") -> pd.DataFrame:
    """These columns (default: all) of a small Parquet file or delimited text, for features.

    A column of a text is numbers where all its fields are but those of NO_NUMBER, which are missing then and said; else
    texts as they are written, empty ones missing. Columns in `texts` are never numbers; `missing_words` are missing
    too.
    """
    present = column_names(path, quote)
    wanted = _chosen(path, list(columns or present), present)
    if is_parquet(path):
        return parquet_columns(path, wanted).table.to_pandas()
    rows = delimited(path, dict.fromkeys(wanted, pa.string()), separator=separator_of(path), quote=quote)
    table = rows.table.to_pandas()
    return pd.DataFrame({name: _texts(table[name], missing_words) if name in texts else
                         _numbers_or_texts(table[name], missing_words, f"{path}: {name}") for name in wanted})


def _texts(column: pd.Series, missing_words: Sequence[str]) -> pd.Series:
    return column.where(~column.isin(["", *missing_words]), None)


def _numbers_or_texts(column: pd.Series, missing_words: Sequence[str], place: str) -> pd.Series:
    absent = column.isin([*NO_NUMBER, *missing_words])
    known = column[~absent]
    if known.isin(_TRUE + _FALSE).all():
        numbers = known.isin(_TRUE).astype(np.int64) if len(known) else None
    else:
        numbers = None if known.str.match(r"\s*[-+]?0\d").any() else pd.to_numeric(known, errors="coerce")
    if numbers is None or numbers.isna().any():
        return _texts(column, missing_words)
    words = column[absent & ~column.isin(["", *missing_words])]
    if len(words):
        say(f"note: {place}: {len(words):,} cells such as {words.iloc[0]!r} among numbers are taken for missing ones")
    return numbers.reindex(column.index)


def _is_number(text: str) -> bool:
    try:
        return bool(float(text)) or True
    except ValueError:  # a name
        return False
