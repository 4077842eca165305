"""One semantic id per item: codes that items share in, codes that no two items share out, by one of five rules.

Stands between `quantisers.py` and `tokenizer.py`. Sources: a counter as one more code, TIGER (arXiv 2305.05065); greedy
re-assignment of the last code, OnePiece (arXiv 2512.07424), here by distance to the item and with nothing left over; a
random unused last code, GR2 (arXiv 2602.07774). Our own: the last codes of a prefix given out at the least total error
(`assignment.py`). A full prefix spills into the nearest with room. Rows stand in creative-id order, so that ties do not
depend on item rows. Legend: n items, d width, L levels, C codes, S width of the words, K codes listed per item.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from onepiece_comp.assignment import OUTSIDE, match
from onepiece_comp.config import TokenizerConfig
from onepiece_comp.console import progress
from onepiece_comp.errors import InputError
from onepiece_comp.free_ids import IdTree, id_numbers
from onepiece_comp.kmeans import Search
from onepiece_comp.quantisers import Nested, Quantiser, Vectors, summed_words

_ROWS = 1 << 15  # items in hand at a time
_LISTED = 16  # codes that an item's list begins with
_ELSEWHERE = 8  # other prefixes that an item of a full one looks at


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

    def prefixes(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        return id_numbers(self.codes[rows, :-1], self.size)


def resolve_collisions(vectors: Vectors, codes: np.ndarray, quantiser: Quantiser, config: TokenizerConfig) -> Resolved:
    """Ids by the rule `config.resolve` from the codes int32 [n, L] of nearest words.

    With every rule but `none` no two items share an id, which needs n <= C ** L. InputError for an unknown rule, and
    where a counter would need more numbers than there are codes.
    """
    if config.resolve not in RULES:
        raise InputError("tokenizer.resolve", found=repr(config.resolve), expected=f"one of {', '.join(RULES)}",
                         do="choose one of these")
    size, codes = len(quantiser.codebooks[0].words), codes.astype(np.int32)
    assert config.resolve in ("none", "counter") or len(codes) <= size ** codes.shape[1], f"{len(codes)} items"
    return RULES[config.resolve](_Ask(vectors, codes, quantiser, size, config))


def place_new(vectors: Vectors, rows: np.ndarray, codes: np.ndarray, quantiser: Quantiser, taken: np.ndarray,
              ) -> np.ndarray:
    """Ids int32 [rows, L] for new items beside the ids `taken` [m, L], none of which moves: nearest free, closest first.

    `rows` are the new ones among `vectors`, `codes` [n, L] the nearest words of all.
    """
    size, codes = len(quantiser.codebooks[0].words), codes.astype(np.int32)
    ask, tree = _Ask(vectors, codes, quantiser, size, TokenizerConfig()), IdTree(taken, size)
    closest_first = rows[np.argsort(ask.errors(rows), kind="stable")]
    _spill(ask, tree, _settle_in_prefix(ask, tree, closest_first))
    return codes[rows]


def _none(ask: _Ask) -> Resolved:
    return Resolved(ask.codes, 0, 0)


def _counter(ask: _Ask) -> Resolved:
    """One more code: the place among those that share an id, closest first."""
    order = np.argsort(ask.errors(np.arange(len(ask.codes))), kind="stable")
    number = id_numbers(ask.codes[order], ask.size)
    by_id = np.argsort(number, kind="stable")
    first = np.flatnonzero(np.diff(number[by_id], prepend=-1))
    place = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
    if place.max(initial=0) >= ask.size:
        raise InputError("tokenizer.resolve", found=f"{place.max() + 1:,} items of one id for a counter of {ask.size:,}",
                         expected="a number for each", do="choose assignment, or more codes or levels")
    counter = np.empty(len(order), np.int32)
    counter[order[by_id]] = place
    return Resolved(np.column_stack([ask.codes, counter]), int(np.count_nonzero(place)), 0)


def _greedy(ask: _Ask) -> Resolved:
    """The closest item of an id keeps it; the others, closest first, take the nearest free last code."""
    order = np.argsort(ask.errors(np.arange(len(ask.codes))), kind="stable")
    _, winners = np.unique(id_numbers(ask.codes[order], ask.size), return_index=True)
    losers = np.delete(order, winners)
    tree = IdTree(ask.codes[order[winners]], ask.size)
    without_room = _settle_in_prefix(ask, tree, losers)
    _spill(ask, tree, losers[np.isin(losers, without_room)])
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
    order = np.argsort(prefixes, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(prefixes[order])) + 1):
        drawn = generator.permutation(ask.size)[:len(rows)]
        ask.codes[rows[:len(drawn)], -1] = drawn
        leftover += rows[len(drawn):].tolist()
    tree = IdTree(np.delete(ask.codes, leftover, axis=0), ask.size)
    _spill(ask, tree, np.array(leftover, np.int64))
    return Resolved(ask.codes, int((before != ask.codes).any(axis=1).sum()), len(leftover))


def _least_error(ask: _Ask) -> Resolved:
    """The last codes under each prefix with a collision so that the sum of squared errors is least."""
    before, prefixes = ask.codes.copy(), ask.prefixes()
    order = np.argsort(prefixes, kind="stable")
    ids = id_numbers(ask.codes[order], ask.size)
    _, first, count = np.unique(ids, return_index=True, return_counts=True)
    contested = np.unique(prefixes[order[first[count > 1]]])
    order = order[np.isin(prefixes[order], contested)]
    full = np.bincount(prefixes, minlength=ask.size ** (ask.codes.shape[1] - 1)) > ask.size
    leftover = [_match_prefixes(ask, rows, full) for rows in _whole_prefixes(order, prefixes)]
    left = np.concatenate([np.empty(0, np.int64), *leftover])
    tree = IdTree(np.delete(ask.codes, left, axis=0), ask.size)
    ask.codes[left] = before[left]
    _spill(ask, tree, left)
    return Resolved(ask.codes, int((before != ask.codes).any(axis=1).sum()), len(left))


def _whole_prefixes(order: np.ndarray, prefixes: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in `order`, sorted by prefix, some whole prefixes at a time."""
    edges = np.flatnonzero(np.diff(prefixes[order], prepend=-1))
    if not len(edges):
        return
    groups = np.split(edges, np.flatnonzero(np.diff(edges // _ROWS)) + 1)
    stops = [group[0] for group in groups[1:]] + [len(order)]
    yield from progress([order[group[0]:stop] for group, stop in zip(groups, stops)], total=len(groups),
                        what="collisions, blocks")


def _match_prefixes(ask: _Ask, rows: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Write the last codes of whole prefixes; returns the rows that found no room in a full one."""
    prefixes, leftover, listed = ask.prefixes(rows), [], _LISTED
    elsewhere = np.full(len(rows), np.inf)
    crowded = np.flatnonzero(full[prefixes])
    elsewhere[crowded] = _elsewhere(ask, rows[crowded], full)
    while len(rows):
        cost, code = _near_codes(ask, prefixes, ask.residuals(rows), listed)
        edges = [*np.flatnonzero(np.diff(prefixes, prepend=-1)), len(rows)]
        again = np.zeros(len(rows), bool)
        for start, stop in zip(edges, edges[1:]):
            part = slice(start, stop)
            chosen, short = match(cost[part].astype(np.float64), code[part].astype(np.int64), elsewhere[part], ask.size)
            if short.any() and listed < ask.size:
                again[part] = True
                continue
            ask.codes[rows[part], -1] = chosen
            leftover.append(rows[part][chosen == OUTSIDE])
        rows, prefixes, elsewhere, listed = rows[again], prefixes[again], elsewhere[again], 4 * listed
    return np.concatenate([np.empty(0, np.int64), *leftover])


def _elsewhere(ask: _Ask, rows: np.ndarray, full: np.ndarray) -> np.ndarray:
    """What items of full prefixes would cost under the nearest prefix that is not full, if no one else were there."""
    if not len(rows):
        return np.empty(0)
    depth, books = ask.codes.shape[1] - 2, ask.quantiser.codebooks
    left = ask.points(rows) - summed_words(ask.codes[rows, :depth], books)
    near, base = books[depth].nearest(left, _ELSEWHERE), id_numbers(ask.codes[rows, :depth], ask.size)
    open_ = ~full[base[:, None] * ask.size + near]
    chosen = near[np.arange(len(rows)), np.where(open_.any(axis=1), open_.argmax(axis=1), near.shape[1] - 1)]
    residuals = left - books[depth].words[chosen]
    return _near_codes(ask, base * ask.size + chosen, residuals, 1)[0][:, 0].astype(np.float64)


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


def _blocks(rows: np.ndarray, what: str) -> Iterator[np.ndarray]:
    starts = range(0, len(rows), _ROWS)
    return (rows[start:start + _ROWS] for start in progress(starts, total=len(starts), what=what))


RULES: dict[str, Callable[[_Ask], Resolved]] = {
    "none": _none, "counter": _counter, "greedy": _greedy, "random": _random, "assignment": _least_error}
