"""Codebooks: planted clusters are found, both searches agree, balance levels the load,
equal input gives equal words.
"""

import numpy as np
import pytest

from onepiece_comp.errors import InputError
from onepiece_comp.tokenizer import kmeans
from onepiece_comp.tokenizer.kmeans import fit_codebook
from onepiece_comp.tokenizer.nearest_words import Codebook


def clusters(count, each, *, width=8, spread=0.05, seed=0):
    """Points in `count` tight clusters far from each other, in mixed order, and the cluster of each."""
    draw = np.random.default_rng(seed)
    centres = 10 * draw.normal(size=(count, width))
    member = draw.permutation(np.repeat(np.arange(count), each))
    return (centres[member] + spread * draw.normal(size=(len(member), width))).astype(np.float32), member


def error(points, codebook):
    return float(np.square(points - codebook.words[codebook.nearest(points)[:, 0]]).sum(1).mean())


@pytest.mark.parametrize("search", ["exact", "lists"])
def test_planted_clusters_get_a_word_each(search):
    points, member = clusters(30, 40)
    codebook = fit_codebook(points, 30, iterations=20, seed=1, seeding="kmeans++", search=search)
    word = codebook.nearest(points)[:, 0]
    if search == "exact":
        assert len({(m, w) for m, w in zip(member.tolist(), word.tolist())}) == len(set(word.tolist())) == 30
    assert error(points, codebook) < (0.1 if search == "exact"
                                      else 0.2 * np.square(points - points.mean(0)).sum(1).mean())


def test_lists_come_close_to_looking_at_every_word_where_points_lie_in_a_tree_of_clusters():
    draw = np.random.default_rng(0)
    roots = 8 * draw.normal(size=(16, 6))
    leaves = roots[np.repeat(np.arange(16), 8)] + 2 * draw.normal(size=(128, 6))
    points = (leaves[draw.integers(0, 128, 6000)] + 0.5 * draw.normal(size=(6000, 6))).astype(np.float32)
    exact, lists = (fit_codebook(points, 256, iterations=8, seed=0, seeding="random", search=search)
                    for search in ("exact", "lists"))
    assert error(points, lists) < error(points, exact)


def test_a_search_over_lists_that_hold_every_word_is_the_exact_one(monkeypatch):
    points, _ = clusters(12, 30, spread=3.0)
    words = points[:20].copy()
    near = np.tile(np.arange(20), (20, 1))
    distance, word = kmeans._assign_over_lists(points, np.arange(len(points)) % 20, words, near)
    slow = np.square(points[:, None] - words).sum(2)
    np.testing.assert_array_equal(word, slow.argmin(1))
    np.testing.assert_allclose(distance, slow.min(1), rtol=1e-3, atol=1e-2)


def test_means_are_those_of_a_loop_and_a_word_without_points_starts_again_at_the_worst_off(monkeypatch):
    draw = np.random.default_rng(2)
    points, word = draw.normal(size=(500, 4)).astype(np.float32), draw.integers(0, 30, 500)
    word[word == 7] = 8
    distance = np.arange(500, dtype=np.float32)
    whole = kmeans._means(points, word, np.zeros((30, 4), np.float32), distance)
    for number in range(30):
        expected = points[word == number].mean(0) if number != 7 else points[499]
        np.testing.assert_allclose(whole[number], expected, atol=1e-5)


def test_equal_input_gives_equal_words_and_another_seed_others():
    points, _ = clusters(50, 20, spread=5.0)
    first, again, other = (fit_codebook(points, 40, iterations=3, seed=seed).words for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_nearest_words_are_those_of_a_loop_with_and_without_prices():
    draw = np.random.default_rng(1)
    points, words = draw.normal(size=(200, 5)).astype(np.float32), draw.normal(size=(30, 5)).astype(np.float32)
    for price in (np.zeros(30), draw.random(30) * 3 - 1):
        cost = np.square(points[:, None] - words).sum(2) + price
        distance, word = Codebook(words, price.astype(np.float32)).search(points, 4)
        np.testing.assert_array_equal(word, cost.argsort(1)[:, :4])
        np.testing.assert_allclose(distance, np.sort(cost, 1)[:, :4], atol=1e-4)


def test_balance_levels_how_many_items_a_word_has():
    draw = np.random.default_rng(0)
    points = (draw.normal(size=(4000, 4)) * draw.exponential(1, (4000, 1))).astype(np.float32)
    plain, even = (fit_codebook(points, 64, iterations=10, seed=0, balance=balance) for balance in (0.0, 2.0))
    loads = [np.bincount(codebook.nearest(points)[:, 0], minlength=64).max() / (4000 / 64) for codebook in (plain,
        even)]
    assert loads[0] > 10 and loads[1] < 3 and error(points, even) < 3 * error(points, plain)


@pytest.mark.parametrize("seeding", ["random", "kmeans++", "cells"])
def test_first_words_are_points_and_far_ones_where_asked(seeding):
    points, member = clusters(10, [1, 91, 1, 1, 1, 1, 1, 1, 1, 1], spread=0.01)
    words = kmeans._seeds(points, 10, seeding, np.random.default_rng(0))
    met = {int(member[np.square(points - word).sum(1).argmin()]) for word in words}
    assert (len(met) == 10) == (seeding == "kmeans++") or seeding == "cells" and len(met) > 5


def test_more_words_than_different_points_are_the_points_and_zeros():
    points = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    codebook = fit_codebook(points, 5, iterations=4, seed=0)
    assert error(points, codebook) == 0 and (codebook.words[3:] == 0).all()


@pytest.mark.parametrize("settings, message",
                         [({"seeding": "best"}, "tokenizer.seeding: found 'best', expected one of auto"),
                                               ({"search": "fast"}, "tokenizer.search: found 'fast'")])
def test_unknown_ways_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        fit_codebook(np.ones((5, 2), np.float32), 2, iterations=1, seed=0, **settings)
