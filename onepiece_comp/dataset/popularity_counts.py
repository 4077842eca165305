"""Popularity in time windows that end before a moment: what was shown and clicked lately.

Items live for days, so how often an item was shown in the last hours says more than its total. Counts are kept
cumulatively per item and time bucket; a window is a difference of two of them and ends where the bucket of its moment
begins, so nothing of that moment or later can enter. At inference the moment is the user's last event, or the training
log's end if that is later. Windowed popularity as in the challenge report (arXiv 2604.04976, section 7).
Legend: I items + 1, K items asked for, R rows (a moment and a condition), P pairs of row and item, W features.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.columns import create_mapped, load_column
from onepiece_comp.logs.formats import CLICK, CONVERSION

WINDOW_DAYS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 7.0)
FEATURES = 4 * len(WINDOW_DAYS) + 2
DAY = 86400
_HOURS = (1, 2, 3, 6, 12, 24, 48, 96, 192, 384, 768)
_MOST_BUCKETS = 1200  # a training step meets most of them, and its cost grows with their number
_MOST_LATER_COUNTS = 1 << 26  # of items and buckets after the log's end
_PAIRS_PER_BLOCK = 1 << 14  # what a lookup has in hand at a time should stay in the processor's cache


class Lookup(NamedTuple):
    """What a trend knows of K items at R rows; pairs that nothing was shown of lately are left out."""

    row_P: np.ndarray  # int64
    item_P: np.ndarray  # int64, place among the items asked for
    feature_PW: np.ndarray  # float32
    seen_RK: np.ndarray  # bool, shown at all before the row's moment


class Trend(NamedTuple):
    """Cumulative counts [I, buckets + 1, 2] of (events, clicks) before each bucket's start; column 0 is zero."""

    counts: np.ndarray
    first_second: int
    bucket_seconds: int

    @property
    def buckets(self) -> int:
        return self.counts.shape[1] - 1

    def bucket_of(self, time_seconds: np.ndarray) -> np.ndarray:
        """The bucket of each time, clipped to 0..buckets; `buckets` itself sees the whole log."""
        return np.clip((np.asarray(time_seconds) - self.first_second) // self.bucket_seconds, 0, self.buckets)

    def lookup(self, item: np.ndarray, *, bucket: np.ndarray, click_bucket: np.ndarray) -> Lookup:
        """Features of `item` [K] at moments `bucket` [R], clicks as far as known at `click_bucket` [R].

        Features: by window log(1 + n) of events and of clicks, whether there were events, whether they were the item's
        first (unknown, so no, where the window is longer than the log); then log(1 + n) of all time.
        """
        flat = np.asarray(self.counts).reshape(-1)
        start_K = np.asarray(item, np.int64) * (2 * self.counts.shape[1])
        total = flat.take(start_K + 2 * self.buckets)
        first = self._reach(start_K, np.ones_like(total))
        oldest = self._oldest(bucket, click_bucket)
        place, row = _overlapping(first, self._reach(start_K, total), bucket, oldest)
        pair = start_K[place]
        lately = flat.take(pair + 2 * bucket[row]) > flat.take(pair + 2 * oldest[row])
        place, row, pair = place[lately], row[lately], pair[lately]
        feature = self._features(pair, row, bucket, click_bucket, most=int(total.max(initial=0)))
        return Lookup(row, place, feature, first.astype(np.int32) <= bucket.astype(np.int32)[:, None])

    def pairs(self, item: np.ndarray, *, bucket: np.ndarray, click_bucket: np.ndarray,
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same for pairs: item i at its own moment. (which were shown lately, their features, which ever were)."""
        flat = np.asarray(self.counts).reshape(-1)
        start_P = np.asarray(item, np.int64) * (2 * self.counts.shape[1])
        shown = flat.take(start_P + 2 * bucket)
        lately = np.flatnonzero(shown > flat.take(start_P + 2 * self._oldest(bucket, click_bucket)))
        feature = self._features(start_P[lately], lately, bucket, click_bucket, most=int(shown.max(initial=0)))
        return lately, feature, shown > 0

    @property
    def _length(self) -> np.ndarray:
        """Buckets of each window."""
        return np.array([max(1, round(days * DAY / self.bucket_seconds)) for days in WINDOW_DAYS])

    def _oldest(self, bucket: np.ndarray, click_bucket: np.ndarray) -> np.ndarray:
        """Where the longest window starts."""
        return np.maximum(np.minimum(bucket, click_bucket) - self._length[-1], 0)

    def _features(self, start_P: np.ndarray, row_P: np.ndarray, bucket: np.ndarray, click_bucket: np.ndarray, *,
                  most: int) -> np.ndarray:
        """Features [P, W] of items whose counts start at `start_P` at the moments of their rows."""
        flat = np.asarray(self.counts).reshape(-1)
        ends = [[2 * np.maximum(end - back, 0) + kind for back in (0, *self._length)]
                for kind, end in enumerate((bucket, np.maximum(click_bucket, 0)))]
        feature, log = np.empty((len(row_P), FEATURES), np.float32), _logs(most.bit_length())
        for begin in range(0, len(row_P), _PAIRS_PER_BLOCK):
            block = slice(begin, begin + _PAIRS_PER_BLOCK)
            _window_features(flat, start_P[block], row_P[block], ends=ends, log=log, out=feature[block])
        return feature

    def _reach(self, start_K: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The first column in which each item's events are `wanted` or more, one past the last if none: bisection."""
        flat, last = np.asarray(self.counts).reshape(-1), self.buckets
        low, high = np.zeros(len(start_K), np.int64), np.full(len(start_K), last + 1)
        for _ in range((last + 1).bit_length()):
            middle = (low + high) // 2
            enough = flat.take(start_K + 2 * np.minimum(middle, last)) >= wanted
            low, high = np.where(enough, low, np.minimum(middle + 1, high)), np.where(enough, middle, high)
        return high

    def first_bucket(self, item: np.ndarray) -> np.ndarray:
        """The bucket in which each item was first shown; `buckets` for one that never was."""
        start_K = np.asarray(item, np.int64) * (2 * self.counts.shape[1])
        return self._reach(start_K, np.ones(len(start_K), np.int32)) - 1

    def tail(self) -> "Trend":
        """The same knowledge of the log's end in as few columns as the longest window needs."""
        keep = int(self._length[-1]) + 1
        if keep > self.buckets:
            return self._replace(counts=np.array(self.counts))
        counts = np.concatenate([np.zeros((len(self.counts), 1, 2), np.int32), np.asarray(self.counts[:, -keep:])], 1)
        return Trend(counts, self.first_second + (self.buckets - keep) * self.bucket_seconds, self.bucket_seconds)


def _overlapping(first: np.ndarray, last: np.ndarray, bucket: np.ndarray, oldest: np.ndarray,
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (place, row), by place, of items whose events first..last may meet the windows oldest..bucket of the rows.

    Rows in order of their buckets meet an item in one stretch, so no matrix of items and rows is made.
    """
    order = np.argsort(bucket, kind="stable")
    start = np.searchsorted(bucket[order], first)
    stop = np.searchsorted(np.minimum.accumulate(oldest[order][::-1])[::-1], last)
    count = np.maximum(stop - start, 0)
    within = np.arange(count.sum()) + np.repeat(start - np.cumsum(count) + count, count)
    return np.repeat(np.arange(len(first)), count), order[within]


def _window_features(flat: np.ndarray, start_P: np.ndarray, row_P: np.ndarray, *, ends: list[list[np.ndarray]],
                     log: np.ndarray, out: np.ndarray) -> None:
    """Fill `out` [P, W] from items whose counts start at `start_P` of `flat`.

    `ends` tells for events and for clicks where a row's moment and the start of each window stand within an item's
    counts; `log` [n] is log(1 + n).
    """
    windows = len(WINDOW_DAYS)
    for kind, (moment_R, *window_starts) in enumerate(ends):
        total = flat.take(start_P + moment_R.take(row_P))
        out[:, -2 + kind] = log.take(total)
        for i, begin_R in enumerate(window_starts):
            begin_P = begin_R.take(row_P)
            before = flat.take(start_P + begin_P)
            count = total - before
            out[:, kind * windows + i] = log.take(count)
            if kind == 0:
                out[:, 2 * windows + i] = count > 0
                out[:, 3 * windows + i] = (before == 0) & (count > 0) & (begin_P > 0)


@functools.lru_cache(maxsize=4)
def _logs(bits: int) -> np.ndarray:
    """log(1 + n) of every n of so many bits: a look into a table takes a tenth of the logarithm's time."""
    return np.log1p(np.arange(1 << bits, dtype=np.float32))


def extended(tail: Trend, row: np.ndarray, *, item: np.ndarray, clicked: np.ndarray, time_seconds: np.ndarray) -> Trend:
    """The trend of other items, going on after the log's end with later events.

    `row` [n] is each item's row in `tail`, 0 for one without a past; `item`, `clicked`, `time_seconds` are events in
    the new numbering, of which only those after the tail's end count, and none so long after it that columns up to
    there would fill the memory: such a time is a mistake.
    """
    end = tail.first_second + tail.buckets * tail.bucket_seconds
    place = (time_seconds - end) // tail.bucket_seconds
    later = (place >= 0) & (place < max(_MOST_BUCKETS, _MOST_LATER_COUNTS // max(1, len(row))))
    item, clicked, bucket = item[later], clicked[later], place[later]
    added = np.zeros((len(row), int(bucket.max(initial=-1)) + 1, 2), np.int32)
    np.add.at(added, (item, bucket, 0), 1)
    np.add.at(added, (item[clicked], bucket[clicked], 1), 1)
    past = np.where((row > 0)[:, None, None], tail.counts[row], 0)
    return Trend(
        np.concatenate([past, past[:, -1:] + added.cumsum(1, dtype=np.int32)], 1),
        tail.first_second,
        tail.bucket_seconds,
    )


def choose_bucket_seconds(*, items: int, events: int, span_seconds: int, budget_mib: int, hours: float) -> int:
    """The finest bucket whose counts fit the budget (and the log: 64 bytes an event), or `hours` if it is given."""
    if hours > 0:
        return int(hours * 3600)
    budget = min(budget_mib << 20, max(256 << 20, 64 * events))
    for candidate in _HOURS:
        buckets = span_seconds // (candidate * 3600) + 2
        if buckets <= _MOST_BUCKETS and (items + 1) * buckets * 8 <= budget:
            return candidate * 3600
    return _HOURS[-1] * 3600


def write_counts(folder: Path, *, items: int, bucket_seconds: int, first_second: int, last_second: int) -> None:
    """Make `trend_counts.npy` from the event columns in `folder`, a block of events and of items at a time."""
    item_row, action, time = (load_column(folder, name) for name in ("item_row", "action", "time_seconds"))
    buckets = (last_second - first_second) // bucket_seconds + 1
    counts = create_mapped(folder / "trend_counts.npy", np.int32, (items + 1, buckets + 1, 2))
    for start in range(0, len(item_row), 1 << 20):
        block = slice(start, start + (1 << 20))
        bucket = (time[block] - first_second) // bucket_seconds + 1
        np.add.at(counts, (item_row[block], bucket, 0), 1)
        clicked = np.isin(action[block], (CLICK, CONVERSION))
        np.add.at(counts, (item_row[block][clicked], bucket[clicked], 1), 1)
    rows = max(1, (64 << 20) // ((buckets + 1) * 8))
    for start in range(0, items + 1, rows):
        np.cumsum(counts[start:start + rows], axis=1, out=counts[start:start + rows])
    counts.flush()


def load_trend(folder: Path, *, first_second: int, bucket_seconds: int) -> Trend:
    """The popularity columns of a dataset, memory-mapped."""
    return Trend(load_column(folder, "trend_counts"), first_second, bucket_seconds)
