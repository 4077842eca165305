"""Calibration: errors and losses by hand, and corrections that recover what was done to the logits."""

import numpy as np
import pytest

from onepiece_comp.evaluation.calibration import (
    calibration_error, first_place_error, fit_platt, fit_temperature, list_loss, log_loss, log_softmax, sigmoid)

DRAW = np.random.default_rng(0)


def test_losses_and_errors_by_hand():
    assert log_loss(np.array([0.5, 0.5]), np.array([True, False])) == pytest.approx(np.log(2))
    label = np.array([True, False, False, False] * 30)
    assert calibration_error(np.full(120, 0.25), label, bins=1) == pytest.approx(0)
    assert calibration_error(np.full(120, 0.75), label, bins=1) == pytest.approx(0.5)
    half = np.array([[0.0, 0.0]])
    assert list_loss(half, np.array([1])) == pytest.approx(np.log(2))
    assert first_place_error(half, np.array([1])) == pytest.approx(0.5)


def test_a_slope_and_a_shift_undo_what_was_done_to_a_logit():
    truth = DRAW.normal(0, 1.5, 20_000)
    label = DRAW.random(20_000) < sigmoid(truth)
    slope, shift = fit_platt(3 * truth + 2, label)
    assert slope == pytest.approx(1 / 3, abs=0.02) and shift == pytest.approx(-2 / 3, abs=0.06)
    before, after = sigmoid(3 * truth + 2), sigmoid(slope * (3 * truth + 2) + shift)
    assert calibration_error(after, label) < 0.02 < 0.1 < calibration_error(before, label)
    assert log_loss(after, label) < log_loss(before, label)


def test_a_label_that_never_varies_leaves_the_logit_alone():
    assert fit_platt(DRAW.normal(size=50), np.ones(50, bool)) == (1.0, 0.0)
    assert fit_platt(np.zeros(0), np.zeros(0, bool)) == (1.0, 0.0)


def test_data_that_separate_give_a_finite_correction():
    slope, shift = fit_platt(np.array([-1.0, -1.0, 1.0, 1.0]), np.array([False, False, True, True]))
    assert np.isfinite([slope, shift]).all() and slope > 1


def test_a_temperature_undoes_logits_that_are_too_sure():
    logit = DRAW.normal(0, 1.0, (4_000, 8))
    logit[:, 7] = -np.inf  # an empty column
    place = np.array([DRAW.choice(8, p=np.exp(row)) for row in log_softmax(logit)])
    temperature = fit_temperature(4 * logit, place)
    assert temperature == pytest.approx(4, rel=0.1)
    assert first_place_error(4 * logit / temperature, place) < 0.03 < first_place_error(4 * logit, place)
