"""How far probabilities can be believed, and the smallest corrections that make them so. Pure functions.

A binary logit is corrected by a slope and a shift (Platt 1999), the logits of a list by a temperature (Guo et al. 2017,
arXiv 1706.04599). Both are fitted to the log loss. Legend: N examples, B lists, M candidates.
"""

import numpy as np

_STEPS, _RIDGE = 50, 1e-3  # Newton's steps; a weak pull to the uncorrected logit, for data that separate
_TEMPERATURES = np.exp(np.linspace(np.log(0.1), np.log(10), 201))


def sigmoid(logit_N: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logit_N, -60, 60)))


def log_loss(probability_N: np.ndarray, label_N: np.ndarray) -> float:
    """Mean -log of the probability given to what happened; .5 for everything gives log 2."""
    p = np.clip(probability_N, 1e-12, 1 - 1e-12)
    return float(-np.mean(np.where(label_N, np.log(p), np.log(1 - p)))) if len(p) else 0.0


def calibration_error(probability_N: np.ndarray, label_N: np.ndarray, *, bins: int = 15) -> float:
    """Expected calibration error: mean distance of forecast and frequency, over bins of equally many examples."""
    order = np.argsort(probability_N, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return sum(abs(float(np.mean(probability_N[part]) - np.mean(label_N[part]))) * len(part) for part in parts) / max(
        1, len(order))


def fit_platt(logit_N: np.ndarray, label_N: np.ndarray) -> tuple[float, float]:
    """(slope, shift) with the least log loss of sigmoid(slope * logit + shift); (1, 0) without examples of both."""
    if not len(label_N) or label_N.all() or not label_N.any():
        return 1.0, 0.0
    x_NP, start_P = np.stack([logit_N, np.ones(len(logit_N))], 1), np.array([1.0, 0.0])
    weight_P = start_P
    total = lambda weight: (len(label_N) * log_loss(sigmoid(x_NP @ weight), label_N)
                            + _RIDGE / 2 * np.square(weight - start_P).sum())
    for _ in range(_STEPS):
        p = sigmoid(x_NP @ weight_P)
        slope = x_NP.T @ (p - label_N) + _RIDGE * (weight_P - start_P)
        curve = (x_NP * (p * (1 - p))[:, None]).T @ x_NP + _RIDGE * np.eye(2)
        step, now = np.linalg.solve(curve, slope), total(weight_P)
        while total(weight_P - step) > now and np.abs(step).max() > 1e-9:
            step = step / 2
        weight_P = weight_P - step
    return float(weight_P[0]), float(weight_P[1])


def log_softmax(logit_BM: np.ndarray) -> np.ndarray:
    """Row by row; -inf stays -inf."""
    shifted = logit_BM - logit_BM.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def list_loss(logit_BM: np.ndarray, place_B: np.ndarray) -> float:
    """Mean -log of the probability that a list gives to its target."""
    return float(-np.mean(log_softmax(logit_BM)[np.arange(len(place_B)), place_B])) if len(place_B) else 0.0


def first_place_error(logit_BM: np.ndarray, place_B: np.ndarray) -> float:
    """Expected calibration error of each list's first place: its probability against how often it is the target."""
    if not len(place_B):
        return 0.0
    return calibration_error(np.exp(log_softmax(logit_BM).max(1)), logit_BM.argmax(1) == place_B)


def fit_temperature(logit_BM: np.ndarray, place_B: np.ndarray) -> float:
    """The temperature between .1 and 10 by which logits are divided for the least loss; 1 without lists."""
    if not len(place_B):
        return 1.0
    return float(min(_TEMPERATURES, key=lambda temperature: list_loss(logit_BM / temperature, place_B)))
