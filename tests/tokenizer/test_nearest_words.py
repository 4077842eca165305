"""Nearest words: faiss and torch give those of a plain loop, with prices and without, whatever the block."""

import numpy as np
import pytest

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.tokenizer import nearest_words as word_search
from onepiece_comp.tokenizer.nearest_words import Codebook, Search, searching_on
from onepiece_comp.tokenizer.quantisers import fit_residual_kmeans


@pytest.fixture
def on_torch():
    """Searches by torch, on the CPU."""
    before = word_search._device.set("cpu:0")
    yield
    word_search._device.reset(before)


@pytest.fixture(params=["faiss", "torch"])
def backend(request):
    if request.param == "torch":
        request.getfixturevalue("on_torch")
    return request.param


@pytest.mark.parametrize("priced", [False, True])
def test_words_and_distances_are_those_of_a_loop(backend, priced, monkeypatch):
    monkeypatch.setattr(word_search, "_DISTANCES_AT_ONCE", 1000)  # several blocks
    draw = np.random.default_rng(0)
    words, points = draw.normal(size=(40, 6)).astype(np.float32), draw.normal(size=(301, 6)).astype(np.float32)
    price = draw.random(40).astype(np.float32) * 3 if priced else np.zeros(40, np.float32)
    distance, word = Search(Codebook(words, price))(points, 5)
    expected = np.array([[np.square(point - own).sum() + cost for own, cost in zip(words, price)] for point in points])
    np.testing.assert_array_equal(word, np.argsort(expected, axis=1)[:, :5])
    np.testing.assert_allclose(distance, np.sort(expected, axis=1)[:, :5], atol=1e-4)


def test_more_words_asked_for_than_there_are(backend):
    words = np.eye(3, dtype=np.float32)
    assert sorted(Codebook.plain(words).nearest(words[:1], 9)[0]) == [0, 1, 2]


def test_a_quantiser_applied_by_torch_gives_the_ids_of_faiss_and_fitted_by_it_is_as_good(request):
    """On points whose nearest first words are clear; later words feel the rounding."""
    draw = np.random.default_rng(1)
    points = (10 * draw.normal(size=(32, 8))[draw.integers(0, 32, 2000)]
              + draw.choice([-1.0, 1.0], (2000, 8))).astype(np.float32)
    fit = lambda: fit_residual_kmeans(points, 32, TokenizerConfig(codes=32, iterations=4))
    ours = fit()
    codes = ours.encode(points)
    request.getfixturevalue("on_torch")
    theirs = fit()
    np.testing.assert_array_equal(theirs.codebooks[0].words, ours.codebooks[0].words)
    np.testing.assert_array_equal(ours.encode(points), codes)
    error = lambda quantiser: float(np.square(points - quantiser.decode(quantiser.encode(points))).sum())
    assert error(theirs) == pytest.approx(error(ours), rel=0.01)


@pytest.mark.parametrize("device, found", [("gpu", "'gpu'"), ("cuda", "no CUDA device")])
def test_a_device_that_is_not_there_is_refused(device, found, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=found), searching_on(device):
        pass


def test_the_device_is_put_back_after_an_error(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError), searching_on("auto"):
        assert word_search.on_gpu()
        raise ValueError
    assert not word_search.on_gpu()
