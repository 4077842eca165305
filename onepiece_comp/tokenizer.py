"""Semantic ids: item vectors to codes by residual k-means, one id an item. Numpy and faiss, no torch.

Source: OnePiece (arXiv 2512.07424, section on the tokenizer): collaborative vectors of the trained item tower,
2 levels of 16,384 codes, greedy re-assignment (`collisions.py`). Vectors are used as given and put in creative-id
order before fitting, so ids do not depend on the order of items.
Legend: n items, L levels, C codes per level, d width.
"""

import time
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np

from onepiece_comp import __version__
from onepiece_comp.artefacts import (
    MARKERS, atomic_folder, fingerprint, load_column, peak_memory_mib, read_marker, write_json)
from onepiece_comp.collisions import resolve
from onepiece_comp.config import TokenizerConfig, to_dict
from onepiece_comp.console import say, table
from onepiece_comp.errors import InputError
from onepiece_comp.paths import available_cores

FULL_SIZE = 16384  # the paper's codebook
_ROWS = 1 << 17  # vectors encoded at a time
if hasattr(faiss, "cvar") and hasattr(faiss.cvar, "distance_compute_blas_threshold"):
    faiss.cvar.distance_compute_blas_threshold = 20  # newer faiss leaves BLAS for small query batches: many times slower


class Tokenizer(NamedTuple):
    """A tokenizer artefact in memory."""

    codes: np.ndarray  # int32 [items + 1, L] by item row; row 0 is -1
    codebooks: list[np.ndarray]  # float32 [C, d] per level


class Source(NamedTuple):
    """Vectors to quantise, by item row."""

    name: str
    vector: np.ndarray  # float32 [items + 1, d]
    present: np.ndarray  # bool [items + 1]


def default_codes(items: int, levels: int) -> int:
    """The smallest power of two whose ids are four times the items: at least 16, at most 16,384."""
    codes = 16
    while codes < FULL_SIZE and codes ** levels < 4 * items:
        codes *= 2
    return codes


def fit(vectors: np.ndarray, config: TokenizerConfig, codes: int) -> list[np.ndarray]:
    """Codebooks [C, d] of residual k-means, level by level; fewer vectors than codes give as many codes as vectors."""
    residual, codebooks = np.ascontiguousarray(vectors, np.float32).copy(), []
    for level in range(config.levels):
        size = min(codes, len(residual))
        kmeans = faiss.Kmeans(residual.shape[1], size, niter=config.iterations, seed=config.seed + level + 1,
                              min_points_per_centroid=1, max_points_per_centroid=config.points_per_code, verbose=False)
        kmeans.train(residual)
        codebooks.append(np.ascontiguousarray(kmeans.centroids))
        for start in range(0, len(residual), _ROWS):
            block = residual[start:start + _ROWS]
            block -= codebooks[-1][_assign(block, codebooks[-1])]
    return codebooks


def _assign(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook)
    return index.search(np.ascontiguousarray(vectors), 1)[1][:, 0]


def encode(vectors: np.ndarray, codebooks: list[np.ndarray]) -> np.ndarray:
    """Nearest codes [n, L], level by level on what the levels before leave."""
    codes = np.empty((len(vectors), len(codebooks)), np.int32)
    for start in range(0, len(vectors), _ROWS):
        residual = np.array(vectors[start:start + _ROWS], np.float32)
        for level, codebook in enumerate(codebooks):
            codes[start:start + _ROWS, level] = _assign(residual, codebook)
            residual -= codebook[codes[start:start + _ROWS, level]]
    return codes


def decode(codes: np.ndarray, codebooks: list[np.ndarray]) -> np.ndarray:
    """The sum of the codewords: [n, d]."""
    return sum(codebook[codes[:, level]] for level, codebook in enumerate(codebooks))


def figures_of(codes: np.ndarray, vectors: np.ndarray, codebooks: list[np.ndarray]) -> dict:
    """How good ids are: collisions, code use, quantisation error."""
    _, group, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    error = float(((vectors - decode(codes, codebooks)) ** 2).sum(1).mean())
    variance = float(((vectors - vectors.mean(0)) ** 2).sum(1).mean())
    levels = []
    for level, codebook in enumerate(codebooks):
        share = np.bincount(codes[:, level], minlength=len(codebook)) / len(codes)
        used = share[share > 0]
        levels.append({"codes": len(codebook), "used": len(used), "perplexity": float(np.exp(-(used * np.log(used)).sum()))})
    return {"shared_ids": float((sizes[group.reshape(-1)] > 1).mean()), "collision_rate": 1 - len(sizes) / len(codes),
            "unique_ids": len(sizes), "largest_group": int(sizes.max()), "error": error,
            "error_of_variance": error / variance if variance else 0.0, "levels": levels}


def build_tokenizer(dataset: Path, out: Path, config: TokenizerConfig, *, vectors: str | None = None,
                    checkpoint: Path | None = None) -> Path:
    """Write the tokenizer of a dataset: codes, codebooks, prefix table, tokenizer.json.

    `vectors` is an embedding of the dataset ("emb_81") or a .npy file, `checkpoint` a run whose item vectors to take.
    InputError when the vectors are not of this dataset's items.
    """
    started, dataset, out = time.monotonic(), Path(dataset), Path(out)
    _check(config)
    faiss.omp_set_num_threads(available_cores())
    schema, creative_id = read_marker(dataset, "dataset"), np.asarray(load_column(dataset, "creative_id"))
    source = _load_source(dataset, creative_id, vectors=vectors, checkpoint=checkpoint)
    order = creative_id[1:].argsort(kind="stable") + 1
    vector, present = _with_stand_ins(source.vector[order], source.present[order], config.seed)
    codes_per_level = config.codes or default_codes(len(order), config.levels)
    say(f"{len(order):,} items x {vector.shape[1]} from {source.name}, {config.levels} levels of {codes_per_level:,} codes")
    codebooks = fit(vector[present], config, codes_per_level)
    nearest = encode(vector, codebooks)
    resolved = resolve(nearest, vector, codebooks, neighbours=config.neighbours, last=~present)
    with atomic_folder(out, MARKERS["tokenizer"]) as folder:
        by_row = np.full((len(creative_id), config.levels), -1, np.int32)
        by_row[order] = resolved.codes
        np.save(folder / "codes.npy", by_row)
        np.save(folder / "creative_id.npy", creative_id)
        for level, codebook in enumerate(codebooks):
            np.save(folder / f"codebook_{level}.npy", codebook)
        by_prefix = np.lexsort(resolved.codes.T[::-1])
        np.save(folder / "prefix_codes.npy", resolved.codes[by_prefix])
        np.save(folder / "prefix_items.npy", order[by_prefix].astype(np.int32))
        figures = {
            "before": figures_of(nearest, vector, codebooks), "after": figures_of(resolved.codes, vector, codebooks),
            "moved": resolved.moved, "overflowed": resolved.overflowed, "without_vector": int((~present).sum()),
            "seconds": round(time.monotonic() - started, 2), "peak_memory_mib": round(peak_memory_mib())}
        write_json(folder / MARKERS["tokenizer"], {
            "version": __version__, "config": to_dict(config), "source": source.name, "item_space": schema["item_space"],
            "levels": config.levels, "fingerprint": fingerprint(by_row, *codebooks), "figures": figures})
    _report(figures, out)
    return out


def _check(config: TokenizerConfig) -> None:
    if config.levels < 1 or config.codes < 0 or config.codes == 1 or config.iterations < 1 or config.neighbours < 1:
        raise InputError("tokenizer", found=f"levels={config.levels}, codes={config.codes}, iterations={config.iterations}, "
                         f"neighbours={config.neighbours}", expected="at least one of each, codes 0 or from 2",
                         do="correct the configuration")


def _load_source(dataset: Path, creative_id: np.ndarray, *, vectors: str | None, checkpoint: Path | None) -> Source:
    if (vectors is None) == (checkpoint is None):
        raise InputError("build-tokenizer", found="both --vectors and --ckpt" if vectors else "neither --vectors nor --ckpt",
                         expected="one of them", do="say which vectors to quantise")
    if vectors is not None and not vectors.endswith(".npy"):
        if not (dataset / f"{vectors}.npy").is_file():
            held = ", ".join(path.stem for path in sorted(dataset.glob("emb_??.npy"))) or "none"
            raise InputError(f"--vectors {vectors}", found=f"no such embedding in {dataset}", expected=f"one of: {held}",
                             do="name one of them, or a .npy file")
        return Source(vectors, load_column(dataset, vectors).astype(np.float32), np.asarray(load_column(dataset, f"{vectors}_present")))
    path = Path(vectors) if vectors else Path(checkpoint) / "item_vectors.npy"
    ids = path.with_name("item_ids.npy") if checkpoint else path.with_name(f"{path.stem}_ids.npy")
    return _aligned(path, ids, creative_id)


def _aligned(path: Path, ids: Path, creative_id: np.ndarray) -> Source:
    """The rows of a vector file in the dataset's order, by creative id where the file beside it tells them."""
    given = load_column(path.parent, path.stem)
    if given.ndim != 2 or given.dtype.kind != "f":
        raise InputError(path, found=f"an array of shape {given.shape} and type {given.dtype}",
                         expected="floats [items, width]", do="check the file")
    vector = np.zeros((len(creative_id), given.shape[1]), np.float32)
    if ids.is_file():
        row_of = {int(creative): row for row, creative in enumerate(load_column(ids.parent, ids.stem))}
        row = np.array([row_of.get(int(creative), -1) for creative in creative_id])
        if len(row_of) != len(given) or (row[1:] < 0).all():
            raise InputError(path, found=f"{len(row_of):,} ids for {len(given):,} vectors, {(row[1:] >= 0).sum():,} of them of this dataset",
                             expected=f"the dataset's {len(creative_id) - 1:,} items", do="use a run trained on this dataset")
        vector[row >= 0] = given[row[row >= 0]]
    elif len(given) == len(creative_id):
        vector[:] = given
    else:
        raise InputError(path, found=f"{len(given):,} rows and no {ids.name} beside it",
                         expected=f"{len(creative_id):,} rows, one per item row, row 0 for padding", do="write the ids beside it")
    if not np.isfinite(vector).all():
        raise InputError(path, found="values that are not finite", expected="finite vectors", do="train or write them again")
    return Source(str(path), vector, vector.any(1))


def _with_stand_ins(vector: np.ndarray, present: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An item without a vector stands where a random item with one stands: spread like the catalogue, no place of its own."""
    if not present.any():
        return vector, np.ones(len(vector), bool)
    lacking = np.flatnonzero(~present)
    vector[lacking] = vector[np.random.default_rng(seed).choice(np.flatnonzero(present), len(lacking))]
    return vector, present


def load_tokenizer(path: Path, item_space: str) -> Tokenizer:
    """Load a tokenizer for a dataset; InputError when it was built for other items."""
    marker = read_marker(path, "tokenizer")
    if marker["item_space"] != item_space:
        raise InputError(path, found="a tokenizer built for another dataset", expected="one of this dataset's items",
                         do="run build-tokenizer on this dataset")
    return Tokenizer(load_column(path, "codes"), [load_column(path, f"codebook_{level}") for level in range(marker["levels"])])


def _report(figures: dict, out: Path) -> None:
    before, after = figures["before"], figures["after"]
    names = {"shared_ids": "items that share an id, %", "collision_rate": "collision rate (items - ids), %"}
    rows = [(text, f"{100 * before[name]:.2f}", f"{100 * after[name]:.2f}") for name, text in names.items()]
    rows += [(name.replace("_", " "), f"{before[name]:,}", f"{after[name]:,}") for name in ("unique_ids", "largest_group")]
    rows.append(("quantisation error / variance", f"{before['error_of_variance']:.4f}", f"{after['error_of_variance']:.4f}"))
    for level, (old, new) in enumerate(zip(before["levels"], after["levels"])):
        rows.append((f"level {level + 1}: codes used of {old['codes']:,}", f"{old['used']:,}", f"{new['used']:,}"))
        rows.append((f"level {level + 1}: perplexity", f"{old['perplexity']:,.1f}", f"{new['perplexity']:,.1f}"))
    rows += [("items moved / to another prefix", "", f"{figures['moved']:,} / {figures['overflowed']:,}"),
             ("items without a vector", "", f"{figures['without_vector']:,}"), ("seconds", "", figures["seconds"])]
    table("build-tokenizer", ("figure", "nearest", "re-assigned"), rows)
    say(f"wrote {out}")
