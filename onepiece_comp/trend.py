"""Popularity in time windows that end before an event: what was shown and clicked lately.

Items live for days, so how often an item was clicked in the last day says more than its total. Counts are kept
cumulatively per item and time bucket; a window is a difference of two of them. The window of an event ends at the
start of the event's own bucket, so nothing of the event's time or later can enter (no leak).
Windowed popularity as in the challenge report (arXiv 2604.04976, section 7).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import load_column
from onepiece_comp.formats import CLICK, CONVERSION

WINDOW_DAYS = (0.25, 1.0, 3.0, 7.0, 36500.0)  # the last stands for all time
WIDTH = 2 * len(WINDOW_DAYS)  # exposures and clicks of each window
_HOURS = (1, 2, 3, 6, 12, 24, 48, 96, 192, 384, 768)
_MOST_BUCKETS = 160  # a training step meets most of them, and its cost grows with their number
DAY = 86400


class Trend(NamedTuple):
    """Cumulative counts [items + 1, buckets + 1, 2] of (events, clicks) before each bucket's start."""

    counts: np.ndarray
    first_second: int
    bucket_seconds: int

    @property
    def buckets(self) -> int:
        return self.counts.shape[1] - 1

    def bucket_of(self, time_seconds: np.ndarray) -> np.ndarray:
        """The bucket of each time, clipped to 0..buckets; `buckets` itself sees the whole log."""
        return np.clip((np.asarray(time_seconds) - self.first_second) // self.bucket_seconds, 0, self.buckets)

    def window_counts(self, bucket: np.ndarray, item_row: np.ndarray) -> np.ndarray:
        """Events and clicks of each window that ends where `bucket` starts: float32 [rows, buckets, WIDTH].

        Sorted `item_row` reads the memory-mapped file in order.
        """
        pairs = np.asarray(self.counts[item_row]).view(np.int64)[..., 0]  # a pair of counts moves as one number
        length = [max(1, round(days * DAY / self.bucket_seconds)) for days in WINDOW_DAYS]
        start = np.maximum(np.asarray(bucket)[:, None] - np.array(length), 0)  # before bucket 0 all counts are 0
        shape = (len(item_row), len(bucket), -1, 2)
        now = np.take(pairs, bucket, axis=1).view(np.int32).reshape(shape)
        before = np.take(pairs, start.ravel(), axis=1).view(np.int32).reshape(shape)
        return np.subtract(now, before, dtype=np.float32, casting="unsafe").reshape(len(item_row), len(bucket), WIDTH)


def choose_bucket_seconds(*, items: int, events: int, span_seconds: int, budget_mib: int, hours: float) -> int:
    """The finest bucket whose counts fit the budget (and the log: 64 bytes an event), or `hours` if it is given."""
    if hours > 0:
        return int(hours * 3600)
    budget = min(budget_mib << 20, max(64 << 20, 64 * events))
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
