"""One semantic id per item: residual codes that items share in, codes that no two items share out. numpy only.

Source: OnePiece (arXiv 2512.07424), greedy re-assignment of the last code. Deviations: candidates are ordered by
distance to the item, not to the code it had; a full prefix spills into the nearest one with room, so nothing is left.
Rows stand in creative-id order, so that ties do not depend on item rows. A prefix (the first codes of an id) and an
id are numbered as base-C numbers. Legend: n items, d width, L levels, C codes per level.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from onepiece_comp.console import progress

_ROWS_PER_BLOCK = 1 << 15


class Resolved(NamedTuple):
    """Ids that no two items share, and what it took."""

    codes: np.ndarray  # int32 [n, L]
    moved: int  # items that lost their id to a closer one
    overflowed: int  # those of them whose prefix was full, so that an earlier code changed too


def decode(codes: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """The vectors [n, d] that codes [n, levels given] stand for: the sum of their codewords."""
    return sum((codebook[codes[:, level]] for level, codebook in enumerate(codebooks)), start=np.float32(0))


def squared_errors(vectors: np.ndarray, codes: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """Squared distance, float64 [n], of each vector to what its codes stand for."""
    errors = np.empty(len(vectors))
    for start in range(0, len(vectors), _ROWS_PER_BLOCK):
        part = slice(start, start + _ROWS_PER_BLOCK)
        errors[part] = np.square(vectors[part] - decode(codes[part], codebooks)).sum(axis=1)
    return errors


def id_numbers(codes: np.ndarray, size: int) -> np.ndarray:
    """Codes [n, any number of levels] as base-`size` numbers, int64 [n]: `[[1, 2]]` is 102 for 100 codes."""
    numbers = np.zeros(len(codes), np.int64)
    for column in codes.T:
        numbers = numbers * size + column
    return numbers


def resolve_collisions(vectors: np.ndarray, codes: np.ndarray, codebooks: Sequence[np.ndarray],
                       nearest: Callable[[np.ndarray], np.ndarray]) -> Resolved:
    """Give every item an id of its own, changing as few as possible.

    The closest item of an id keeps it. The others, closest first, take the free last code nearest to them under their
    prefix; then those whose prefix is full take the nearest prefix with room. `nearest` maps residuals [m, d] to their
    nearest last codes [m, any]: only where all of these are taken is the whole codebook looked at, so its width changes
    the time taken and not the result. Needs n <= C ** L.
    """
    size, codes = len(codebooks[0]), codes.astype(np.int32)
    assert len(codes) <= size ** len(codebooks), f"{len(codes)} items for {size ** len(codebooks)} ids"
    closest_first = np.argsort(squared_errors(vectors, codes, codebooks), kind="stable")
    _, winners = np.unique(id_numbers(codes[closest_first], size), return_index=True)
    losers = np.delete(closest_first, winners)
    books = [_Codebook(codebook, np.square(codebook).sum(axis=1) / 2) for codebook in codebooks]
    tree = _Tree(codes[closest_first[winners]], size)
    without_room = _settle_in_prefix(tree, vectors, codes, losers, books, nearest)
    for row in losers[np.isin(losers, without_room)]:
        codes[row] = _settle_anywhere(tree, vectors[row], codes[row].tolist(), books)
    return Resolved(codes, len(losers), len(without_room))


def emptiest_ids(codes: np.ndarray, size: int, count: int) -> np.ndarray:
    """`count` free ids [count, L] beside the unique `codes` [n, L]: the emptiest prefixes, filled to an even level."""
    tree = _Tree(codes, size)
    load = size - tree.room[-1]
    low, high = 0, size  # the least level up to which the prefixes can be filled to hold `count` more
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if np.maximum(middle - load, 0).sum() >= count else (middle + 1, high)
    give = np.maximum(low - 1 - load, 0)
    give[np.flatnonzero(load < low)[:count - give.sum()]] += 1
    chosen = [prefix * size + np.flatnonzero(~tree.blocked(tree.levels - 1, prefix))[:give[prefix]]
              for prefix in np.flatnonzero(give).tolist()]
    numbers = np.concatenate([np.empty(0, np.int64), *chosen])
    by_level = [numbers // size ** (tree.levels - 1 - level) % size for level in range(tree.levels)]
    return np.stack(by_level, axis=1).astype(np.int32)


class _Codebook(NamedTuple):
    """One level's codewords and half their squared norms, which spare a pass per look-up."""

    words: np.ndarray  # float32 [C, d]
    half_norms: np.ndarray  # float32 [C]

    def nearest(self, residual: np.ndarray, blocked: np.ndarray) -> int:
        """The code nearest to `residual` [d] that is not `blocked` [C]."""
        score = self.half_norms - self.words @ residual
        score[blocked] = np.inf
        return int(score.argmin())


class _Tree:
    """Which ids are taken, and how many are free under each prefix."""

    def __init__(self, codes: np.ndarray, size: int):
        self.size, self.levels = size, codes.shape[1]
        self._first_taken = np.sort(id_numbers(codes, size))
        self._taken: dict[int, bytearray] = {}
        self.room = []  # by depth: free ids under each prefix of that many codes
        for depth in range(self.levels):
            ids = size ** (self.levels - depth)
            self.room.append(ids - np.bincount(self._first_taken // ids, minlength=size ** depth))

    def taken(self, prefix: int) -> bytearray:
        """One byte per last code under `prefix`, 1 where taken."""
        if prefix not in self._taken:
            start, stop = np.searchsorted(self._first_taken, [prefix * self.size, (prefix + 1) * self.size])
            bitmap = self._taken[prefix] = bytearray(self.size)
            np.frombuffer(bitmap, bool)[self._first_taken[start:stop] - prefix * self.size] = True
        return self._taken[prefix]

    def blocked(self, depth: int, prefix: int) -> np.ndarray:
        """Codes, bool [C], under which a prefix of `depth` codes has no free id."""
        if depth == self.levels - 1:
            return np.frombuffer(self.taken(prefix), bool)
        return self.room[depth + 1][prefix * self.size:(prefix + 1) * self.size] == 0

    def take(self, prefix: int, code: int) -> None:
        taken = self.taken(prefix)
        assert not taken[code], f"id {prefix}, {code} is taken"
        taken[code] = 1
        for room in reversed(self.room):
            room[prefix] -= 1
            prefix //= self.size


def _settle_in_prefix(tree: _Tree, vectors: np.ndarray, codes: np.ndarray, losers: np.ndarray, books: list[_Codebook],
                      nearest: Callable[[np.ndarray], np.ndarray]) -> list[int]:
    """Write a free last code of its prefix into `codes` for each loser in turn; returns the rows left without room."""
    *prefix_books, last = books
    by_prefix = losers[np.argsort(id_numbers(codes[losers, :-1], tree.size), kind="stable")]
    without_room, room = [], tree.room[-1]
    starts = range(0, len(by_prefix), _ROWS_PER_BLOCK)
    for start in progress(starts, total=len(starts), what="collisions, blocks"):
        rows = by_prefix[start:start + _ROWS_PER_BLOCK]
        residuals = vectors[rows] - decode(codes[rows], [book.words for book in prefix_books])
        prefixes, chosen = id_numbers(codes[rows, :-1], tree.size).tolist(), codes[rows, -1]
        for place, (prefix, tried) in enumerate(zip(prefixes, nearest(residuals).tolist())):
            if not room[prefix]:
                without_room.append(int(rows[place]))
                continue
            taken = tree.taken(prefix)
            code = next((code for code in tried if not taken[code]), None)
            if code is None:
                code = last.nearest(residuals[place], np.frombuffer(taken, bool))
            tree.take(prefix, code)
            chosen[place] = code
        codes[rows, -1] = chosen
    return without_room


def _settle_anywhere(tree: _Tree, vector: np.ndarray, path: list[int], books: list[_Codebook]) -> list[int]:
    """Keep the longest part of `path` that has room under it; from there on take the nearest code that has room."""
    prefixes = [0]
    for code in path[:-1]:
        prefixes.append(prefixes[-1] * tree.size + code)
    kept = max(depth for depth, prefix in enumerate(prefixes) if tree.room[depth][prefix])
    path, prefix = path[:kept], prefixes[kept]
    residual = vector - sum(book.words[code] for book, code in zip(books, path))
    for depth in range(kept, tree.levels):
        path.append(books[depth].nearest(residual, tree.blocked(depth, prefix)))
        residual = residual - books[depth].words[path[-1]]
        if depth < tree.levels - 1:
            prefix = prefix * tree.size + path[-1]
    tree.take(prefix, path[-1])
    return path
