"""Collisions are resolved by five rules: each does what it says, loses no item, and the least error is the least."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.tokenizer import collisions
from onepiece_comp.tokenizer.assignment import match_codes
from onepiece_comp.tokenizer.collisions import RULES, place_new, resolve_collisions
from onepiece_comp.tokenizer.nearest_words import Codebook
from onepiece_comp.tokenizer.quantisers import Additive, Nested


def additive(books):
    """A quantiser with these words."""
    return Additive([Codebook(np.asarray(book, np.float32), np.zeros(len(book), np.float32)) for book in books])


def resolve(vectors, codes, books, rule, **more):
    return resolve_collisions(vectors, codes, additive(books), TokenizerConfig(resolve=rule, **more))


def crowd(items, seed, size=8):
    """Items of which most stand under one first word, with the codes of their nearest words."""
    generator = np.random.default_rng(seed)
    books = [generator.normal(size=(size, 3)).astype(np.float32),
             0.3 * generator.normal(size=(size, 3)).astype(np.float32)]
    vectors = (books[0][generator.choice(size, items, p=[0.6, 0.2] + [0.2 / (size - 2)] * (size - 2))]
               + 0.4 * generator.normal(size=(items, 3))).astype(np.float32)
    return vectors, additive(books).encode(vectors), books


def total_error(vectors, codes, books):
    return float(np.square(vectors - additive(books).decode(codes)).sum())


def slow_greedy(vectors, codes, books):
    """The greedy rule, read aloud: two levels, plain loops."""
    codes, size = [tuple(row) for row in codes.tolist()], len(books[0])
    def distance(row, code):
        return float(np.square(vectors[row] - books[0][code[0]] - books[1][code[1]]).sum())
    by_error = sorted(range(len(codes)), key=lambda row: (distance(row, codes[row]), row))
    owner = {}
    for row in by_error:
        owner.setdefault(codes[row], row)
    losers, full = [row for row in by_error if owner[codes[row]] != row], []
    for row in losers:
        first = codes[row][0]
        free = [(first, second) for second in range(size) if (first, second) not in owner]
        if free:
            codes[row] = min(free, key=lambda code: distance(row, code))
            owner[codes[row]] = row
        else:
            full.append(row)
    for row in full:
        open_firsts = [c for c in range(size) if any((c, s) not in owner for s in range(size))]
        first = min(open_firsts, key=lambda c: float(np.square(vectors[row] - books[0][c]).sum()))
        free = [(first, s) for s in range(size) if (first, s) not in owner]
        codes[row] = min(free, key=lambda code: distance(row, code))
        owner[codes[row]] = row
    return codes, len(losers), len(full)


@pytest.mark.parametrize("items, seed", [(20, 0), (45, 1), (64, 2)])
def test_the_greedy_rule_is_the_slow_one(items, seed):
    vectors, codes, books = crowd(items, seed)
    resolved = resolve(vectors, codes, books, "greedy", neighbours=3)
    expected, moved, overflowed = slow_greedy(vectors, codes, books)
    assert [tuple(row) for row in resolved.codes.tolist()] == expected
    assert (resolved.moved, resolved.overflowed) == (moved, overflowed) and moved > 0
    assert items < 40 or overflowed > 0


def test_the_closest_item_keeps_the_id_and_an_item_of_a_full_prefix_goes_to_the_next_nearest():
    books = [np.array([[0.0], [10.0], [40.0]], np.float32), np.array([[0.0], [1.0], [5.0]], np.float32)]
    vectors = np.array([[0.3], [0.2], [0.1], [0.4]], np.float32)
    resolved = resolve(vectors, np.zeros((4, 2), int), books, "greedy", neighbours=2)
    assert resolved.codes.tolist() == [[0, 2], [0, 1], [0, 0], [1, 0]]
    assert (resolved.moved, resolved.overflowed) == (3, 1)


def test_three_level_spills_keep_the_longest_part_of_the_prefix_that_has_room():
    books = [np.array([[0.0], [100.0]], np.float32), np.array([[0.0], [10.0]], np.float32),
             np.array([[0.0], [1.0]], np.float32)]
    vectors = np.array([[0.0], [0.1], [0.2], [0.3], [0.4]], np.float32)
    resolved = resolve(vectors, np.zeros((5, 3), int), books, "greedy", neighbours=1)
    assert resolved.codes[:2].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert resolved.codes[2:4, :2].tolist() == [[0, 1], [0, 1]] and resolved.codes[4, 0] == 1


def test_a_spill_starts_from_the_item_s_own_prefix_even_where_another_first_code_is_nearer():
    books = [np.array([[0.0], [100.0]], np.float32), np.array([[0.0], [10.0]], np.float32),
             np.array([[0.0], [1.0]], np.float32)]
    vectors, codes = np.full((3, 1), 30, np.float32), np.array([[1, 0, 0]] * 3)
    for rule in ("greedy", "assignment", "random"):
        assert resolve(vectors, codes, books, rule).codes[:, 0].tolist() == [1, 1, 1]


def least_total(cost):
    """The least total of all ways to give each item a code of its own, by trying all of them."""
    return min(sum(cost[i, code] for i, code in enumerate(ways))
               for ways in itertools.permutations(range(cost.shape[1]), len(cost)))


@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=150, deadline=60_000, derandomize=True)
@given(seed=st.integers(0, 10 ** 6), items=st.integers(1, 5), spare=st.integers(0, 2), whole=st.booleans())
def test_a_match_costs_the_least_of_all_or_says_that_its_lists_are_too_short(compiled, seed, items, spare, whole):
    draw, size = np.random.default_rng(seed), items + spare
    cost = draw.integers(0, 4, (items, size)).astype(float) if whole else draw.random((items, size))
    order = np.argsort(cost, axis=1, kind="stable")
    run = match_codes if compiled else getattr(match_codes, "py_func", match_codes)
    for listed in (int(draw.integers(1, size + 1)), size):
        part = order[:, :listed]
        code, short = run(np.take_along_axis(cost, part, 1), part, size)
        assert len(set(code[code >= 0].tolist())) == (code >= 0).sum()
        if not short.any():
            assert sum(cost[i, c] for i, c in enumerate(code)) == pytest.approx(least_total(cost))
        assert listed < size or not short.any()


@pytest.mark.parametrize("items, seed", [(40, 0), (60, 1), (200, 2)])
def test_within_prefixes_the_least_error_is_at_most_the_greedy_one_and_earlier_codes_stay(items, seed, monkeypatch):
    monkeypatch.setattr(collisions, "_LISTED", 2)
    vectors, codes, books = crowd(items, seed, size=32)
    before = codes.copy()
    ours, greedy = (resolve(vectors, codes.copy(), books, rule) for rule in ("assignment", "greedy"))
    assert len(np.unique(ours.codes, axis=0)) == items and (ours.overflowed == 0) == (greedy.overflowed == 0)
    if not ours.overflowed:
        assert (ours.codes[:, 0] == before[:, 0]).all()
        assert total_error(vectors, ours.codes, books) <= total_error(vectors, greedy.codes, books) + 1e-4
    assert ours.moved == (ours.codes != before).any(axis=1).sum() > 0


def test_a_full_prefix_gives_up_the_items_that_lose_least_by_it_and_they_take_their_nearest_code_elsewhere():
    """Four items for the two ids at 0: those nearest to the words at 10 and at -10 leave, not the latest."""
    books = [[[0.0], [10.0], [-10.0]], [[0.0], [2.0], [-2.0]]]
    vectors = np.array([[4.1], [0.4], [0.1], [-4.2], [-0.3]], np.float32)
    codes = np.zeros((5, 2), int)
    ours = resolve(vectors, codes, books, "assignment")
    assert ours.codes[[0, 3], 0].tolist() == [1, 2] and ours.overflowed == 2
    assert ours.codes[[0, 3], 1].tolist() == [2, 1]  # 10 - 2 and -10 + 2 are nearest to them
    assert (ours.codes[[1, 2, 4], 0] == 0).all() and sorted(ours.codes[[1, 2, 4], 1].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_where_prefixes_are_full_the_least_error_is_below_the_greedy_one(seed):
    vectors, codes, books = crowd(60, seed)
    ours, greedy = (resolve(vectors, codes.copy(), books, rule) for rule in ("assignment", "greedy"))
    assert ours.overflowed and len(np.unique(ours.codes, axis=0)) == 60
    assert total_error(vectors, ours.codes, books) < total_error(vectors, greedy.codes, books)


def test_the_least_error_differs_from_the_greedy_one_where_a_close_item_blocks_a_better_whole():
    """One word at 0, one at 1, one far: by greed .1 keeps 0 and .2 must go to 1, and so on; swapping costs less."""
    books = [[[0.0]], [[0.0], [1.0], [-30.0]]]
    vectors = np.array([[-0.3], [0.2], [0.9]], np.float32)
    codes = np.array([[0, 0], [0, 0], [0, 1]])
    greedy, ours = (resolve(vectors, codes.copy(), [np.repeat(books[0], 3, 0), books[1]], rule).codes[:, 1].tolist()
                    for rule in ("greedy", "assignment"))
    assert greedy == [2, 0, 1] and ours == [2, 0, 1]
    vectors = np.array([[0.45], [0.5], [1.0]], np.float32)
    books[1] = [[0.0], [1.0], [2.2]]
    codes = np.array([[0, 0], [0, 0], [0, 1]])
    greedy, ours = (resolve(vectors, codes.copy(), [np.repeat(books[0], 3, 0), books[1]], rule).codes[:, 1].tolist()
                    for rule in ("greedy", "assignment"))
    assert greedy == [0, 2, 1] and ours == [0, 1, 2]


@pytest.mark.parametrize("rule", ["greedy", "random", "assignment"])
@pytest.mark.parametrize("levels, size, items", [(1, 40, 40), (2, 6, 36), (3, 4, 64), (3, 4, 50)])
def test_every_rule_gives_every_item_an_id_of_its_own_even_when_all_ids_are_used(rule, levels, size, items):
    draw = np.random.default_rng(levels)
    books = [(draw.normal(size=(size, 2)) / 3 ** level).astype(np.float32) for level in range(levels)]
    vectors = (draw.normal(size=(items, 2)) ** 3).astype(np.float32)
    resolved = resolve(vectors, additive(books).encode(vectors), books, rule)
    assert len(np.unique(resolved.codes, axis=0)) == items
    assert resolved.codes.min() >= 0 and resolved.codes.max() < size


@pytest.mark.parametrize("rule", ["greedy", "random", "assignment", "counter"])
def test_one_item_and_equal_items_are_no_special_case(rule):
    books = [np.zeros((4, 2)), np.zeros((4, 2))]
    for items in (1, 4, 9):
        codes = np.zeros((items, 2), int)
        if rule == "counter" and items > 4:
            with pytest.raises(InputError, match="9 items of one id for a counter of 4"):
                resolve(np.ones((items, 2), np.float32), codes, books, rule)
        else:
            assert len(np.unique(resolve(np.ones((items, 2), np.float32), codes, books, rule).codes, axis=0)) == items


def test_a_counter_numbers_those_who_share_an_id_closest_first_and_changes_nothing_else():
    books = [[[0.0], [10.0]], [[0.0], [1.0]]]
    vectors = np.array([[0.3], [0.1], [11.0], [-0.2]], np.float32)
    with pytest.raises(InputError, match="3 items of one id"):
        resolve(vectors, additive(books).encode(vectors), books, "counter")
    resolved = resolve(vectors[:3], additive(books).encode(vectors[:3]), books, "counter")
    assert resolved.codes.tolist() == [[0, 0, 1], [0, 0, 0], [1, 1, 0]] and resolved.moved == 1


def test_without_a_rule_the_codes_are_those_of_the_nearest_words():
    vectors, codes, books = crowd(40, 0)
    resolved = resolve(vectors, codes, books, "none")
    np.testing.assert_array_equal(resolved.codes, codes)
    assert resolved.moved == 0


def test_random_last_codes_keep_the_prefix_and_follow_the_seed():
    vectors, codes, books = crowd(20, 3, size=32)
    drawn = [resolve(vectors, codes.copy(), books, "random", seed=seed).codes for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any() and all((part[:, 0] == codes[:, 0]).all() for part in drawn)


def test_words_of_their_own_under_each_prefix_come_apart_too():
    first = Codebook(np.array([[0.0], [100.0], [200.0]], np.float32), np.zeros(3, np.float32))
    nothing = Codebook(np.zeros((3, 1), np.float32), np.zeros(3, np.float32))
    nested = Nested([first, nothing], np.array([[0.0], [1.0], [2.0], [0.0], [5.0]], np.float32), np.array([0, 3, 5, 5]))
    vectors = np.array([[0.9], [1.2], [1.1], [105.0], [104.0], [200.0]], np.float32)
    codes = nested.encode(vectors)
    assert codes.tolist() == [[0, 1], [0, 1], [0, 1], [1, 1], [1, 1], [2, 0]]
    np.testing.assert_allclose(nested.decode(codes)[:, 0], [1, 1, 1, 105, 105, 200])
    for rule in ("greedy", "assignment"):
        ids = resolve_collisions(vectors, codes.copy(), nested, TokenizerConfig(resolve=rule)).codes
        assert len(np.unique(ids, axis=0)) == 6 and (ids[:, 0] == codes[:, 0]).all()
    assert ids.tolist()[:3] == [[0, 0], [0, 2], [0, 1]]  # 0.9 down, 1.2 up, 1.1 stays: the least error


def test_new_items_take_free_ids_near_them_and_nothing_moves():
    vectors, codes, books = crowd(30, 1)
    old = resolve(vectors, codes.copy(), books, "assignment").codes
    placed = place_new(vectors[:6], np.arange(6), codes[:6], additive(books), old)
    assert len(np.unique(np.concatenate([old, placed]), axis=0)) == 36


def test_an_unknown_rule_is_named():
    vectors, codes, books = crowd(5, 0)
    with pytest.raises(InputError, match="found 'best', expected one of none, counter, greedy, random, assignment"):
        resolve(vectors, codes, books, "best")
    assert list(RULES)[-1] == "assignment"


def hungarian(cost):
    """The code of each item at the least total: the textbook's O(n^2 m), a row of all codes at a time."""
    items, size = cost.shape
    row_price, price, owner = np.zeros(items + 1), np.zeros(size + 1), np.zeros(size + 1, int)
    for item in range(1, items + 1):
        owner[0], at, low, done, back = item, 0, np.full(size + 1, np.inf), np.zeros(size + 1, bool), np.zeros(size + 1,
            int)
        while owner[at]:
            done[at] = True
            reach = np.append(np.inf, cost[owner[at] - 1] - row_price[owner[at]] - price[1:])
            closer = ~done & (reach < low)
            low[closer], back[closer] = reach[closer], at
            to = int(np.where(done, np.inf, low).argmin())
            step = low[to]
            row_price[owner[done]] += step
            price[done] -= step
            low[~done] -= step
            at = to
        while at:
            owner[at], at = owner[back[at]], back[at]
    code = np.empty(items, int)
    code[owner[1:][owner[1:] > 0] - 1] = np.flatnonzero(owner[1:])
    return code


@pytest.mark.parametrize("seed, listed, most", [(0, 16, 1 << 25), (1, 2, 1 << 25), (2, 2, 40), (3, 1, 1)])
def test_distinct_items_get_the_textbook_s_codes_whatever_the_lists_and_blocks(seed, listed, most, monkeypatch):
    monkeypatch.setattr(collisions, "_LISTED", listed)
    monkeypatch.setattr(collisions, "_MOST_LISTED", most)
    draw, size = np.random.default_rng(seed), 40
    books = [draw.normal(size=(size, 3)).astype(np.float32), 0.3 * draw.normal(size=(size, 3)).astype(np.float32)]
    firsts = np.repeat(np.arange(5), [40, 31, 12, 2, 1])
    vectors = (books[0][firsts] + 0.2 * draw.normal(size=(len(firsts), 3))).astype(np.float32)
    codes = np.column_stack([firsts, np.zeros(len(firsts), int)])  # all in collision but one
    ids = resolve(vectors, codes, books, "assignment").codes
    for first in range(4):
        rows = np.flatnonzero(firsts == first)
        cost = np.square((vectors[rows] - books[0][first])[:, None].astype(float) - books[1]).sum(2)
        assert ids[rows, 1].tolist() == hungarian(cost).tolist()


@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=100, deadline=60_000, derandomize=True)
@given(seed=st.integers(0, 10 ** 6), rows=st.integers(1, 4), spare=st.integers(0, 3), whole=st.booleans())
def test_items_that_share_a_row_cost_as_little_as_with_a_row_each(compiled, seed, rows, spare, whole):
    draw = np.random.default_rng(seed)
    items = draw.integers(1, 5, rows)
    size = int(items.sum()) + spare
    cost = draw.integers(0, 4, (rows, size)).astype(float) if whole else draw.random((rows, size))
    order, row_of = np.argsort(cost, axis=1, kind="stable"), np.repeat(np.arange(rows), items)
    run = match_codes if compiled else getattr(match_codes, "py_func", match_codes)
    for listed in (int(draw.integers(1, size + 1)), size):
        part = order[:, :listed]
        code, short = run(np.take_along_axis(cost, part, 1), part, size, items)
        assert len(set(code[code >= 0].tolist())) == (code >= 0).sum() and len(code) == items.sum()
        if not short.any():
            apart = hungarian(cost[row_of])
            assert cost[row_of, code].sum() == pytest.approx(cost[row_of, apart].sum())
        assert listed < size or not short.any()


def test_equal_items_are_looked_up_once_and_lists_are_bounded(monkeypatch):
    """Eighty equal items need lists of as many codes: one list for all of them, and no more than asked."""
    monkeypatch.setattr(collisions, "_MOST_LISTED", 1000)
    asked, near = [], collisions._near_codes
    monkeypatch.setattr(collisions, "_near_codes", lambda ask, prefixes, residuals, count: (
        asked.append((np.unique(prefixes, return_counts=True)[1].max(), len(residuals), count)),
        near(ask, prefixes, residuals, count))[1])
    draw, size = np.random.default_rng(0), 128
    books = [draw.normal(size=(size, 3)).astype(np.float32), 0.3 * draw.normal(size=(size, 3)).astype(np.float32)]
    equal = np.repeat(books[0][:4] + np.float32(0.1), 80, axis=0)
    others = (books[0][draw.integers(0, 4, 60)] + 0.2 * draw.normal(size=(60, 3))).astype(np.float32)
    vectors, firsts = np.concatenate([equal, others]), np.repeat(np.arange(4), 80)
    codes = np.column_stack([np.append(firsts, draw.integers(0, 4, 60)), np.zeros(380, int)])
    ids = resolve(vectors, codes, books, "assignment").codes
    assert len(np.unique(ids, axis=0)) == 380 and (ids[:, 0] == codes[:, 0]).all()
    assert sum(rows for _, rows, count in asked if count == 16) == 64
    assert max(count for *_, count in asked) >= 128
    assert all(rows * count <= 1000 + largest * count for largest, rows, count in asked)
    np.testing.assert_array_equal(ids, resolve(vectors, codes, books, "assignment").codes)
    for first in range(4):
        rows = np.flatnonzero(codes[:, 0] == first)
        cost = np.square((vectors[rows] - books[0][first])[:, None].astype(float) - books[1]).sum(2)
        least = cost[np.arange(len(rows)), hungarian(cost)].sum()
        assert cost[np.arange(len(rows)), ids[rows, 1]].sum() == pytest.approx(least)
