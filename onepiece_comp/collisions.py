"""No two items with one semantic id: who keeps a code, and where the others go.

Greedy re-assignment after OnePiece (arXiv 2512.07424, section on the tokenizer): the losers of a code try the nearest
last codes of their own prefix. Ours goes on where the paper's leaves conflicts: then any free last code of the
prefix, then the nearest other prefix with room, so no id is shared while items <= codes ** levels.
Legend: n items, L levels, C codes per level, d width. Items come in an order that does not depend on the file's.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import faiss
import numpy as np

from onepiece_comp.errors import InputError


class Resolved(NamedTuple):
    """Codes without collisions, and how many items had to move."""

    codes: np.ndarray  # int32 [n, L]
    moved: int  # items whose last code (or more) changed
    overflowed: int  # of these, items that left their prefix


def squared_distance(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Squared distance of each vector to each codeword: [n, C]."""
    return ((vectors ** 2).sum(1)[:, None] - 2 * vectors @ codebook.T + (codebook ** 2).sum(1)[None]).clip(0)


def resolve(codes: np.ndarray, vectors: np.ndarray, codebooks: list[np.ndarray], *, neighbours: int,
            last: np.ndarray) -> Resolved:
    """Give every item an id of its own.

    Of the items of one id the closest to its codeword keeps it (ties: the earlier item); items marked in `last`
    (bool [n]) yield to all others. InputError when there are more items than ids.
    """
    items, levels = codes.shape
    capacity = len(codebooks[-1])
    ids = int(np.prod([float(len(book)) for book in codebooks]))
    if items > ids:
        raise InputError("tokenizer", found=f"{items:,} items for {ids:,} ids", expected="at least one id an item",
                         do="set tokenizer.codes or tokenizer.levels higher, or leave codes at 0")
    codes = codes.copy()
    residual = vectors - sum((codebooks[level][codes[:, level]] for level in range(levels - 1)), np.zeros_like(vectors))
    error = ((residual - codebooks[-1][codes[:, -1]]) ** 2).sum(1)
    _, prefix = np.unique(codes[:, :-1], axis=0, return_inverse=True) if levels > 1 else (None, np.zeros(items, np.int64))
    prefix = prefix.reshape(-1)
    order = np.lexsort((np.arange(items), error, last, prefix))
    loser = _losers(prefix[order] * capacity + codes[order, -1])
    homeless: list[int] = []
    losers = order[loser]
    near = _nearest(residual[losers], codebooks[-1], min(neighbours, capacity))
    edges = np.flatnonzero(np.diff(prefix[order], prepend=-1, append=-1))
    taken_by = np.cumsum(np.concatenate([[0], loser]))
    for start, stop in zip(edges[:-1], edges[1:]):
        if taken_by[stop] > taken_by[start]:
            free = np.ones(capacity, bool)
            free[codes[order[start:stop][~loser[start:stop]], -1]] = False
            for place in range(taken_by[start], taken_by[stop]):
                item = losers[place]
                code = _first_free(free, near[place], residual[item], codebooks[-1])
                if code < 0:
                    homeless.append(item)
                else:
                    codes[item, -1], free[code] = code, False
    _house(homeless, codes, vectors, codebooks)
    return Resolved(codes, int(loser.sum()), len(homeless))


def _losers(key: np.ndarray) -> np.ndarray:
    """Every occurrence of a key but the first (bool)."""
    loser = np.ones(len(key), bool)
    loser[np.unique(key, return_index=True)[1]] = False
    return loser


def _nearest(vectors: np.ndarray, codebook: np.ndarray, count: int) -> np.ndarray:
    """The `count` nearest codewords of each vector, nearest first: int64 [n, count]."""
    if not len(vectors):
        return np.empty((0, count), np.int64)
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook)
    return index.search(np.ascontiguousarray(vectors), count)[1]


def _first_free(free: np.ndarray, near: np.ndarray, residual: np.ndarray, codebook: np.ndarray) -> int:
    """The nearest free code: among the near ones, else among all; -1 when none is free."""
    open_near = free[near]
    place = int(open_near.argmax())
    if open_near[place]:
        return int(near[place])
    return _nearest_free(free, residual, codebook) if free.any() else -1


def _nearest_free(free: np.ndarray, residual: np.ndarray, codebook: np.ndarray) -> int:
    return int(np.where(free, squared_distance(residual[None], codebook)[0], np.inf).argmin())


def _house(homeless: list[int], codes: np.ndarray, vectors: np.ndarray, codebooks: list[np.ndarray]) -> None:
    """Move items whose prefix is full to the nearest prefix with room, in place."""
    if not homeless:
        return
    capacity, without = len(codebooks[-1]), set(homeless)
    used: dict[tuple, set] = {}
    for item, path in enumerate(codes.tolist()):
        if item not in without:
            used.setdefault(tuple(path[:-1]), set()).add(path[-1])
    count = Counter({prefix: len(taken) for prefix, taken in used.items()})
    for item in homeless:
        prefix = next(p for p in _other_prefixes(codes[item], vectors[item], codebooks) if count[p] < capacity)
        residual = vectors[item] - sum(codebooks[level][code] for level, code in enumerate(prefix))
        free = np.ones(capacity, bool)
        free[list(used.get(prefix, ()))] = False
        code = _nearest_free(free, residual, codebooks[-1])
        codes[item] = (*prefix, code)
        used.setdefault(prefix, set()).add(code)
        count[prefix] += 1


def _other_prefixes(own: np.ndarray, vector: np.ndarray, codebooks: list[np.ndarray]) -> Iterator[tuple[int, ...]]:
    """Prefixes in the order in which to try them: another code at the last prefix level, then further up, then all."""
    depth = len(codebooks) - 1
    for level in reversed(range(depth)):
        head = tuple(own[:level].tolist())
        residual = vector - sum((codebooks[i][code] for i, code in enumerate(head)), np.zeros_like(vector))
        for code in squared_distance(residual[None], codebooks[level])[0].argsort(kind="stable").tolist():
            rest, path = residual - codebooks[level][code], (*head, code)
            for book in codebooks[level + 1:depth]:
                nearest = int(squared_distance(rest[None], book)[0].argmin())
                rest, path = rest - book[nearest], (*path, nearest)
            yield path
    yield from itertools.product(*(range(len(book)) for book in codebooks[:depth]))
