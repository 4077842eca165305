"""Popularity in time windows that end before a moment: what was shown and clicked lately.

Items live for days, so how often an item was shown in the last hours says more than its total. Counts are kept
cumulatively per item and time bucket; a window is a difference of two of them and ends where the bucket of its moment
begins, so nothing of that moment or later can enter. At inference the moment is the user's last event, or the training
log's end if that is later. Windowed popularity as in the challenge report (arXiv 2604.04976, section 7).
Legend: I items + 1, K items asked for, R rows (a moment and a condition), P pairs of row and item, W features.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import load_column
from onepiece_comp.formats import CLICK, CONVERSION

WINDOW_DAYS = (0.25, 1.0, 3.0, 7.0)
FEATURES = 3 * len(WINDOW_DAYS) + 2
DAY = 86400
_HOURS = (1, 2, 3, 6, 12, 24, 48, 96, 192, 384, 768)
_MOST_BUCKETS = 1200  # a training step meets most of them, and its cost grows with their number


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

        Features: log(1 + n) of events and of clicks in each window, whether there were events, log(1 + n) of all time.
        """
        counts = np.asarray(self.counts[item])
        length = np.array([max(1, round(days * DAY / self.bucket_seconds)) for days in WINDOW_DAYS])
        events = np.ascontiguousarray(counts[:, :, 0])
        now = events[:, bucket]
        lately = now > events[:, np.maximum(np.minimum(bucket, click_bucket) - length[-1], 0)]
        place, row = np.nonzero(lately)
        ends = (bucket[row], np.maximum(click_bucket[row], 0))
        feature = np.empty((len(row), FEATURES), np.float32)
        windows = len(length)
        for kind, end in enumerate(ends):
            total = counts[place, end, kind]
            for i, size in enumerate(length):
                feature[:, kind * windows + i] = total - counts[place, np.maximum(end - size, 0), kind]
            feature[:, -2 + kind] = total
        feature[:, 2 * windows:3 * windows] = feature[:, :windows] > 0
        np.log1p(feature[:, :2 * windows], out=feature[:, :2 * windows])
        np.log1p(feature[:, -2:], out=feature[:, -2:])
        return Lookup(row, place, feature, (now > 0).T)

    def first_bucket(self, item: np.ndarray) -> np.ndarray:
        """The bucket in which each item was first shown; `buckets` for one that never was."""
        shown = np.asarray(self.counts[item, :, 0]) > 0
        return np.where(shown.any(1), shown.argmax(1) - 1, self.buckets)

    def tail(self) -> "Trend":
        """The same knowledge of the log's end in as few columns as the longest window needs."""
        keep = min(self.buckets, round(WINDOW_DAYS[-1] * DAY / self.bucket_seconds)) + 1
        counts = np.concatenate([np.zeros((len(self.counts), 1, 2), np.int32), np.asarray(self.counts[:, -keep:])], 1)
        return Trend(counts, self.first_second + (self.buckets - keep) * self.bucket_seconds, self.bucket_seconds)


def extended(tail: Trend, row: np.ndarray, *, item: np.ndarray, clicked: np.ndarray, time_seconds: np.ndarray) -> Trend:
    """The trend of other items, going on after the log's end with later events.

    `row` [n] is each item's row in `tail`, 0 for one without a past; `item`, `clicked`, `time_seconds` are events in
    the new numbering, of which only those after the tail's end count.
    """
    end = tail.first_second + tail.buckets * tail.bucket_seconds
    later = time_seconds >= end
    item, clicked = item[later], clicked[later]
    bucket = (time_seconds[later] - end) // tail.bucket_seconds
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
    counts = np.lib.format.open_memmap(folder / "trend_counts.npy", "w+", np.int32, (items + 1, buckets + 1, 2))
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
