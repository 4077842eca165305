"""A table of events with named columns (CSV, TSV or Parquet, a file or a folder of parts) as a raw folder.

A converter of `convert.py`: the way in for any log without a format of its own. Units of time are guessed and said
(`times.py`); the words of an action column are looked up, never guessed (`actions.py`).
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from onepiece_comp.converters.actions import SHOWN_VALUES, actions_of, all_clicks, map_of
from onepiece_comp.converters.event_log import Extras, as_held, ids, number_log, of_the_log, write_raw
from onepiece_comp.converters.feature_tables import (
    ITEM_FEATURES_FROM, NO_FEATURES, USER_FEATURES_FROM, FeatureTable, feature_table, spread_lists)
from onepiece_comp.converters.files import TEXT, SourceRows, is_parquet
from onepiece_comp.converters.tables import (
    SEPARATORS, column_names, delimited, missing_columns, parquet_columns, read_frame, separator_of)
from onepiece_comp.converters.times import is_time, ticks
from onepiece_comp.errors import InputError

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def convert_table(source: Path, out: Path, *, user: str = "", item: str = "", time: str = "", action: str = "",
                  action_map: Sequence[str] = (), user_features: Path | None = None,
                  item_features: Path | None = None, columns: str = "", quote: str = "") -> Path:
    """The rows of a table as a raw folder; returns `out`.

    `user`, `item`, `time` and optionally `action` name its columns; without `action` every event is a click.
    `action_map` holds `value=0`, `=1` or `=2` for values that the known words do not cover. Feature tables have the
    column `user` or `item` too, and every other column is a feature. Rows that are the same in all four are merged.
    `columns` names the columns, between commas, of a text without a header; `quote` is what quotes fields of texts
    (`none`: nothing; by default `"`, between tabs nothing). InputError for a missing column (it lists those found), a
    row without a user, item, time or action, an unknown action (it lists the values found).
    """
    paths = table_files(Path(source))
    present = _names(paths, columns, quote)
    if not (user and item and time):
        raise InputError(source, found=f"the columns {', '.join(present)}", do="name them",
                         expected="a column each for --user, --item and --time")
    _refuse_no_header(paths[0], time, present, columns)
    if action_map and not action:
        raise InputError("--map", found="values of actions without --action", expected="both", do="name the column")
    rows = read_events(paths, user=user, item=item, time=time, action=action, columns=present if columns else None,
                       quote=quote)
    users, items, moments = ids(rows, user), ids(rows, item), ticks(rows, time)
    actions = (actions_of(rows, action, map_of(action_map)) if action
               else all_clicks(rows, "no column of actions was named"))
    log, original_ids, counts = number_log(users, items, action=actions.values, ticks=moments.values,
                                           ticks_per_second=moments.per_second, exact=True)
    about = {"source": "table", "files": [path.name for path in paths], "times": moments.stated,
             "actions": actions.stated, "columns": {"user": user, "item": item, "time": time, "action": action}}
    unread = [name for name in present if name not in about["columns"].values()]
    about |= {"not read": ", ".join(unread)} if unread else {}
    if not is_parquet(paths[0]):
        about["separated by"] = SEPARATORS[separator_of(paths[0])]
    held_users = _features(user_features, user, users.originals, quote, is_item=False, about=about, counts=counts)
    held_items = _features(item_features, item, items.originals, quote, is_item=True, about=about, counts=counts)
    return write_raw(Path(out), log, about, Extras(held_users, held_items, original_ids=original_ids, counts=counts))


def _names(paths: list[Path], columns: str, quote: str) -> list[str]:
    """The names of the columns: those given, else the header's."""
    present = column_names(paths[0], quote)
    if not columns:
        return present
    given = [name.strip() for name in columns.split(",")]
    if is_parquet(paths[0]) or len(given) != len(present) or not all(given):
        has = ("the names of Parquet" if is_parquet(paths[0])
               else f"{len(present)} fields in a row ({', '.join(present)})")
        raise InputError(f"--columns {columns}", found=f"{len(given)} names for {has}", do="correct the option",
                         expected="a name for each field of a text without a header")
    return given


def _refuse_no_header(path: Path, time: str, present: list[str], columns: str) -> None:
    """InputError where the first line is an event and would be lost as the names of columns."""
    if not columns and not is_parquet(path) and time in present and is_time(time):
        raise InputError(f"{path}:1", found=f"an event where the names of columns should be ({', '.join(present)})",
                         expected="a header", do="name the columns with --columns, for example --columns "
                         + ",".join("time" if name == time else f"c{place}" for place,
                                    name in enumerate(present, start=1)))


def table_files(source: Path) -> list[Path]:
    """The file, or the parts of a folder in the order of their names; hidden files and `_SUCCESS` are no parts."""
    if not source.is_dir():
        if source.is_file() and source.name.endswith(SUFFIXES):
            return [source]
        found = "a file of another kind" if source.is_file() else "no such file"
        raise InputError(source, found=found, expected=f"a table ({', '.join(SUFFIXES)})", do="check the path")
    parts = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith((".", "_")))
    tables = [path for path in parts if path.name.endswith(SUFFIXES)]
    kinds = {"parquet" if is_parquet(path) else separator_of(path) for path in tables}
    if not tables or len(kinds) > 1 or len(tables) < len(parts):
        names = ", ".join(path.name for path in parts[:SHOWN_VALUES]) or "none"
        raise InputError(
            source,
            found=f"the files {names}",
            expected="parts of one table and of one kind, nothing else",
            do="give the path of the file",
        )
    return tables


def is_table(source: Path) -> bool:
    """Whether this is a table with a header, or a folder of parts of one."""
    try:
        return len(column_names(table_files(source)[0])) >= 3
    except InputError:  # not this format; whoever asks tries the next
        return False


def read_events(paths: list[Path], *, user: str, item: str, time: str, action: str = "",
                columns: Sequence[str] | None = None, quote: str = "") -> SourceRows:
    """The named columns of all parts as one table; `columns` names those of texts without a header."""
    names = [name for name in (user, item, time, action) if name]
    if len(set(names)) < len(names):
        raise InputError(paths[0], found=f"one column for two things ({', '.join(names)})",
                         expected="a column each for user, item, time and action", do="correct the options")
    parts = [parquet_columns(path, names) if is_parquet(path) else
             _read_text(path, {name: TEXT for name in names if name != time}, time, columns, quote) for path in paths]
    try:
        table = pa.concat_tables([part.table.select(names) for part in parts], promote_options="permissive")
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputError(paths[0].parent, found=f"parts of different types ({error})", expected="one type per column",
                         do="write the parts again") from error
    return SourceRows(table, [place for part in parts for place in part.parts], parts[0].first_line,
                {path: lines for part in parts for path, lines in part.lines.items()})


def _read_text(path: Path, types: dict[str, pa.DataType], time: str, columns: Sequence[str] | None,
               quote: str) -> SourceRows:
    """A text: ids and actions as they are written, the time as numbers where all are."""
    of = lambda kind: delimited(path, {**types, time: kind}, separator=separator_of(path), names=columns, quote=quote)
    for kind, name in ((pa.int64(), "int64"), (pa.float64(), "double")):
        try:
            return of(kind)
        except InputError as error:
            if f"conversion error to {name}" not in error.found:
                raise
    return of(pa.string())


def _features(path: Path | None, key: str, held: list[str], quote: str, *, is_item: bool, about: dict,
              counts: dict[str, int]) -> FeatureTable:
    """The other columns of a table whose column `key` has the ids of the log; adds to `about` and `counts`."""
    if path is None:
        return NO_FEATURES
    path = Path(path)
    if key not in (present := column_names(path, quote)):
        raise missing_columns(path, [key], present, [key])
    table = read_frame(path, texts=[key], quote=quote)
    if pd.api.types.is_float_dtype(table[key]):  # whole numbers beside a missing one
        table[key] = table[key].astype("Int64")
    table.insert(0, "id", as_held(table.pop(key).astype("string"), held))
    repeated = table["id"].duplicated() & table["id"].notna()
    if repeated.any():
        raise InputError(path, found=f"{key} {table['id'][repeated].iloc[0]!r} a second time", expected="each id once",
                         do="keep one row of each")
    what = "items" if is_item else "users"
    table = of_the_log(table, held, path, what)
    counts |= {f"{what} without features": len(held) - len(table)}
    left_out = [name for name in table if name != "id" and not _is_feature(table[name])]
    if left_out:
        about[f"left out of {path.name}"] = f"{', '.join(left_out)}: neither numbers, texts nor lists of texts"
    table, groups = spread_lists(table.drop(columns=left_out)) if is_item else (table.drop(columns=left_out), [])
    return feature_table(table, first=ITEM_FEATURES_FROM if is_item else USER_FEATURES_FROM, shared=groups)


def _is_feature(column: pd.Series) -> bool:
    """Numbers, texts and lists of texts are; moments and nested records have no place in the layout."""
    if pd.api.types.is_numeric_dtype(column):
        return not pd.api.types.is_complex_dtype(column)
    known = column.dropna()
    return not pd.api.types.is_datetime64_any_dtype(column) and not any(isinstance(cell, dict) for cell in known)
