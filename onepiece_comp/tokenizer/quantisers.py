"""Vectors to codes and back: one interface over residual k-means, k-means inside prefixes, OPQ and FSQ.

Stands between `kmeans.py` and `build.py`. A quantiser maps vectors into a space in which an item is about the sum
of one word per level; there the collisions are resolved too. Sources: residual k-means, OnePiece (arXiv 2512.07424);
k-means inside each first code, the other reading of its release; OPQ, Ge et al. 2013; FSQ, Mentzer et al. 2023 (arXiv
2309.15505), here without training: scalars are principal components, their grid equal shares of the items.
`rqvae.py` has RQ-VAE. Legend: n items, d width, L levels, C codes, S width of the space.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import faiss
import numpy as np

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.console import progress, say
from onepiece_comp.errors import InputError
from onepiece_comp.tokenizer.kmeans import fit_codebook
from onepiece_comp.tokenizer.nearest_words import Codebook, faiss_settings

_ROWS = 1 << 16  # vectors in hand at a time
_MOST_GRID = 4  # scalars that a level of FSQ packs into its code


class Vectors(Protocol):
    """Rows of float32 [n, d], in memory or read as they are asked for."""

    shape: tuple[int, int]

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray: ...


class Quantiser(Protocol):
    """A fitted quantiser."""

    codebooks: Sequence[Codebook]  # L; what an id decodes to is the sum of its words

    def embed(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [n, d] in the space of the words, float32 [n, S]."""

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """The codes of nearest words, level by level, int32 [n, L]."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Vectors [n, d] that codes [n, L] stand for."""

    def decode_prefix(self, codes: np.ndarray) -> np.ndarray:
        """Vectors [n, d] that the first codes [n, fewer than L] alone stand for."""

    def last_words(self, prefix: int) -> Codebook:
        """The words of the last level under a prefix, a base-C number."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What `restored` needs to make it again."""


@dataclass(frozen=True)
class Additive:
    """Words of all levels in a linear image of the vectors: z = (x - mean) @ axes, x about z @ back + mean."""

    codebooks: Sequence[Codebook]
    mean: np.ndarray | None = None  # float32 [d]; None = the vectors as they are
    axes: np.ndarray | None = None  # float32 [d, S]
    back: np.ndarray | None = None  # float32 [S, d]

    def embed(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.asarray(vectors, np.float32)
        return vectors if self.axes is None else (vectors - self.mean) @ self.axes

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        return nearest_codes(self.embed(vectors), self.codebooks)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        space = summed_words(codes, self.codebooks)
        return space if self.axes is None else space @ self.back + self.mean

    decode_prefix = decode

    def last_words(self, prefix: int) -> Codebook:
        return self.codebooks[-1]

    def arrays(self) -> dict[str, np.ndarray]:
        linear = {} if self.axes is None else {"mean": self.mean, "axes": self.axes, "back": self.back}
        return {**_codebook_arrays(self.codebooks), **linear}


@dataclass(frozen=True)
class Nested:
    """Two levels, the second with words of its own under each first code; short of points a code has no word."""

    codebooks: Sequence[Codebook]  # the first level's, and an empty one
    words: np.ndarray  # float32 [words of all prefixes, d], relative to the first word
    start: np.ndarray  # int64 [C + 1]

    def embed(self, vectors: np.ndarray) -> np.ndarray:
        return np.asarray(vectors, np.float32)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.asarray(vectors, np.float32)
        codes = np.zeros((len(vectors), 2), np.int32)
        codes[:, 0] = self.codebooks[0].nearest(vectors)[:, 0]
        for prefix in np.unique(codes[:, 0]):
            rows = np.flatnonzero(codes[:, 0] == prefix)
            own = self.words[self.start[prefix]:self.start[prefix + 1]]
            if len(own):
                residual = vectors[rows] - self.codebooks[0].words[prefix]
                codes[rows, 1] = (np.square(own).sum(1) / 2 - residual @ own.T).argmin(1)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self.codebooks[0].words[codes[:, 0]] + self.second_word(codes)

    def decode_prefix(self, codes: np.ndarray) -> np.ndarray:
        return self.codebooks[0].words[codes[:, 0]]

    def second_word(self, codes: np.ndarray) -> np.ndarray:
        """The word of the second code [n, S]; zero where the code has none."""
        at = self.start[codes[:, 0]] + codes[:, 1]
        has_word = at < self.start[codes[:, 0] + 1]
        return np.where(has_word[:, None], self.words[np.minimum(at, len(self.words) - 1)], np.float32(0))

    def last_words(self, prefix: int) -> Codebook:
        words = np.zeros_like(self.codebooks[0].words)
        own = self.words[self.start[prefix]:self.start[prefix + 1]]
        words[:len(own)] = own
        return Codebook(words, self.codebooks[1].price)

    def arrays(self) -> dict[str, np.ndarray]:
        return {**_codebook_arrays(self.codebooks[:1]), "words": self.words, "start": self.start}


def nearest_codes(space: np.ndarray, codebooks: Sequence[Codebook]) -> np.ndarray:
    """Codes int32 [n, L]: the nearest word to what the levels before have left of `space` [n, S]."""
    left, codes = space, np.zeros((len(space), len(codebooks)), np.int32)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = codebook.nearest(left)[:, 0]
        left = left - codebook.words[codes[:, level]]
    return codes


def summed_words(codes: np.ndarray, codebooks: Sequence[Codebook]) -> np.ndarray:
    """The sum of the words [n, S] of codes [n, levels given]."""
    return sum((codebook.words[codes[:, level]] for level, codebook in zip(range(codes.shape[1]), codebooks)),
               start=np.float32(0))


def in_blocks(vectors: Vectors, work: Callable[[np.ndarray], np.ndarray], what: str) -> np.ndarray:
    """`work` of some rows at a time, joined."""
    starts = range(0, len(vectors), _ROWS)
    return np.concatenate([work(np.asarray(vectors[start:start + _ROWS], np.float32))
                           for start in progress(starts, total=len(starts), what=what)])


def sample_of(vectors: Vectors, most: int, seed: Sequence[int]) -> np.ndarray:
    """At most `most` of the vectors, float32, in their order."""
    if len(vectors) <= most:
        return np.asarray(vectors[0:len(vectors)], np.float32)
    rows = np.random.default_rng(seed).choice(len(vectors), most, replace=False)
    return np.asarray(vectors[np.sort(rows)], np.float32)


def _fit_words(points: np.ndarray, size: int, config: TokenizerConfig, level: int) -> Codebook:
    seed = int(np.random.default_rng([config.seed, level, 1]).integers(1 << 30))
    return fit_codebook(np.ascontiguousarray(points), size, iterations=config.iterations, seed=seed,
                        seeding=config.seeding, search=config.search, balance=config.balance)


def fit_residual_kmeans(vectors: Vectors, size: int, config: TokenizerConfig) -> Additive:
    """Each level's words are fitted to what the levels before it left over."""
    codebooks: list[Codebook] = []
    for level in progress(range(config.levels), total=config.levels, what="codebooks"):
        sample = sample_of(vectors, config.points_per_code * size, [config.seed, level])
        for codebook in codebooks:
            sample = sample - codebook.words[codebook.nearest(sample)[:, 0]]
        codebooks.append(_fit_words(sample, size, config, level))
    return Additive(codebooks)


def fit_nested_kmeans(vectors: Vectors, size: int, config: TokenizerConfig) -> Nested:
    """k-means of the items, then one of its own among the items of each first code."""
    if config.levels != 2:
        raise InputError("tokenizer.quantiser", found=f"nested k-means with {config.levels} levels",
                         expected="2 levels: each further one would need words under every prefix", do="choose another")
    first = _fit_words(sample_of(vectors, config.points_per_code * size, [config.seed, 0]), size, config, 0)
    code = in_blocks(vectors, lambda block: first.nearest(block)[:, 0], "first codes")
    order, count = np.argsort(code, kind="stable"), np.bincount(code, minlength=size)
    start, words = np.concatenate([[0], np.cumsum(count)]), []
    for prefix in progress(range(size), total=size, what="second codes"):
        held = np.asarray(vectors[np.sort(order[start[prefix]:start[prefix + 1]])], np.float32) - first.words[prefix]
        words.append(held if len(held) <= size else _fit_words(held, size, config, 1).words)
    nothing = Codebook.plain(np.zeros((size, first.words.shape[1]), np.float32))
    return Nested([first, nothing], np.concatenate(words),
                  np.concatenate([[0], np.cumsum([len(part) for part in words])]))


def fit_opq(vectors: Vectors, size: int, config: TokenizerConfig) -> Additive:
    """Optimised product quantisation: a rotation, then words of their own for each of L parts of the dimensions."""
    sample = sample_of(vectors, config.points_per_code * size, [config.seed, 0])
    part = -(-sample.shape[1] // config.levels)
    axes = _rotation(sample - sample.mean(0), config.levels, part)
    mean, codebooks = sample.mean(0), []
    space = (sample - mean) @ axes
    for level in range(config.levels):
        inside = np.zeros(space.shape[1], bool)
        inside[level * part:(level + 1) * part] = True
        fitted = _fit_words(np.where(inside, space, np.float32(0)), size, config, level)
        codebooks.append(fitted)
    return Additive(codebooks, mean, axes, axes.T.copy())


def _rotation(centred: np.ndarray, levels: int, part: int) -> np.ndarray:
    """Axes [d, levels x part] along which faiss quantises in parts; the dimensions themselves for few vectors.

    faiss makes a product of both widths in memory of one width times the vectors, with fewer of which it writes past
    the end; and it quantises no single vector.
    """
    items, width = centred.shape
    if items < max(2, levels * part):
        say(f"opq: no rotation, as {items:,} vectors are too few for one of {levels * part:,} dimensions")
        return np.eye(width, levels * part, dtype=np.float32)
    with faiss_settings():
        rotation = faiss.OPQMatrix(width, levels, levels * part)
        bits = min(8, items.bit_length() - 1)  # of the words that the rotation is fitted with, not of ours
        rotation.pq = faiss.ProductQuantizer(levels * part, levels, bits)
        rotation.niter = 10
        rotation.train(np.ascontiguousarray(centred))
    return faiss.vector_to_array(rotation.A).reshape(levels * part, width).T.copy()


def fit_fsq(vectors: Vectors, size: int, config: TokenizerConfig) -> Additive:
    """Finite scalars: each level is a grid over some principal components, cut into equal shares of the items."""
    sample = sample_of(vectors, config.points_per_code * size, [config.seed, 0])
    mean = sample.mean(0)
    centred = (sample - mean).astype(np.float64)
    value, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    axes = axes[:, np.argsort(-value, kind="stable")].astype(np.float32)
    scalars = max(1, min(_MOST_GRID, sample.shape[1] // config.levels, size.bit_length() - 1))  # two cuts for each
    cuts = [int(size ** (1 / scalars) + 1e-9)] * scalars
    for place in range(scalars):  # what is left of the codes goes to the first components
        while np.prod(cuts) // cuts[place] * (cuts[place] + 1) <= size:
            cuts[place] += 1
    used = min(axes.shape[1], scalars * config.levels)
    axes = np.ascontiguousarray(axes[:, :used])
    space, codebooks = (sample - mean) @ axes, []
    for level in range(config.levels):  # the strongest components are dealt out to the first levels
        columns = [level * scalars + place for place in range(scalars) if level * scalars + place < used]
        codebooks.append(_grid(space, columns, cuts, size))
    return Additive(codebooks, mean, axes, np.ascontiguousarray(axes.T))


def _grid(space: np.ndarray, columns: list[int], cuts: list[int], size: int) -> Codebook:
    """All combinations of the means of equal shares of each column; codes beyond them are never chosen.

    A column has no more shares than items.
    """
    steps = [[part.mean() for part in np.array_split(np.sort(space[:, column]), min(count, len(space)))]
             for column, count in zip(columns, cuts)]
    words = np.zeros((size, space.shape[1]), np.float32)
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, len(columns)) if columns else np.zeros((1, 0))
    words[:len(grid), columns] = grid
    price = np.zeros(size, np.float32)
    price[len(grid):] = 4 * np.square(space).sum(1).max() + 1
    return Codebook(words, price)


def _codebook_arrays(codebooks: Sequence[Codebook]) -> dict[str, np.ndarray]:
    return {f"{what}_{level}": getattr(codebook, part) for level, codebook in enumerate(codebooks)
            for what, part in (("codebook", "words"), ("price", "price"))}


def _stored_codebooks(arrays: dict[str, np.ndarray], levels: int) -> list[Codebook]:
    return [Codebook(arrays[f"codebook_{level}"], arrays[f"price_{level}"]) for level in range(levels)
            if f"codebook_{level}" in arrays]


def restored_additive(arrays: dict[str, np.ndarray], levels: int) -> Additive:
    """The quantiser whose `arrays` were stored."""
    return Additive(_stored_codebooks(arrays, levels), arrays.get("mean"), arrays.get("axes"), arrays.get("back"))


def restored_nested(arrays: dict[str, np.ndarray], levels: int) -> Nested:
    """The quantiser whose `arrays` were stored."""
    stored = _stored_codebooks(arrays, levels)
    return Nested([*stored, Codebook.plain(np.zeros_like(stored[0].words))], arrays["words"], arrays["start"])
