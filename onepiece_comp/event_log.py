"""A whole log as columns, and its way into a raw folder: what the converters of `convert.py` share.

A creative id is ITEM_OFFSET plus the original number, because evaluation files tell re-ids from creative ids by size
alone; ids that are no numbers are numbered by first appearance and kept in original_ids.json. Text values of features
are numbered in sorted order; raw.json says which column a feature id is and what its numbers mean.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from onepiece_comp import console
from onepiece_comp.artefacts import MARKERS, atomic_folder, write_json
from onepiece_comp.embeddings import write_embedding
from onepiece_comp.errors import InputError
from onepiece_comp.formats import CLICK, CONVERSION, EXPOSURE, Event, Features, UserLine
from onepiece_comp.raw_folder import RawWriter

ITEM_OFFSET = 10_000_000_000
_PLAIN_NUMBER = re.compile("0|[1-9][0-9]{0,16}")
USER_FEATURES_FROM, ITEM_FEATURES_FROM = 201, 301  # first feature ids; the competition's own end at 122


class Log(NamedTuple):
    """Events of all users: parallel columns, whose order settles equal times."""

    users: Sequence[str]  # original ids by user number
    user: np.ndarray  # user number of each event
    creative_id: np.ndarray
    action: np.ndarray
    time: np.ndarray  # Unix seconds


class FeatureTable(NamedTuple):
    """Features by original id, the column that each feature id stands for, and the numbers of text values."""

    records: dict[str, Features]
    columns: dict[str, str]
    numbers: dict[str, dict[str, int]]


class Extras(NamedTuple):
    """What a source may have beside its events."""

    user_features: FeatureTable = FeatureTable({}, {}, {})
    item_features: FeatureTable = FeatureTable({}, {}, {})
    vectors: dict[int, np.ndarray] | None = None  # by creative id; becomes feature 81
    original_ids: dict[int, str] | None = None  # of items whose ids are no numbers
    counts: dict[str, int] = {}  # what the converter did to the log


def original_item_id(creative_id: int) -> int:
    """The number of an item in its own log; for ids that are no numbers its key in original_ids.json."""
    return creative_id - ITEM_OFFSET


def number_items(originals: Sequence[str]) -> tuple[np.ndarray, dict[int, str] | None]:
    """Creative ids of item ids written as text; one that is no plain number makes all be numbered from 1."""
    if all(_PLAIN_NUMBER.fullmatch(text) for text in set(originals)):
        return np.array(originals, np.int64) + ITEM_OFFSET, None
    numbers: dict[str, int] = {}
    numbered = [numbers.setdefault(text, len(numbers) + 1) for text in originals]
    return np.array(numbered, np.int64) + ITEM_OFFSET, {number: text for text, number in numbers.items()}


def feature_table(table: pd.DataFrame, *, first: int, shared: Sequence[str] = ()) -> FeatureTable:
    """The columns beside `id` as features numbered from `first`; missing values are left out.

    Numbers stay as they are (fractions are cut off); texts are numbered in sorted order, together in `shared` columns.
    """
    names = [name for name in table.columns if name != "id"]
    columns = {str(fid): name for fid, name in enumerate(names, start=first)}
    together, numbers, values = _number_texts(*(table[name] for name in shared)), {}, []
    for fid, name in columns.items():
        column = table[name]
        if not pd.api.types.is_numeric_dtype(column):
            numbers[fid] = together if name in shared else _number_texts(column)
            column = column.map(numbers[fid])
        values.append([None if missing else int(value) for value, missing in zip(column, column.isna())])
    records = {str(original): {fid: value for fid, value in zip(columns, row) if value is not None}
               for original, *row in zip(table["id"], *values)}
    return FeatureTable(records, columns, numbers)


def _number_texts(*columns: pd.Series) -> dict[str, int]:
    texts = set().union(*(column.dropna().unique() for column in columns))
    return {text: number for number, text in enumerate(sorted(texts), start=1)}


def write_raw(out: Path, log: Log, about: dict, extras: Extras) -> Path:
    """Write the log as a raw folder with its marker and show what is in it; returns `out`.

    `about` must name the `source`; it enters raw.json as it is. InputError for times that are none.
    """
    if not len(log.user):
        raise InputError(about["source"], found="a log without events", expected="events", do="check the source")
    if log.time.min() < 0 or log.time.max() >= 1 << 40:
        raise InputError(out, found=f"times from {log.time.min()} to {log.time.max()}", expected="Unix seconds",
                         do="correct the times in the source")
    tables = (extras.user_features, extras.item_features)
    with atomic_folder(out, MARKERS["raw"]) as folder:
        with RawWriter(folder) as writer:
            for line in console.progress(_user_lines(log, extras), total=len(log.users), what="users written"):
                writer.add(line)
        if extras.vectors:
            known = ((creative_id, extras.vectors.get(creative_id)) for creative_id in writer.index.items)
            write_embedding(folder, "81", known, width=len(next(iter(extras.vectors.values()))))
        if extras.original_ids:
            write_json(folder / "original_ids.json", {"items": extras.original_ids})
        actions = Counter(log.action.tolist())
        figures = {"users": len(log.users), "items": len(writer.index.items), "events": len(log.user),
                   "exposures": actions[EXPOSURE], "clicks": actions[CLICK], "conversions": actions[CONVERSION],
                   "first time": int(log.time.min()), "last time": int(log.time.max()), **extras.counts}
        write_json(folder / MARKERS["raw"], {
            **about, "item_id_offset": ITEM_OFFSET, "figures": figures,
            "features": {fid: column for table in tables for fid, column in table.columns.items()},
            "feature_values": {fid: numbers for table in tables for fid, numbers in table.numbers.items()}})
    rows = [(name, pd.Timestamp(value, unit="s") if name in ("first time", "last time") else f"{value:,}")
            for name, value in figures.items()]
    console.table(f"Converted {about['source']} into {out}", ["figure", "value"], rows)
    return out


def _user_lines(log: Log, extras: Extras) -> Iterator[UserLine]:
    """Users by number, each one's events by (time, original order)."""
    order = np.lexsort((log.time, log.user))  # stable: equal times keep their order
    starts = np.searchsorted(log.user[order], np.arange(len(log.users) + 1))
    has_profiles = bool(extras.user_features.columns)
    for number, user in enumerate(log.users):
        rows, events = order[starts[number]:starts[number + 1]], []
        for creative_id, action, seconds in zip(*(column[rows].tolist() for column in log[2:])):
            key = original_item_id(creative_id)
            original = extras.original_ids[key] if extras.original_ids else str(key)
            events.append(Event(creative_id, extras.item_features.records.get(original, {}), action, seconds))
        profile_time = events[-1].time if has_profiles else None
        yield UserLine(user, extras.user_features.records.get(user, {}), profile_time, events)
