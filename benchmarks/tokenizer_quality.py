"""What semantic ids keep of real item vectors: ours against ids published for the same items, and rule against rule.

    python benchmarks/tokenizer_quality.py DATA --results benchmarks/results

DATA holds `amazon2014_beauty` (a 32-d collaborative vector per item; index files of LETTER and of CollisionGenRec) and
`tencentgr_1k_sample` (embedding 81). Ids come without their codebooks, so published ones are decoded by codebooks that
are refitted: the words whose sums are nearest to the vectors, by least squares. This is the best that a sum of words
can do for ids that are given. Ours are decoded by their own codebooks and, on equal terms, by refitted ones too. This
favours ids that were built on these vectors, as ours are; published ids dealt out to the items at random show what
refitting makes of nothing.
"""

import argparse
import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.console import say, table
from onepiece_comp.logs.embeddings import find_embeddings, read_embedding
from onepiece_comp.tokenizer.build import fit_quantiser
from onepiece_comp.tokenizer.collisions import RULES, Resolved, resolve_collisions
from onepiece_comp.tokenizer.figures import measure
from onepiece_comp.tokenizer.nearest_words import Codebook
from onepiece_comp.tokenizer.quantisers import Additive, Quantiser, in_blocks

PUBLISHED = {"LETTER": "letter.index.json.gz", "CollisionGenRec, k-means": "index_rkmeans_native.json.gz",
             "CollisionGenRec, k-means, zero collisions": "index_rkmeans_zcr.json.gz",
             "CollisionGenRec, RQ-VAE": "index_rqvae_native.json.gz"}
COLUMNS = ("ids", "decoded by", "items that share an id", "unique", "error", "neighbours kept", "prefix full",
           "seconds")
BEAUTY, TENCENT = "amazon2014_beauty", "tencentgr_1k_sample"
TENCENT_RULES = ("none", "greedy", "assignment", "random")
READING = """`python benchmarks/tokenizer_quality.py DATA`

Error: squared error / variance. Neighbours kept: of the ten items nearest to an item by their vectors, the share that
is among its ten nearest by decoded ids, over 2,000 items. Prefix full: items that had to leave their first codes.
Seconds: fitting, encoding and resolving, processor time. Refitted: decoded by the codebooks that serve the given ids
best, by least squares on the same vectors; published ids come without codebooks.

This favours ids that were built on these vectors. Ours were; the published ones were hardly, if at all: residual
k-means of these vectors has a fraction of their error. So the table tells what ids of these vectors can keep, and by
the random deal that the published ids belong to the right items; not which method is better on equal vectors."""


def published_ids(file: Path) -> np.ndarray:
    """Codes int32 [items, L] of an index file: {"0": ["<a_171>", "<b_42>", ...], ...}."""
    index = json.loads(gzip.decompress(file.read_bytes()))
    words = [index[str(item)] for item in range(len(index))]
    return np.array([[int(word.rpartition("_")[2].rstrip(">")) for word in one] for one in words], np.int32)


def refitted(vectors: np.ndarray, codes: np.ndarray) -> Additive:
    """The codebooks [L][C, d] for which the sums of the codes' words are nearest to the vectors."""
    size, levels = int(codes.max()) + 1, codes.shape[1]
    column = codes + size * np.arange(levels)
    together = np.zeros((size * levels, size * levels))
    sums = np.zeros((size * levels, vectors.shape[1]))
    for one in column.T:
        np.add.at(sums, one, vectors)
        for other in column.T:
            np.add.at(together, (one, other), 1)
    words = np.linalg.lstsq(together, sums, rcond=1e-10)[0].astype(np.float32)  # not of full rank: words may shift
    return Additive([Codebook.plain(part) for part in np.split(words, levels)])


def row(name: str, how: str, vectors: np.ndarray, quantiser: Quantiser, resolved: Resolved, *, seconds: str = "",
        ) -> tuple[str, ...]:
    """Figures of ids [items, L or, with a counter, L + 1]."""
    codes, levels = resolved.codes, len(quantiser.codebooks)
    figures = measure(vectors, quantiser, codes[:, :levels], resolved, codes)["after"]
    shared, worth = figures[-1], figures[levels - 1]
    made = (name, how, f"{shared['shared']:.2%}", f"{shared['unique']:,}", f"{worth['relative_error']:.4f}",
            f"{worth['neighbours_kept']:.2%}", f"{resolved.overflowed:,}" if seconds else "", seconds)
    say("  ".join(made))
    return made


def ours(vectors: np.ndarray, size: int, config: TokenizerConfig, rules: Sequence[str], *, refit: bool) -> list[tuple]:
    """A row for each rule by our codebooks, and with `refit` one by refitted codebooks."""
    started = time.process_time()
    quantiser = fit_quantiser(vectors, size, config)
    before, rows = in_blocks(vectors, quantiser.encode, "codes"), []
    fitting = time.process_time() - started
    for rule in rules:
        started = time.process_time()
        resolved = resolve_collisions(vectors, before, quantiser, replace(config, resolve=rule))
        seconds = f"{fitting + time.process_time() - started:.1f}"
        name = f"ours, {config.quantiser}, {rule}"
        rows.append(row(name, "its own codebooks", vectors, quantiser, resolved, seconds=seconds))
        if refit and resolved.codes.shape[1] == config.levels:  # a counter has no words
            rows.append(row(name, "refitted", vectors, refitted(vectors, resolved.codes), resolved))
    return rows


def beauty_rows(vectors: np.ndarray, folder: Path, config: TokenizerConfig) -> list[tuple]:
    """Published ids, one of them dealt out at random, then ours, at 4 x 256."""
    published = {name: published_ids(folder / file) for name, file in PUBLISHED.items()}
    assert all(len(codes) == len(vectors) for codes in published.values()), "index files of other items"
    first = next(iter(published))
    published[f"{first}, dealt out at random"] = np.random.default_rng(0).permutation(published[first])
    rows = [row(name, "refitted", vectors, refitted(vectors, codes), Resolved(codes, 0, 0))
            for name, codes in published.items()]
    few = ("none", "greedy", "assignment")
    for quantiser, rules in (("residual_kmeans", tuple(RULES)), ("opq", few), ("fsq", few)):
        rows += ours(vectors, 256, replace(config, levels=4, quantiser=quantiser), rules, refit=True)
    return rows


def real_embedding(folder: Path) -> np.ndarray:
    """The vectors [items, 32] of embedding 81, in the order of creative ids."""
    held = [(item, vector) for item, vector in read_embedding(find_embeddings(folder)["81"]) if vector is not None]
    return np.stack([vector for _, vector in sorted(held, key=lambda pair: pair[0])]).astype(np.float32)


def section(title: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """A table on the terminal, and its lines of Markdown."""
    table(title, COLUMNS, rows)
    return ["", f"## {title}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|",
            *("| " + " | ".join(cells) + " |" for cells in rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    config = TokenizerConfig()
    vectors = np.load(options.data / BEAUTY / "item_vectors_32.npy")[1:]  # row 0 is padding; index files count from 0
    text = READING.splitlines()
    text += section(f"Amazon Beauty, {len(vectors):,} items, 32-d collaborative vectors, 4 x 256 codes",
                    beauty_rows(vectors, options.data / BEAUTY, config))
    vectors = real_embedding(options.data / TENCENT)
    for size in (256, 512):
        text += section(f"TencentGR sample, {len(vectors):,} vectors of embedding 81, 2 x {size} codes",
                        ours(vectors, size, config, TENCENT_RULES, refit=False))
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "tokenizer_quality.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
