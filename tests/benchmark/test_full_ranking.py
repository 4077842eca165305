"""The judge of the public benchmarks against an independent slow loop, with ties, and its limit cases."""

import math

import numpy as np
import pytest

from onepiece_comp.benchmark.full_ranking import CUTS, Scored, figures, hide, judge, ranks, top
from onepiece_comp.errors import InputError

ITEMS, USERS = 300, 60


def _case(seed=0, levels=40):
    """Random scores of few distinct values, so that most tie; a target and a history for every user."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, levels, (USERS, ITEMS + 1)).astype(np.float32)
    target = rng.integers(1, ITEMS + 1, USERS)
    seen = rng.integers(0, ITEMS + 1, (USERS, 12))
    seen[0, 0] = target[0]  # one user meets the target again
    return score, target, seen


def _slow_list(score, target, seen):
    """Items from best to worst, the target last among its equals: sorted one user at a time."""
    items = [item for item in range(1, ITEMS + 1) if item == target or item not in set(seen.tolist())]
    return sorted(items, key=lambda item: (-score[item], item == target))


@pytest.mark.parametrize("kind", ["unseen", "all"])
def test_figures_equal_a_loop_over_sorted_lists_where_most_scores_tie(kind):
    score, target, seen = _case()
    judged = judge([Scored(score[:25].copy(), target[:25], seen[:25]),
                    Scored(score[25:].copy(), target[25:], seen[25:])],
                   items=ITEMS)[kind]
    found = figures(judged, np.ones(ITEMS + 1), target)
    lists = [_slow_list(s, t, h if kind == "unseen" else np.array([])) for s, t, h in zip(score, target, seen)]
    place = [items.index(t) for items, t in zip(lists, target)]
    for cut in CUTS:
        assert found[f"hr@{cut}"] == pytest.approx(sum(p < cut for p in place) / USERS)
        assert found[f"ndcg@{cut}"] == pytest.approx(sum(1 / math.log2(p + 2) for p in place if p < cut) / USERS)
    assert found["mrr"] == pytest.approx(sum(1 / (p + 1) for p in place) / USERS)


def test_without_ties_the_lists_are_those_of_a_sort():
    score = np.random.default_rng(1).permuted(np.tile(np.arange(ITEMS + 1, dtype=np.float32), (5, 1)), axis=1)
    assert top(score, 20).tolist() == [[1 + i for i in np.argsort(-row[1:])[:20]] for row in score]


def test_a_model_that_gives_all_items_one_score_finds_nothing():
    assert ranks(np.zeros((3, ITEMS + 1), np.float32), np.array([1, 5, ITEMS])).tolist() == [ITEMS] * 3


def test_padding_is_no_competitor_however_high_its_score():
    score = np.array([[99, 1, 3, 2]], np.float32)
    assert ranks(score, np.array([2])).tolist() == [1]


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="no number"):
        ranks(np.array([[0, np.nan, 1]], np.float32), np.array([2]))


def test_the_filter_takes_seen_items_out_and_leaves_the_target_in():
    score = np.array([[0, 5, 4, 3]], np.float32)
    hide(score, np.array([2]), np.array([[1, 2, 0]]))
    assert score[0, 1:].tolist() == [-np.inf, 4, 3]


def test_coverage_counts_distinct_items_and_popularity_is_in_units_of_the_targets():
    score = np.tile(np.array([0, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0], np.float32), (4, 1))
    judged = judge([Scored(score, np.array([10] * 4), np.zeros((4, 1), np.int64))], items=10)["all"]
    found = figures(judged, np.array([0, *[20] * 5, *[2] * 5]), np.array([10] * 4))
    assert found["coverage@5"] == 0.5 and found["popularity@5"] == 10 and found["popularity@10"] == pytest.approx(5.5)


def test_what_a_model_does_not_score_is_in_no_list_and_as_a_target_takes_the_last_place():
    score = np.full((4, 11), -np.inf, np.float32)
    score[:, [3, 7]] = [2, 1]
    target = np.array([3, 7, 10, 1])
    judged = judge([Scored(score, target, np.zeros((4, 1), np.int64))], items=10)["all"]
    assert judged.rank.tolist() == [1, 2, 10, 10]
    found = figures(judged, np.array([0, *[1] * 10]), target)
    assert found["coverage@200"] == found["coverage@5"] == 0.2 and found["popularity@200"] == 1
