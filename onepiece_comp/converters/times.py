"""Times of other logs: Unix seconds, milliseconds, microseconds, nanoseconds or texts, told apart by their size.

A number is a time of 1990 to 2100, in one unit for the whole column; zero is a missing time. A guess is never silent:
`Ticks.stated` says what was taken for what and enters raw.json and the printed table.
"""

import re
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from onepiece_comp.converters.files import SourceRows
from onepiece_comp.errors import InputError

UNITS = {"seconds": 1, "milliseconds": 10 ** 3, "microseconds": 10 ** 6, "nanoseconds": 10 ** 9}
EARLIEST, LATEST = 631_152_000, 4_102_444_800  # Unix seconds of the years 1990 and 2100: no two units overlap
NANOSECONDS = UNITS["nanoseconds"]
_WRITTEN = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # dates by their digits
_FORMS = (f"Unix time from 1990 to 2100 in seconds ({1_598_918_400}) or milliseconds ({1_598_918_400_000}), or a date "
          "(2020-09-01, 2020-09-01T11:27:43Z)")
_UTC = r"\s*\b(?:UTC|GMT)\s*$"
_YEAR_FIRST = r"\s*\d{4}"  # else pandas takes "now" and "today" for times


class Ticks(NamedTuple):
    """Times since 1970 (UTC) of all rows, int64, and what they were taken for; 0 where a row may have none."""

    values: np.ndarray
    per_second: int
    stated: str

    def seconds(self) -> np.ndarray:
        """Whole Unix seconds, fractions cut."""
        return self.values // self.per_second


def ticks(rows: SourceRows, name: str, *, unit: str = "", gaps: bool = False) -> Ticks:
    """The times in a column; InputError with the place of a row that has none or that differs in unit from others.

    `unit` is what the format says of numbers, else it is guessed. With `gaps` a row may lack its time, and gets 0.
    """
    if not gaps:
        rows.require(name)
    column = rows.table.column(name)
    if pa.types.is_integer(column.type):
        return _of_numbers(rows, name, column.fill_null(0).to_pandas(), unit=unit, gaps=gaps)
    if pa.types.is_floating(column.type) or pa.types.is_null(column.type):
        return _of_numbers(rows, name, column.to_pandas(), unit=unit, gaps=gaps)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        moments = column.to_pandas()
        return _of_moments(rows, name, moments, moments, f"{column.type} of the file", gaps=gaps)
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        raise InputError(rows.parts[0][0], found=f"a column {name} of {column.type}",
                         expected="numbers, texts or timestamps", do="choose another column")
    texts = column.to_pandas().replace("", None)
    numbers = pd.to_numeric(texts, errors="coerce")
    if numbers.notna().sum() > 0.5 * texts.notna().sum():
        _refuse(rows, name, texts, numbers.isna() & texts.notna(), expected="a number, as in most rows")
        return _of_numbers(rows, name, numbers, unit=unit, gaps=gaps)
    iso = texts.str.replace(_UTC, "Z", regex=True).str.replace(",", ".", regex=False)
    iso = iso.where(texts.str.match(_YEAR_FIRST, na=False))
    return _of_moments(rows, name, texts, iso, "ISO texts; those without a zone are UTC", gaps=gaps)


def is_time(text: str) -> bool:
    """Whether a text is a time in any of the forms that are read, or a date of digits that is refused as a number.

    >>> is_time("978300760"), is_time("2020-09-01"), is_time("20200901"), is_time("timestamp"), is_time("7")
    (True, True, True, False, False)
    """
    number = pd.to_numeric(text, errors="coerce")
    if pd.notna(number):
        return bool(unit_of(np.array([number])) or _date(float(number)))
    return bool(re.match(_YEAR_FIRST, text)) and pd.notna(pd.to_datetime(text, errors="coerce", format="ISO8601"))


def unit_of(values: np.ndarray) -> str | None:
    """The unit in which most numbers are times of 1990 to 2100; None where none is in any.

    >>> unit_of(np.array([1.65e9])), unit_of(np.array([1.65e12, 1.65e12, 3])), unit_of(np.array([20200901]))
    ('seconds', 'milliseconds', None)
    """
    fit = {name: np.count_nonzero((values >= EARLIEST * size) & (values < LATEST * size)) for name,
           size in UNITS.items()}
    return max(fit, key=fit.__getitem__) if any(fit.values()) else None


def _refuse(rows: SourceRows, name: str, values: pd.Series, wrong: pd.Series | np.ndarray, *, expected: str,
            do: str = "correct the row") -> None:
    wrong = np.asarray(wrong)
    if wrong.any():
        row = int(wrong.argmax())
        value = values.iloc[row]
        raise InputError(rows.place(row),
                         found=f"{name} {value.item() if isinstance(value, np.generic) else value!r:.80}",
                         expected=expected, do=do)


def _of_numbers(rows: SourceRows, name: str, values: pd.Series, *, unit: str, gaps: bool) -> Ticks:
    missing = (values.isna() | (values == 0)).to_numpy()
    if not gaps:
        _refuse(rows, name, values, missing, expected="a time in every row: zero is a missing one",
                do="correct or remove the row")
    if missing.all():
        return Ticks(np.zeros(len(values), np.int64), 1, "none")
    fitting = unit_of(values[~missing].to_numpy())
    _refuse_dates(rows, name, values, missing, unit=fitting)
    guessed = unit or fitting
    per_second = UNITS[guessed]
    outside = ~values.between(EARLIEST * per_second, LATEST * per_second, inclusive="left") & ~missing
    _refuse(rows, name, values, outside,
            expected=f"{guessed} from 1990 to 2100" + ("" if unit else ", as in most rows"))
    stated = guessed if unit else f"{guessed}, guessed from the size of the numbers"
    whole = values.where(~missing, 0).to_numpy()
    if whole.dtype.kind == "f" and (whole != np.floor(whole)).any():
        return _with_range(Ticks(_nanoseconds(whole, per_second), NANOSECONDS, stated))
    return _with_range(Ticks(whole.astype(np.int64), per_second, stated))


def _refuse_dates(rows: SourceRows, name: str, values: pd.Series, missing: np.ndarray, *, unit: str | None) -> None:
    """InputError where no number is a time in any unit, or where all are dates and hours that pass for seconds."""
    first = int((~missing).argmax())
    date = _date(values.iloc[first])
    if unit is None or unit == "seconds" and date and all(map(_date, values[~missing].unique())):
        raise InputError(rows.place(first), found=f"{name} {values.iloc[first]:.15g}", expected=_FORMS,
                         do=f"if it is the date {date}, write it so" if date else "write it in one of these forms")


def _date(number: float) -> str | None:
    """The date from 1990 to 2100 that a number of 8 to 14 digits spells.

    >>> _date(20200901), _date(20200901112743), _date(1598918400)
    ('2020-09-01', '2020-09-01T11:27:43', None)
    """
    digits = f"{number:.0f}" if np.isfinite(number) else ""
    try:
        moment = datetime.strptime(digits, _WRITTEN[len(digits)])
    except (KeyError, ValueError):  # no date: whoever asks says so
        return None
    if not 1990 <= moment.year < 2100:
        return None
    return f"{moment:%Y-%m-%d}" if len(digits) == 8 else f"{moment:%Y-%m-%dT%H:%M:%S}"


def _nanoseconds(values: np.ndarray, per_second: int) -> np.ndarray:
    """Numbers with fractions in whole nanoseconds: a float's fraction is exact, its product is not."""
    whole, times = np.floor(values), NANOSECONDS // per_second
    return whole.astype(np.int64) * times + np.rint((values - whole) * times).astype(np.int64)


def _of_moments(rows: SourceRows, name: str, values: pd.Series, iso: pd.Series, stated: str, *, gaps: bool) -> Ticks:
    moments, start = pd.to_datetime(iso, errors="coerce", utc=True, format="ISO8601"), pd.Timestamp(0, tz="UTC")
    missing, none = values.isna() | (moments == start), "a time in every row: the start of 1970 is a missing one"
    if not gaps:
        _refuse(rows, name, values, missing, expected=none, do="correct or remove the row")
    _refuse(rows, name, values, moments.isna() & ~missing, expected="Unix time or ISO text (2022-05-06T10:00:00Z)")
    _refuse(rows, name, values, (moments < start) | (moments.dt.year >= 2100), expected="a time from 1970 to 2100")
    known = moments.mask(missing).dt.tz_localize(None).to_numpy().astype("datetime64[ns]")
    return _with_range(Ticks(np.where(np.isnat(known), 0, known.astype(np.int64)), NANOSECONDS, stated))


def _with_range(found: Ticks) -> Ticks:
    """The statement with the range that follows from it, so that a wrong guess is seen."""
    known = found.values[found.values != 0]
    if not len(known):
        return found
    first, last = (pd.Timestamp(int(moment) // found.per_second, unit="s") for moment in (known.min(), known.max()))
    days = ("" if (known % (86400 * found.per_second)).any()
            else "; whole days, within which the order of the rows counts")
    return found._replace(stated=f"{found.stated}: {first} to {last} UTC{days}")
