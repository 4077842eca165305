"""Tables of user and item features as the layout has them: whole numbers under feature ids.

Whole numbers stay as they are, texts are numbered in sorted order, numbers with fractions become tenths of their
distribution, lists of texts stay lists for users and become their first values for items. raw.json says which column
a feature id is, what its numbers mean and where the tenths part.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from onepiece_comp.logs.formats import Features

USER_FEATURES_FROM, ITEM_FEATURES_FROM = 201, 301  # first feature ids; the competition's own end at 122
FIRST_VALUES = 4  # values kept of a list that an item has
QUANTILES = 10
_LARGEST_WHOLE = 2.0 ** 53  # beyond it a float stands for many whole numbers


class FeatureTable(NamedTuple):
    """Features by original id, the column that each feature id stands for, and what the numbers mean."""

    records: dict[str, Features]
    columns: dict[str, str]
    numbers: dict[str, dict[str, int]]  # by feature id: text values
    bins: dict[str, list[float]] = {}  # by feature id: value n is from edge n - 1 up to edge n


NO_FEATURES = FeatureTable({}, {}, {})


def feature_table(table: pd.DataFrame, *, first: int, shared: Sequence[Sequence[str]] = (),
                  binned: Sequence[str] = ()) -> FeatureTable:
    """The columns beside `id` as features numbered from `first`; missing values and empty texts are left out.

    Each group of columns in `shared` has its texts numbered together. Columns in `binned` become quantiles even where
    all their numbers are whole.
    """
    names = [name for name in table.columns if name != "id"]
    columns = {str(fid): name for fid, name in enumerate(names, start=first)}
    together = {name: number_texts(*(table[each] for each in group)) for group in shared for name in group}
    numbers: dict[str, dict[str, int]] = {}
    bins: dict[str, list[float]] = {}
    values = []
    for fid, name in columns.items():
        column = table[name]
        if not pd.api.types.is_numeric_dtype(column):
            numbers[fid] = together.get(name) or number_texts(column)
            values.append(_numbered_texts(column, numbers[fid]))
            continue
        cells = column.to_numpy(np.float64, na_value=np.nan) if not _is_whole(column) else column
        if name in binned or not _is_whole(column) and _has_fractions(cells):
            cells, bins[fid] = quantiles(np.asarray(column.to_numpy(np.float64, na_value=np.nan)))
        missing = pd.isna(cells) | np.isinf(np.asarray(cells, np.float64))
        values.append([None if gone else int(value) for value, gone in zip(cells, missing)])
    records = {str(original): {fid: value for fid, value in zip(columns, row) if value is not None}
               for original, *row in zip(table["id"], *values)}
    return FeatureTable(records, columns, numbers, bins)


def _is_whole(column: pd.Series) -> bool:
    kind = column.dtype
    return (pd.api.types.is_integer_dtype(kind) or pd.api.types.is_bool_dtype(kind)) and not column.isna().any()


def _has_fractions(values: np.ndarray) -> bool:
    known = values[np.isfinite(values)]
    return bool((known != np.floor(known)).any() or (np.abs(known) >= _LARGEST_WHOLE).any())


def quantiles(values: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The number of each value's tenth (NaN where it is not finite) and the edges between them; equal edges are one.

    >>> quantiles(np.array([1.0, 2.0, 2.0, np.nan]))
    (array([ 0.,  1.,  1., nan]), [2.0])
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return np.full(len(values), np.nan), []
    edges = np.unique(np.quantile(known, np.arange(1, QUANTILES) / QUANTILES, method="higher"))
    edges = edges[edges > known.min()]
    return np.where(np.isfinite(values), np.digitize(values, edges), np.nan), edges.tolist()


def spread(column: pd.Series, name: str) -> dict[str, list]:
    """The first values of each list as columns `name 1`, `name 2`, ...: the layout has no list of an item."""
    lists = [cell if _is_list(cell) else [] for cell in column]
    width = min(FIRST_VALUES, max(map(len, lists), default=0))
    return {f"{name} {place + 1}": [held[place] if len(held) > place else None for held in lists]
            for place in range(width)}


def spread_lists(table: pd.DataFrame) -> tuple[pd.DataFrame, list[list[str]]]:
    """The table with each column of lists spread over columns of its own, and these columns' names by list."""
    columns, groups = {}, []
    for name in table.columns:
        if name != "id" and _holds_lists(table[name]):
            added = spread(table[name], name)
            groups.append(list(added))
            columns.update(added)
        else:
            columns[name] = table[name].to_numpy()
    return pd.DataFrame(columns, index=table.index), groups


def number_texts(*columns: pd.Series) -> dict[str, int]:
    """Numbers from 1, in sorted order, of the texts in these columns and in the lists that they hold."""
    texts: set[str] = set()
    for column in columns:
        for cell in column if _holds_lists(column) else column.unique():
            texts.update(str(each) for each in (cell if _is_list(cell) else [cell]) if not _is_missing(each))
    return {text: number for number, text in enumerate(sorted(texts), start=1)}


def _numbered_texts(column: pd.Series, numbers: dict[str, int]) -> list[int | list[int] | None]:
    if _holds_lists(column):
        return [_numbered(cell, numbers) for cell in column]
    codes, texts = pd.factorize(column)  # -1 for what is missing
    by_code = [*(_numbered(text, numbers) for text in texts), None]
    return [by_code[code] for code in codes]


def _holds_lists(column: pd.Series) -> bool:
    return column.dtype == object and any(map(_is_list, column))


def _numbered(cell: object, numbers: dict[str, int]) -> int | list[int] | None:
    if _is_list(cell):
        return [numbers[str(each)] for each in cell if not _is_missing(each)] or None
    return None if _is_missing(cell) else numbers[str(cell)]


def _is_list(cell: object) -> bool:
    return isinstance(cell, (list, tuple, np.ndarray))


def _is_missing(cell: object) -> bool:
    return cell is None or cell is pd.NA or cell is pd.NaT or cell == "" or (isinstance(cell, float) and cell != cell)
