"""RQ-VAE: an encoder, residual words in its latent space and a decoder, trained together; used without torch.

Stands between `quantisers.py` and `build.py`. Source: TIGER (arXiv 2305.05065, section 3.1). Its published settings
are the recipe "tiger"; on vectors of small norm they leave most words unused. "steady" differs where that goes wrong:
inputs are standardised, words follow running means (GR2, arXiv 2602.07774), words that hardly anyone takes are placed
anew, a linear shortcut stands beside encoder and decoder, the step size falls to zero. Legend: n items, d width,
L levels, C codes, S width of the latent space.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.console import progress
from onepiece_comp.errors import InputError
from onepiece_comp.tokenizer.kmeans import fit_codebook
from onepiece_comp.tokenizer.nearest_words import Codebook
from onepiece_comp.tokenizer.quantisers import Additive, Vectors, restored_additive, sample_of

if TYPE_CHECKING:
    import torch

_NARROW, _HIDDEN_OF_NARROW, _HIDDEN_OF_WIDE = 128, (128, 64), (512, 256, 128)
_BATCH = 1024
_FIRST_PER_CODE = 8  # latents per word that the first words are fitted to, at least a batch
_COMMITMENT = 0.25
_DECAY = 0.98  # of the running means that words are
_FLAT = 1e-4  # directions with less than this share of the largest deviation are not blown up
_DEAD = 0.1  # a word with less than this share of a word's mean number of latents is placed anew


class Recipe(NamedTuple):
    """How an RQ-VAE is trained."""

    standardised: bool  # inputs of mean 0 and deviation 1; the error still counts in the vectors' own units
    averaged: bool  # words are running means of their latents, dead ones placed anew; else they follow the gradient
    optimiser: str
    rate: float
    falling: bool  # the rate falls to zero
    shortcut: bool  # principal components go past encoder and decoder, which learn what to add to them
    latent: int  # most S


RECIPES = {"steady": Recipe(True, True, "AdamW", 2e-3, True, True, 64),
           "tiger": Recipe(False, False, "Adagrad", 0.4, False, False, 32)}


class Layer(NamedTuple):
    """x @ weight + bias; arrays, or tensors in training."""

    weight: "np.ndarray | torch.Tensor"  # float32 [in, out]
    bias: "np.ndarray | torch.Tensor"  # float32 [out]


class Stack(NamedTuple):
    """Layers with ReLU between them, none after the last, plus x @ shortcut."""

    layers: Sequence[Layer]
    shortcut: "np.ndarray | torch.Tensor"  # float32 [in, out]

    def __call__(self, x: "np.ndarray | torch.Tensor") -> "np.ndarray | torch.Tensor":
        y = x
        for place, layer in enumerate(self.layers):
            y = (y.clip(min=0) if place else y) @ layer.weight + layer.bias
        return y + x @ self.shortcut


@dataclass(frozen=True)
class Autoencoded:
    """Words of all levels in the latent space of an autoencoder; a `Quantiser`."""

    latent: Additive
    mean: np.ndarray  # float32 [d]
    deviation: np.ndarray  # float32 [d]
    encoder: Stack
    decoder: Stack

    @property
    def codebooks(self) -> Sequence[Codebook]:
        return self.latent.codebooks

    def embed(self, vectors: np.ndarray) -> np.ndarray:
        return self.encoder((np.asarray(vectors, np.float32) - self.mean) / self.deviation)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        return self.latent.encode(self.embed(vectors))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self.decoder(self.latent.decode(codes)) * self.deviation + self.mean

    decode_prefix = decode

    def last_words(self, prefix: int) -> Codebook:
        return self.latent.last_words(prefix)

    def arrays(self) -> dict[str, np.ndarray]:
        return {**self.latent.arrays(), "input_mean": self.mean, "input_deviation": self.deviation,
                **_stack_arrays("encoder", self.encoder), **_stack_arrays("decoder", self.decoder)}


def _stack_arrays(name: str, stack: Stack) -> dict[str, np.ndarray]:
    layers = {f"{name}_{place}_{what}": getattr(layer, what)
              for place, layer in enumerate(stack.layers) for what in Layer._fields}
    return {**layers, f"{name}_shortcut": stack.shortcut}


def restored_rqvae(arrays: dict[str, np.ndarray], levels: int) -> Autoencoded:
    """The quantiser whose `arrays` were stored."""
    stacks = [Stack([Layer(arrays[f"{name}_{place}_weight"], arrays[f"{name}_{place}_bias"])
                     for place in range(len(arrays)) if f"{name}_{place}_weight" in arrays], arrays[f"{name}_shortcut"])
              for name in ("encoder", "decoder")]
    return Autoencoded(restored_additive(arrays, levels), arrays["input_mean"], arrays["input_deviation"],
                       *stacks)


def fit_rqvae(vectors: Vectors, size: int, config: TokenizerConfig) -> Autoencoded:
    """Train by `config.rqvae` (steady | tiger) for `config.rqvae_steps` steps, on a GPU where there is one.

    `vectors` [n, d], `size` words per level. Torch's global random state is neither used nor changed.
    InputError for an unknown recipe and fewer than one step.
    """
    if config.rqvae not in RECIPES:
        raise InputError("tokenizer.rqvae", found=repr(config.rqvae), expected=f"one of {', '.join(RECIPES)}",
                         do="choose one of these")
    if config.rqvae_steps < 1:
        raise InputError("tokenizer.rqvae_steps", found=str(config.rqvae_steps), expected="at least 1", do="raise it")
    recipe, generator = RECIPES[config.rqvae], np.random.default_rng([config.seed, 3])
    sample = sample_of(vectors, min(config.points_per_code * size, config.rqvae_steps * _BATCH), [config.seed, 0])
    mean, deviation = np.zeros(sample.shape[1], np.float32), np.ones(sample.shape[1], np.float32)
    if recipe.standardised:
        mean = sample.mean(0, dtype=np.float64).astype(np.float32)
        deviation = sample.std(0, dtype=np.float64).astype(np.float32)
        deviation[deviation <= _FLAT * deviation.max()] = deviation.max() or 1
    sample = (sample - mean) / deviation
    encoder, decoder = _first_stacks(sample, deviation, recipe, generator)
    words = _first_words(sample, encoder, size, config)
    encoder, words, decoder = _trained(sample, (encoder, words, decoder), deviation, recipe=recipe,
                                       steps=config.rqvae_steps, generator=generator)
    return Autoencoded(Additive([Codebook.plain(level) for level in words]), mean, deviation, encoder, decoder)


def _first_stacks(sample: np.ndarray, deviation: np.ndarray, recipe: Recipe, generator: np.random.Generator,
                  ) -> tuple[Stack, Stack]:
    """Encoder and decoder before training; with shortcuts, these alone: principal components and back."""
    width = sample.shape[1]
    latent = min(width, recipe.latent) if recipe.shortcut else recipe.latent
    hidden = _HIDDEN_OF_NARROW if width <= _NARROW else _HIDDEN_OF_WIDE
    stacks = []
    for widths in ((width, *hidden, latent), (latent, *hidden[::-1], width)):
        layers = [Layer(((generator.random((wide, out), np.float32) * 2 - 1) * np.float32(6 / wide) ** 0.5),
                        np.zeros(out, np.float32)) for wide, out in pairwise(widths)]  # He et al. 2015
        stacks.append(Stack(layers, np.zeros((widths[0], widths[-1]), np.float32)))
    if not recipe.shortcut:
        return tuple(stacks)
    for stack in stacks:
        stack.layers[-1].weight[:] = 0
    scale = deviation / np.sqrt(np.mean(deviation ** 2))
    scaled = (sample * scale).astype(np.float64)
    _, axes = np.linalg.eigh(scaled.T @ scaled)
    axes = axes[:, ::-1][:, :latent].astype(np.float32)
    return Stack(stacks[0].layers, scale[:, None] * axes), Stack(stacks[1].layers, axes.T / scale)


def _first_words(sample: np.ndarray, encoder: Stack, size: int, config: TokenizerConfig) -> np.ndarray:
    """Words of all levels, float32 [L, C, S]: residual k-means of the first latents."""
    left = encoder(sample_of(sample, max(_BATCH, _FIRST_PER_CODE * size), [config.seed, 1]))
    words = np.zeros((config.levels, size, left.shape[1]), np.float32)
    for level in range(config.levels):
        seed = int(np.random.default_rng([config.seed, level, 2]).integers(1 << 30))
        codebook = fit_codebook(np.ascontiguousarray(left), size, iterations=config.iterations, seed=seed,
                                seeding=config.seeding, search=config.search)
        words[level] = codebook.words
        left = left - codebook.words[codebook.nearest(left)[:, 0]]
    return words


def _trained(sample: np.ndarray, parts: tuple[Stack, np.ndarray, Stack], deviation: np.ndarray, *, recipe: Recipe,
             steps: int, generator: np.random.Generator) -> tuple[Stack, np.ndarray, Stack]:
    """Encoder, words [L, C, S] and decoder after training."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, words_LCS, decoder = _each(lambda part: torch.tensor(part, device=device), parts)
    weight = torch.tensor(deviation ** 2 / np.mean(deviation ** 2), device=device)  # errors in the vectors' own units
    moved = [part.requires_grad_() for stack in (encoder, decoder) for layer in stack.layers for part in layer]
    if recipe.averaged:
        means = _RunningMeans(words_LCS, generator)
    else:
        moved.append(words_LCS.requires_grad_())
    optimiser = getattr(torch.optim, recipe.optimiser)(moved, lr=recipe.rate)
    for step in progress(range(steps), total=steps, what="training the autoencoder"):
        x = torch.from_numpy(sample[generator.integers(len(sample), size=_BATCH)]).to(device)
        latent = encoder(x)
        choice = _choose(latent, words_LCS)
        rebuilt = decoder(latent + (choice.quantised - latent).detach())  # as if quantising were the identity
        loss = ((rebuilt - x).square() * weight).sum(1).mean() + _COMMITMENT * choice.commitment
        if not recipe.averaged:
            loss = loss + choice.codebook
        optimiser.zero_grad()
        loss.backward()
        if recipe.falling:
            optimiser.param_groups[0]["lr"] = recipe.rate * (1 - step / steps)
        optimiser.step()
        if recipe.averaged:
            means.follow(choice)
    return _each(lambda part: part.detach().cpu().numpy(), (encoder, words_LCS, decoder))


def _each(change: Callable, parts: tuple) -> tuple:
    """Encoder, words and decoder with `change` made to each array."""
    encoder, words, decoder = parts
    stack = lambda held: Stack([Layer(*map(change, layer)) for layer in held.layers], change(held.shortcut))
    return stack(encoder), change(words), stack(decoder)


class _Choice(NamedTuple):
    """What the words make of a batch of latents; lists over levels."""

    codes: "list[torch.Tensor]"  # int64 [n]
    left: "list[torch.Tensor]"  # [n, S], what the levels before left over, without gradient
    quantised: "torch.Tensor"  # [n, S], without gradient
    commitment: "torch.Tensor"  # loss of the latents
    codebook: "torch.Tensor"  # loss of the words


def _choose(latent: "torch.Tensor", words_LCS: "torch.Tensor") -> _Choice:
    import torch.nn.functional as F

    codes, lefts, left, commitment, codebook = [], [], latent, 0.0, 0.0
    for words in words_LCS:
        codes.append(_nearest(left.detach(), words.detach()))
        lefts.append(left.detach())
        word = F.embedding(codes[-1], words)  # the gradient of words[codes] depends on the order of threads
        commitment = commitment + (left - word.detach()).square().sum(1).mean()
        codebook = codebook + (lefts[-1] - word).square().sum(1).mean()
        left = left - word.detach()
    return _Choice(codes, lefts, (latent - left).detach(), commitment, codebook)


def _nearest(points: "torch.Tensor", words: "torch.Tensor") -> "torch.Tensor":
    return (words.square().sum(1) / 2 - points @ words.T).argmin(1)


class _RunningMeans:
    """Words that are running means of the residuals that choose them."""

    def __init__(self, words_LCS: "torch.Tensor", generator: np.random.Generator):
        self.words, self.generator, self.mean_count = words_LCS, generator, _BATCH / words_LCS.shape[1]
        self.count = words_LCS.new_full(words_LCS.shape[:2], self.mean_count)
        self.total = words_LCS * self.mean_count

    def follow(self, choice: _Choice) -> None:
        """Take a batch in; words that hardly any latent chose of late become latents of this batch."""
        import torch

        for words, count, total, code, left in zip(self.words, self.count, self.total, choice.codes, choice.left):
            # a product, because sums by index depend on the order of threads
            chose = left.new_zeros(len(words), len(left)).scatter_(0, code[None], 1.0)
            count.lerp_(chose.sum(1), 1 - _DECAY)
            total.lerp_(chose @ left, 1 - _DECAY)
            dead = torch.nonzero(count < _DEAD * self.mean_count)[:, 0]
            if len(dead):
                rows = torch.from_numpy(self.generator.integers(len(left), size=len(dead))).to(left.device)
                count[dead], total[dead] = self.mean_count, left[rows] * self.mean_count
            words.copy_(total / count[:, None])
