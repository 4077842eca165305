"""Angles between two objectives' gradients: a planted one is found under noise, and noise alone is no angle."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SPEC = importlib.util.spec_from_file_location("interference",
                                              Path(__file__).resolve().parents[2] / "benchmarks" / "interference.py")


@pytest.fixture(scope="module")
def interference():
    module = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    return module


def gradients(direction, noise, seed):
    """12 batches over 400 parameters around a direction of length 1."""
    return direction + noise * np.random.default_rng(seed).normal(size=(12, 400)) / 20


def test_a_planted_angle_is_found_under_noise_that_hides_it_in_each_batch(interference):
    first, second = np.eye(400)[0], np.eye(400)[0] * 0.6 - np.eye(400)[1] * 0.8
    found = interference.compare(gradients(first, 2.0, 1), gradients(second, 2.0, 2))
    assert found.together < 0.3 and found.true == pytest.approx(0.6, abs=0.15) and 0.02 < found.error < 0.2
    # 1 / (1 + 2 * 2), what two batches of one objective have in common
    assert found.first == pytest.approx(0.2, abs=0.06)


def test_noise_that_both_share_in_a_batch_is_no_agreement_of_the_objectives(interference):
    shared = gradients(0 * np.eye(400)[0], 3.0, 3)
    found = interference.compare(np.eye(400)[0] + shared, np.eye(400)[1] + shared)
    assert found.together > 0.7 and abs(found.apart) < 0.1 and abs(found.true) < 0.3


def test_gradients_of_noise_alone_have_no_angle_or_none_that_its_error_lets_stand(interference):
    for seed in range(4):
        found = interference.compare(gradients(0, 1.0, 10 + seed), gradients(0, 1.0, 20 + seed))
        assert found.true is None or abs(found.true) < 3 * found.error


def test_opposed_gradients_are_counted(interference):
    first = gradients(np.eye(400)[0], 0.5, 5)
    found = interference.compare(first, -2 * first)
    assert found.opposed == 1 and found.together == pytest.approx(-1) and found.norms == pytest.approx(2)
