"""Popularity at the moments of a batch, as tensors: of items, and of the code prefixes that lead to them.

Stands between `dataset/popularity_counts.py`, which counts, and the model, which weighs. A prefix is as popular as its
items together; the counts of prefixes are held in memory, each level no larger than those of the items.
Legend: R rows (a moment and a condition), K keys, P or S pairs of row and key, N rows of a batch, C codes, W features.
"""

from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.dataset.popularity_counts import FEATURES, Lookup, Trend
from onepiece_comp.models.histories import NO_ACTION
from onepiece_comp.models.prefix_table import PrefixTable, build_prefix_table, first_leaf

CONDITIONS = NO_ACTION + 1
_STEP = 8.0  # the weights move this much faster than the optimiser's step
_ABSENT = -1e4  # logit of a key that is no candidate yet


class TrendRows(NamedTuple):
    """Popularity of K keys at R rows, a row being a moment and a next action; see `trend.Lookup`."""

    row_P: torch.Tensor  # int64
    key_P: torch.Tensor  # int64
    feature_PW: torch.Tensor  # float32
    seen_RK: torch.Tensor  # bool, shown before the moment
    absent_RK: torch.Tensor  # bool, not yet a candidate at the moment
    condition_R: torch.Tensor  # int64, next action


class TrendPairs(NamedTuple):
    """Popularity of some keys at each of N rows: S pairs of those ever shown before the row's moment, by row."""

    row_S: torch.Tensor  # int64, ascending
    key_S: torch.Tensor  # int64
    lately_P: torch.Tensor  # int64, places among the S pairs of those shown lately
    feature_PW: torch.Tensor  # float32
    condition_R: torch.Tensor  # int64 [N], next action


def distinct_pairs(bucket: np.ndarray, condition: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct (bucket, condition) pairs, and which of them each entry has."""
    pair, place = np.unique(bucket * (NO_ACTION + 1) + condition, return_inverse=True)
    return *np.divmod(pair, NO_ACTION + 1), place.reshape(-1)


def trend_rows(found: Lookup, absent_RK: np.ndarray, condition_R: np.ndarray) -> TrendRows:
    """A lookup as tensors."""
    return TrendRows(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (*found, absent_RK, condition_R)))


def trend_logits(weight_CW: torch.Tensor, trend: TrendRows) -> torch.Tensor:
    """Additive logits [R, K]: linear in the features, by the row's condition. `weight_CW` [CONDITIONS, W + 1].

    Pairs are many and conditions few, so every pair's product with every condition costs less than a gather of weights.
    """
    weight_CW = weight_CW * _STEP
    recent_P = _recent(weight_CW, trend.feature_PW, trend.condition_R[trend.row_P])
    bias_RK = torch.where(trend.absent_RK, _ABSENT, trend.seen_RK * weight_CW[trend.condition_R, -1:])
    pair_P = trend.row_P * bias_RK.shape[1] + trend.key_P
    return bias_RK.flatten().scatter_add(0, pair_P, recent_P).view_as(bias_RK)


def pair_logits(weight_CW: torch.Tensor, pairs: TrendPairs) -> torch.Tensor:
    """The same as [S], for the pairs alone: every other pair's logit is 0."""
    weight_CW = weight_CW * _STEP
    condition_S = pairs.condition_R[pairs.row_S]
    recent_P = _recent(weight_CW, pairs.feature_PW, condition_S[pairs.lately_P])
    return weight_CW[:, -1].gather(0, condition_S).scatter_add(0, pairs.lately_P, recent_P)


def _recent(weight_CW: torch.Tensor, feature_PW: torch.Tensor, condition_P: torch.Tensor) -> torch.Tensor:
    with torch.autocast(weight_CW.device.type, enabled=False):  # bfloat16 would keep 8 bits of a count
        return (weight_CW[:, :-1] @ feature_PW.T).gather(0, condition_P[None])[0]


def no_trend_rows(keys: int) -> TrendRows:
    """For a model without popularity: one row, of which nothing is known."""
    none, nothing = np.zeros(0, np.int64), np.zeros((1, keys), bool)
    return trend_rows(Lookup(none, none, np.zeros((0, FEATURES), np.float32), nothing), nothing, np.array([NO_ACTION]))


class CodeTrend(NamedTuple):
    """Popularity of code prefixes; that of a level has a row of counts for each prefix of `table`."""

    table: PrefixTable
    trends: list[Trend]  # one per level

    def children(self, level: int, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (place in `item`, prefix of `level`): what may follow the codes that each item has before `level`.

        An item without an id has none.
        """
        leaf = self.table.item_leaf.numpy()[item]
        parent = self.table.leaf_path.numpy()[leaf, level - 1]
        start = self.table.first_child[level - 1].numpy()
        count = np.where(leaf >= 0, start[parent + 1] - start[parent], 0)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        place = np.repeat(np.arange(len(item)), count)
        return place, start[parent[place]] + within


def code_trend(table: PrefixTable, trend: Trend, row: np.ndarray) -> CodeTrend:
    """Counts of the prefixes of `table`, whose item i has the counts of `row[i]` in `trend`."""
    leaves = np.asarray(trend.counts)[row[table.leaf_item.numpy()]]
    firsts = [first_leaf(table.leaf_path[:, level]).numpy() for level in range(len(table.code))]
    return CodeTrend(table, [trend._replace(counts=np.add.reduceat(leaves, first, axis=0)) for first in firsts])


def catalogue_trend(codes: np.ndarray, trend: Trend) -> CodeTrend:
    """The same for the ids [items + 1, L] of a whole catalogue, items that share one counted together."""
    number, size = np.zeros(len(codes), np.int64), 1 + int(codes.max())
    for code in codes.T:
        number = number * size + code
    number[(codes < 0).any(axis=1)] = -1
    _, first, place = np.unique(number, return_index=True, return_inverse=True)
    row = first
    if len(first) < len(codes):
        counts = np.zeros((len(first), *trend.counts.shape[1:]), np.int32)
        np.add.at(counts, place, trend.counts)
        trend, row = trend._replace(counts=counts), np.arange(len(first))
    known = code_trend(build_prefix_table(torch.from_numpy(codes[first])), trend, row)
    return known._replace(table=known.table._replace(item_leaf=known.table.item_leaf[torch.from_numpy(place)]))


def code_rows(known: CodeTrend, codes: int, target: np.ndarray, *, row_of: np.ndarray, bucket: np.ndarray,
              click_bucket: np.ndarray, condition: np.ndarray) -> list[TrendRows | TrendPairs]:
    """Popularity of each level's codes at the moments of a batch, keys being the `codes` of a level.

    The first level has the R moments as rows; each further one the N rows themselves, of which `row_of` tells the
    moment, and in pairs with them the few codes that can follow those of the row's `target` item: a matrix of rows
    and codes would be gigabytes at the paper's sizes.
    """
    made: list[TrendRows | TrendPairs] = []
    for level, trend in enumerate(known.trends):
        code = known.table.code[level].numpy()
        if level == 0:
            found = trend.lookup(np.arange(len(code)), bucket=bucket, click_bucket=click_bucket)
            seen = np.zeros((len(bucket), codes), bool)
            seen[:, code] = found.seen_RK
            found = found._replace(item_P=code[found.item_P], seen_RK=seen)
            made.append(trend_rows(found, np.zeros_like(seen), condition))
        else:
            place, prefix = known.children(level, target)
            moment = row_of[place]
            lately, feature, shown = trend.pairs(prefix, bucket=bucket[moment], click_bucket=click_bucket[moment])
            lately = np.cumsum(shown)[lately] - 1
            parts = (place[shown], code[prefix[shown]].astype(np.int64), lately, feature, condition[row_of])
            made.append(TrendPairs(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts)))
    return made
