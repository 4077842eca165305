"""Quantisers behind one interface: nearest words, sums of words, round trips, and the same again from their arrays."""

import numpy as np
import pytest

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.tokenizer import nearest_words as word_search, quantisers
from onepiece_comp.tokenizer.build import fit_quantiser
from onepiece_comp.tokenizer.nearest_words import Codebook
from onepiece_comp.tokenizer.build import QUANTISERS
from onepiece_comp.tokenizer.quantisers import Additive, in_blocks

NAMES = sorted(QUANTISERS.keys() - {"rqvae"})  # it has tests of its own


def points(items=600, width=8, seed=0):
    draw = np.random.default_rng(seed)
    centres = 3 * draw.normal(size=(12, width))
    return (centres[draw.integers(0, 12, items)] + draw.normal(size=(items, width))).astype(np.float32)


def fitted(name, vectors, size=16, **settings):
    return fit_quantiser(vectors, size, TokenizerConfig(quantiser=name, iterations=8, **settings))


def error(vectors, quantiser, codes):
    return float(np.square(vectors - quantiser.decode(codes)).sum(1).mean())


@pytest.mark.parametrize("name", NAMES)
def test_codes_are_in_range_say_more_than_the_mean_and_more_levels_say_more(name):
    vectors = points()
    variance = np.square(vectors - vectors.mean(0)).sum(1).mean()
    quantiser = fitted(name, vectors)
    codes = quantiser.encode(vectors)
    assert codes.shape == (600, 2) and codes.dtype == np.int32 and codes.min() >= 0 and codes.max() < 16
    assert error(vectors, quantiser, codes) < 0.7 * variance
    if name != "nested_kmeans":
        deeper = fitted(name, vectors, levels=3)
        assert error(vectors, deeper, deeper.encode(vectors)) < error(vectors, quantiser, codes)


@pytest.mark.parametrize("name", NAMES)
def test_an_id_decodes_to_the_sum_of_its_words(name):
    vectors = points()
    quantiser = fitted(name, vectors)
    codes = quantiser.encode(vectors)[:50]
    for code, decoded in zip(codes, quantiser.decode(codes)):
        total = quantiser.codebooks[0].words[code[0]] + quantiser.last_words(int(code[0])).words[code[1]]
        if getattr(quantiser, "axes", None) is not None:
            total = total @ quantiser.back + quantiser.mean
        np.testing.assert_allclose(decoded, total, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_code_is_the_nearest_under_the_prefix(name):
    vectors = points(200)
    quantiser = fitted(name, vectors)
    codes, space = quantiser.encode(vectors), quantiser.embed(vectors)
    for code, point in zip(codes[:60], space):
        words = quantiser.last_words(int(code[0]))
        residual = point - quantiser.codebooks[0].words[code[0]]
        cost = np.square(residual - words.words).sum(1) + words.price
        assert cost[code[1]] <= cost.min() + 1e-3


@pytest.mark.parametrize("name", ["residual_kmeans", "opq", "fsq"])
def test_at_one_level_encoding_what_was_decoded_gives_the_code_back(name):
    vectors = points()
    quantiser = fitted(name, vectors, levels=1)
    codes = quantiser.encode(vectors)
    np.testing.assert_array_equal(quantiser.encode(quantiser.decode(codes)), codes)


@pytest.mark.parametrize("name", NAMES)
def test_stored_arrays_make_the_same_quantiser_again(name):
    vectors = points()
    quantiser = fitted(name, vectors)
    again = QUANTISERS[name].restore({key: np.array(array) for key, array in quantiser.arrays().items()}, 2)
    codes = quantiser.encode(vectors)
    np.testing.assert_array_equal(again.encode(vectors), codes)
    np.testing.assert_array_equal(again.decode(codes), quantiser.decode(codes))


@pytest.mark.parametrize("name", NAMES)
def test_codes_do_not_depend_on_the_blocks_in_which_they_are_made(name):
    vectors = points()
    quantiser = fitted(name, vectors)
    whole = in_blocks(vectors, quantiser.encode, "codes")
    np.testing.assert_array_equal(whole, np.concatenate([quantiser.encode(vectors[i:i + 7]) for i in range(0, 600, 7)]))


def test_words_under_each_prefix_are_those_of_its_own_items():
    """Two far clusters, each split into pairs of its own: shared second words could not serve both."""
    vectors = np.concatenate([[[0, 0]] * 5, [[0, 1]] * 5, [[50, 0]] * 5, [[53, 0]] * 5]).astype(np.float32)
    quantiser = fitted("nested_kmeans", vectors, size=2)
    assert error(vectors, quantiser, quantiser.encode(vectors)) < 1e-9
    shared = fitted("residual_kmeans", vectors, size=2)
    assert error(vectors, shared, shared.encode(vectors)) > 0.2
    with pytest.raises(InputError, match="nested k-means with 3 levels"):
        fitted("nested_kmeans", vectors, levels=3)


def test_finite_scalars_cut_every_component_into_equal_shares():
    vectors = np.random.default_rng(0).normal(size=(4000, 4)).astype(np.float32) * [8, 4, 2, 1]
    quantiser = fitted("fsq", vectors, size=16, levels=2)
    codes = quantiser.encode(vectors)
    for level in range(2):
        share = np.bincount(codes[:, level], minlength=16) / len(codes)
        assert (share > 0.04).all() and (share < 0.1).all()


def test_parts_of_a_product_share_no_dimension():
    quantiser = fitted("opq", points(width=7), levels=2)
    used = [np.abs(codebook.words).max(0) > 0 for codebook in quantiser.codebooks]
    assert not (used[0] & used[1]).any() and used[0].sum() == used[1].sum() == 4
    np.testing.assert_allclose(quantiser.axes @ quantiser.axes.T, np.eye(7), atol=1e-4)


def test_an_unknown_quantiser_is_named():
    with pytest.raises(InputError, match="found 'vq', expected one of residual_kmeans, nested_kmeans, opq, fsq, rqvae"):
        fitted("vq", points())
    assert isinstance(fitted("fsq", points()), Additive)


@pytest.mark.parametrize("items, width, levels", [(4, 8, 2), (60, 64, 2), (8, 7, 3), (1, 1, 1)])
def test_too_few_vectors_for_a_rotation_are_quantised_without_one(items, width, levels, monkeypatch, capsys):
    """faiss's training of a rotation writes past its memory there, so it must not even be called."""
    monkeypatch.setattr(quantisers.faiss, "OPQMatrix", None)
    vectors = points(items, width)
    quantiser = fitted("opq", vectors, size=64, levels=levels)
    np.testing.assert_array_equal(quantiser.axes, np.eye(width, quantiser.axes.shape[1]))
    assert error(vectors, quantiser, quantiser.encode(vectors)) < 1e-6
    assert f"no rotation, as {items} vectors are too few" in capsys.readouterr().out


@pytest.mark.parametrize("items, width, levels", [(8, 8, 2), (9, 7, 3), (2, 1, 1)])
def test_as_many_vectors_as_dimensions_are_enough_for_a_rotation(items, width, levels, capsys):
    quantiser = fitted("opq", points(items, width), levels=levels)
    np.testing.assert_allclose(quantiser.axes @ quantiser.axes.T, np.eye(width), atol=1e-4)
    assert "no rotation" not in capsys.readouterr().out


@pytest.mark.parametrize("size", [1, 2, 3, 8, 15])
def test_finite_scalars_are_as_many_as_the_codes_allow(size):
    vectors = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    quantiser = fitted("fsq", vectors, size=size, levels=2)
    codes = quantiser.encode(vectors)
    used = 2 ** int(np.log2(size)) if size != 3 else 3
    assert len(np.unique(codes[:, 0])) >= used and codes.max() < size


@pytest.mark.parametrize("items", [1, 2, 3])
def test_finite_scalars_of_fewer_items_than_shares_are_the_items_themselves(items):
    vectors = np.array([[1, 5], [2, 7], [4, 6]], np.float32)[:items]
    quantiser = fitted("fsq", vectors, size=16, levels=1)
    assert np.isfinite(quantiser.codebooks[0].words).all()
    assert error(vectors, quantiser, quantiser.encode(vectors)) < (1e-6 if items < 3 else 0.5)


def test_words_that_cannot_be_written_are_copied_for_torch(monkeypatch):
    """As they come from a folder: torch would share their memory, and say so in a warning, once in a process."""
    import torch

    shared, share = [], torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: (shared.append(array.flags.writeable), share(array))[1])
    words, price = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    words.flags.writeable = price.flags.writeable = False
    before = word_search._device.set("cpu:0")
    try:
        assert Codebook(words, price).nearest(np.eye(3, dtype=np.float32))[:, 0].tolist() == [0, 1, 2]
    finally:
        word_search._device.reset(before)
    assert all(shared)
