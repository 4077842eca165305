"""Sequences of items, as SASRec, S3-Rec and P5 publish them, as a raw folder:
each user's items in order, without times.

A converter of `convert.py`. A line is a user and then items (S3-Rec, P5) or a user and one item (SASRec). Beside the
lines may stand `item2attributes.json` (S3-Rec puts the data set's name before it) and P5's `datamaps.json`, which names
the numbers; where there are no times, positions stand for them.
"""

import json
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from onepiece_comp.converters.event_log import (
    ORDINAL_START, ORDINAL_STEP, Extras, Ids, EventLog, number_items, positions_as_seconds, write_raw)
from onepiece_comp.converters.feature_tables import (
    FIRST_VALUES, ITEM_FEATURES_FROM, NO_FEATURES, FeatureTable, feature_table)
from onepiece_comp.converters.files import SourceRows, candidates, text_lines
from onepiece_comp.converters.tables import read_frame
from onepiece_comp.converters.times import Ticks, ticks
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import CLICK

FORM = "a user and then items, each user once, or a user and an item in every line"


class Sequences(NamedTuple):
    """The lines of a file as columns: users in their order, the number of each event's user, the events' items."""

    users: list[str]
    user: np.ndarray  # ascending
    item: Ids
    lines: str  # what a line is


def convert_sequences(source: Path, out: Path, interactions: Path | None = None) -> Path:
    """A text file (may be gzipped), a line = a user then items in order, or an event, as a raw folder; returns `out`.

    Every event is a click; `source` may be a folder with one such file. `interactions` (Parquet or CSV with user, item,
    time) gives the times; its items of each user must be the lines', in order, and a null time takes the one before
    it. Without it positions stand for times. InputError for what does not fit.
    """
    source = sequence_file(Path(source))
    held = read_lines(source)
    creative_ids, original_ids = number_items(held.item)
    times = positions_as_seconds(held.user)
    about, counts = {"source": "sequences", "actions": "1, all", "times": "order only", "lines": held.lines,
                     "ordinal_start": ORDINAL_START, "ordinal_step": ORDINAL_STEP}, {}
    if interactions is not None:
        moments, timed, counts = join_times(Path(interactions), held)
        times = np.where(timed, moments.seconds(), times)
        about["times"] = f"from the interactions: {moments.stated}"
    log = EventLog(held.users, held.user, creative_ids, np.full(len(held.user), CLICK, np.int8), times)
    return write_raw(Path(out), log, about, Extras(
        item_features=_attributes(source), original_ids=original_ids, counts=counts,
        published_names=_published_names(source.parent, held)))


def sequence_file(source: Path) -> Path:
    """The file itself, or the one of a folder whose first line has numbers alone; samples of negatives are none."""
    if not source.is_dir():
        return source
    paths = [path for path in candidates(source, "*.txt") if "sample" not in path.name and _starts_with_numbers(path)]
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths) or "none"
        raise InputError(source, found=f"{len(paths)} files of sequences ({names})", expected="one .txt of numbers",
                         do="give the path of the file")
    return paths[0]


def is_sequences(source: Path) -> bool:
    """Whether this is a text of user and item numbers, or a folder with one."""
    try:
        path = sequence_file(source)
        return path.name.removesuffix(".gz").endswith(".txt") and _starts_with_numbers(path)
    except InputError:  # not this format; whoever asks tries the next
        return False


def _starts_with_numbers(path: Path) -> bool:
    words = next(text_lines(path, "latin-1"), "").split()
    return len(words) > 1 and all(word.isascii() and word.isdigit() for word in words)


def read_lines(path: Path) -> Sequences:
    """The lines of a file: a user and all items, or, where every line is a user and one item, an event a line.

    InputError with the line for what is neither.
    """
    users: dict[str, int] = {}
    numbers: dict[str, int] = {}
    owners, lengths, codes, blank, again, longer = array("q"), array("q"), array("q"), 0, None, False
    for number, line in enumerate(text_lines(path), start=1):
        user, *items = line.split() or [""]
        if not user:
            blank = blank or number  # lines without anything are fine at the end of a file, and only there
            continue
        if blank or not items:
            raise InputError(f"{path}:{blank or number}", found="an empty line" if blank else "a line without items",
                             expected=FORM, do="correct the line")
        again = again or (user in users and (number, user))
        longer = longer or len(items) > 1
        if again and longer:
            raise InputError(f"{path}:{again[0]}", found=f"user {again[1]!r} a second time", expected=FORM,
                             do="correct the line")
        owners.append(users.setdefault(user, len(users)))
        lengths.append(len(items))
        codes.extend([numbers.setdefault(item, len(numbers)) for item in items])
    if not users:
        raise InputError(path, found="an empty file", expected="a line per user", do="check the path")
    user = np.repeat(np.frombuffer(owners, np.int64), np.frombuffer(lengths, np.int64))
    order = np.argsort(user, kind="stable")
    item = Ids(np.frombuffer(codes, np.int64)[order], list(numbers))
    return Sequences(list(users), user[order], item, "an event each" if again else "a user's items each")


def join_times(path: Path, held: Sequences) -> tuple[Ticks, np.ndarray, dict[str, int]]:
    """The time of each event in the order of the lines, which have one, and how many had none.

    A null time or zero takes the one before it of the same user, at the start the one after it; a user may be without.
    """
    table = read_frame(path, ["user", "item", "time"], texts=("user", "item"))
    place = {user: number for number, user in enumerate(held.users)}
    table["place"] = table["user"].astype(str).map(place)
    strange = table["user"][table["place"].isna()]
    if len(strange):
        raise InputError(path, found=f"user {strange.iloc[0]}", expected="the users of the sequence file",
                         do="check both files")
    rows = SourceRows(pa.Table.from_pandas(table[["time"]], preserve_index=False), [(path, len(table))])
    moments = ticks(rows, "time", gaps=True)
    order = np.argsort(table["place"].to_numpy(), kind="stable")
    _check_order(path, table.iloc[order].reset_index(drop=True), held)
    given = pd.Series(moments.values[order], dtype="Int64").replace(0, pd.NA)
    known = given.groupby(held.user).ffill()
    known = known.groupby(held.user).bfill()
    timed = known.notna().to_numpy()
    counts = {"times filled in": int(given.isna().sum()), "users without any time": len(np.unique(held.user[~timed]))}
    return moments._replace(values=known.fillna(0).to_numpy(np.int64)), timed, counts


def _check_order(path: Path, table: pd.DataFrame, held: Sequences) -> None:
    """InputError where the first event of the table differs from the one of the lines."""
    numbers = {item: number for number, item in enumerate(held.item.originals)}
    user, items = table["place"].to_numpy(np.int64), table["item"].astype(str)
    item = items.map(numbers).fillna(-1).to_numpy(np.int64)
    both = min(len(user), len(held.user))
    differs = np.flatnonzero((user[:both] != held.user[:both]) | (item[:both] != held.item.codes[:both]))
    if not len(differs) and len(user) == len(held.user):
        return
    at = int(differs[0]) if len(differs) else both
    first = min(int(column[at]) for column in (user, held.user) if at < len(column))
    got = items[at] if at < len(user) and user[at] == first else "missing"
    is_line = at < len(held.user) and held.user[at] == first
    wanted = held.item.originals[held.item.codes[at]] if is_line else "no more items"
    raise InputError(f"{path}: user {held.users[first]}", found=f"item {got}",
                     expected=f"{wanted}, as in the sequence file", do="bring both files into one order")


def _json_beside(path: Path) -> object:
    """The JSON value of a file, gzipped or not; InputError when it is none."""
    try:
        return json.loads("".join(text_lines(path)))
    except (ValueError, RecursionError) as error:
        raise InputError(path, found=f"no attributes or names ({error})", expected="one JSON object",
                         do="copy the file again") from error


def read_attributes(source: Path) -> dict[str, list[int]] | None:
    """The attributes of each item by its id, from the file beside the sequences; None where there is none."""
    stem = source.name.split(".")[0]
    paths = [path for name in (f"{stem}_item2attributes.json", "item2attributes.json")
             for path in candidates(source.parent, name)]
    if not paths:
        return None
    lists = _json_beside(paths[0])
    whole = isinstance(lists, dict) and all(isinstance(held, list) and all(type(value) is int for value in held)
                                            for held in lists.values())
    if not whole:
        raise InputError(paths[0], found="no attributes", do="copy the file again",
                         expected='{"item id": [attribute numbers], ...}')
    return lists


def _attributes(source: Path) -> FeatureTable:
    """The first attributes of each item, one feature per place."""
    lists = read_attributes(source)
    if lists is None:
        return NO_FEATURES
    columns = {f"attribute {place + 1}": [held[place] if len(held) > place else None for held in lists.values()]
               for place in range(FIRST_VALUES)}
    return feature_table(pd.DataFrame(columns, dtype="Int64").assign(id=list(lists)), first=ITEM_FEATURES_FROM)


def _published_names(folder: Path, held: Sequences) -> dict[str, dict[str, str]]:
    """What P5's datamaps.json calls the users and items of the lines; nothing where it is missing."""
    paths = candidates(folder, "datamaps.json")
    if not paths:
        return {}
    maps = _json_beside(paths[0])
    names = [maps.get(key) if isinstance(maps, dict) else None for key in ("id2item", "id2user")]
    if not all(isinstance(each, dict) for each in names):
        raise InputError(paths[0], found="no id2item and id2user", expected="P5's maps of numbers to names",
                         do="copy the file again, or take it away: it is optional")
    items, users = names
    for number in held.item.originals:
        if number not in items:
            raise InputError(paths[0], found=f"no name of item {number}", expected="every item of the sequences",
                             do="copy the file again, or take it away: it is optional")
    return {"items": {number: str(items[number]) for number in held.item.originals},
            "users": {number: str(users[number]) for number in held.users if number in users}}
