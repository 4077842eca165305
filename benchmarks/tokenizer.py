"""Speed of the tokenizer at the paper's codebook size, level by level, against faiss.Kmeans used plainly.

    python benchmarks/tokenizer.py --items 1000000 --codes 16384 --results benchmarks/results

The vectors are made: a tree of clusters with noise, 64 wide. Both ways get the same sample for each level, ours the
residuals of its own first level; errors are of the same held-out vectors. The bound is what the distances of all pairs
that an exact encoding must look at cost at the machine's own rate of matrix products, measured here. Seconds are wall.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from onepiece_comp.artefacts import peak_memory_mib
from onepiece_comp.config import TokenizerConfig
from onepiece_comp.console import say, table
from onepiece_comp.tokenizer.collisions import resolve_collisions
from onepiece_comp.tokenizer.figures import measure
from onepiece_comp.tokenizer.kmeans import fit_codebook
from onepiece_comp.tokenizer.nearest_words import Codebook, faiss_settings
from onepiece_comp.tokenizer.quantisers import Additive, in_blocks, sample_of

WIDTH, HELD_OUT = 64, 50_000


def clustered(items: int, noise_seed: int | None = None) -> np.ndarray:
    """Vectors of a tree: 32 roots, 32 branches each, 32 leaves each, noise; float32 [items, WIDTH], unit length.

    Under every `noise_seed` the tree is the same.
    """
    draw = np.random.default_rng(0)
    nodes = draw.normal(size=(32, WIDTH)).astype(np.float32)
    for spread in (0.6, 0.4):
        nodes = np.repeat(nodes, 32, axis=0)
        nodes += spread * draw.normal(size=nodes.shape).astype(np.float32)
    popular = draw.dirichlet(np.full(len(nodes), 0.7))
    draw = draw if noise_seed is None else np.random.default_rng([1, noise_seed])
    made = np.empty((items, WIDTH), np.float32)
    for start in range(0, items, 1 << 18):
        part = made[start:start + (1 << 18)]
        part[:] = nodes[draw.choice(len(nodes), len(part), p=popular)]
        part += 0.35 * draw.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return made


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    """(wall seconds, result)."""
    started = time.monotonic()
    result = work()
    return time.monotonic() - started, result


def gemm_rate() -> float:
    """Floating-point operations a second of matrix products, best of five."""
    one = np.random.default_rng(0).random((4096, WIDTH), np.float32)
    other = np.random.default_rng(1).random((WIDTH, 16384), np.float32)
    return 2 * 4096 * WIDTH * 16384 / min(seconds(lambda: one @ other)[0] for _ in range(5))


def plain(points: np.ndarray, size: int, iterations: int) -> Codebook:
    """faiss.Kmeans as its documentation shows it."""
    kmeans = faiss.Kmeans(points.shape[1], size, niter=iterations, seed=0, min_points_per_centroid=1,
                          max_points_per_centroid=len(points))
    with faiss_settings():
        kmeans.train(points)
    return Codebook.plain(np.array(kmeans.centroids))


def error(points: np.ndarray, codebook: Codebook) -> float:
    """Mean squared error over the variance."""
    left = points - codebook.words[codebook.nearest(points)[:, 0]]
    return float(np.square(left).sum(1).mean() / np.square(points - points.mean(0)).sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--codes", type=int, default=16_384)
    parser.add_argument("--points", type=int, default=32, help="vectors per code that a level is fitted to")
    parser.add_argument("--plain-iterations", type=int, default=10)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    config = TokenizerConfig(codes=options.codes, points_per_code=options.points, iterations=6)
    vectors, held_out = (made := clustered(options.items + HELD_OUT))[:options.items], made[options.items:]
    rate, rows, books = gemm_rate(), [], []
    encode_bound = 2 * options.items * options.codes * WIDTH / rate
    for level in range(2):
        sample = sample_of(vectors, options.points * options.codes, [0, level])
        test = held_out
        for book in books:
            sample, test = (part - book.words[book.nearest(part)[:, 0]] for part in (sample, test))
        took, ours = seconds(lambda: fit_codebook(sample, options.codes, iterations=config.iterations, seed=0))
        theirs_took, theirs = seconds(lambda: plain(sample, options.codes, options.plain_iterations))
        exact = 2 * len(sample) * options.codes * WIDTH / rate
        rows += [(f"level {level + 1}, fit to {len(sample):,}: ours", f"{took:.1f}", f"{took / exact:.1f}",
                  f"{error(test, ours):.4f}"),
                 (f"level {level + 1}, fit to {len(sample):,}: faiss.Kmeans, {options.plain_iterations} iterations",
                  f"{theirs_took:.1f}", f"{theirs_took / exact:.1f}", f"{error(test, theirs):.4f}")]
        say(str(rows[-2:]))
        books.append(ours)
    quantiser = Additive(books)
    took, before = seconds(lambda: in_blocks(vectors, quantiser.encode, "codes"))
    rows.append((f"encode {options.items:,} at both levels", f"{took:.1f}", f"{took / encode_bound:.1f}", ""))
    total = took + sum(float(row[1]) for row in rows[0:3:2])
    for rule in ("greedy", "assignment"):
        took, resolved = seconds(lambda: resolve_collisions(
            vectors, before.copy(), quantiser, TokenizerConfig(codes=options.codes, resolve=rule)))
        figures = measure(vectors, quantiser, before, resolved, resolved.codes)
        was, now = figures["before"][-1], figures["after"][-1]
        rows.append((f"collisions, {rule}: {was['shared']:.1%} shared, then {now['shared']:.1%}; {resolved.moved:,} "
                     f"moved, "
                     f"{resolved.overflowed:,} spilled", f"{took:.1f}", "",
                     f"{was['relative_error']:.4f} to {now['relative_error']:.4f}"))
    rows.append(("fit, encode and assignment", f"{total + took:.1f}", "", ""))
    columns = ("what", "seconds", "times one exact pass", "error / variance")
    table(f"{options.items:,} vectors of {WIDTH}, 2 x {options.codes:,} codes", columns, rows)
    options.results.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    (options.results / "tokenizer.md").write_text("\n".join([
        f"`python benchmarks/tokenizer.py --items {options.items} --codes {options.codes} --points {options.points}`",
        "",
        f"{options.items:,} made vectors of {WIDTH}, 2 x {options.codes:,} codes, {cores} core{'s' * (cores > 1)}, "
        f"wall "
        f"seconds; matrix products run at {rate / 1e9:.0f} GFLOP/s, so that one exact pass over all vectors costs at "
        f"least "
        f"{encode_bound:.1f} s; peak memory {peak_memory_mib():,.0f} MiB. Errors of {HELD_OUT:,} held-out vectors, of "
        f"the "
        "collisions of all.", "",
        "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|",
        *("| " + " | ".join(row) + " |" for row in rows)]) + "\n")


if __name__ == "__main__":
    main()
