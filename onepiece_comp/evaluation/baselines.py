"""Rankings that learn nothing, which a model has to beat:
popularity, that of the last day, item-kNN, what was seen last.

Reads train/ and eval/ of a split (or the platform's folders) and writes one result file per baseline in the form of
`funnel/infer.py`, candidates alone and under the same filters as a model: with `infer.filter_seen` they leave out what
stands in the user's history and let it back where fewer than ten are left. Item-kNN: damped cosine between the sets of
users who clicked two items (Deshpande and Karypis 2004; damped as in Ferrari Dacrema et al. 2019). Memory: a number per
user and clicked item, the neighbours, a chunk.
"""

import json
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp import console
from onepiece_comp.config import InferConfig
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import (
    CLICK, CONVERSION, EXPOSURE, LIST, Event, Index, UserLine, read_candidates, read_sequences)
from onepiece_comp.logs.raw_folder import OriginalIds

NAMES = ("popularity", "popularity_day", "popularity_exposure", "item_knn", "last_seen")
LAST_SEEN = 5  # items of a history, the latest, that last_seen puts before the popular ones
NEIGHBOURS = 200  # similar candidates kept per item
LATEST = 50  # items kept of a user: their pairs grow with its square
DAMPING = 50.0  # users; a pair that one user made is no evidence
MIN_CLICK_SHARE = 0.01  # a log with fewer clicks is counted by all its events
DAY = 86400

CLICKS = frozenset((CLICK, CONVERSION))
_ANY = frozenset((EXPOSURE, CLICK, CONVERSION, None))
_BLOCK_EVENTS = 1 << 18
_BLOCK_PAIRS = 1 << 22
CHUNK_USERS = 512


class Baskets(NamedTuple):
    """The distinct items of each user, those of user u at start[u]:start[u + 1]."""

    item: np.ndarray  # int32, train's re-ids
    start: np.ndarray  # int64 [users + 1]


class TrainLog(NamedTuple):
    """What the baselines know of the training log."""

    clicks: np.ndarray  # int64 [items + 1] by train's re-id, 0 unused: events whose action is in `actions`
    events: np.ndarray  # int64 [items + 1], all events
    day_clicks: np.ndarray  # the same of the 24 hours up to the last event
    day_events: np.ndarray
    baskets: Baskets
    actions: frozenset  # the actions that count as clicks


class CandidateSet(NamedTuple):
    """The candidate set in retrieval order; a candidate's *number* is its place here."""

    creative_id: np.ndarray  # int64 [M]
    train_row: np.ndarray  # int64 [M], train's re-id, 0 for an item that training never saw


class Neighbours(NamedTuple):
    """The most similar candidates of each item, those of re-id i at start[i]:start[i + 1], most similar first."""

    number: np.ndarray  # int32
    similarity: np.ndarray  # float32
    start: np.ndarray  # int64 [items + 2]


class SeenItems(NamedTuple):
    """What a user to serve has met."""

    user: str  # original id
    hidden: list[int]  # candidate numbers that the filters drop, distinct
    latest: list[int]  # candidate numbers that they let be shown again, distinct, latest first, at most LAST_SEEN
    clicked: list[int]  # train's re-ids, distinct, latest first, at most LATEST


def names(config: InferConfig) -> tuple[str, ...]:
    """The baselines under these filters: where seen items are dropped, what was seen last is no answer."""
    return tuple(name for name in NAMES if name != "last_seen" or not config.filter_seen)


def load_candidates(path: Path, train_index: Index) -> CandidateSet:
    """The candidate set; InputError for fewer than ten, or one that stands twice."""
    pairs = sorted((candidate.retrieval_id, candidate.creative_id) for candidate in read_candidates(path))
    creative = [creative_id for _, creative_id in pairs]
    distinct = len(set(creative))
    if distinct < max(LIST, len(creative)):
        raise InputError(path, found=f"{len(creative)} candidates, {distinct} distinct",
                         expected=f"at least {LIST}, each once", do="check the candidate set")
    rows = [train_index.items.get(creative_id, 0) for creative_id in creative]
    return CandidateSet(np.array(creative, np.int64), np.array(rows, np.int64))


def read_train_log(path: Path, *, items: int) -> TrainLog:
    """Counts and baskets of clicks and conversions where the log has MIN_CLICK_SHARE of them, else of all events."""
    log = _read_log(path, items=items, actions=CLICKS)
    if log.clicks.sum() < MIN_CLICK_SHARE * log.events.sum():
        log = _read_log(path, items=items, actions=_ANY)
    return log


def _read_log(path: Path, *, items: int, actions: frozenset) -> TrainLog:
    clicks, events, day_clicks, day_events = np.zeros((4, items + 1), np.int64)
    recent, newest = np.empty((0, 3), np.int64), 0
    baskets = (array("i"), array("q", [0]))
    for block in _event_blocks(path, items, actions, baskets):
        item, clicked, seconds = block.T
        np.add.at(events, item, 1)
        np.add.at(clicks, item, clicked)
        newest = max(newest, int(seconds.max()))
        recent = np.concatenate([recent, block])
        recent = recent[recent[:, 2] > newest - DAY]
    if not events.any():
        raise InputError(path, found="no events", expected="a training log", do="check the file")
    np.add.at(day_events, recent[:, 0], 1)
    np.add.at(day_clicks, recent[:, 0], recent[:, 1])
    return TrainLog(clicks, events, day_clicks, day_events, Baskets(*map(np.array, baskets)), actions)


def _event_blocks(path: Path, items: int, actions: frozenset, baskets: tuple[array, array]) -> Iterator[np.ndarray]:
    """Rows (item, counts as a click, time) of many users at a time; each user's basket is appended on the way."""
    rows: list[tuple[int, bool, int]] = []
    for line in console.progress(read_sequences(path), total=None, what="users counted"):
        wrong = next((event.item for event in line.events if not 1 <= event.item <= items), None)
        if wrong is not None:
            raise InputError(f"{path}: user {line.user!r}", found=f"item {wrong}", do="copy both files again",
                             expected=f"1 to {items}, as indexer.pkl numbers them")
        rows.extend((event.item, event.action in actions, event.time) for event in line.events)
        baskets[0].extend(_latest(event.item for event in latest_first(line) if event.action in actions))
        baskets[1].append(len(baskets[0]))
        if len(rows) >= _BLOCK_EVENTS:
            yield np.array(rows, np.int64)
            rows = []
    if rows:
        yield np.array(rows, np.int64)


def latest_first(line: UserLine) -> list[Event]:
    """The events from the latest to the first, of one second the later in the file first: as the model reads them."""
    return sorted(line.events, key=lambda event: event.time)[::-1]


def _latest(items: Iterable[int]) -> list[int]:
    return list(islice(dict.fromkeys(items), LATEST))


def popularity_orders(log: TrainLog, candidates: CandidateSet) -> dict[str, np.ndarray]:
    """Candidate numbers by clicks, by clicks of the last day, by events; ties by events, then in retrieval order.

    What the last day did not see follows by all time; cold candidates (count 0) are the last.
    """
    row = candidates.train_row
    clicks, events, day_clicks, day_events = (-column[row] for column in log[:4])
    return {"popularity": np.lexsort((events, clicks)),
            "popularity_day": np.lexsort((events, clicks, day_events, day_clicks)),
            "popularity_exposure": np.lexsort((clicks, events))}


def _slices(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Indices of the slices start[i] .. start[i] + length[i], one after another."""
    return np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum())


def _first_of_each(group: np.ndarray, count: int) -> np.ndarray:
    """Which of the sorted group labels are among the first `count` of their group (bool)."""
    return np.arange(len(group)) - np.searchsorted(group, group) < count


def item_neighbours(baskets: Baskets, candidates: CandidateSet, *, items: int, damping: float = DAMPING) -> Neighbours:
    """The most similar candidates of each item: users of both / (sqrt(users of one * users of the other) + damping)."""
    size = np.diff(baskets.start)
    owner = np.repeat(np.arange(len(size)), size)
    owner_by_item = owner[np.argsort(baskets.item, kind="stable")]
    users = np.bincount(baskets.item, minlength=items + 1)
    item_start = np.concatenate([[0], np.cumsum(users)])
    number_of = np.full(items + 1, -1)  # cold candidates land on 0, which no basket holds
    number_of[candidates.train_row] = np.arange(len(candidates.train_row))
    pairs = np.concatenate([[0], np.cumsum(size[owner_by_item])])[item_start]
    edges = np.unique([0, *np.searchsorted(pairs, np.arange(_BLOCK_PAIRS, pairs[-1], _BLOCK_PAIRS)), items + 1])
    parts = []
    for low, high in console.progress(zip(edges, edges[1:]), total=len(edges) - 1, what="blocks of items compared"):
        entry_owner = owner_by_item[item_start[low]:item_start[high]]
        row = np.repeat(np.repeat(np.arange(low, high), users[low:high]), size[entry_owner])
        other = baskets.item[_slices(baskets.start[entry_owner], size[entry_owner])]
        parts.append(_top_neighbours(row, other, number_of=number_of, users=users, damping=damping))
    row, number, similarity = (np.concatenate(column) for column in zip(*parts))
    start = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=items + 1))])
    return Neighbours(number, similarity, start)


def _top_neighbours(row: np.ndarray, other: np.ndarray, *, number_of: np.ndarray,
                    users: np.ndarray, damping: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(item, candidate number, similarity) from the pairs of items that one user has, the best of each item only."""
    kept = (number_of[other] >= 0) & (row != other)
    pair, together = np.unique(row[kept] * len(users) + other[kept], return_counts=True)
    row, other = np.divmod(pair, len(users))
    similarity = together / (np.sqrt(users[row] * users[other].astype(np.float64)) + damping)
    best = np.lexsort((number_of[other], -similarity, row))
    best = best[_first_of_each(row[best], NEIGHBOURS)]
    return row[best].astype(np.int32), number_of[other[best]].astype(np.int32), similarity[best].astype(np.float32)


def each_once(path: Path) -> Iterator[UserLine]:
    """The users of the file; InputError for one that stands twice."""
    users: set[int | str] = set()
    for line in read_sequences(path):
        if line.user in users:
            raise InputError(path, found=f"user {line.user!r} on two lines", expected="one line per user",
                             do="merge them")
        users.add(line.user)
        yield line


def to_histories(lines: Iterable[UserLine], index: Index, train_index: Index, candidates: CandidateSet, *,
                 actions: frozenset, config: InferConfig) -> Iterator[SeenItems]:
    """The users to serve, one at a time; re-ids of the evaluation's index, creative ids of items that it lacks."""
    ids = OriginalIds(index._replace(features={}))
    number_of = {creative: number for number, creative in enumerate(candidates.creative_id.tolist())}
    warm = candidates.train_row > 0
    for line in lines:
        events = latest_first(line)
        creative = [ids.item(event.item) for event in events]
        clicked = (train_index.items.get(item, 0) for item, event in zip(creative, events) if event.action in actions)
        seen = list(dict.fromkeys(number_of[item] for item in creative if item in number_of))
        shown = [] if config.filter_seen else [number for number in seen if warm[number] or not config.filter_cold]
        yield SeenItems(ids.user(line.user), seen if config.filter_seen else [], shown[:LAST_SEEN],
                      _latest(row for row in clicked if row))


def rank_users(chunk: Sequence[SeenItems], orders: dict[str, np.ndarray], neighbours: Neighbours) -> dict:
    """Candidate numbers [users, LIST] by each baseline of NAMES."""
    similar = similar_items(chunk, neighbours, orders["popularity_day"])
    ranked = {name: [ten(order, history.hidden) for history in chunk] for name, order in orders.items()}
    ranked["item_knn"] = [ten(orders["popularity_day"], h.hidden, first=first) for h, first in zip(chunk, similar)]
    ranked["last_seen"] = [ten(orders["popularity"], history.hidden, first=history.latest) for history in chunk]
    return {name: np.array(rows, np.int64) for name, rows in ranked.items()}


def similar_items(chunk: Sequence[SeenItems], neighbours: Neighbours, order: np.ndarray) -> list[list[int]]:
    """Each user's best LIST that are not hidden, by summed similarity to the clicked items; ties as in `order`."""
    count = len(order)
    owner = np.repeat(np.arange(len(chunk)), [len(history.clicked) for history in chunk])
    row = np.fromiter(chain.from_iterable(history.clicked for history in chunk), np.int64, len(owner))
    length = neighbours.start[row + 1] - neighbours.start[row]
    flat = _slices(neighbours.start[row], length)
    key, place = np.unique(np.repeat(owner, length) * count + neighbours.number[flat], return_inverse=True)
    total = np.bincount(place, weights=neighbours.similarity[flat], minlength=len(key))
    hidden = [user * count + number for user, history in enumerate(chunk) for number in history.hidden]
    kept = ~np.isin(key, np.array(hidden, np.int64))
    user, number = np.divmod(key[kept], count)
    rank_of = np.empty(count, np.int64)
    rank_of[order] = np.arange(count)
    best = np.lexsort((rank_of[number], -total[kept], user))
    best = best[_first_of_each(user[best], LIST)]
    edges = np.searchsorted(user[best], np.arange(1, len(chunk)))
    return [part.tolist() for part in np.split(number[best], edges)]


def ten(order: np.ndarray, hidden: Sequence[int], *, first: Sequence[int] = ()) -> list[int]:
    """LIST distinct numbers: `first`, then `order`, without the hidden ones while others are left."""
    head = order[:LIST + len(hidden) + len(first)].tolist()
    dropped = set(hidden)
    kept = dict.fromkeys(number for number in chain(first, head) if number not in dropped)
    return list(islice(chain(kept, (number for number in head if number in dropped)), LIST))


class ResultWriter:
    """Write a result file chunk by chunk: the lists go to disk at once, the users' names at the end."""

    def __init__(self, path: Path, started: float):
        self._file, self._started = open(path, "w", encoding="utf-8"), started
        self._users: list[str] = []
        self._file.write('{"top10s": [')

    def write(self, users: Sequence[str], top10s: Sequence[Sequence[int]]) -> None:
        """Append some users and their lists of plain ints; at least one user."""
        self._file.write((", " if self._users else "") + json.dumps(top10s)[1:-1])
        self._users.extend(users)

    def __enter__(self) -> "ResultWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        seconds = round(time.monotonic() - self._started, 3)
        self._file.write(f'], "user": {json.dumps(self._users)}, "time": {seconds}}}\n')
        self._file.close()
