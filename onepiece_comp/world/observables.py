"""What the log shows of the synthetic world: item features, user profiles and six embeddings, in original ids.

Stands between `arrays.py` and `synthesize.py`. Vocabulary sizes and coverages are the published ones (arXiv 2604.04976,
Table 2 and Figure 1; coverage of 85 and 86 as measured in the second round, arXiv 2512.07424, Table 1). Some features
tell the topic at one level of the tree, with errors; some name the advertiser; some are noise.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from onepiece_comp.world.arrays import TASTE, Topics, Users, World

ITEM_FEATURES = ("112", "117", "118", "119", "120", "100", "101", "102", "122", "114", "115", "116", "121", "111")
FIRST_CREATIVE = 20_000_000_027
VECTORLESS = 0.001  # share of embedding records without a vector
PROFILELESS = 0.005  # share of users whose profile has no feature


class Embedding(NamedTuple):
    """One table: its share of covered items, and how much of a vector is topic and latent; the rest is noise."""

    width: int
    coverage: float
    topic: float = 0.0
    latent: float = 0.0


EMBEDDINGS = {"81": Embedding(32, 0.961, 1.0, 0.8), "82": Embedding(64, 0.993, 0.6), "83": Embedding(64, 0.993),
              "84": Embedding(64, 0.974, 0.8, 1.0), "85": Embedding(16, 0.394), "86": Embedding(16, 0.375)}


class Catalogue:
    """The names and features of the world's items by row; memory is one small row per item."""

    def __init__(self, world: World, seed: int):
        rng = np.random.default_rng([seed, 1])
        count = len(world.items.leaf)
        gaps = rng.integers(1, 200, count)
        self.creative_id = (FIRST_CREATIVE + np.cumsum(gaps) - gaps[0])[rng.permutation(count)]
        self._values = _item_values(world, rng)

    def leave_out(self, fid: str) -> None:
        """Take a feature from every record; all else stays as it is."""
        self._values[:, ITEM_FEATURES.index(fid)] = 0

    def record(self, row: int) -> dict[str, int]:
        """The item's usual features."""
        return {fid: raw_value(fid, value) for fid, value in zip(ITEM_FEATURES, self._values[row].tolist()) if value}

    def altered(self, row: int, dice: int) -> dict[str, int]:
        """The item's features with one of them (never 111, the item's own) lost or another item's."""
        features, column = self.record(row), dice % (len(ITEM_FEATURES) - 1)
        fid, other = ITEM_FEATURES[column], int(self._values[dice % len(self._values), column])
        features.pop(fid, None)
        if other and dice % 2:
            features[fid] = raw_value(fid, other)
        return features


def raw_value(fid: str, value: int) -> int:
    """The organisers' form of a value: ten digits that begin with the feature id, raw_value("100", 6) = 1000000006."""
    return int(fid) * 10_000_000 + value


def _item_values(world: World, rng: np.random.Generator) -> np.ndarray:
    """int32 [I, features] in the order of ITEM_FEATURES, from 1; 0 = missing."""
    items, topics = world.items, world.topics
    count, leaf, advertiser = len(items.leaf), items.leaf.astype(np.int64), items.advertiser.astype(np.int64)
    middle, root = leaf // topics.branch, leaf // topics.branch ** 2
    skewed = lambda size: np.minimum(rng.zipf(1.4, count), size) - 1
    values = {
        "100": _blur(root, 6, 0.1, rng), "101": _blur(middle * 7, 51, 0.1, rng), "102": advertiser,
        "112": _blur(root, 30, 0.1, rng), "114": skewed(20), "115": _blur(leaf * 13, 691, 0.2, rng),
        "116": _blur(root * 5, 18, 0.3, rng), "117": _blur(middle, 497, 0.1, rng), "118": _blur(leaf, 1426, 0.15, rng),
        "119": _blur(leaf * 3 + advertiser % 3, 4191, 0.15, rng), "120": skewed(3392),
        "121": (np.arange(count) * 0.447).astype(np.int64), "122": advertiser * 2 + (rng.random(count) < 0.5),
        "111": rng.permutation(count)}
    listed = rng.random(count) < 0.979  # 112 and 117 to 120 are missing together
    shown = {"100": 0.9993, "101": 0.9993, "102": 0.9903, "114": 0.9991, "115": 0.32, "116": 0.999, "122": 0.9993}
    table = np.empty((count, len(ITEM_FEATURES)), np.int32)
    for column, fid in enumerate(ITEM_FEATURES):
        present = listed if fid in ("112", "117", "118", "119", "120") else rng.random(count) < shown.get(fid, 1.0)
        table[:, column] = np.where(present, values[fid] + 1, 0)
    return table


def _blur(values: np.ndarray, size: int, errors: float, rng: np.random.Generator) -> np.ndarray:
    """`values` folded into `size`, a share of them replaced at random."""
    return np.where(rng.random(len(values)) < errors, rng.integers(0, size, len(values)), values % size)


def profiles(topics: Topics, users: Users, rng: np.random.Generator) -> list[dict]:
    """The features of each user: 103 to 105 follow taste, 106 and 107 the first interests, the others nothing."""
    count, noise = len(users.events), rng.normal(0, 0.5, (len(users.events), 3))
    taste, root = users.taste[:, :3] + noise, users.leaf[:, 0] // topics.branch ** 2 % 14 + 1
    ladder = lambda values, size: np.clip(np.round(size / 2 + size / 6 * values), 1, size).astype(int).tolist()
    known, guessed = rng.random(root.shape) < 0.6, rng.integers(1, 15, (count, 2))
    columns = {
        "103": (ladder(taste[:, 0], 86), 0.9991), "104": (((taste[:, 1] > 0) + 1).tolist(), 0.9962),
        "105": (ladder(taste[:, 2], 7), 0.858), "109": (rng.integers(1, 4, count).tolist(), 0.9996),
        "106": ([sorted({*a[b].tolist(), *c.tolist()}) for a, b, c in zip(root, known, guessed)], 0.8791),
        "107": ((users.leaf[:, 0, :1] // topics.branch % 19 + 1).tolist(), 0.387),
        "108": (rng.integers(1, 5, (count, 1)).tolist(), 0.1704),
        "110": ([([1], [2], [1, 2])[pick] for pick in rng.integers(0, 3, count)], 0.4298)}
    empty = rng.random(count) < PROFILELESS
    shown = {fid: (rng.random(count) < coverage) & ~empty for fid, (_, coverage) in columns.items()}
    raw = lambda fid, value: [raw_value(fid, v) for v in value] if isinstance(value, list) else raw_value(fid, value)
    return [{fid: raw(fid, values[user]) for fid, (values, _) in columns.items() if shown[fid][user]}
            for user in range(count)]


def vectors(world: World, catalogue: Catalogue, feature: str, *, rows: np.ndarray, later: np.ndarray = np.empty(0, int),
            seed: int) -> Iterator[tuple[int, np.ndarray | None]]:
    """(creative id, unit vector float32, or None) of the covered items among `rows`, then `later`, a chunk at a time.

    Those of `rows` are the same whatever comes later.
    """
    table, rng = EMBEDDINGS[feature], np.random.default_rng([seed, 2, int(feature)])
    topics, scale = world.topics, 1 / np.sqrt(table.width)
    levels = [rng.normal(0, scale / np.sqrt(3), (topics.leaves // size, table.width)) for size in topics.sizes]
    mixing = rng.normal(0, scale / np.sqrt(TASTE), (TASTE, table.width))
    for chunk in (group[start:start + 8192] for group in (rows, later) for start in range(0, len(group), 8192)):
        leaf = world.items.leaf[chunk]
        value = rng.normal(0, 0.6 * scale, (len(chunk), table.width))
        value += table.latent * world.items.latent[chunk] @ mixing
        value += table.topic * sum(level[leaf // size] for level, size in zip(levels, topics.sizes))
        value = (value / np.linalg.norm(value, axis=1, keepdims=True)).astype(np.float32)
        covered, empty = rng.random(len(chunk)) < table.coverage, rng.random(len(chunk)) < VECTORLESS
        for number in np.flatnonzero(covered):
            yield int(catalogue.creative_id[chunk[number]]), None if empty[number] else value[number]
