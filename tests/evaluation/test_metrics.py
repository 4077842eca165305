"""The judge's arithmetic against figures by hand, slow loops and what a bootstrap must do."""

import math

import numpy as np
import pytest

from onepiece_comp.evaluation import metrics

RANK = np.array([1, 3, 0, 10, 11])


def test_a_hit_is_a_target_within_the_first_k_places():
    assert metrics.hit_rate(RANK, 10).tolist() == [1, 1, 0, 1, 0]
    assert metrics.hit_rate(RANK, 2).tolist() == [1, 0, 0, 0, 0]


def test_ndcg_of_rank_1_is_one_of_rank_3_a_half_and_of_a_miss_zero():
    assert metrics.ndcg(RANK, 10) == pytest.approx([1, 0.5, 0, 1 / math.log2(11), 0])


def test_metrics_equal_a_loop_over_lists():
    rng = np.random.default_rng(0)
    lists, targets = [rng.permutation(30)[:10].tolist() for _ in range(50)], rng.integers(0, 30, 50).tolist()
    rank = np.array([items.index(t) + 1 if t in items else 0 for items, t in zip(lists, targets)])
    for k in (1, 5, 10):
        hits, gains = [], []
        for items, target in zip(lists, targets):
            hits.append(float(target in items[:k]))
            gains.append(sum(1 / math.log2(place + 2) for place, item in enumerate(items[:k]) if item == target))
        assert metrics.hit_rate(rank, k).tolist() == hits
        assert metrics.ndcg(rank, k) == pytest.approx(gains)


@pytest.mark.parametrize("hit, gain, published", [(0.186332, 0.104463, 0.129843), (0.168271, 0.0935916, 0.116742)])
def test_the_score_agrees_with_published_leaderboard_figures(hit, gain, published):
    assert metrics.combined_score(hit, gain) == pytest.approx(published, abs=1e-6)  # six digits each


def test_relevance_is_by_action_and_an_unknown_action_earns_nothing():
    assert metrics.relevance([0, 1, 2, 3]).tolist() == [0, 1, 2.5, 0]


def test_with_one_target_the_weight_cancels_inside_each_user():
    values, weight = metrics.ndcg(RANK, 10), np.array([1, 2.5, 2.5, 1, 0])
    one_by_one = [metrics.weighted_metrics(_list_with(rank), {-1: w}, 10).ndcg for rank, w in zip(RANK, weight)]
    assert metrics.per_user_ratio(values, weight) == pytest.approx(one_by_one[:4])
    assert math.isnan(one_by_one[4])  # relevance 0: the ratio is 0 / 0, the user is left out


def _list_with(rank: int) -> list[int]:
    """Ten items with the target, -1, at `rank`."""
    return [-1 if place == rank else place for place in range(1, 11)]


def test_weighting_over_all_users_lets_a_conversion_count_two_and_a_half_times():
    hit, weight = np.array([1.0, 0.0]), np.array([2.5, 1.0])
    assert metrics.weighted_mean(hit, weight) == pytest.approx(2.5 / 3.5)
    assert metrics.per_user_ratio(hit, weight).mean() == 0.5
    assert math.isnan(metrics.weighted_mean(hit, np.zeros(2)))


def test_several_targets_are_weighted_and_ranked_by_hand():
    targets = {7: 1.0, 8: 2.5, 9: 1.0}
    judged = metrics.weighted_metrics([7, 1, 8], targets, 10)
    assert judged.hit_rate == pytest.approx(3.5 / 4.5)
    ideal = 2.5 + 1 / math.log2(3) + 1 / math.log2(4)
    assert judged.ndcg == pytest.approx((1 + 2.5 / math.log2(4)) / ideal)


def test_several_targets_are_cut_at_k_in_the_list_and_in_the_ideal_but_not_in_the_weight_of_all():
    judged = metrics.weighted_metrics([8, 7], {7: 1.0, 8: 2.5}, 1)
    assert judged.hit_rate == pytest.approx(2.5 / 3.5)
    assert judged.ndcg == 1


def test_the_interval_holds_the_truth_in_about_95_of_100_samples():
    rng, covered = np.random.default_rng(1), 0
    for seed in range(200):
        sample = (rng.random(400) < 0.3).astype(float)
        interval = metrics.bootstrap_mean(sample, resamples=400, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    assert 180 <= covered <= 198


def test_resampling_counts_of_distinct_values_equals_resampling_users():
    values = np.repeat([0.0, 0.5, 1.0], [60, 25, 15])
    rng = np.random.default_rng(5)
    slow = [rng.choice(values, len(values)).mean() for _ in range(8000)]
    interval = metrics.bootstrap_mean(values, resamples=8000, seed=0)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.008)


def test_the_weighted_interval_resamples_values_with_their_weights():
    values, weight = np.tile([1.0, 0.0], 50), np.tile([2.5, 1.0], 50)
    rng, slow = np.random.default_rng(5), []
    for _ in range(4000):
        drawn = rng.integers(0, 100, 100)
        slow.append(values[drawn] @ weight[drawn] / weight[drawn].sum())
    interval = metrics.bootstrap_mean(values, resamples=4000, seed=0, weight=weight)
    assert interval.mean == pytest.approx(2.5 / 3.5)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.012)


def test_equal_seeds_give_equal_intervals_however_many_resamples_are_held_at_once(monkeypatch):
    values = np.random.default_rng(0).random(300)
    first = metrics.bootstrap_mean(values, resamples=500, seed=3)
    monkeypatch.setattr(metrics, "_CELLS", 1000)
    assert metrics.bootstrap_mean(values, resamples=500, seed=3) == pytest.approx(first, rel=1e-12)
    assert abs(metrics.bootstrap_mean(values, resamples=500, seed=4).low - first.low) > 1e-6


def test_the_difference_of_a_ranking_to_itself_is_exactly_zero():
    values = metrics.combined_score(metrics.hit_rate(RANK, 10), metrics.ndcg(RANK, 10))
    interval = metrics.bootstrap_difference(values, values.copy(), resamples=100, seed=0)
    assert interval == (0, 0, 0) and not interval.excludes_zero


def test_pairing_sees_a_small_steady_difference_that_lies_inside_both_intervals():
    first = np.repeat([1.0, 0.0], [110, 890])
    second = np.repeat([1.0, 0.0], [100, 900])
    difference = metrics.bootstrap_difference(first, second, resamples=1000, seed=0)
    apart = metrics.bootstrap_mean(first, resamples=1000, seed=0)
    assert difference.mean == pytest.approx(0.01) and difference.excludes_zero
    assert apart.low < second.mean() < apart.high
    assert metrics.bootstrap_difference(second, first, resamples=1000, seed=0).excludes_zero


@pytest.mark.parametrize("differ, sure", [(1, False), (5, False), (6, True)])
@pytest.mark.parametrize("users", [0, 300])
def test_fewer_than_six_users_who_differ_tell_no_direction(users, differ, sure):
    """The others agree. Five on one side have p = .06 by their signs alone, whatever the resamples say."""
    first = np.repeat([1.0, 0.0], [differ, users])
    interval = metrics.bootstrap_difference(first, np.zeros_like(first), resamples=2000, seed=0)
    assert interval.excludes_zero == sure and interval.mean == pytest.approx(differ / (differ + users))
    assert metrics.bootstrap_difference(np.zeros_like(first), first, resamples=2000, seed=0).excludes_zero == sure


def test_users_are_paired_so_that_wins_and_losses_spread_the_difference():
    first, second = np.repeat([1.0, 0.0], 50), np.repeat([0.0, 1.0], 50)
    interval = metrics.bootstrap_difference(first, second, resamples=1000, seed=0)
    assert interval.mean == 0 and interval.low < -0.1 and interval.high > 0.1


@pytest.mark.parametrize("shared", [True, False])
def test_over_seeds_the_interval_holds_the_truth_whether_or_not_they_share_their_users(shared):
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ease = rng.random(150) < 0.3  # a user's luck, the same under every seed of the model
        asked = [ease if shared else rng.random(150) < 0.3 for _ in range(3)]
        values = [one + rng.normal(0, 0.05, 150) for one in asked]
        interval = metrics.bootstrap_seeds({"one": values} if shared else {n: [v] for n, v in enumerate(values)},
                                           resamples=300, seed=seed)
        held += interval.low <= 0.3 <= interval.high
    assert 180 <= held <= 199


def test_seeds_weigh_alike_however_their_users_are_shared():
    two, one = [np.array([0.0, 1.0]), np.array([1.0, 1.0])], [np.array([0.0, 0.0, 0.3])]
    assert metrics.bootstrap_seeds({"a": two, "b": one}, resamples=50,
                                   seed=0).mean == pytest.approx((0.5 + 1.0 + 0.1) / 3)
    alone = metrics.bootstrap_seeds({"b": one}, resamples=50, seed=0)
    assert tuple(alone) == pytest.approx(tuple(metrics.bootstrap_mean(one[0], resamples=50, seed=0)), abs=1e-15)
    both = metrics.bootstrap_seeds({"b": one, "c": one}, resamples=50, seed=0)
    assert (both.mean - both.low, both.high - both.mean) == pytest.approx(
        ((alone.mean - alone.low) / 2**0.5, (alone.high - alone.mean) / 2**0.5))


def test_no_users_or_no_weight_give_no_number():
    assert all(map(math.isnan, metrics.bootstrap_mean(np.empty(0), resamples=10, seed=0)))
    assert all(map(math.isnan, metrics.bootstrap_mean(np.ones(3), resamples=10, seed=0, weight=np.zeros(3))))
