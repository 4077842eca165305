"""RQ-VAE: uses its words, beats its own beginning, stores and repeats itself; the published recipe collapses."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.tokenizer import rqvae as learned_quantisers
from onepiece_comp.tokenizer.quantisers import fit_residual_kmeans
from onepiece_comp.tokenizer.rqvae import Stack, fit_rqvae, restored_rqvae


def planted(clusters=16, offsets=16, width=12, noise=0.1, copies=4):
    """Vectors: far centres, the same near offsets around each, a little noise; and their cluster and offset."""
    draw = np.random.default_rng(0)
    centre, offset = 10 * draw.normal(size=(clusters, width)), draw.normal(size=(offsets, width))
    of = np.stack(np.meshgrid(np.arange(clusters), np.arange(offsets)), -1).reshape(-1, 2).repeat(copies, axis=0)
    vectors = centre[of[:, 0]] + offset[of[:, 1]] + noise * draw.normal(size=(len(of), width))
    return vectors.astype(np.float32), *of.T


def cloud(items=3000, width=12, seed=0):
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(items, width)) * np.linspace(2, 0.5, width)).astype(np.float32)


def fitted(vectors, size=16, **settings):
    return fit_rqvae(vectors, size, TokenizerConfig(quantiser="rqvae", **{"rqvae_steps": 100, **settings}))


def relative_error(vectors, quantiser):
    left = vectors - quantiser.decode(quantiser.encode(vectors))
    return float(np.square(left).sum() / np.square(vectors - vectors.mean(0)).sum())


def used(codes):
    return [len(np.unique(level)) for level in codes.T]


def test_items_of_a_cluster_share_the_first_code_and_no_other_cluster_has_it():
    vectors, cluster, _ = planted()
    quantiser = fitted(vectors)
    codes = quantiser.encode(vectors)
    assert len(set(zip(cluster, codes[:, 0]))) == len(set(codes[:, 0])) == 16
    assert used(codes) == [16, 16] and codes.dtype == np.int32
    assert relative_error(vectors, quantiser) < 0.005


def test_training_lowers_the_error_to_that_of_residual_kmeans_and_uses_the_words():
    vectors = cloud()
    beginning, end = fitted(vectors, 32, levels=3, rqvae_steps=1), fitted(vectors, 32, levels=3, rqvae_steps=300)
    assert relative_error(vectors, end) < 0.95 * relative_error(vectors, beginning)
    kmeans = fit_residual_kmeans(vectors, 32, TokenizerConfig(levels=3))
    assert relative_error(vectors, end) < 1.05 * relative_error(vectors, kmeans)
    assert min(used(end.encode(vectors))) > 0.9 * 32


def test_the_published_recipe_leaves_most_words_unused_where_the_steady_one_uses_them():
    vectors = cloud() / 20
    steady, tiger = fitted(vectors, 64), fitted(vectors, 64, rqvae="tiger")
    assert min(used(steady.encode(vectors))) > 0.9 * 64
    assert max(used(tiger.encode(vectors))) < 0.5 * 64
    assert not tiger.encoder.shortcut.any() and (tiger.deviation == 1).all()
    assert relative_error(vectors, steady) < 0.5 < relative_error(vectors, tiger)
    begun, gone_on = (fitted(vectors, 64, rqvae="tiger", rqvae_steps=steps).codebooks[1].words for steps in (1, 5))
    assert (begun != gone_on).any(axis=1).sum() > 1


def test_the_decoder_learns_what_a_sum_of_words_cannot_say():
    """On a curve the mean of neighbours lies beside it; only a bent decoder puts it back."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 2000)
    vectors = np.column_stack([wave(turns * angle) for turns in (1, 2, 3) for wave in (np.cos, np.sin)])
    quantiser = fitted(vectors.astype(np.float32), 8, rqvae_steps=400)
    straight = [Stack([layer._replace(weight=0 * layer.weight, bias=0 * layer.bias) for layer in stack.layers],
                      stack.shortcut) for stack in (quantiser.encoder, quantiser.decoder)]
    assert relative_error(vectors, quantiser) < 0.8 * relative_error(vectors, replace(quantiser, decoder=straight[1]))
    kmeans = fit_residual_kmeans(vectors, 8, TokenizerConfig())
    assert relative_error(vectors, quantiser) < 0.8 * relative_error(vectors, kmeans)


def test_errors_count_in_the_vectors_own_units_whatever_the_units_of_each_direction():
    """Standardised inputs must not make a whisper count as much as a shout."""
    vectors = cloud() * np.array([10] * 3 + [0.1] * 9, np.float32) + 5
    quantiser = fitted(vectors, rqvae_steps=200)
    kmeans = fit_residual_kmeans(vectors, 16, TokenizerConfig())
    assert relative_error(vectors, quantiser) < 1.1 * relative_error(vectors, kmeans)


def test_a_longer_prefix_says_more_and_a_whole_one_all_that_the_id_says():
    vectors = cloud()
    quantiser = fitted(vectors, levels=3)
    codes = quantiser.encode(vectors)
    error = [np.square(vectors - quantiser.decode_prefix(codes[:, :depth])).sum() for depth in (1, 2, 3)]
    assert error[0] > 1.2 * error[1] > 1.2 ** 2 * error[2]
    np.testing.assert_array_equal(quantiser.decode_prefix(codes), quantiser.decode(codes))
    left = quantiser.embed(vectors) - sum(quantiser.codebooks[level].words[codes[:, level]] for level in (0, 1))
    np.testing.assert_array_equal(quantiser.last_words(7).nearest(left)[:, 0], codes[:, 2])


@pytest.mark.parametrize("recipe", sorted(learned_quantisers.RECIPES))
def test_stored_arrays_make_the_same_quantiser_again(recipe, tmp_path):
    vectors = cloud(width=200, items=400)
    quantiser = fitted(vectors, rqvae=recipe, rqvae_steps=3)
    np.savez(tmp_path / "stored.npz", **quantiser.arrays())
    again = restored_rqvae(dict(np.load(tmp_path / "stored.npz")), 2)
    codes = quantiser.encode(vectors)
    np.testing.assert_array_equal(again.encode(vectors), codes)
    np.testing.assert_array_equal(again.embed(vectors), quantiser.embed(vectors))
    np.testing.assert_array_equal(again.decode(codes), quantiser.decode(codes))
    assert all(array.dtype == np.float32 for array in quantiser.arrays().values())


@pytest.mark.parametrize("recipe", sorted(learned_quantisers.RECIPES))
def test_equal_seeds_give_equal_quantisers_and_torch_s_random_state_stays(recipe):
    vectors = cloud(500)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = fitted(vectors, rqvae=recipe, rqvae_steps=20)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second, other = (fitted(vectors, rqvae=recipe, rqvae_steps=20, seed=seed) for seed in (0, 1))
    for name, array in first.arrays().items():
        np.testing.assert_array_equal(array, second.arrays()[name], err_msg=name)
    assert not np.array_equal(first.codebooks[0].words, other.codebooks[0].words)


def test_words_are_running_means_of_what_chooses_them():
    words = torch.tensor([[[0.0], [10.0]]])
    means = learned_quantisers._RunningMeans(words, np.random.default_rng(0))
    means.follow(learned_quantisers._choose(torch.tensor([[1.0], [3.0], [9.0]]), words))
    decay, mean = learned_quantisers._DECAY, 1024 / 2
    low = (1 - decay) * (1 + 3) / (decay * mean + (1 - decay) * 2)
    high = (decay * mean * 10 + (1 - decay) * 9) / (decay * mean + (1 - decay) * 1)
    assert words.flatten().tolist() == pytest.approx([low, high])


def test_a_word_that_nothing_chooses_is_placed_among_the_latents(monkeypatch):
    monkeypatch.setattr(learned_quantisers, "_BATCH", 64)
    latents = torch.linspace(-1, 1, 64)[:, None]
    words = torch.tensor([[[0.0], [100.0]]])
    means = learned_quantisers._RunningMeans(words, np.random.default_rng(0))
    means.count[0, 1] = 3
    means.follow(learned_quantisers._choose(latents, words))
    assert words[0, 1] in latents
    for _ in range(400):
        means.follow(learned_quantisers._choose(latents, words))
    assert sorted(words.flatten().tolist()) == pytest.approx([-0.5, 0.5], abs=0.2)


@pytest.mark.parametrize("vectors", [
    np.ones((1, 3), np.float32), np.ones((50, 3), np.float32), cloud(5, 3), cloud(40, 1),
    cloud(40, 3) * np.array([1, 0, 1], np.float32)], ids=["one", "all equal", "few", "one wide", "a flat direction"])
def test_odd_vectors_are_quantised_too(vectors):
    quantiser = fitted(vectors, 8, rqvae_steps=5)
    codes = quantiser.encode(vectors)
    assert codes.min() >= 0 and codes.max() < 8
    np.testing.assert_allclose(quantiser.decode(codes), vectors, atol=2)


@pytest.mark.parametrize("settings, complaint", [
    ({"rqvae": "lion"}, "tokenizer.rqvae: found 'lion', expected one of steady, tiger"),
    ({"rqvae_steps": 0}, "tokenizer.rqvae_steps: found 0, expected at least 1")])
def test_settings_out_of_range_are_named(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        fitted(cloud(50), **settings)


def test_a_fitted_quantiser_needs_no_torch(tmp_path):
    vectors = cloud(100)
    quantiser = fitted(vectors, rqvae_steps=2)
    np.savez(tmp_path / "stored.npz", vectors=vectors, codes=quantiser.encode(vectors), **quantiser.arrays())
    program = ("import sys; sys.modules['torch'] = None; import numpy as np\n"
               "import onepiece_comp.tokenizer.build, onepiece_comp.tokenizer.align\n"
               "from onepiece_comp.tokenizer.rqvae import restored_rqvae\n"
               "held = dict(np.load(sys.argv[1])); quantiser = restored_rqvae(held, 2)\n"
               "assert (quantiser.encode(held['vectors']) == held['codes']).all()\n")
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "stored.npz"], check=False, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_on_the_vectors_of_beauty_all_words_are_used_after_a_few_steps(data_dir):
    file = data_dir / "amazon2014_beauty" / "item_vectors_32.npy"
    if not file.is_file():
        pytest.skip(f"no {file}")
    vectors = np.load(file)[1:].astype(np.float32)
    quantiser = fitted(vectors, 256, levels=4)
    codes = quantiser.encode(vectors)
    assert min(used(codes)) > 0.95 * 256 and len(np.unique(codes, axis=0)) > 11_900
    assert relative_error(vectors, quantiser) < 0.24
