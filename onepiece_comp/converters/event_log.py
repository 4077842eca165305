"""A whole log as columns, and its way into a raw folder: what the converters (`log_*.py`) share.

A creative id is ITEM_OFFSET plus the original number, because evaluation files tell re-ids from creative ids by size
alone; ids that are no numbers are numbered by first appearance and kept in original_ids.json. A log is sorted in
memory: these converters are for some ten million events.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as compute

from onepiece_comp import console
from onepiece_comp.artefacts import MARKERS, atomic_folder, write_json
from onepiece_comp.converters.feature_tables import NO_FEATURES, FeatureTable
from onepiece_comp.converters.files import SourceRows
from onepiece_comp.errors import InputError
from onepiece_comp.logs.embeddings import write_embedding
from onepiece_comp.logs.formats import CLICK, CONVERSION, EXPOSURE, Event, Features, UserLine
from onepiece_comp.logs.raw_folder import RawWriter

ITEM_OFFSET = 10_000_000_000
ORDINAL_START, ORDINAL_STEP = 1_000_000_000, 3600  # seconds, for logs that tell the order alone
STATED = ("times", "actions", "lines", "separated by", "not read")  # what raw.json and the printed table both tell
LONGEST_ID = 512  # characters
_PLAIN_NUMBER = re.compile("0|[1-9][0-9]{0,16}")
_WHOLE, _FRACTION = re.compile(r"(-?[0-9]+)\.0*"), re.compile(r"-?[0-9]*\.[0-9]*[1-9][0-9]*")


class Ids(NamedTuple):
    """A column of original ids: a number from 0 per event, by first appearance, and the id of each number."""

    codes: np.ndarray
    originals: list[str]


class EventLog(NamedTuple):
    """Events of all users: parallel columns, whose order settles equal times."""

    users: Sequence[str]  # original ids by user number
    user: np.ndarray  # user number of each event
    creative_id: np.ndarray
    action: np.ndarray
    time: np.ndarray  # Unix seconds


class NumberedLog(NamedTuple):
    """A log, the original ids of its items where they are no numbers, and how many repeats were merged."""

    log: EventLog
    original_ids: dict[int, str] | None
    counts: dict[str, int]


class Extras(NamedTuple):
    """What a source may have beside its events."""

    user_features: FeatureTable = NO_FEATURES
    item_features: FeatureTable = NO_FEATURES
    vectors: dict[int, np.ndarray] | None = None  # by creative id; becomes feature 81
    original_ids: dict[int, str] | None = None  # of items whose ids are no numbers
    counts: dict[str, int] = {}  # what the converter did to the log
    published_names: dict[str, dict[str, str]] = {}  # "items" and "users" of a log of numbers: their names elsewhere


def original_item_id(creative_id: int) -> int:
    """The number of an item in its own log; for ids that are no numbers its key in original_ids.json."""
    return creative_id - ITEM_OFFSET


def ids(rows: SourceRows, name: str) -> Ids:
    """A column of texts or whole numbers as ids; InputError with the place of the first row that has none.

    Spaces around a text are no part of it, a whole number written as a float is the number, and letters with accents
    are the same in either of their forms; how many were changed is said.
    """
    column = rows.table.column(name)
    try:
        if pa.types.is_floating(column.type):
            column = _whole_numbers(rows, name)
        if not pa.types.is_dictionary(column.type):
            column = (column if pa.types.is_integer(column.type) else column.cast(pa.string())).dictionary_encode()
        held = column.combine_chunks()  # one dictionary for all blocks
        held = held.chunk(0) if isinstance(held, pa.ChunkedArray) else held
        codes, originals = held.indices.fill_null(-1).to_numpy(zero_copy_only=False), held.dictionary.to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise InputError(rows.parts[0][0], found=f"a column {name} of {column.type} ({error})",
                         expected="ids: texts or whole numbers", do="choose another column") from error
    written = [str(original) for original in originals]
    originals = _plain(written)
    empty = np.isin(codes, [-1, *(code for code, original in enumerate(originals) if not original)])
    if empty.any():
        raise InputError(rows.place(int(empty.argmax())), found=f"no {name}", expected=f"a {name} in every row",
                         do="correct or remove the row")
    strange = next((code for code, original in enumerate(originals) if "\n" in original or len(original) > LONGEST_ID),
                   None)
    if strange is not None:
        raise InputError(rows.place(int((codes == strange).argmax())), found=f"{name} {originals[strange]!r:.60}, "
                         f"{len(originals[strange]):,} characters",
                         do="correct the row, or the quotes that it stands in",
                         expected=f"an id: one line of at most {LONGEST_ID} characters")
    return _merged(codes, originals, written, f"{rows.parts[0][0]}: {name}")


def _whole_numbers(rows: SourceRows, name: str) -> pa.ChunkedArray:
    """A column of floats as whole numbers, null where it has none; InputError with the row of a fraction."""
    column = rows.table.column(name)
    column = compute.if_else(compute.is_nan(column), None, column)
    fractions = compute.not_equal(compute.floor(column), column)
    if compute.any(compute.or_(fractions, compute.is_inf(column))).as_py():
        row = compute.index(compute.or_(fractions, compute.is_inf(column)), True).as_py()
        raise InputError(rows.place(row), found=f"{name} {column[row].as_py()}", expected="ids: texts or whole numbers",
                         do="choose another column")
    return column.cast(pa.int64())


def _plain(originals: Sequence[str]) -> list[str]:
    """Ids without the spaces around them, accents in one form (NFC), and, unless one of them has a fraction,
    without `.0`.
    """
    stripped = [text.strip() if text.isascii() else unicodedata.normalize("NFC", text).strip() for text in originals]
    if not any("." in text for text in stripped) or any(map(_FRACTION.fullmatch, stripped)):
        return stripped
    return [number[1] if (number := _WHOLE.fullmatch(text)) else text for text in stripped]


def _merged(codes: np.ndarray, originals: list[str], written: list[str], place: str) -> Ids:
    """The ids with a number for each original; says how many were written otherwise."""
    changed = [code for code, original in enumerate(originals) if original != written[code]]
    if not changed:
        return Ids(codes, originals)
    console.say(f"note: {place}: {len(changed):,} values are read without spaces around them, without '.0' and with "
                f"accents in one form, for example "
                f"{written[changed[0]]!r} as {originals[changed[0]]!r}")
    distinct = {original: code for code, original in enumerate(dict.fromkeys(originals))}
    return Ids(np.array([distinct[original] for original in originals])[codes], list(distinct))


def as_held(column: pd.Series, held: Sequence[str]) -> pd.Series:
    """Ids of a feature table as the log has them: as they are written where it has that, else read like the log's."""
    known = column.isin(held) | column.isna()
    return column.where(known, pd.Series(_plain(column.fillna("").tolist()), column.index, dtype=column.dtype))


def of_the_log(table: pd.DataFrame, held: Sequence[str], path: Path, what: str) -> pd.DataFrame:
    """The rows of a feature table whose `id` the log has; InputError with an id of each side where none is."""
    known = table["id"].isin(held)
    if len(table) and not known.any():
        raise InputError(path, found=f"none of the log's {what}: {table['id'].iloc[0]!r} and {len(table) - 1:,} others",
                         expected=f"{what} such as {held[0]!r}",
                         do="write both files with the same ids (a leading zero counts)")
    return table[known].reset_index(drop=True)


def number_items(item: Ids) -> tuple[np.ndarray, dict[int, str] | None]:
    """Creative ids of items; one id that is no plain number makes all be numbered from 1."""
    if all(map(_PLAIN_NUMBER.fullmatch, item.originals)):
        return np.array(item.originals, np.int64)[item.codes] + ITEM_OFFSET, None
    return item.codes.astype(np.int64) + (1 + ITEM_OFFSET), dict(enumerate(item.originals, start=1))


def number_log(user: Ids, item: Ids, *, action: np.ndarray, ticks: np.ndarray, ticks_per_second: int = 1,
               exact: bool = False) -> NumberedLog:
    """The log of these columns; rows of equal user, item and time become one event with the strongest action.

    `exact`: only rows whose action is the same too. `ticks` are times since 1970; the order of the rows settles equal
    ones.
    """
    keys = [item.codes, ticks, user.codes]
    order = np.lexsort([action, *keys] if exact else keys)
    repeats = np.ones(len(order), bool)
    repeats[:1] = False
    for column in [action, *keys] if exact else keys:
        held = column[order]
        repeats[1:] &= held[1:] == held[:-1]
    merged = int(repeats.sum())
    rows = slice(None)
    if merged:
        starts = np.flatnonzero(~repeats)
        action = action.copy()
        action[order[starts]] = np.maximum.reduceat(action[order], starts)
        rows = np.sort(order[starts])  # the sort is stable: the first row of each repeat
    if ticks_per_second > 1:
        rows = np.arange(len(ticks))[rows]
        rows = rows[np.argsort(ticks[rows], kind="stable")]
    creative_ids, original_ids = number_items(Ids(item.codes[rows], item.originals))
    log = EventLog(user.originals, user.codes[rows], creative_ids, action[rows], ticks[rows] // ticks_per_second)
    return NumberedLog(log, original_ids, {"repeats merged": merged} if merged else {})


def positions_as_seconds(user: np.ndarray) -> np.ndarray:
    """Times for a log that tells the order alone: each user's events, in the order of the rows, one step apart."""
    order = np.argsort(user, kind="stable")
    first = np.searchsorted(user[order], user[order])
    place = np.empty(len(user), np.int64)
    place[order] = np.arange(len(user)) - first
    return ORDINAL_START + ORDINAL_STEP * place


def write_raw(out: Path, log: EventLog, about: dict, extras: Extras) -> Path:
    """Write the log as a raw folder with its marker and show what is in it; returns `out`.

    `about` must name the `source`; it enters raw.json as it is. The log has events, and times of `times.py`.
    """
    tables = (extras.user_features, extras.item_features)
    figures = _figures(log, extras)
    with atomic_folder(out, MARKERS["raw"], {**about, **figures}) as folder:
        with RawWriter(folder) as writer:
            for line in console.progress(_user_lines(log, extras), total=len(log.users), what="users written"):
                writer.add(line)
        if extras.vectors:
            known = ((creative_id, extras.vectors.get(creative_id)) for creative_id in writer.index.items)
            write_embedding(folder, "81", known, width=len(next(iter(extras.vectors.values()))))
        names = {"items": extras.original_ids} if extras.original_ids else extras.published_names
        if names:
            write_json(folder / "original_ids.json", names)
        write_json(folder / MARKERS["raw"], {
            **about, "item_id_offset": ITEM_OFFSET, "figures": figures,
            "features": {fid: column for table in tables for fid, column in table.columns.items()},
            "feature_values": {fid: numbers for table in tables for fid, numbers in table.numbers.items()},
            "feature_bins": {fid: edges for table in tables for fid, edges in table.bins.items()}})
    rows = [(name, pd.Timestamp(value, unit="s") if name in ("first time", "last time") else f"{value:,}")
            for name, value in figures.items()]
    stated = [(name, about[name]) for name in STATED if isinstance(about.get(name), str)]
    console.table(f"Converted {about['source']} into {out}", ["figure", "value"], rows + stated)
    return out


def _figures(log: EventLog, extras: Extras) -> dict[str, int]:
    actions = np.bincount(log.action, minlength=3)
    return {"users": len(log.users), "items": len(np.unique(log.creative_id)), "events": len(log.user),
            "exposures": int(actions[EXPOSURE]),
            "clicks": int(actions[CLICK]), "conversions": int(actions[CONVERSION]), "first time": int(log.time.min()),
            "last time": int(log.time.max()), **extras.counts}


def _features_by_creative_id(log: EventLog, extras: Extras) -> dict[int, Features]:
    records, found = extras.item_features.records, {}
    for creative_id in np.unique(log.creative_id).tolist() if records else ():
        key = original_item_id(creative_id)
        original = extras.original_ids[key] if extras.original_ids else str(key)
        if original in records:
            found[creative_id] = records[original]
    if records and not found:
        raise InputError("features of items",
                         found=f"none of the log's items: {next(iter(records))!r} and {len(records) - 1:,} others",
                         expected=f"items such as {original!r}", do="take the files of one log")
    return found


def _user_lines(log: EventLog, extras: Extras) -> Iterator[UserLine]:
    """Users by number, each one's events by (time, original order)."""
    order = np.lexsort((log.time, log.user))  # stable: equal times keep their order
    starts = np.searchsorted(log.user[order], np.arange(len(log.users) + 1)).tolist()
    features, nothing, profiles = _features_by_creative_id(log, extras), {}, extras.user_features.records
    has_profiles = bool(extras.user_features.columns)
    if profiles and profiles.keys().isdisjoint(log.users):
        raise InputError("features of users",
                         found=f"none of the log's users: {next(iter(profiles))!r} and {len(profiles) - 1:,} others",
                         expected=f"users such as {log.users[0]!r}", do="take the files of one log")
    for number, user in enumerate(log.users):
        rows = order[starts[number]:starts[number + 1]]
        events = [Event(creative_id, features.get(creative_id, nothing), action, seconds)
                  for creative_id, action, seconds in zip(*(column[rows].tolist() for column in log[2:]))]
        profile_time = events[-1].time if has_profiles else None
        yield UserLine(user, profiles.get(user, {}), profile_time, events)
