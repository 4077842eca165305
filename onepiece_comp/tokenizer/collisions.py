"""Resolves collisions: codes that several items share in, one semantic id per item out, by one of five rules.

Stands between `quantisers.py` and `build.py`. Sources: a counter as one more code, TIGER (arXiv 2305.05065); greedy
re-assignment of the last code, OnePiece (arXiv 2512.07424), here by distance to the item and with nothing left over; a
random unused last code, GR2 (arXiv 2602.07774). Our own: full prefixes give up the items that lose least by it, then
the last codes of each prefix are given out at the least total error (`assignment.py`). Rows stand in creative-id order,
so that ties do not depend on item rows. Legend: n items, d width, L levels, C codes, S width of the words, K listed
codes.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.console import progress
from onepiece_comp.errors import InputError
from onepiece_comp.tokenizer.assignment import match_codes
from onepiece_comp.tokenizer.id_tree import IdTree, id_numbers
from onepiece_comp.tokenizer.nearest_words import Search
from onepiece_comp.tokenizer.quantisers import Nested, Quantiser, Vectors, summed_words

_ROWS = 1 << 15  # items in hand at a time
_LISTED = 16  # codes that an item's list begins with
_MOST_LISTED = 1 << 25  # codes listed at a time, 12 bytes each; more only for a prefix that alone has more
_OPTIONS = 32  # prefixes that an item of a full one looks at
_ROUNDS = 500  # of making full prefixes dearer


class Resolved(NamedTuple):
    """Ids, and what it took."""

    codes: np.ndarray  # int32 [n, L], of a counter [n, L + 1]
    moved: int  # items whose id is not that of their nearest words
    overflowed: int  # those of them whose prefix was full, so that an earlier code changed too


class _Ask(NamedTuple):
    """What is to be resolved."""

    vectors: Vectors
    codes: np.ndarray  # int32 [n, L]
    quantiser: Quantiser
    size: int
    config: TokenizerConfig

    def points(self, rows: np.ndarray) -> np.ndarray:
        """Items in the space of the words, [rows, S]."""
        return self.quantiser.embed(self.vectors[rows])

    def residuals(self, rows: np.ndarray) -> np.ndarray:
        """What the prefixes leave of items, [rows, S]."""
        return self.points(rows) - summed_words(self.codes[rows, :-1], self.quantiser.codebooks)

    def errors(self, rows: np.ndarray) -> np.ndarray:
        """Squared distance, float64 [rows], of items to the words of their codes, in the space of the words."""
        made = [np.square(self.residuals(part) - _last_word(self, part)).sum(axis=1, dtype=np.float64)
                for part in np.split(rows, range(_ROWS, len(rows), _ROWS))]
        return np.concatenate(made)

    def closest_first(self, rows: np.ndarray) -> np.ndarray:
        """The rows by rising error."""
        return rows[np.argsort(self.errors(rows), kind="stable")]

    def prefixes(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        return id_numbers(self.codes[rows, :-1], self.size)


def resolve_collisions(vectors: Vectors, codes: np.ndarray, quantiser: Quantiser, config: TokenizerConfig) -> Resolved:
    """Ids by the rule `config.resolve` from the codes int32 [n, L] of nearest words.

    With every rule but `none` no two items share an id, which needs n <= C ** L. InputError for an unknown rule, and
    where a counter would need more numbers than there are codes.
    """
    check_rule(config)
    size, codes = len(quantiser.codebooks[0].words), codes.astype(np.int32)
    assert config.resolve in ("none", "counter") or len(codes) <= size ** codes.shape[1], f"{len(codes)} items"
    return RULES[config.resolve](_Ask(vectors, codes, quantiser, size, config))


def check_rule(config: TokenizerConfig) -> None:
    """InputError for an unknown rule."""
    if config.resolve not in RULES:
        raise InputError("tokenizer.resolve", found=repr(config.resolve), expected=f"one of {', '.join(RULES)}",
                         do="choose one of these")


def place_new(vectors: Vectors, rows: np.ndarray, codes: np.ndarray, quantiser: Quantiser, taken: np.ndarray,
              ) -> np.ndarray:
    """Ids int32 [rows, L] for new items beside `taken` [m, L], none of which moves: nearest free, closest first.

    `rows` are the new ones among `vectors`, `codes` [n, L] the nearest words of all.
    """
    size, codes = len(quantiser.codebooks[0].words), codes.astype(np.int32)
    ask, tree = _Ask(vectors, codes, quantiser, size, TokenizerConfig()), IdTree(taken, size)
    _spill(ask, tree, _settle_in_prefix(ask, tree, ask.closest_first(rows)))
    return codes[rows]


def _none(ask: _Ask) -> Resolved:
    return Resolved(ask.codes, 0, 0)


def _counter(ask: _Ask) -> Resolved:
    """One more code: the place among those that share an id, closest first."""
    order = ask.closest_first(np.arange(len(ask.codes)))
    number = id_numbers(ask.codes[order], ask.size)
    by_id = np.argsort(number, kind="stable")
    first = np.flatnonzero(np.diff(number[by_id], prepend=-1))
    place = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
    if place.max(initial=0) >= ask.size:
        raise InputError("tokenizer.resolve", expected="a number for each",
                         found=f"{place.max() + 1:,} items of one id for a counter of {ask.size:,}",
                         do="choose assignment, or more codes or levels")
    counter = np.empty(len(order), np.int32)
    counter[order[by_id]] = place
    return Resolved(np.column_stack([ask.codes, counter]), int(np.count_nonzero(place)), 0)


def _greedy(ask: _Ask) -> Resolved:
    """The closest item of an id keeps it; the others, closest first, take the nearest free last code."""
    order = ask.closest_first(np.arange(len(ask.codes)))
    _, winners = np.unique(id_numbers(ask.codes[order], ask.size), return_index=True)
    losers = np.delete(order, winners)
    tree = IdTree(ask.codes[order[winners]], ask.size)
    without_room = _settle_in_prefix(ask, tree, losers)
    _spill(ask, tree, without_room)
    return Resolved(ask.codes, len(losers), len(without_room))


def _settle_in_prefix(ask: _Ask, tree: IdTree, rows: np.ndarray) -> np.ndarray:
    """Write a free last code of its prefix for each row in turn; returns the rows left without room, in turn."""
    by_prefix = rows[np.argsort(ask.prefixes(rows), kind="stable")]
    without_room = []
    for part in _blocks(by_prefix, "collisions, blocks"):
        residuals, prefixes = ask.residuals(part), ask.prefixes(part)
        near = _near_codes(ask, prefixes, residuals, ask.config.neighbours)[1].tolist()
        for place, (row, prefix) in enumerate(zip(part.tolist(), prefixes.tolist())):
            if not tree.room[-1][prefix]:
                without_room.append(row)
            else:
                words = ask.quantiser.last_words(prefix)
                ask.codes[row, -1] = tree.take_nearest(prefix, residuals[place], words, near[place])
    return rows[np.isin(rows, without_room)]


def _spill(ask: _Ask, tree: IdTree, rows: np.ndarray) -> None:
    """Write an id of another prefix for each row in turn."""
    for row in rows:
        point = ask.points(np.array([row]))[0]
        ask.codes[row] = tree.take_anywhere(point, ask.codes[row].tolist(), ask.quantiser)


def _random(ask: _Ask) -> Resolved:
    """Last codes drawn at random from those unused under a prefix, whatever the nearest is."""
    before, generator = ask.codes.copy(), np.random.default_rng([ask.config.seed, 2])
    prefixes, leftover = ask.prefixes(), []
    for rows in _by_prefix(np.arange(len(prefixes)), prefixes):
        drawn = generator.permutation(ask.size)[:len(rows)]
        ask.codes[rows[:len(drawn)], -1] = drawn
        leftover += rows[len(drawn):].tolist()
    tree = IdTree(np.delete(ask.codes, leftover, axis=0), ask.size)
    _spill(ask, tree, np.array(leftover, np.int64))
    return Resolved(ask.codes, int((before != ask.codes).any(axis=1).sum()), len(leftover))


def _least_error(ask: _Ask) -> Resolved:
    """No more items under a prefix than ids; then its last codes so that the sum of squared errors is least."""
    before = ask.codes.copy()
    left = _within_capacity(ask)
    staying = np.ones(len(before), bool)
    staying[left] = False
    rows = np.flatnonzero(staying)
    prefixes = ask.prefixes()
    rows = rows[np.argsort(prefixes[rows], kind="stable")]
    _, first, count = np.unique(id_numbers(ask.codes[rows], ask.size), return_index=True, return_counts=True)
    moved = rows[(before[rows, :-1] != ask.codes[rows, :-1]).any(axis=1)]  # their last code is another prefix's
    contested = np.isin(prefixes[rows], np.concatenate([prefixes[rows[first[count > 1]]], prefixes[moved]]))
    rows = rows[contested]
    blocks = _whole_prefixes(prefixes[rows], _ROWS)
    for block in progress(blocks, total=len(blocks), what="collisions, blocks"):
        _match_prefixes(ask, rows[block])
    tree = IdTree(ask.codes[staying], ask.size)
    _spill(ask, tree, left)
    changed = before != ask.codes
    return Resolved(ask.codes, int(changed.any(axis=1).sum()), int(changed[:, :-1].any(axis=1).sum()))


def _within_capacity(ask: _Ask) -> np.ndarray:
    """Move items of full prefixes by changing the code before the last; returns the rows for which no room was found.

    A full prefix becomes dearer until those who lose least by leaving have left (an ascending auction, Bertsekas 1988);
    a cost is the squared distance to what the prefix alone decodes to.
    """
    if ask.codes.shape[1] == 1:
        return np.empty(0, np.int64)
    prefix, size = ask.prefixes(), ask.size
    load = np.bincount(prefix, minlength=size ** (ask.codes.shape[1] - 1))
    price, options = np.zeros(len(load)), _Options(ask)
    for _ in range(_ROUNDS):
        full = np.flatnonzero(load > size)
        if not len(full):
            break
        for rows in _by_prefix(np.flatnonzero(np.isin(prefix, full)), prefix):
            here, excess = prefix[rows[0]], len(rows) - size
            number, cost = options.of(rows)
            paid = cost + price[number]
            elsewhere = np.where(number == here, np.inf, paid)
            best = elsewhere.argmin(axis=1)
            regret = elsewhere[np.arange(len(rows)), best] - np.where(number == here, paid, np.inf).min(axis=1)
            leaving = np.argsort(regret, kind="stable")[:excess]
            price[here] += max(float(regret[leaving[-1]]), 0.0) + options.least_step
            prefix[rows[leaving]] = number[leaving, best[leaving]]
        load = np.bincount(prefix, minlength=len(load))
    ask.codes[:, -2] = prefix % size
    full = np.flatnonzero(load > size)
    return np.concatenate([np.empty(0, np.int64), *(np.flatnonzero(prefix == number)[size:] for number in full)])


class _Options:
    """The prefixes that items could stand under, and what each costs; looked up once per item."""

    def __init__(self, ask: _Ask):
        self._ask, self._at = ask, np.full(len(ask.codes), -1, np.int64)
        self._base = id_numbers(ask.codes[:, :-2], ask.size) * ask.size
        self._number, self._cost, self.least_step = np.empty((0, 0), np.int64), np.empty((0, 0)), 0.0

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(prefix numbers, costs) [rows, options]."""
        new = rows[self._at[rows] < 0]
        if len(new):
            ask, depth = self._ask, self._ask.codes.shape[1] - 2
            left = ask.points(new) - summed_words(ask.codes[new, :depth], ask.quantiser.codebooks)
            cost, code = ask.quantiser.codebooks[depth].search(left, _OPTIONS)
            self._at[new] = len(self._number) + np.arange(len(new))
            number = self._base[new, None] + code
            self._number = np.concatenate([self._number.reshape(-1, number.shape[1]), number])
            self._cost = np.concatenate([self._cost.reshape(-1, number.shape[1]), cost.astype(np.float64)])
            self.least_step = 2e-3 * float(np.abs(self._cost).mean())
        return self._number[self._at[rows]], self._cost[self._at[rows]]


def _whole_prefixes(prefixes: np.ndarray, most: int) -> list[slice]:
    """Where whole prefixes stand, `most` rows at a time and what is left of a prefix; rows are in order of prefixes."""
    edges = np.flatnonzero(np.diff(prefixes, prepend=-1))
    cuts = edges[np.diff(edges // most, prepend=-1) > 0].tolist()
    return [slice(start, stop) for start, stop in pairwise([*cuts, len(prefixes)])]


class _Alike(NamedTuple):
    """Items in groups, by prefix, large ones first: those of one prefix with equal residuals are interchangeable."""

    rows: np.ndarray  # int64 [items], group by group
    start: np.ndarray  # int64 [groups + 1], where each begins
    residual: np.ndarray  # float32 [groups, S]

    @classmethod
    def of(cls, rows: np.ndarray, prefixes: np.ndarray, residuals: np.ndarray) -> "_Alike":
        # sums row by row, so that equal residuals have equal keys, which a matrix product does not promise
        key = (residuals * np.sqrt(np.arange(2, residuals.shape[1] + 2, dtype=np.float32))).sum(axis=1)
        order = np.lexsort((key, prefixes))
        next_to = np.flatnonzero((np.diff(prefixes[order]) == 0) & (np.diff(key[order]) == 0))
        equal = (residuals[order[next_to]] == residuals[order[next_to + 1]]).all(axis=1)
        new = np.ones(len(order), bool)
        new[next_to[equal] + 1] = False
        begin = np.flatnonzero(new)
        first, items = order[begin], np.diff(np.append(begin, len(order)))
        by_size = np.lexsort((first, -items, prefixes[first]))
        place = np.empty(len(first), np.int64)
        place[by_size] = np.arange(len(first))
        together = order[np.argsort(place[np.cumsum(new) - 1], kind="stable")]
        return cls(rows[together], np.concatenate([[0], np.cumsum(items[by_size])]), residuals[first[by_size]])


def _match_prefixes(ask: _Ask, rows: np.ndarray) -> None:
    """Write the last codes of whole prefixes, none with more items than codes."""
    alike = _Alike.of(rows, ask.prefixes(rows), ask.residuals(rows))
    items, prefixes = np.diff(alike.start), ask.prefixes(alike.rows[alike.start[:-1]])
    listed, left = _LISTED, np.arange(len(items))
    while len(left):
        again = []
        for block in _whole_prefixes(prefixes[left], max(1, _MOST_LISTED // listed)):
            groups = left[block]
            cost, code = _near_codes(ask, prefixes[groups], alike.residual[groups], listed)
            for part in _whole_prefixes(prefixes[groups], 1):
                own = groups[part]
                chosen, short = match_codes(cost[part], code[part], ask.size, items[own])
                if short.any():
                    again.append(own)
                else:
                    ask.codes[alike.rows[alike.start[own[0]]:alike.start[own[-1] + 1]], -1] = chosen
        left, listed = np.concatenate([left[:0], *again]), 4 * listed


def _near_codes(ask: _Ask, prefixes: np.ndarray, residuals: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(squared distances, last codes) [rows, K], nearest first, under each row's prefix."""
    if not isinstance(ask.quantiser, Nested):
        return Search(ask.quantiser.last_words(0))(residuals, count)
    count = min(count, ask.size)
    cost, code = np.empty((len(residuals), count), np.float32), np.empty((len(residuals), count), np.int64)
    for prefix in np.unique(prefixes):
        rows = np.flatnonzero(prefixes == prefix)
        cost[rows], code[rows] = ask.quantiser.last_words(int(prefix)).search(residuals[rows], count)
    return cost, code


def _last_word(ask: _Ask, rows: np.ndarray) -> np.ndarray:
    if isinstance(ask.quantiser, Nested):
        return ask.quantiser.second_word(ask.codes[rows])
    return ask.quantiser.codebooks[-1].words[ask.codes[rows, -1]]


def _by_prefix(rows: np.ndarray, prefixes: np.ndarray) -> list[np.ndarray]:
    """The rows of each prefix in turn."""
    order = rows[np.argsort(prefixes[rows], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(prefixes[order])) + 1)


def _blocks(rows: np.ndarray, what: str) -> Iterator[np.ndarray]:
    starts = range(0, len(rows), _ROWS)
    return (rows[start:start + _ROWS] for start in progress(starts, total=len(starts), what=what))


RULES: dict[str, Callable[[_Ask], Resolved]] = {
    "none": _none, "counter": _counter, "greedy": _greedy, "random": _random, "assignment": _least_error}
