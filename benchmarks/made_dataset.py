"""A dataset of made columns in memory, of the real one's shapes, where only time and memory are to be measured."""

from pathlib import Path

import numpy as np
import torch

from onepiece_comp.dataset.popularity_counts import Trend
from onepiece_comp.dataset.preprocess import Dataset, ItemTable
from onepiece_comp.logs.features import Schema, joint_vocabulary

_DAYS, _START = 30, 1_746_000_000
_ITEM_VALUES = (8, 20, 40, 100, 100, 400, 400, 1000, 1000, 5000, 5000, 20000, 20000)  # of each item feature
_USER_VALUES = (3, 10, 50, 50, 100, 500, 500, 1000)
_COUNTS = 1 << 26  # entries of the popularity columns, at most


def made_dataset(users: int, *, items: int, events: int, seed: int = 0) -> Dataset:
    """`users` histories of 82 to 100 % of `events`, so that a shuffled batch is padded by 9 % as in `loader.md`."""
    rng = np.random.default_rng(seed)
    length = rng.integers(round(0.82 * events), events + 1, users)
    start = np.concatenate([[0], np.cumsum(length)])
    item = 1 + (items * rng.random(start[-1]) ** 3).astype(np.int32)  # some items are popular
    action = (rng.random(start[-1]) < 0.1).astype(np.int8)
    time = _START + rng.integers(0, _DAYS * 86400, start[-1])
    time = time[np.lexsort([time, np.repeat(np.arange(users), length)])]  # in order within each user
    item_features = joint_vocabulary((str(100 + i), size) for i, size in enumerate(_ITEM_VALUES))
    user_features = joint_vocabulary((str(200 + i), size) for i, size in enumerate(_USER_VALUES))
    token = np.stack([feature.offset + rng.integers(1, feature.size, users) for feature in user_features], 1)
    values = np.stack([rng.integers(0, feature.size, items + 1) for feature in item_features], 1).astype(np.int32)
    table = ItemTable(np.arange(items + 1), np.arange(items + 1), values,
                      {"81": rng.standard_normal((items + 1, 32), np.float32).astype(np.float16)},
                      {"81": np.ones(items + 1, bool)})
    trend = _trend(item, action, time, items=items)
    schema = Schema(items, item_features, user_features, {"81": 32}, "made", trend.bucket_seconds,
                    _START + trend.buckets * trend.bucket_seconds)
    return Dataset(Path("made"), schema, "made", item, action, time, start, token.astype(np.int32).ravel(),
                   len(user_features) * np.arange(users + 1), np.bincount(item, minlength=items + 1), table, trend)


def _trend(item: np.ndarray, action: np.ndarray, time: np.ndarray, *, items: int) -> Trend:
    """Counts in as many buckets, of an hour or more, as fit."""
    buckets = max(8, min(24 * _DAYS, _COUNTS // (2 * items + 2)))
    seconds = -(-_DAYS * 86400 // buckets)
    counts = np.zeros((items + 1, buckets + 1, 2), np.int32)
    bucket = (time - _START) // seconds + 1
    np.add.at(counts, (item, bucket, 0), 1)
    np.add.at(counts, (item[action > 0], bucket[action > 0], 1), 1)
    return Trend(np.cumsum(counts, axis=1, dtype=np.int32), _START, seconds)


def made_codes(items: int, *, codes: int, levels: int = 2, seed: int = 0) -> torch.Tensor:
    """Random semantic ids [items + 1, levels]; row 0 has none."""
    found = torch.randint(0, codes, (items + 1, levels), generator=torch.Generator().manual_seed(seed))
    found[0], found[1] = -1, codes - 1  # every codebook has its full size
    return found.int()
