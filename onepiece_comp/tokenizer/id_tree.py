"""Which ids are taken and which are free: a tree over prefixes, for whoever hands out ids.

Stands between `quantisers.py` and `collisions.py`. A prefix (the first codes of an id) and an id are numbered as base-C
numbers. Legend: n items, L levels, C codes per level, S width of the words.
"""

from collections.abc import Sequence

import numpy as np

from onepiece_comp.tokenizer.nearest_words import Codebook
from onepiece_comp.tokenizer.quantisers import Quantiser


def id_numbers(codes: np.ndarray, size: int) -> np.ndarray:
    """Codes [n, any number of levels] as base-`size` numbers, int64 [n]: `[[1, 2]]` is 102 for 100 codes."""
    numbers = np.zeros(len(codes), np.int64)
    for column in codes.T:
        numbers = numbers * size + column
    return numbers


class IdTree:
    """Which ids are taken, and how many are free under each prefix; `codes` [n, L] are those taken, no two alike."""

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
        """Mark an id as taken."""
        taken = self.taken(prefix)
        assert not taken[code], f"id {prefix}, {code} is taken"
        taken[code] = 1
        for room in reversed(self.room):
            room[prefix] -= 1
            prefix //= self.size

    def take_nearest(self, prefix: int, residual: np.ndarray, words: Codebook, near: Sequence[int] = ()) -> int:
        """Take the free last code under `prefix` nearest to `residual` [S]; `near` are nearest codes, if known."""
        taken = self.taken(prefix)
        code = next((code for code in near if not taken[code]), None)
        if code is None:
            code = _nearest_free(words, residual, np.frombuffer(taken, bool))
        self.take(prefix, code)
        return code

    def take_anywhere(self, point: np.ndarray, path: Sequence[int], quantiser: Quantiser) -> list[int]:
        """Take an id near `point` [S]: the longest part of `path` that has room, from there on the nearest codes."""
        prefixes = [0]
        for code in path[:-1]:
            prefixes.append(prefixes[-1] * self.size + code)
        kept = max(depth for depth, prefix in enumerate(prefixes) if self.room[depth][prefix])
        taken, prefix, books = list(path[:kept]), prefixes[kept], quantiser.codebooks
        residual = point - sum(book.words[code] for book, code in zip(books, taken))
        for depth in range(kept, self.levels - 1):
            taken.append(_nearest_free(books[depth], residual, self.blocked(depth, prefix)))
            residual = residual - books[depth].words[taken[-1]]
            prefix = prefix * self.size + taken[-1]
        return [*taken, self.take_nearest(prefix, residual, quantiser.last_words(prefix))]


def _nearest_free(codebook: Codebook, residual: np.ndarray, blocked: np.ndarray) -> int:
    distance = np.square(codebook.words).sum(axis=1) / 2 - codebook.words @ residual + codebook.price / 2
    distance[blocked] = np.inf
    return int(distance.argmin())


def emptiest_ids(codes: np.ndarray, size: int, count: int) -> np.ndarray:
    """`count` free ids [count, L] beside the unique `codes` [n, L]: the emptiest prefixes, filled to an even level."""
    tree = IdTree(codes, size)
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
