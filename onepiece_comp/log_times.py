"""Times of other logs: Unix seconds, milliseconds, microseconds, nanoseconds or texts, told apart by their size.

A guess is never silent: `Ticks.stated` says what was taken for what and enters raw.json and the printed table.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from onepiece_comp.errors import InputError
from onepiece_comp.log_files import Rows

UNITS = {"seconds": 1, "milliseconds": 10 ** 3, "microseconds": 10 ** 6, "nanoseconds": 10 ** 9}
LARGEST_SECONDS = 1e11  # the year 5138; in milliseconds March 1973
MICROSECONDS = UNITS["microseconds"]


class Ticks(NamedTuple):
    """Times since 1970 (UTC) of all rows, int64, and what they were taken for."""

    values: np.ndarray
    per_second: int
    stated: str


def ticks(rows: Rows, name: str) -> Ticks:
    """The times in a column; InputError with the place of a row that has none or that differs in unit from others."""
    rows.require(name)
    column = rows.table.column(name)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return _with_range(_of_numbers(rows, name, column.to_numpy()))
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return _with_range(_of_moments(rows, name, column.to_pandas(), f"{column.type} of the file"))
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        raise InputError(rows.parts[0][0], found=f"a column {name} of {column.type}",
                         expected="numbers, texts or timestamps", do="choose another column")
    texts = column.to_pandas()
    numbers = pd.to_numeric(texts, errors="coerce")
    if numbers.notna().mean() > 0.5:
        _refuse(rows, name, texts, numbers.isna().to_numpy(), expected="a number, as in most rows")
        return _with_range(_of_numbers(rows, name, numbers.to_numpy()))
    return _with_range(_of_moments(rows, name, texts, "ISO texts; those without a zone are UTC"))


def unit_of(size: float) -> str:
    """The unit in which a number is a time of our age.

    >>> unit_of(1.65e9), unit_of(1.65e12), unit_of(1.65e15), unit_of(1.65e18)
    ('seconds', 'milliseconds', 'microseconds', 'nanoseconds')
    """
    return next((name for name, per_second in UNITS.items() if size < LARGEST_SECONDS * per_second), "nanoseconds")


def _refuse(rows: Rows, name: str, values: np.ndarray | pd.Series, wrong: np.ndarray, *, expected: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        value = values[row].item() if isinstance(values[row], np.generic) else values[row]
        raise InputError(rows.place(row), found=f"{name} {value!r:.80}", expected=expected, do="correct the row")


def _of_numbers(rows: Rows, name: str, values: np.ndarray) -> Ticks:
    if not len(values):
        return Ticks(values.astype(np.int64), 1, "none")
    _refuse(rows, name, values, ~(np.isfinite(values) & (values >= 0)), expected="a time since 1970")
    unit = unit_of(float(np.median(values)))
    largest = LARGEST_SECONDS * UNITS[unit]
    smallest = 0 if unit == "seconds" else largest / 1000
    _refuse(rows, name, values, (values >= largest) | (values < smallest), expected=f"{unit}, as in most rows")
    stated = f"{unit}, guessed from the size of the numbers"
    if values.dtype.kind == "f" and (values != np.floor(values)).any() and unit in ("seconds", "milliseconds"):
        return Ticks(np.rint(values * (MICROSECONDS // UNITS[unit])).astype(np.int64), MICROSECONDS, stated)
    return Ticks(values.astype(np.int64), UNITS[unit], stated)


def _of_moments(rows: Rows, name: str, values: pd.Series, stated: str) -> Ticks:
    moments = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
    _refuse(rows, name, values, moments.isna().to_numpy(), expected="Unix time or ISO text (2022-05-06T10:00:00Z)")
    micros = moments.dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    _refuse(rows, name, values, micros < 0, expected="a time since 1970")
    return Ticks(micros, MICROSECONDS, stated)


def _with_range(found: Ticks) -> Ticks:
    """The statement with the range that follows from it, so that a wrong guess is seen."""
    if not len(found.values):
        return found
    first, last = (pd.Timestamp(int(moment) // found.per_second, unit="s")
                   for moment in (found.values.min(), found.values.max()))
    return found._replace(stated=f"{found.stated}: {first} to {last} UTC")
