"""The judge's arithmetic: HR@k, NDCG@k, their score, the action-weighted forms, bootstrap intervals. Pure functions.

Stands left of everything that learns; `score.py` applies it to files. Source: Tencent Advertising Algorithm
Challenge 2025 (arXiv 2604.04976), section 6: one target per user in the preliminary round, relevance by action in the
second. A rank is 1-based; 0 means that the target is not in the list.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

HIT_WEIGHT, NDCG_WEIGHT = 0.31, 0.69  # section 6: score = 0.31 HR@10 + 0.69 NDCG@10
RELEVANCE = (0.0, 1.0, 2.5, 0.0)  # section 6: of exposure, click, conversion; an unknown action earns nothing

_CELLS = 1 << 20  # resampled counts held at once


class Interval(NamedTuple):
    """A mean over users and its bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class Weighted(NamedTuple):
    """The second round's metrics of one user."""

    hit_rate: float
    ndcg: float


def hit_rate(rank: np.ndarray, k: int) -> np.ndarray:
    """1 for each user whose target stands in the first k places, else 0: float64, the shape of `rank`."""
    rank = np.asarray(rank)
    return ((rank >= 1) & (rank <= k)).astype(np.float64)


def ndcg(rank: np.ndarray, k: int) -> np.ndarray:
    """1 / log2(rank + 1) within the first k places, else 0: rank 1 gives 1, rank 3 gives 0.5.

    With one target the ideal DCG is 1. float64, the shape of `rank`.
    """
    rank = np.asarray(rank)
    return hit_rate(rank, k) / np.log2(np.maximum(rank, 1) + 1.0)


def combined_score(hit: np.ndarray | float, gain: np.ndarray | float) -> np.ndarray | float:
    """The competition's score of HR and NDCG, of means or of single users: it is linear."""
    return HIT_WEIGHT * hit + NDCG_WEIGHT * gain


def relevance(action: np.ndarray) -> np.ndarray:
    """Second-round relevance of each action (0 exposure, 1 click, 2 conversion, 3 unknown): float64."""
    return np.array(RELEVANCE)[np.asarray(action)]


def per_user_ratio(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The written second-round form for one target per user: w v / w, so that the weight cancels.

    Only users of positive weight are returned: with weight 0 the ratio is 0 / 0. Several targets: `weighted_metrics`.
    """
    weight = np.asarray(weight, np.float64)
    return np.asarray(values, np.float64)[weight > 0]


def weighted_mean(values: np.ndarray, weight: np.ndarray) -> float:
    """The other reading of the second round: sum of w v over all users, divided by the sum of w; nan if that is 0."""
    values, weight = np.asarray(values, np.float64), np.asarray(weight, np.float64)
    return float(values @ weight / weight.sum()) if weight.sum() > 0 else float("nan")


def weighted_metrics(ranking: Sequence[int], target_weight: Mapping[int, float], k: int) -> Weighted:
    """w-HR@k and w-NDCG@k of one user with any number of targets (item to relevance), as section 6 writes them.

    The hit rate is divided by the weight of all targets, also beyond k; the ideal DCG has the k heaviest in front.
    nan where no target has weight. Clear rather than fast.
    """
    found = [target_weight.get(item, 0.0) for item in ranking[:k]]
    ideal = sorted(target_weight.values(), reverse=True)[:k]
    if not sum(ideal) > 0:
        return Weighted(float("nan"), float("nan"))
    return Weighted(sum(found) / sum(target_weight.values()), _dcg(found) / _dcg(ideal))


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / float(np.log2(place + 1)) for place, gain in enumerate(gains, start=1))


def bootstrap_mean(values: np.ndarray, *, resamples: int, seed: int, weight: np.ndarray | None = None,
                   level: float = 0.95) -> Interval:
    """The mean over users [users] and its percentile bootstrap interval; with `weight` the weighted mean.

    Users are resampled with replacement (Efron and Tibshirani 1993, chapter 13). A resample is drawn as the number of
    times that each distinct value occurs in it, which is the same distribution: ranks of a top-10 have eleven values,
    so that a million users cost no more than a thousand. All nan without users or weight.
    """
    values = np.asarray(values, np.float64)
    weight = np.ones_like(values) if weight is None else np.asarray(weight, np.float64)
    mean = weighted_mean(values, weight)
    if not (len(values) and weight.sum() > 0):
        return Interval(mean, mean, mean)
    distinct, counts = np.unique(np.column_stack([values, weight]), axis=0, return_counts=True)
    means = np.concatenate(list(_resampled_means(distinct, counts, resamples, seed)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def _resampled_means(distinct: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Weighted means of resamples, a bounded number at a time; `distinct` is [values, (value, weight)]."""
    rng, users = np.random.default_rng(seed), int(counts.sum())
    at_once = max(1, _CELLS // len(counts))
    for start in range(0, resamples, at_once):
        drawn = rng.multinomial(users, counts / users, size=min(at_once, resamples - start))
        weighted = drawn * distinct[:, 1]
        total = weighted.sum(axis=1)
        kept = total > 0  # a resample may hold users without weight only
        yield weighted[kept] @ distinct[:, 0] / total[kept]


def bootstrap_seeds(values: Mapping[Hashable, Sequence[np.ndarray]], *, resamples: int, seed: int) -> Interval:
    """The mean over seeds of a mean over users, from {whose users: [users] of each seed}.

    Seeds of the same users are averaged user by user before users are resampled: they share the luck of who was asked,
    so that more seeds narrow less than as many more users would. Those of other users, as of another world, are
    independent: their distances from mean to bound add in quadrature.
    """
    seeds = sum(map(len, values.values()))
    parts = [(len(group) / seeds, bootstrap_mean(np.mean(group, axis=0), resamples=resamples, seed=seed))
             for group in values.values()]
    mean = sum(share * part.mean for share, part in parts)
    below = sum((share * (part.mean - part.low)) ** 2 for share, part in parts) ** 0.5
    above = sum((share * (part.high - part.mean)) ** 2 for share, part in parts) ** 0.5
    return Interval(mean, mean - below, mean + above)


def bootstrap_difference(first: np.ndarray, second: np.ndarray, *, resamples: int, seed: int,
                         level: float = 0.95) -> Interval:
    """Mean of `first - second` over the same users in the same order, resampled in pairs; exactly 0 if they agree.

    Where so few users differ that all of them on one side would be chance (at 95 %: five, of whom a sign test says
    2 / 2^5 = .06) it reaches zero: the resamples alone would be sure of a single user.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    assert first.shape == second.shape, f"{first.shape} and {second.shape} are not the same users"
    found = bootstrap_mean(first - second, resamples=resamples, seed=seed, level=level)
    by_chance = 2.0 ** (1 - np.count_nonzero(first != second)) > 1 - level
    return Interval(found.mean, min(found.low, 0.0), max(found.high, 0.0)) if by_chance else found


def sign_flip_test(first: np.ndarray, second: np.ndarray, *, resamples: int, seed: int) -> float:
    """Two-sided p of no difference over the same users: how often random signs give a mean as far from zero.

    The share counts the observed signs too, so that it is never 0 (Phipson and Smyth 2010). 1 where nothing differs.
    Users with the same difference are drawn together, by binomials.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    distinct, counts = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    if not len(distinct):
        return 1.0
    kept = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(counts)))
    sums = np.abs((2 * kept - counts) @ distinct)
    return float((1 + (sums >= abs(difference.sum()) * (1 - 1e-12)).sum()) / (1 + resamples))
