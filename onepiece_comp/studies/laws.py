"""Laws of loss against size: a saturating power, a line in the logarithm, a constant; which one the points support.

Pure functions of arrays, read by `scaling.py`. L(N) = E + A / N^a is fitted by robust least squares (Huber) over a
search of a, where E and A are linear; AIC, which supposes them, is of least squares. Intervals are percentiles of
bootstraps over the points, seeds among them.
Sources: Hoffmann et al. 2022 (arXiv 2203.15556) for power and Huber; Zhai et al. 2024 (HSTU, arXiv 2402.17152) for
the line in the logarithm.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LAWS = ("power", "log-linear", "constant")
_EXPONENTS = np.geomspace(0.01, 3.0, 90)
_ROUNDS, _HUBER = 8, 1.345  # re-weightings; standard deviations from which a residual counts linearly
_DEGREES = {"power": 3, "log-linear": 2, "constant": 1}


class Law(NamedTuple):
    """A fitted law: E + A / N^a, c - b ln N or c, by its name; `values` in that order."""

    name: str
    values: tuple[float, ...]

    def at(self, size: np.ndarray | float) -> np.ndarray:
        """The loss at sizes."""
        size = np.asarray(size, np.float64)
        if self.name == "power":
            floor, scale, exponent = self.values
            return floor + scale * size ** -exponent
        return self.values[0] - (self.values[1] * np.log(size) if self.name == "log-linear" else 0 * size)


class LawFit(NamedTuple):
    """How well a law does: AIC on all points (least is best), error on the size that was left out, on average."""

    law: Law
    aic: float | None  # corrected for few points; None where they are too few for the correction
    left_out: float  # root mean square
    r2: float  # on all points, as papers report it: rises with every parameter


def fit(name: str, size: np.ndarray, loss: np.ndarray, *, robust: bool = True) -> Law:
    """The law of that name through points of `size` and `loss` [points]; by least squares where not `robust`."""
    size, loss = np.asarray(size, np.float64), np.asarray(loss, np.float64)
    if name == "constant":
        return Law(name, (_level(loss, robust),))
    if name == "log-linear":
        intercept, slope = _lines(-np.log(size)[None], loss, robust)
        return Law(name, (float(intercept[0]), float(slope[0])))
    return _power(size, loss, robust)


def _power(size: np.ndarray, loss: np.ndarray, robust: bool) -> Law:
    """The exponent of the least cost, absolute or squared errors: a coarse search, then a finer one beside the best.

    Neither E nor A is below zero: where the best line has one that is, the best that is allowed has zero in its place.
    """
    unit = np.exp(np.log(size).mean())  # sizes around 1, so that the columns are alike
    exponent, step, level = None, _EXPONENTS[1] / _EXPONENTS[0], _level(loss, robust)
    for exponents in (_EXPONENTS, np.geomspace(1 / step, step, 40)):
        exponents = exponents if exponent is None else exponent * exponents
        column = (size / unit) ** -exponents[:, None]
        floor, scale = _lines(column, loss, robust)
        floor, scale = np.where(scale < 0, level, floor), np.maximum(scale, 0)
        floor, scale = np.maximum(floor, 0), np.where(floor < 0, (column * loss).sum(1) / (column ** 2).sum(1), scale)
        away = np.abs(loss - floor[:, None] - scale[:, None] * column)
        cost = (away if robust else away ** 2).mean(1)
        best = int(cost.argmin())
        exponent = float(exponents[best])
    return Law("power", (float(floor[best]), float(scale[best] * unit ** exponent), exponent))


def _level(loss: np.ndarray, robust: bool) -> float:
    """The mean."""
    return float(_lines(np.zeros((1, len(loss))), loss, robust)[0][0])


def _lines(column: np.ndarray, loss: np.ndarray, robust: bool) -> tuple[np.ndarray, np.ndarray]:
    """(intercept, slope) of each row of `column` [fits, points]: least squares, far points then weighted down."""
    weight = np.ones_like(column)
    for _ in range(_ROUNDS if robust else 1):
        total = weight.sum(1, keepdims=True)
        x, y = (weight * column).sum(1, keepdims=True) / total, (weight * loss).sum(1, keepdims=True) / total
        spread = (weight * (column - x) ** 2).sum(1, keepdims=True)
        slope = (weight * (column - x) * (loss - y)).sum(1, keepdims=True) / np.maximum(spread, 1e-12)
        away = np.abs(loss - y - slope * (column - x))
        usual = 1.4826 * np.median(away, axis=1, keepdims=True)
        weight = np.minimum(1.0, _HUBER * np.maximum(usual, 1e-9) / np.maximum(away, 1e-12))
    return (y - slope * x)[:, 0], slope[:, 0]


def judge(size: np.ndarray, loss: np.ndarray) -> list[LawFit]:
    """Every law on the points; needs four sizes, of which each is left out once."""
    size, loss = np.asarray(size, np.float64), np.asarray(loss, np.float64)
    return [LawFit(law := fit(name, size, loss), _aic(name, size, loss), _left_out(name, size, loss),
                   _r2(law, size, loss))
            for name in LAWS]


def _r2(law: Law, size: np.ndarray, loss: np.ndarray) -> float:
    return 1 - float(((loss - law.at(size)) ** 2).sum() / max(((loss - loss.mean()) ** 2).sum(), 1e-18))


def best_law(judged: Sequence[LawFit]) -> str:
    """The name of the law of the least AIC, or of the least error left out where there are too few points for AIC."""
    by_aic = all(one.aic is not None for one in judged)
    return min(judged, key=lambda one: one.aic if by_aic else one.left_out).law.name


def _aic(name: str, size: np.ndarray, loss: np.ndarray) -> float | None:
    """With the correction for few points; one more degree for the noise."""
    points, degrees = len(loss), _DEGREES[name] + 1
    if points <= degrees + 1:
        return None
    squares = max(float(((loss - fit(name, size, loss, robust=False).at(size)) ** 2).sum()), 1e-18)
    return points * np.log(squares / points) + 2 * degrees + 2 * degrees * (degrees + 1) / (points - degrees - 1)


def _left_out(name: str, size: np.ndarray, loss: np.ndarray) -> float:
    errors = [loss[size == one] - fit(name, size[size != one], loss[size != one]).at(one) for one in np.unique(size)]
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def interval(name: str, size: np.ndarray, loss: np.ndarray, *, resamples: int = 200, seed: int = 0) -> np.ndarray:
    """[values, (low, high)]: 95 % percentiles of the law's values under bootstraps of the points."""
    rng, found = np.random.default_rng(seed), []
    size, loss = np.asarray(size, np.float64), np.asarray(loss, np.float64)
    while len(found) < resamples:
        drawn = rng.integers(0, len(size), len(size))
        if len(np.unique(size[drawn])) >= min(3, len(np.unique(size))):  # fewer sizes say nothing of a curve
            found.append(fit(name, size[drawn], loss[drawn]).values)
    return np.quantile(np.array(found), [0.025, 0.975], axis=0).T


def forecast(size: np.ndarray, loss: np.ndarray) -> Mapping[str, tuple[float, float]]:
    """Law to (forecast, measured - forecast) of the largest size, from the others alone."""
    size, loss = np.asarray(size, np.float64), np.asarray(loss, np.float64)
    largest = size == size.max()
    laws = {name: fit(name, size[~largest], loss[~largest]) for name in LAWS}
    return {name: (float(law.at(size.max())), float(loss[largest].mean() - law.at(size.max()))) for name,
            law in laws.items()}


def frontier(flops: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Places of the runs that no cheaper run equals, in the order of their cost."""
    order = np.lexsort((loss, flops))
    best = np.minimum.accumulate(np.asarray(loss)[order])
    first = np.concatenate([[True], best[1:] < best[:-1]])
    return order[first]
