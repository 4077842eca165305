"""The judge of the public benchmarks: the place of the one target among all items, and what the lists are made of.

Numpy only, left of everything that learns. A target that ties with other items takes the last place among them, so
that a model that gives all items one score finds nothing. With the seen filter the items of the whole history leave
the list, the target never does. Legend: B users, T positions, I items in the catalogue; column 0 is padding.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from onepiece_comp.errors import InputError
from onepiece_comp.evaluation.metrics import hit_rate, ndcg

CUTS = (5, 10, 50, 200)
FILTERS = ("unseen", "all")  # with the seen filter, without it


class Judged(NamedTuple):
    """Ranks of all users and the lists' make-up, of one filter."""

    rank: np.ndarray  # int64 [users], from 1
    recommended: dict[int, np.ndarray]  # cut: how often each item is in a list, int64 [I + 1]


class Scored(NamedTuple):
    """What a model says about some users, and who they are."""

    score_BI: np.ndarray  # float32 [B, I + 1]; overwritten
    target_B: np.ndarray  # int64
    seen_BT: np.ndarray  # int64, 0 = padding


def ranks(score_BI: np.ndarray, target_B: np.ndarray) -> np.ndarray:  # noqa: N803
    """Place of each target: 1 + the number of other items (column 0 apart) of at least its score.

    ranks([[0, .5, .9, .5]], [1]) is [3]: below item 2, and behind item 3, with which it ties. InputError for a nan.
    """
    if np.isnan(score_BI[:, 1:]).any():
        raise InputError("scores", found="one that is no number", expected="numbers",
                         do="lower learning_rate: training diverged")
    own = np.take_along_axis(score_BI, target_B[:, None], 1)
    return (score_BI[:, 1:] >= own).sum(1).astype(np.int64)  # the target itself is the 1


def hide(score_BI: np.ndarray, target_B: np.ndarray, seen_BT: np.ndarray) -> None:  # noqa: N803
    """Give the items of each history the score -inf, in place; the target keeps its own."""
    own = np.take_along_axis(score_BI, target_B[:, None], 1)
    np.put_along_axis(score_BI, seen_BT, -np.inf, 1)
    np.put_along_axis(score_BI, target_B[:, None], own, 1)


def top(score_BI: np.ndarray, count: int) -> np.ndarray:  # noqa: N803
    """The best `count` items of each row, best first; of equal ones the lower item is the better."""
    count = min(count, score_BI.shape[1] - 1)
    item = 1 + np.argpartition(-score_BI[:, 1:], count - 1, axis=1)[:, :count]
    return np.take_along_axis(item, np.lexsort((item, -np.take_along_axis(score_BI, item, 1)), axis=1), 1)


def judge(batches: Iterable[Scored], *, items: int, lists: bool = True) -> dict[str, Judged]:
    """Ranks under both filters; with `lists` also what would be recommended. Batches in the order of the users."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in FILTERS}
    recommended = {name: {cut: np.zeros(items + 1, np.int64) for cut in CUTS} for name in FILTERS}
    for score, target, seen in batches:
        for name in reversed(FILTERS):  # the filter changes the scores, so it comes last
            if name == "unseen":
                hide(score, target, seen)
            found[name].append(ranks(score, target))
            if lists:
                best = top(score, CUTS[-1])
                best = np.where(np.take_along_axis(score, best, 1) > -np.inf, best, 0)  # short lists stay short
                for cut in CUTS:
                    recommended[name][cut] += np.bincount(best[:, :cut].ravel(), minlength=items + 1)
                    recommended[name][cut][0] = 0
    return {name: Judged(np.concatenate(found[name]), recommended[name]) for name in FILTERS}


def figures(judged: Judged, counts: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Metrics by name: HR, NDCG, coverage and popularity at each cut, and MRR.

    With one target Recall is HR. `coverage` is the share of the catalogue that stands in any list. `popularity` is the
    mean number of training events (`counts`) of what is recommended over that of the targets: 1 = as popular.
    """
    values: dict[str, float] = {"mrr": float((1 / judged.rank).mean())}
    for cut in CUTS:
        values[f"hr@{cut}"] = float(hit_rate(judged.rank, cut).mean())
        values[f"ndcg@{cut}"] = float(ndcg(judged.rank, cut).mean())
        shown = judged.recommended[cut]
        if shown.any():
            values[f"coverage@{cut}"] = float((shown[1:] > 0).sum() / (len(shown) - 1))
            values[f"popularity@{cut}"] = float(shown @ counts / shown.sum() / max(counts[target].mean(), 1e-9))
    return values


def batches_of(users: np.ndarray, size: int) -> Iterable[np.ndarray]:
    """Consecutive users, `size` at a time."""
    return (users[place:place + size] for place in range(0, len(users), size))


Scorer = Callable[[np.ndarray, int], np.ndarray]  # users, events held out -> scores [B, I + 1]
