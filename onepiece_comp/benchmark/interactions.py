"""Interactions of a public benchmark as columns: users in order, the items of each in order of time,
split leave-one-out.

Stands beside the conversion to a raw folder, which public protocols do not need: they know order and ids alone. Reads
sequences (SASRec, S3-Rec, P5), MovieLens ratings, and any Parquet, CSV or TSV table of user, item, time (in any form
that the converters read); numpy columns out. Legend: U users, E events, B users of a batch, T positions.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.converters.event_log import Ids, ids
from onepiece_comp.converters.files import SourceRows, candidates
from onepiece_comp.converters.movielens import is_movielens, ratings_file, read_ratings
from onepiece_comp.converters.sequences import join_times, read_attributes, read_lines, sequence_file
from onepiece_comp.converters.table import SUFFIXES, read_events
from onepiece_comp.converters.times import Ticks, ticks
from onepiece_comp.errors import InputError

FORMS = ("sequences", "ratings", "any")
TIES = ("file", "shuffled")  # the order of a user's events of the same time
LEAST_EVENTS = 3  # one to train on, one to validate, one to test


class Attributes(NamedTuple):
    """What is known of the items beside their ids, as numbers from 0 without gaps."""

    value: np.ndarray  # int64, item by item
    start: np.ndarray  # int64 [items + 2], into `value`; row 0, padding, has none
    count: int  # distinct ones


class Interactions(NamedTuple):
    """Events of the users that have at least LEAST_EVENTS;
    items are rows 1..items in order of first use, 0 is padding.
    """

    start: np.ndarray  # int64 [U + 1], into the events
    item: np.ndarray  # int32 [E]
    time_seconds: np.ndarray | None  # int64 [E]; None: order only
    items: int
    item_id: list[str]  # original id of row i at i - 1
    left_out: int  # users with fewer events
    attributes: Attributes | None = None  # None: no file of them

    @property
    def users(self) -> int:
        return len(self.start) - 1


class Window(NamedTuple):
    """The latest events of some users before the held-out ones, padded on the right."""

    item_BT: np.ndarray  # int64, 0 = padding
    time_BT: np.ndarray | None  # int64
    next_time_BT: np.ndarray | None  # int64, of the event that follows each
    length_B: np.ndarray  # int64


def read_interactions(source: Path, *, form: str = "any", ties: str = "file", seed: int = 0) -> Interactions:
    """The events of a file or folder; `ties` says how events of the same time are ordered, `seed` shuffles them.

    Beside a text of sequences may stand interactions.parquet (user, item, time), which gives the times, and
    item2attributes.json. InputError for what cannot be read, and for shuffled ties where there are no times.
    """
    source = Path(source)
    in_order, attributes = False, None
    if form == "ratings" or (form == "any" and is_movielens(source)):
        user, item, names, moments = _from_ratings(source)
    elif form == "any" and source.is_file() and source.name.endswith(SUFFIXES):
        user, item, names, moments = _from_table(source)
    else:
        user, item, names, moments = _from_sequences(source)
        attributes = _attributes(read_attributes(sequence_file(source)), names)
        in_order = ties == "file"  # the lines are the published order, whatever their times
    if ties == "shuffled" and moments is None:
        raise InputError(source, found="no times", expected="times, to know which events are tied",
                         do="put interactions.parquet (user, item, time) beside it")
    order = np.arange(len(user))
    if moments is not None and not in_order:
        tie = order if ties == "file" else np.random.default_rng(seed).permutation(len(user))
        order = np.lexsort((tie, moments.values, user))  # by the exact times: whole seconds would tie
    log = _columns(user[order], item[order], None if moments is None else moments.seconds()[order], names)
    return log._replace(attributes=attributes)


def files_of(source: Path, *, form: str) -> list[Path]:
    """The files that `read_interactions` reads."""
    source = Path(source)
    if form == "ratings" or (form == "any" and is_movielens(source)):
        return [ratings_file(source)[1]]
    path = sequence_file(source)
    return [path, *candidates(path.parent, "interactions.parquet")]


def sha256(paths: list[Path]) -> dict[str, str]:
    """Checksum of each file by its name."""
    found = {}
    for path in paths:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        found[path.name] = digest.hexdigest()
    return found


def _from_ratings(source: Path) -> tuple[np.ndarray, np.ndarray, list[str], Ticks]:
    """Every rating is an event, however many stars it gave, as the sequence benchmarks have it."""
    rows = read_ratings(*ratings_file(source))
    rows.require("user", "movie")
    return _from_rows(rows, "user", "movie", ticks(rows, "time", unit="seconds"))


def _from_table(source: Path) -> tuple[np.ndarray, np.ndarray, list[str], Ticks]:
    rows = read_events([source], user="user", item="item", time="time")
    return _from_rows(rows, "user", "item", ticks(rows, "time"))


def _from_rows(rows: SourceRows, user: str, item: str, moments: Ticks) -> tuple[np.ndarray, np.ndarray, list[str],
                                                                                Ticks]:
    users, items = _by_first_use(ids(rows, user)), _by_first_use(ids(rows, item))
    return users.codes, items.codes, items.originals, moments


def _from_sequences(source: Path) -> tuple[np.ndarray, np.ndarray, list[str], Ticks | None]:
    path = sequence_file(source)
    held, beside = read_lines(path), candidates(path.parent, "interactions.parquet")
    moments = None
    if beside:
        moments, timed, _ = join_times(beside[0], held)
        places = np.arange(len(held.user), dtype=np.int64) * moments.per_second  # of users without any time
        moments = moments._replace(values=np.where(timed, moments.values, places))
    return held.user, np.asarray(held.item.codes), held.item.originals, moments


def _attributes(lists: dict[str, list[int]] | None, names: list[str]) -> Attributes | None:
    if lists is None:
        return None
    held = [np.array(lists.get(name, ()), np.int64) for name in names]
    distinct, value = np.unique(np.concatenate(held), return_inverse=True)
    return Attributes(value, np.concatenate([[0, 0], np.cumsum([len(own) for own in held])]), len(distinct))


def _by_first_use(held: Ids) -> Ids:
    """The ids numbered from 0 in order of first use."""
    distinct, first, code = np.unique(held.codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return Ids(rank[code], [held.originals[distinct[place]] for place in order])


def _columns(user: np.ndarray, item: np.ndarray, seconds: np.ndarray | None, names: list[str]) -> Interactions:
    """Users with too few events are left out; their items stay in the catalogue."""
    counts = np.bincount(user)
    kept = counts[user] >= LEAST_EVENTS
    lengths = counts[counts >= LEAST_EVENTS]
    return Interactions(np.concatenate([[0], np.cumsum(lengths)]), (1 + item[kept]).astype(np.int32),
                        None if seconds is None else seconds[kept].astype(np.int64), len(names), list(names),
                        int((counts < LEAST_EVENTS).sum()))


def first_users(log: Interactions, count: int) -> Interactions:
    """The log of its first users alone, the catalogue unchanged."""
    end = log.start[min(count, log.users)]
    seconds = None if log.time_seconds is None else log.time_seconds[:end]
    return log._replace(start=log.start[:count + 1], item=log.item[:end], time_seconds=seconds)


def lengths(log: Interactions, held_out: int) -> np.ndarray:
    """Events of each user without the last `held_out`: int64 [U]."""
    return np.diff(log.start) - held_out


def targets(log: Interactions, held_out: int) -> np.ndarray:
    """The event behind each user's history: 1 gives the last one (test), 2 the one before it (validation)."""
    return log.item[log.start[1:] - held_out].astype(np.int64)


def repeats(log: Interactions, held_out: int) -> int:
    """Users whose target stands in their own history."""
    owner = np.repeat(np.arange(log.users), np.diff(log.start))
    before = np.arange(len(log.item)) < log.start[1:][owner] - held_out
    return len(np.unique(owner[before & (log.item == targets(log, held_out)[owner])]))


def window(log: Interactions, users: np.ndarray, *, held_out: int, longest: int | None = None) -> Window:
    """The last `longest` events of each user before the `held_out` last ones; at least one event each.

    The next time of a user's last event is that of the first held-out one: a query's time, if the model may know it.
    """
    end = log.start[1:][users] - held_out
    begin = log.start[:-1][users] if longest is None else np.maximum(log.start[:-1][users], end - longest)
    width = max(1, int((end - begin).max()))
    place = np.minimum(begin[:, None] + np.arange(width), (end - 1)[:, None])
    inside = np.arange(width) < (end - begin)[:, None]
    item = np.where(inside, log.item[place], 0).astype(np.int64)
    if log.time_seconds is None:
        return Window(item, None, None, end - begin)
    return Window(item, log.time_seconds[place], log.time_seconds[place + 1], end - begin)


def train_counts(log: Interactions) -> np.ndarray:
    """Training events of each item: int64 [items + 1]."""
    kept = np.ones(len(log.item), bool)
    for held_out in (1, 2):
        kept[log.start[1:] - held_out] = False
    return np.bincount(log.item[kept], minlength=log.items + 1)
