"""What a public benchmark's models have to beat: popularity and item-kNN over the training events.

The counting of item pairs is that of `baselines.py`; here everything in the catalogue gets a score, for a judge who
ranks all items. Legend: B users, T positions, I items in the catalogue.
"""

import numpy as np

from onepiece_comp.benchmark.full_ranking import Scorer
from onepiece_comp.benchmark.interactions import Interactions, train_counts, window
from onepiece_comp.evaluation.baselines import LATEST, Baskets, CandidateSet, Neighbours, item_neighbours

KNN_DAMPING = 1.0  # users: the 50 of the competition's logs would leave nothing of lists this short


def popularity_scorer(log: Interactions) -> Scorer:
    """Training events of an item, the same for every user."""
    counts = train_counts(log).astype(np.float32)
    counts[0] = -np.inf

    def score(users: np.ndarray, held_out: int) -> np.ndarray:
        return np.tile(counts, (len(users), 1))

    return score


def knn_scorer(log: Interactions) -> Scorer:
    """Summed similarity to the latest events; what is like none of them follows by popularity."""
    near = _neighbours(log)
    counts = train_counts(log)
    fallback = (counts / (1 + counts.max()) * 1e-6).astype(np.float32)  # below any similarity
    fallback[0] = -np.inf

    def score(users: np.ndarray, held_out: int) -> np.ndarray:
        out_BI = np.tile(fallback, (len(users), 1))
        for row, item in enumerate(window(log, users, held_out=held_out, longest=LATEST).item_BT):
            for own in np.unique(item[item > 0]):
                part = slice(near.start[own], near.start[own + 1])
                out_BI[row, near.number[part]] += near.similarity[part]
        return out_BI

    return score


def _neighbours(log: Interactions) -> Neighbours:
    """Of baskets of the latest training events; the candidate numbers are item rows, 0 is nothing."""
    item, sizes = [], []
    for user in range(log.users):
        kept = np.unique(log.item[log.start[user]:log.start[user + 1] - 2][-LATEST:])
        item.append(kept)
        sizes.append(len(kept))
    rows = np.arange(log.items + 1)
    baskets = Baskets(np.concatenate(item), np.concatenate([[0], np.cumsum(sizes)]))
    return item_neighbours(baskets, CandidateSet(rows, rows), items=log.items, damping=KNN_DAMPING)
