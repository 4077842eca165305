"""Popularity of code prefixes: that of their items together, at each row's moment, for shared ids and items without."""

import numpy as np
import pytest
import torch

from onepiece_comp.dataset.popularity_counts import FEATURES, Trend
from onepiece_comp.models.popularity import CONDITIONS, TrendRows, catalogue_trend, code_rows, pair_logits, trend_logits

CODES, ITEMS, ROWS = 5, 60, 40


def a_trend(rng, items, buckets=200):
    """Counts of items that are shown for a while; item 0 never is."""
    counts = np.zeros((items + 1, buckets + 1, 2), np.int32)
    for item in range(1, items + 1):
        life = slice(birth := int(rng.integers(1, buckets)), birth + int(rng.integers(1, 40)))
        counts[item, life] = np.sort(rng.integers(0, 3, counts[item, life].shape))[:, ::-1]
    return Trend(counts.cumsum(1, dtype=np.int32), 0, 6 * 3600)


def _spread(pairs):
    """Pairs as a lookup of all rows and codes would give them."""
    seen = torch.zeros(ROWS, CODES, dtype=torch.bool).index_put((pairs.row_S, pairs.key_S), torch.tensor(True))
    return TrendRows(pairs.row_S[pairs.lately_P], pairs.key_S[pairs.lately_P], pairs.feature_PW, seen,
                     torch.zeros_like(seen), pairs.condition_R)


@pytest.fixture(params=[(2, 5), (3, 5), (3, 0)])
def case(request):
    """(trend, codes [items + 1, L], target, moments): of two levels some ids are shared; the last items have none."""
    levels, without = request.param
    rng = np.random.default_rng(levels)
    number = rng.permutation(CODES ** 3)[:ITEMS + 1] if levels == 3 else rng.integers(0, CODES ** 2, ITEMS + 1)
    codes = np.stack([number // CODES ** level % CODES for level in range(levels)], 1).astype(np.int32)
    codes[[0, *range(ITEMS + 1 - without, ITEMS + 1)]] = -1
    moments = {"bucket": rng.integers(0, 201, 9), "condition": rng.integers(0, CONDITIONS, 9)}
    moments["click_bucket"] = moments["bucket"] - 3
    return a_trend(rng, ITEMS), codes, rng.integers(1, ITEMS + 1, ROWS), rng.integers(0, 9, ROWS), moments


def test_a_prefix_is_as_popular_as_its_items_together(case):
    trend, codes, target, row_of, moments = case
    made = code_rows(catalogue_trend(codes, trend), CODES, target, row_of=row_of, **moments)
    for level, rows in enumerate(made):
        moment, rows = (np.arange(9), rows) if level == 0 else (row_of, _spread(rows))
        dense = np.zeros((len(moment), CODES, FEATURES), np.float32)
        dense[rows.row_P.numpy(), rows.key_P.numpy()] = rows.feature_PW.numpy()
        assert len(rows.row_P) and not rows.absent_RK.any()
        np.testing.assert_array_equal(rows.condition_R, moments["condition"][moment])
        for row, at in enumerate(moment):
            before = codes[target[row], :level] if level else []
            for code in range(CODES):
                under = (codes[:, :level + 1] == [*before, code]).all(1) & (codes >= 0).all(1)
                together = trend._replace(counts=trend.counts[under].sum(0, keepdims=True, dtype=np.int32))
                found = together.lookup(np.zeros(1, int), bucket=moments["bucket"][[at]],
                                        click_bucket=moments["click_bucket"][[at]])
                expected = found.feature_PW[0] if len(found.row_P) else np.zeros(FEATURES)
                if level and codes[target[row], 0] < 0:  # an item without an id has no codes to follow
                    expected = np.zeros(FEATURES)
                    assert not rows.seen_RK[row, code]
                else:
                    assert bool(rows.seen_RK[row, code]) == bool(found.seen_RK[0, 0])
                np.testing.assert_array_equal(dense[row, code], expected)


def test_pairs_know_what_a_lookup_of_all_knows():
    rng = np.random.default_rng(3)
    trend = a_trend(rng, ITEMS)
    bucket = rng.integers(0, 201, 30)
    click_bucket = bucket - rng.integers(0, 60, 30)
    whole = trend.lookup(np.arange(ITEMS + 1), bucket=bucket, click_bucket=click_bucket)
    item, row = rng.integers(0, ITEMS + 1, 500), rng.integers(0, 30, 500)
    lately, feature, shown = trend.pairs(item, bucket=bucket[row], click_bucket=click_bucket[row])
    known = {pair: values for *pair, values in zip(whole.row_P, whole.item_P,
                                                   whole.feature_PW) for pair in [tuple(pair)]}
    assert set(lately) == {n for n in range(500) if (row[n], item[n]) in known} and len(lately)
    np.testing.assert_array_equal(feature, [known[row[n], item[n]] for n in lately])
    np.testing.assert_array_equal(shown, whole.seen_RK[row, item])


def test_logits_are_linear_in_the_features_by_condition(case):
    trend, codes, target, row_of, moments = case
    weight = torch.randn(CONDITIONS, FEATURES + 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for level, rows in enumerate(code_rows(catalogue_trend(codes, trend), CODES, target, row_of=row_of, **moments)):
        if level:
            pairs, rows = rows, _spread(rows)
            logit = torch.zeros(ROWS, CODES).index_put((pairs.row_S, pairs.key_S), pair_logits(weight, pairs))
            assert (pairs.row_S.diff() >= 0).all()
        else:
            logit = trend_logits(weight, rows)
        expected = torch.zeros_like(logit)
        for row, key, feature in zip(rows.row_P, rows.key_P, rows.feature_PW):
            expected[row, key] += 8 * (weight[rows.condition_R[row], :-1] * feature).sum()
        for row in range(len(logit)):
            expected[row] += 8 * weight[rows.condition_R[row], -1] * rows.seen_RK[row]
        torch.testing.assert_close(logit, expected, rtol=1e-4, atol=1e-4)
        slope = torch.randn(logit.shape, generator=torch.Generator().manual_seed(1))
        fast, slow = (torch.autograd.grad(made, weight, slope)[0] for made in (logit, expected))
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-3)


def test_a_key_that_is_not_yet_there_has_no_chance_and_no_part_in_the_gradient(case):
    trend, codes, target, row_of, moments = case
    rows = code_rows(catalogue_trend(codes, trend), CODES, target, row_of=row_of, **moments)[0]
    shown = torch.zeros_like(rows.seen_RK).index_put((rows.row_P, rows.key_P), torch.tensor(True)) | rows.seen_RK
    rows = rows._replace(absent_RK=~shown)
    weight = torch.ones(CONDITIONS, FEATURES + 1, requires_grad=True)
    logit = trend_logits(weight, rows)
    assert (logit[~shown] == -1e4).all() and (logit[shown] > 0).all() and (~shown).any()
    all_there = trend_logits(weight, rows._replace(absent_RK=torch.zeros_like(shown)))
    torch.testing.assert_close(*(torch.autograd.grad(made.sum(), weight)[0] for made in (logit, all_there)))
