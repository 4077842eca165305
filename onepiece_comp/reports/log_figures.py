"""What a log is in numbers: one pass over blocks of events, then quantiles and shares of what was counted.

Used by `describe.py` on every layout of a log. Memory is a few arrays over the items, histograms of users and gaps,
and per day a count and a row of bits over a sample of the items: nothing grows with the number of events.
Legend: E events of a block, U its users, I items, D days with events.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from onepiece_comp.dataset.popularity_counts import DAY
from onepiece_comp.dataset.targets import NEVER
from onepiece_comp.logs.features import Feature, vocabulary_size
from onepiece_comp.logs.user_blocks import EventBlock, count_corners, in_time_order

EARLIEST_SECOND, LATEST_SECOND = 631_152_000, 4_102_444_800  # 1990 and 2100: outside, the unit is rather wrong
OVERLAP_DAYS = (1, 2, 7)
_BINS_PER_OCTAVE, _GAP_BINS = 8, 8 * 41  # times are below 2 ** 40
_MOST_TRACKED = 1 << 16  # items whose days are kept one by one
_MOST_DAYS = 20_000  # 55 years
_MOST_BITS = 256 << 20  # of days x tracked items


class LogFigures(NamedTuple):
    """What was counted; days are whole days since 1970, UTC, ascending."""

    counts: Counter  # see `count_corners`; duplicates, ties, events after the cut, events in impossible years
    items: int  # numbered, with or without events
    first_second: int
    last_second: int
    day: np.ndarray  # int64 [D]; empty where the times spread over more days than can be told apart
    events_of_day: np.ndarray  # int64 [D]
    cold_events_of_day: np.ndarray  # int64 [D], on items seen that day for the first time
    overlap: dict[int, float]  # days between two days to the mean Jaccard index of their items
    users_of_length: np.ndarray  # int64 [longest + 1]
    gaps_of_bin: np.ndarray  # int64, see `gap_seconds`
    item_count: np.ndarray  # int64 [items + 1]
    lifetime_seconds: np.ndarray  # int64 [items with events], first to last event

    @property
    def events(self) -> int:
        return self.counts["events"]

    def share(self, what: str) -> float:
        """A count as a share of the events."""
        return self.counts[what] / max(1, self.events)

    def cold_share(self) -> float:
        """Share of the last day's events on items first seen that day; 0 where the days are not known."""
        return float(self.cold_events_of_day[-1] / self.events_of_day[-1]) if len(self.day) else 0.0


class _Days:
    """Events per day, and which of a sample of the items were seen on each."""

    def __init__(self, items: int):
        self.step, self.lost = items // _MOST_TRACKED + 1, False
        self.row: dict[int, int] = {}
        self.events = np.zeros(64, np.int64)
        self.seen: np.ndarray | None = np.zeros((64, items // self.step + 1), bool)

    def add(self, item: np.ndarray, day: np.ndarray) -> None:
        days, place = np.unique(day, return_inverse=True)
        if self.lost or len(self.row) + len(days) > _MOST_DAYS:  # no log is so long: the times are something else
            self.lost, self.seen = True, None
            self.row.clear()
            return
        row = np.array([self.row.setdefault(one, len(self.row)) for one in days.tolist()], np.int64)
        self._grow(len(self.row))
        self.events[row] += np.bincount(place, minlength=len(days))
        if self.seen is not None:
            tracked = item % self.step == 0
            column = item[tracked] // self.step
            self.seen = _wide(self.seen, int(column.max(initial=0)) + 1)
            self.seen[row[place[tracked]], column] = True

    def _grow(self, rows: int) -> None:
        while len(self.events) < rows:
            self.events = np.append(self.events, np.zeros_like(self.events))
            if self.seen is not None:
                too_large = 2 * self.seen.size > _MOST_BITS
                self.seen = None if too_large else np.concatenate([self.seen, np.zeros_like(self.seen)])

    def overlap(self) -> dict[int, float]:
        """The mean over pairs of days so far apart of |both| / |either|; a pair needs an item of the sample."""
        found = {}
        for apart in OVERLAP_DAYS if self.seen is not None else ():
            values = []
            for day, row in self.row.items():
                if day + apart in self.row:
                    one, other = self.seen[row], self.seen[self.row[day + apart]]
                    either = np.count_nonzero(one | other)
                    values += [np.count_nonzero(one & other) / either] if either else []
            if values:
                found[apart] = float(np.mean(values))
        return found


def _wide(matrix: np.ndarray, columns: int) -> np.ndarray:
    """The matrix with room for so many columns."""
    lacking = columns - matrix.shape[1]
    return matrix if lacking <= 0 else np.pad(matrix, ((0, 0), (0, max(lacking, matrix.shape[1]))))


class LogTally:
    """Counts a log block by block. Events at or after `cut` (Unix seconds) are counted apart."""

    def __init__(self, items: int, *, cut: int | None = None):
        self.items, self.cut, self.counts = items, NEVER if cut is None else cut, Counter()
        self._count = np.zeros(items + 1, np.int64)
        self._first, self._last = np.full(items + 1, NEVER), np.full(items + 1, -1)
        self._on_first_day = np.zeros(items + 1, np.int64)
        self._days = _Days(items)
        self._lengths, self._gaps = np.zeros(1, np.int64), np.zeros(_GAP_BINS, np.int64)

    def add(self, block: EventBlock) -> None:
        """Count a block; items beyond those that were announced make room for themselves."""
        self.counts.update(count_corners(block))
        block = in_time_order(block)
        item, time, lengths = block.item, block.time_seconds, np.diff(block.user_start)
        user = np.repeat(np.arange(len(lengths)), lengths)
        gap = np.diff(time)[user[1:] == user[:-1]]
        self.counts.update({
            "ties": int((gap == 0).sum()), "duplicates": _duplicates(user, block),
            "events after the cut": int((time >= self.cut).sum()),
            "events in impossible years": int(((time < EARLIEST_SECOND) | (time >= LATEST_SECOND)).sum())})
        self._lengths = _sum(self._lengths, np.bincount(lengths, minlength=1))
        self._gaps += np.bincount((_BINS_PER_OCTAVE * np.log2(1 + gap)).astype(np.int64), minlength=_GAP_BINS)
        if len(item):
            self._make_room(int(item.max()))
            self._add_items(item, time)
            self._days.add(item, time // DAY)

    def _make_room(self, item: int) -> None:
        lacking = item + 1 - len(self._count)
        if lacking > 0:
            more = max(lacking, len(self._count))
            self._count, self._on_first_day = (np.pad(a, (0, more)) for a in (self._count, self._on_first_day))
            self._first = np.pad(self._first, (0, more), constant_values=NEVER)
            self._last = np.pad(self._last, (0, more), constant_values=-1)

    def _add_items(self, item: np.ndarray, time: np.ndarray) -> None:
        before = self._first[item] // DAY
        np.minimum.at(self._first, item, time)
        np.maximum.at(self._last, item, time)
        np.add.at(self._count, item, 1)
        day = self._first[item] // DAY
        self._on_first_day[item[day < before]] = 0  # what was counted lay on a later day
        np.add.at(self._on_first_day, item[time // DAY == day], 1)

    def figures(self) -> LogFigures:
        """What was counted so far."""
        seen = self._count > 0
        first, last, day = self._first[seen], self._last[seen], np.array(sorted(self._days.row), np.int64)
        rows = [self._days.row[one] for one in day.tolist()]
        cold = np.zeros(len(day), np.int64)
        if len(day):
            np.add.at(cold, np.searchsorted(day, first // DAY), self._on_first_day[seen])
        return LogFigures(
            self.counts, self.items, int(first.min(initial=NEVER)), int(last.max(initial=-1)), day,
            self._days.events[rows], cold, self._days.overlap(), self._lengths, self._gaps, self._count, last - first)


def _duplicates(user: np.ndarray, block: EventBlock) -> int:
    """Events equal to an earlier one in user, item, action and time; looked for among ties alone, which are few."""
    tie = (user[1:] == user[:-1]) & (np.diff(block.time_seconds) == 0)
    among = np.flatnonzero(np.append(tie, False) | np.append(False, tie)) if len(user) else np.empty(0, np.int64)
    rows = np.stack([user[among], block.time_seconds[among], block.item[among], block.action[among]])
    rows = rows[:, np.lexsort(rows[::-1])]
    return int((np.diff(rows, axis=1) == 0).all(0).sum())


def _sum(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum of two histograms of any lengths."""
    short, long = sorted((one, other), key=len)
    long = long.copy()
    long[:len(short)] += short
    return long


class ProfileTally:
    """Which user features the profiles have: `users_with` [F] and the values `seen` [vocabulary]."""

    def __init__(self, features: list[Feature]):
        self.features, self.users = features, 0
        self._offset = np.array([feature.offset for feature in features], np.int64)
        self.users_with = np.zeros(len(features), np.int64)
        self.seen = np.zeros(vocabulary_size(features), bool)

    def add(self, block: EventBlock) -> None:
        """Count the profiles of a block."""
        lengths = np.diff(block.token_start)
        self.users += len(lengths)
        column = np.searchsorted(self._offset, block.token, side="right") - 1
        user = np.repeat(np.arange(len(lengths)), lengths)
        again = (user[1:] == user[:-1]) & (column[1:] == column[:-1])  # tokens ascend within a user
        self.users_with += np.bincount(column[np.append(True, ~again)[:len(column)]], minlength=len(self.features))
        self.seen[block.token] = True


def histogram_quantile(counts: np.ndarray, share: float) -> int:
    """The smallest value that `share` of the counted do not exceed, for example ([0, 3, 1], 0.5) to 1."""
    return int(np.searchsorted(np.cumsum(counts), max(share * counts.sum(), 1)))


def gap_seconds(bin_number: np.ndarray | int) -> np.ndarray | float:
    """The least gap that falls into a bin of `gaps_of_bin`; the largest is 9 % longer."""
    return 2.0 ** (np.asarray(bin_number) / _BINS_PER_OCTAVE) - 1


def gini(counts: np.ndarray) -> float:
    """Gini's coefficient of inequality: 0 where all are equal, near 1 where one has all."""
    counts = np.sort(np.asarray(counts, np.float64))
    if not counts.sum():
        return 0.0
    n = len(counts)
    return float(2 * (np.arange(1, n + 1) * counts).sum() / (n * counts.sum()) - (n + 1) / n)


def top_share(counts: np.ndarray, share: float) -> float:
    """Share of the events that falls on the most popular `share` of the items."""
    top = max(1, round(share * len(counts)))
    return float(np.sort(counts)[::-1][:top].sum() / max(1, counts.sum()))


def action_shares(counts: Mapping[str, int]) -> dict[str, float]:
    """The share of each action among the events."""
    names = ("exposures", "clicks", "conversions", "null actions")
    return {name: counts[name] / max(1, counts["events"]) for name in names}
