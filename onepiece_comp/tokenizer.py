"""Semantic ids: dataset/ and item vectors in, tokenizer/ out (codebooks, one id per item, prefix table). No torch.

Residual k-means: the codebook of a level is fitted to what the levels before it left over, so an item's vector is
about the sum of its codewords. Then ids that several items share are given apart (`collisions.py`). Vectors are used
as given, not normalised, and in creative-id order, so that ids do not depend on item rows.
Source: OnePiece (arXiv 2512.07424), its tokenizer. Legend: n items with a vector, d width, L levels, C codes.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np

from onepiece_comp import __version__
from onepiece_comp.artefacts import (
    MARKERS, atomic_folder, fingerprint, load_column, peak_memory_mib, read_marker, write_json)
from onepiece_comp.collisions import Resolved, decode, emptiest_ids, id_numbers, resolve_collisions, squared_errors
from onepiece_comp.config import TokenizerConfig, to_dict
from onepiece_comp.console import progress, say, table
from onepiece_comp.errors import InputError
from onepiece_comp.paths import available_cores

_FEWEST_CODES, _MOST_CODES = 16, 16384
_IDS_PER_ITEM = 4  # room that the chosen codebook size leaves, so that few items must move
_MOST_PREFIXES = 1 << 24  # a count of free ids is held for each
_ROWS_PER_BLOCK = 1 << 16
_WORDING = {  # figure of an id or a prefix to its row in the table
    "shared": ("items that share it", ".2%"), "collision_rate": ("collision rate (items - unique) / items", ".2%"),
    "unique": ("unique", ","), "largest_group": ("largest group", ","), "codes_in_use": ("codes in use", ","),
    "perplexity": ("perplexity of the code", ",.1f"), "squared_error": ("squared error", ".5f"),
    "relative_error": ("squared error / variance", ".4f")}


class Tokenizer(NamedTuple):
    """A tokenizer folder, memory-mapped."""

    codes: np.ndarray  # int32 [items + 1, L]; row 0 is padding, -1
    codebooks: list[np.ndarray]  # L of float32 [C, d]
    levels: int
    codes_per_level: int


class _Source(NamedTuple):
    """Where item vectors come from."""

    name: str
    matrix: np.ndarray  # [rows, d], memory-mapped
    row: np.ndarray  # int64 [items]: row of `matrix` per item in item-row order, -1 = none


def load_tokenizer(path: Path, item_space: str) -> Tokenizer:
    """Open a tokenizer folder; InputError when it was built for items other than `item_space` stands for."""
    path = Path(path)
    marker = read_marker(path, "tokenizer")
    if marker["item_space"] != item_space:
        raise InputError(path, found="a tokenizer built for another dataset", expected="one for the same items",
                         do="run build-tokenizer on this dataset")
    codebooks = [load_column(path, f"codebook_{level}") for level in range(marker["levels"])]
    return Tokenizer(load_column(path, "codes"), codebooks, marker["levels"], marker["codes_per_level"])


def build_tokenizer(dataset: Path, out: Path, config: TokenizerConfig, *, vectors: str | None = None,
                    checkpoint: Path | None = None) -> Path:
    """Fit codebooks to item vectors, give each item of `dataset` an id of its own, write the tokenizer folder `out`.

    `vectors` is an embedding column of the dataset ("emb_81") or a .npy file [n, d]: its rows are items + 1 item rows,
    or belong to the creative ids of FILE_ids.npy or item_ids.npy beside it. `checkpoint` is a run, whose
    item_vectors.npy is read. Items without a vector get free ids under the emptiest prefixes.
    InputError when ids or shapes do not fit, and when there are more items than ids.
    """
    dataset, started = Path(dataset), time.monotonic()
    marker = read_marker(dataset, "dataset")
    creative = np.asarray(load_column(dataset, "creative_id"))
    size = choose_codes(marker["items"], config)
    source = _find_source(dataset, creative, vectors, checkpoint)
    order = np.argsort(creative[1:], kind="stable")
    values, present = _read_vectors(source, order)
    with _faiss_settings():
        codebooks, before = _fit(values, size, config)
        resolved = resolve_collisions(values, before, codebooks, _NearestCodes(codebooks[-1], config.neighbours))
    codes = np.full((len(creative), config.levels), -1, np.int32)
    codes[1 + order[present]] = resolved.codes
    codes[1 + order[~present]] = emptiest_ids(resolved.codes, size, len(order) - len(values))
    figures = _figures(values, codebooks, before, resolved, codes[1:])
    with atomic_folder(out, MARKERS["tokenizer"]) as folder:
        _write_arrays(folder, codes, codebooks, creative)
        figures.update(seconds=round(time.monotonic() - started, 2), peak_memory_mib=round(peak_memory_mib()))
        write_json(folder / MARKERS["tokenizer"], {
            "version": __version__, "config": to_dict(config), "item_space": marker["item_space"],
            "fingerprint": fingerprint(codes, *codebooks), "vectors": source.name, "levels": config.levels,
            "codes_per_level": size, "figures": figures})
    _report(out, source.name, size, figures)
    return Path(out)


def choose_codes(items: int, config: TokenizerConfig) -> int:
    """Codes per level: as configured, or the least power of two with four ids per item; InputError if not enough.

    >>> choose_codes(1000, TokenizerConfig(levels=2))
    64
    """
    if min(config.levels, config.neighbours, config.iterations, config.points_per_code) < 1 or config.codes < 0:
        raise InputError("tokenizer settings", found=str(to_dict(config)), do="correct the one that is too small",
                         expected="levels, neighbours, iterations, points_per_code of at least 1, codes of at least 0")
    size = config.codes or _FEWEST_CODES
    while not config.codes and size < _MOST_CODES and size ** config.levels < _IDS_PER_ITEM * items:
        size *= 2
    if size ** (config.levels - 1) > _MOST_PREFIXES:
        raise InputError("tokenizer settings", found=f"{config.levels} levels of {size:,} codes",
                         expected=f"at most {_MOST_PREFIXES:,} prefixes, codes ** (levels - 1)", do="lower one of them")
    if items > size ** config.levels:
        raise InputError("tokenizer settings", found=f"{items:,} items for {size ** config.levels:,} ids",
                         expected=f"at least as many ids ({size:,} codes ** {config.levels} levels) as items",
                         do="raise tokenizer.codes or tokenizer.levels")
    return size


def _find_source(dataset: Path, creative: np.ndarray, vectors: str | None, checkpoint: Path | None) -> _Source:
    if (vectors is None) == (checkpoint is None):
        raise InputError("build-tokenizer", found="both vectors and a run" if vectors else "neither vectors nor a run",
                         expected="one of them", do="give --vectors emb_81, --vectors FILE.npy or --ckpt RUN")
    if checkpoint is not None:
        file = Path(checkpoint) / "item_vectors.npy"
        return _align(file, Path(checkpoint) / "item_ids.npy", creative, every_item=True)
    if not vectors.endswith(".npy"):
        return _embedding_column(dataset, vectors, len(creative))
    file = Path(vectors)
    for ids_file in (file.with_name(f"{file.stem}_ids.npy"), file.with_name("item_ids.npy")):
        if ids_file.is_file():
            return _align(file, ids_file, creative, every_item=False)
    matrix = _open_matrix(file)
    if len(matrix) != len(creative):
        raise InputError(file, found=f"{len(matrix):,} rows and no {file.stem}_ids.npy beside it",
                         expected=f"{len(creative):,} rows (items + 1), or creative ids beside the file",
                         do="write the ids, int64, one per row")
    return _Source(str(file), matrix, np.arange(1, len(creative)))


def _embedding_column(dataset: Path, name: str, rows: int) -> _Source:
    if not (dataset / f"{name}_present.npy").is_file():
        held = sorted(path.name.removesuffix("_present.npy") for path in dataset.glob("emb_*_present.npy"))
        raise InputError(dataset, found=f"no embedding {name}", expected=f"one of: {', '.join(held) or 'none'}",
                         do="name one of these or a .npy file, or preprocess with that embedding")
    present = load_column(dataset, f"{name}_present")
    return _Source(name, load_column(dataset, name), np.where(present, np.arange(rows), -1)[1:])


def _open_matrix(file: Path) -> np.ndarray:
    if not file.is_file():
        raise InputError(file, found="no such file", expected="item vectors",
                         do="check the path, or train the run to its end")
    matrix = load_column(file.parent, file.stem)
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or 0 in matrix.shape:
        raise InputError(file, found=f"{matrix.dtype} {list(matrix.shape)}", expected="floats [items, width]",
                         do="write one vector per row")
    return matrix


def _align(file: Path, ids_file: Path, creative: np.ndarray, *, every_item: bool) -> _Source:
    """Match vectors to items by creative id; id 0 is padding. With `every_item` the two sets must be the same."""
    matrix, ids = _open_matrix(file), np.asarray(load_column(ids_file.parent, ids_file.stem))
    by_id = np.argsort(ids, kind="stable") if ids.shape == matrix.shape[:1] and ids.dtype.kind in "iu" else None
    if by_id is None or (ids[by_id][1:] == ids[by_id][:-1]).any():
        raise InputError(ids_file, found=f"{ids.dtype} {list(ids.shape)}, not one id of its own per vector",
                         expected=f"{len(matrix):,} different creative ids, integers", do="write one id per vector")
    place = np.minimum(np.searchsorted(ids, creative[1:], sorter=by_id), len(ids) - 1)
    matched = ids[by_id[place]] == creative[1:]
    strangers = np.count_nonzero(ids) - matched.sum()
    if not matched.any() or every_item and (strangers or not matched.all()):
        raise InputError(ids_file, expected="the items of this dataset", do="use vectors made from this dataset",
                         found=f"{matched.sum():,} of the dataset's {matched.size:,} items, and {strangers:,} others")
    return _Source(str(file), matrix, np.where(matched, by_id[place], -1))


def _read_vectors(source: _Source, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, float32 [n, d], of the items in `order` that have one, and which have one, bool [items].

    A vector of zeros is none.
    """
    row = source.row[order]
    present = row >= 0
    values = np.asarray(source.matrix[row[present]], np.float32)
    if not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values).all(axis=1))
        raise InputError(source.name, found=f"{bad:,} vectors with values that are not finite",
                         expected="finite numbers", do="write zeros: an item without a vector still gets an id")
    nonzero = values.any(axis=1)
    present[present] = nonzero
    if not nonzero.any():
        raise InputError(source.name, found=f"no vector for any of {len(order):,} items", expected="at least one",
                         do="choose other vectors")
    return (values if nonzero.all() else values[nonzero]), present


@contextlib.contextmanager
def _faiss_settings() -> Iterator[None]:
    """No more threads than this process may use, and matrix products for small batches too; both put back."""
    threads = faiss.omp_get_max_threads()
    threshold = getattr(faiss.cvar, "distance_compute_blas_threshold", None)
    faiss.omp_set_num_threads(min(threads, available_cores()))
    if threshold is not None:
        faiss.cvar.distance_compute_blas_threshold = 20  # faiss 1.15's own is up to eight times slower on CPU
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
        if threshold is not None:
            faiss.cvar.distance_compute_blas_threshold = threshold


class _NearestCodes:
    """Residuals [m, d] to their `count` nearest codes [m, count], nearest first."""

    def __init__(self, codebook: np.ndarray, count: int):
        self._index, self._count = faiss.IndexFlatL2(codebook.shape[1]), min(count, len(codebook))
        self._index.add(codebook)

    def __call__(self, residuals: np.ndarray) -> np.ndarray:
        return self._index.search(residuals, self._count)[1]


def _fit(vectors: np.ndarray, size: int, config: TokenizerConfig) -> tuple[list[np.ndarray], np.ndarray]:
    """Codebooks, and the codes int32 [n, L] of nearest codewords, level by level."""
    codebooks, codes = [], np.zeros((len(vectors), config.levels), np.int32)
    for level in progress(range(config.levels), total=config.levels, what="codebooks"):
        generator = np.random.default_rng([config.seed, level])
        sample = np.arange(len(vectors))
        if len(sample) > config.points_per_code * size:
            sample = np.sort(generator.choice(sample, config.points_per_code * size, replace=False))
        residuals = vectors[sample] - decode(codes[sample], codebooks)
        codebook = _kmeans(residuals, size, config.iterations, int(generator.integers(1 << 30)))
        nearest = _NearestCodes(codebook, 1)
        for start in range(0, len(vectors), _ROWS_PER_BLOCK):
            part = slice(start, start + _ROWS_PER_BLOCK)
            codes[part, level] = nearest(vectors[part] - decode(codes[part], codebooks))[:, 0]
        codebooks.append(codebook)
    return codebooks, codes


def _kmeans(points: np.ndarray, size: int, iterations: int, seed: int) -> np.ndarray:
    """Codewords, float32 [size, d]; where there are no more different points than codes, these points, then zeros."""
    if len(np.unique(points[:4 * size], axis=0)) <= size:  # a cheap look at the head spares most data the sort
        distinct = np.unique(points, axis=0)
        if len(distinct) <= size:
            return np.concatenate([distinct, np.zeros((size - len(distinct), points.shape[1]), np.float32)])
    kmeans = faiss.Kmeans(points.shape[1], size, niter=iterations, seed=seed, min_points_per_centroid=1,
                          max_points_per_centroid=len(points))
    kmeans.train(np.ascontiguousarray(points))
    return np.array(kmeans.centroids)


def _write_arrays(folder: Path, codes: np.ndarray, codebooks: list[np.ndarray], creative: np.ndarray) -> None:
    by_id = np.lexsort(codes[1:].T[::-1])
    np.save(folder / "codes.npy", codes)
    np.save(folder / "prefix_codes.npy", codes[1:][by_id])
    np.save(folder / "prefix_items.npy", (1 + by_id).astype(np.int32))
    np.save(folder / "creative_id.npy", creative)
    for level, codebook in enumerate(codebooks):
        np.save(folder / f"codebook_{level}.npy", codebook)


def _figures(vectors: np.ndarray, codebooks: list[np.ndarray], before: np.ndarray, resolved: Resolved,
             codes: np.ndarray) -> dict:
    """`before` counts items with a vector, `after` all items; errors are of items with a vector in both."""
    centre = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)[None]
    variance = float(squared_errors(vectors, np.zeros((len(vectors), 1), np.int8), [centre]).mean())
    levels = {"before": (before, before), "after": (codes, resolved.codes)}
    described = {when: [_describe(counted[:, :depth], coded[:, :depth], vectors, codebooks[:depth], variance)
                        for depth in range(1, len(codebooks) + 1)] for when, (counted, coded) in levels.items()}
    return {**described, "items": len(codes), "items_without_vector": len(codes) - len(vectors),
            "moved": resolved.moved, "overflowed": resolved.overflowed, "variance": variance}


def _describe(counted: np.ndarray, coded: np.ndarray, vectors: np.ndarray, codebooks: list[np.ndarray],
              variance: float) -> dict:
    """Figures of ids or prefixes: groups and use over `counted` [items, depth], error over `coded` [n, depth]."""
    groups = np.unique(id_numbers(counted, len(codebooks[0])), return_counts=True)[1]
    use = np.unique(counted[:, -1], return_counts=True)[1] / len(counted)
    error = float(squared_errors(vectors, coded, codebooks).mean())
    items, unique = len(counted), len(groups)
    return {"shared": (items - np.count_nonzero(groups == 1)) / items, "collision_rate": (items - unique) / items,
            "unique": unique, "largest_group": int(groups.max()), "codes_in_use": len(use),
            "perplexity": float(np.exp(-(use * np.log(use)).sum())), "squared_error": error,
            "relative_error": error / variance if variance else 0.0}


def _report(out: Path, source: str, size: int, figures: dict) -> None:
    rows = []
    for depth, (before, after) in enumerate(zip(figures["before"], figures["after"]), start=1):
        part = "id" if depth == len(figures["after"]) else f"first {depth} of it"
        rows += [(f"{part}: {words}", format(before[key], form), format(after[key], form))
                 for key, (words, form) in _WORDING.items()]
    rows += [(key.replace("_", " "), "", f"{figures[key]:,}") for key in (
        "items", "items_without_vector", "moved", "overflowed", "seconds", "peak_memory_mib")]
    table(f"tokenizer: {len(figures['after'])} x {size} codes from {source}", ("what", "before", "after"), rows)
    say(f"wrote {out}")
