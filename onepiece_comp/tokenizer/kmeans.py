"""k-means for codebooks of up to 16,384 words and more: seeding, exact Lloyd, Lloyd over lists of near words.

Stands between `nearest_words.py` and `quantisers.py`. Where the points lie in clusters, a point's next word is nearly
always among those next to its present one, so an iteration may look at a list of these alone: on such points 16,384
words take a tenth of the time at equal error (`benchmarks/tokenizer.py`). Sums are taken in the points' order, so that
equal input gives equal words. Legend: n points, C words, d width.
"""

import numpy as np

from onepiece_comp.errors import InputError
from onepiece_comp.tokenizer.nearest_words import Codebook, Search, on_gpu

SEEDINGS = ("auto", "random", "kmeans++", "cells")
SEARCHES = ("auto", "exact", "lists")
_LIST = 64  # words that a point looks at
_FEWEST_FOR_LISTS = 2048  # words from which lists pay
_MOST_FOR_PLUS = 512  # words up to which `auto` seeds by k-means++: its time grows with their square
_SETTLED = 3e-4  # Lloyd ends when an iteration lowers the error by less than this share
_SEED_POINTS = 32  # points per word that k-means++ draws from
_ROWS = 1 << 16  # points searched at once
_PRICE_STEPS = 30  # of balancing


def fit_codebook(points: np.ndarray, size: int, *, iterations: int, seed: int, seeding: str = "auto",
                 search: str = "auto", balance: float = 0.0) -> Codebook:
    """`size` words for float32 points [n, d].

    Where there are no more different points than words, the words are these points, then zeros. `search` lists looks
    at near words only (auto: where they are many and the points lie in clusters); `balance` above 0 asks that no word
    have more than 1 + 1 / balance times the mean number of points, as far as prices can bring it about.
    InputError for an unknown `seeding` or `search`.
    """
    for what, value, known in (("tokenizer.seeding", seeding, SEEDINGS), ("tokenizer.search", search, SEARCHES)):
        if value not in known:
            raise InputError(what, found=repr(value), expected=f"one of {', '.join(known)}", do="choose one of these")
    if len(np.unique(points[:4 * size], axis=0)) <= size:  # a cheap look at the head spares most data the sort
        distinct = np.unique(points, axis=0)
        if len(distinct) <= size:
            words = np.concatenate([distinct, np.zeros((size - len(distinct), points.shape[1]), np.float32)])
            return Codebook.plain(words.astype(np.float32))
    generator = np.random.default_rng(seed)
    many = size >= _FEWEST_FOR_LISTS and not on_gpu()  # a GPU looks at all words sooner than at lists
    if search == "lists" or search == "auto" and many and _lie_in_clusters(points, generator):
        words = _lloyd_over_lists(points, size, iterations, generator)
    else:
        words = _lloyd(points, _seeds(points, size, seeding, generator), iterations)
    codebook = Codebook.plain(words)
    return _balanced(points, codebook, balance) if balance > 0 else codebook


def _seeds(points: np.ndarray, size: int, seeding: str, generator: np.random.Generator) -> np.ndarray:
    """First words: points drawn evenly, far from each other (k-means++, Arthur and Vassilvitskii 2007),
    or so in cells.
    """
    if seeding == "random":
        return points[np.sort(generator.choice(len(points), size, replace=False))]
    if seeding == "cells" or seeding == "auto" and size > _MOST_FOR_PLUS:
        return _cells(points, size, generator)[0]
    if len(points) > _SEED_POINTS * size:
        points = points[np.sort(generator.choice(len(points), _SEED_POINTS * size, replace=False))]
    norm, distance = np.square(points).sum(axis=1), np.full(len(points), np.inf, np.float32)
    chosen = [int(generator.integers(len(points)))]
    for _ in range(size - 1):
        word = points[chosen[-1]]
        np.minimum(distance, np.maximum(norm - 2 * (points @ word) + word @ word, 0), out=distance)
        distance[chosen[-1]] = 0
        total = np.cumsum(distance, dtype=np.float64)
        if not total[-1] > 0:  # the points drawn from are all words: the rest is drawn evenly
            chosen += generator.choice(np.setdiff1d(np.arange(len(points)), chosen), size - len(chosen),
                                       replace=False).tolist()
            break
        chosen.append(int(np.searchsorted(total, generator.random() * total[-1],
                                          side="right").clip(max=len(points) - 1)))
    return points[chosen]


def _lloyd(points: np.ndarray, words: np.ndarray, iterations: int) -> np.ndarray:
    """Words after some iterations, each looking at all words; fewer where they no longer help."""
    before = np.inf
    for _ in range(iterations):
        distance, word = _assign(points, words)
        words = _means(points, word, words, distance)
        before, error = float(distance.mean()), before
        if before > error * (1 - _SETTLED):
            break
    return words


def _assign(points: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(squared distance, nearest word) of each point."""
    search, distance, word = Search(Codebook.plain(words)), [], []
    for start in range(0, len(points), _ROWS):
        found = search(points[start:start + _ROWS])
        distance.append(found[0][:, 0])
        word.append(found[1][:, 0])
    return np.concatenate(distance), np.concatenate(word)


def _means(points: np.ndarray, word: np.ndarray, words: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The mean of each word's points; a word without any starts again at one of the points that are worst off."""
    order = np.argsort(word, kind="stable")
    count = np.bincount(word, minlength=len(words))
    start = np.concatenate([[0], np.cumsum(count)])
    made = np.empty_like(words)
    step = max(1, (1 << 22) // points.shape[1])
    first = 0
    while first < len(words):  # some words at a time, so that the sorted points are never held as a whole
        last = max(first + 1, int(np.searchsorted(start, start[first] + step, side="right")) - 1)
        held = np.flatnonzero(count[first:last]) + first
        if len(held):
            part = points[order[start[first]:start[last]]]
            sums = np.add.reduceat(part, start[held] - start[first], axis=0)
            made[held] = sums / count[held, None].astype(np.float32)
        first = last
    empty = np.flatnonzero(count == 0)
    if len(empty):
        made[empty] = points[np.argsort(-distance, kind="stable")[:len(empty)]]
    return made


def _lie_in_clusters(points: np.ndarray, generator: np.random.Generator) -> bool:
    """Whether a few words take away most of the variance: lists lose nothing there, but 3 % on residuals."""
    sample = points[generator.choice(len(points), min(len(points), 1 << 14), replace=False)]
    words = _lloyd(sample, sample[:256], 4)
    return bool(_assign(sample, words)[0].mean() < 0.5 * np.square(sample - sample.mean(axis=0)).sum(axis=1).mean())


def _lloyd_over_lists(points: np.ndarray, size: int, iterations: int, generator: np.random.Generator) -> np.ndarray:
    """Lloyd whose points look only at the words nearest to their present one, from a seeding of two levels."""
    words, cell, coarse = _cells(points, size, generator)
    distance, word = _assign_by_cell(points, cell, words, coarse)
    for _ in range(iterations):
        words = _means(points, word, words, distance)
        near = Codebook.plain(words).nearest(words, _LIST)
        distance, word = _assign_over_lists(points, word, words, near)
    return _means(points, word, words, distance)


def _cells(points: np.ndarray, size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first words [C, d], cell of each point, centres of the cells): k-means within cells made by k-means."""
    coarse = _lloyd(points, _seeds(points, max(2, round(size ** 0.5)), "kmeans++", generator), 4)
    cell = _assign(points, coarse)[1]
    return np.concatenate(_cell_words(points, cell, size, generator)), cell, coarse


def _cell_words(points: np.ndarray, cell: np.ndarray, size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """First words, shared among the cells by their number of points, each at least one."""
    order, count = np.argsort(cell, kind="stable"), np.bincount(cell)
    share = np.minimum(1 + np.floor(count / count.sum() * (size - len(count))).astype(int), np.maximum(count, 1))
    while (missing := size - share.sum()) > 0:
        room = np.flatnonzero(share < count)
        share[room[np.argsort(share[room] / count[room], kind="stable")[:missing]]] += 1
    made = []
    for number, start in enumerate(np.cumsum(count) - count):
        part = points[order[start:start + count[number]]]
        chosen = _seeds(part, share[number], "kmeans++", generator) if len(part) else points[:1]
        made.append(_lloyd(part, chosen, 2) if len(part) > len(chosen) else chosen)
    return made


def _assign_by_cell(points: np.ndarray, cell: np.ndarray, words: np.ndarray, coarse: np.ndarray,
                    ) -> tuple[np.ndarray, np.ndarray]:
    """A first assignment: the nearest of the words near to the point's cell."""
    near = Codebook.plain(words).nearest(coarse, 4 * round(len(words) ** 0.5))
    return _assign_over_lists(points, cell, words, near)


def _assign_over_lists(points: np.ndarray, group: np.ndarray, words: np.ndarray, near: np.ndarray,
                       ) -> tuple[np.ndarray, np.ndarray]:
    """(squared distance, word) of each point among the words `near[group]` of its group; a product for each group."""
    order, count = np.argsort(group, kind="stable"), np.bincount(group, minlength=len(near))
    half = np.square(words).sum(axis=1) / 2
    distance, word = np.empty(len(points), np.float32), np.empty(len(points), np.int64)
    for number, start in zip(np.flatnonzero(count), (np.cumsum(count) - count)[count > 0]):
        rows, listed = order[start:start + count[number]], near[number]
        part = points[rows]
        score = half[listed] - part @ words[listed].T
        best = score.argmin(axis=1)
        word[rows] = listed[best]
        distance[rows] = 2 * score[np.arange(len(rows)), best] + np.square(part).sum(axis=1)
    return distance, word


def _balanced(points: np.ndarray, codebook: Codebook, balance: float) -> Codebook:
    """Raise the price of words that have more than their share and lower that of the others, step by smaller step."""
    words, price = codebook.words, codebook.price.astype(np.float64)
    mean, most = len(points) / len(words), 1 + 1 / balance
    scale = float(_assign(points, words)[0].mean())
    best, least = codebook, np.inf
    for step in range(_PRICE_STEPS):
        now = Codebook(words, (price - price.min()).astype(np.float32))
        load = np.bincount(np.concatenate([
            now.nearest(points[start:start + _ROWS])[:, 0] for start in range(0, len(points), _ROWS)]),
            minlength=len(words)) / mean
        if load.max() < least:
            best, least = now, load.max()
        if load.max() <= most:
            break
        price += scale / (1 + step / 5) * np.clip(np.log(np.maximum(load, 0.05)), -1, 1)
    return best
