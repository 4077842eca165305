"""Laws of loss: planted ones are found, a flat curve is called flat, a far point bends nothing."""

import numpy as np
import pytest

from onepiece_comp.studies.laws import best_law, fit, forecast, frontier, interval, judge

SIZES = np.repeat(np.geomspace(1e4, 1e6, 8), 2)


def planted(law, noise=0.004):
    return law(SIZES) + np.random.default_rng(3).normal(0, noise, len(SIZES))


def test_a_planted_power_lies_within_the_interval_and_beats_the_others():
    loss = planted(lambda size: 4.0 + 60 / size ** 0.4)
    low, high = interval("power", SIZES, loss, resamples=60)[2]
    assert low <= 0.4 <= high and high - low < 0.6
    judged = {one.law.name: one for one in judge(SIZES, loss)}
    assert min(judged, key=lambda name: judged[name].aic) == "power" == min(judged,
                                                                            key=lambda name: judged[name].left_out)


def test_a_planted_line_in_the_logarithm_is_found():
    judged = {one.law.name: one for one in judge(SIZES, planted(lambda size: 8 - 0.3 * np.log(size)))}
    assert judged["log-linear"].law.values[1] == pytest.approx(0.3, abs=0.01)
    assert min(judged, key=lambda name: judged[name].aic) == "log-linear"


def test_a_flat_curve_prefers_the_constant():
    judged = {one.law.name: one for one in judge(SIZES, planted(lambda size: 0 * size + 5))}
    assert min(judged, key=lambda name: judged[name].aic) == "constant"
    assert judged["constant"].law.at(1e9) == pytest.approx(5, abs=0.01)


def test_a_far_point_does_not_bend_the_law():
    loss = planted(lambda size: 4.0 + 60 / size ** 0.4)
    loss[5] += 3
    assert fit("power", SIZES, loss).at(1e5) == pytest.approx(4.6, abs=0.03)


def test_a_forecast_is_made_without_the_size_that_it_is_of():
    loss = planted(lambda size: 4.0 + 60 / size ** 0.4, noise=0.0005)
    loss[SIZES == SIZES.max()] += 0.5
    said, off = forecast(SIZES, loss)["power"]
    assert said == pytest.approx(4 + 60 / 1e6 ** 0.4, abs=0.02) and off == pytest.approx(0.5, abs=0.02)


def test_aic_is_of_least_squares_so_that_a_far_point_tells_for_no_law():
    loss = planted(lambda size: 8 - 0.3 * np.log(size))
    loss[5] += 3
    slope, intercept = np.polyfit(np.log(SIZES), loss, 1)
    squares = ((loss - intercept - slope * np.log(SIZES)) ** 2).mean()
    by_hand = len(loss) * np.log(squares) + 2 * 3 + 2 * 3 * 4 / (len(loss) - 4)  # slope, intercept, noise
    assert next(one for one in judge(SIZES, loss) if one.law.name == "log-linear").aic == pytest.approx(by_hand)
    mean = fit("constant", SIZES, loss, robust=False).at(1.0)
    assert mean == pytest.approx(loss.mean())
    best = lambda a: np.linalg.lstsq(np.stack([np.ones(len(SIZES)), SIZES ** -a], 1), loss, rcond=None)[1][0]
    loss = planted(lambda size: 4.0 + 60 / size ** 0.4)
    law = fit("power", SIZES, loss, robust=False)
    assert ((loss - law.at(SIZES)) ** 2).sum() == pytest.approx(min(best(a) for a in np.geomspace(0.01, 3, 2000)),
                                                                rel=1e-3)


def test_the_frontier_has_the_runs_that_no_cheaper_one_equals():
    assert frontier(np.array([3.0, 1, 2, 4]), np.array([5.0, 7, 7, 4])).tolist() == [1, 0, 3]


def test_a_power_is_never_worse_than_a_constant_even_where_the_loss_rises():
    rising = planted(lambda size: 2.0 + 1e-9 * size, noise=0.0002)
    laws = {name: np.abs(fit(name, SIZES, rising).at(SIZES) - rising).mean() for name in ("power", "constant")}
    assert laws["power"] == pytest.approx(laws["constant"], rel=1e-3)
    through_zero = planted(lambda size: 60 / size ** 0.4, noise=0.0)
    assert fit("power", SIZES, through_zero).values == pytest.approx((0, 60, 0.4), abs=1e-2, rel=1e-2)
    # a free line would go below
    assert fit("power", SIZES, planted(lambda size: 8 - 0.3 * np.log(size))).values[0] >= 0


def test_few_points_are_judged_by_the_size_left_out():
    size = np.geomspace(1e4, 1e6, 4)
    judged = judge(size, 8 - 0.3 * np.log(size) + np.array([0.001, -0.002, 0.002, -0.001]))
    assert judged[0].aic is None and best_law(judged) == "log-linear"
    more = judge(SIZES, planted(lambda size: 0 * size + 5))
    assert None not in [one.aic for one in more] and best_law(more) == "constant"
