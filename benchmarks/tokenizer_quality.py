"""What semantic ids keep of real item vectors: ours against ids published for the same items, and rule against rule.

    python benchmarks/tokenizer_quality.py DATA --results benchmarks/results

DATA holds `amazon2014_beauty` (a 32-d collaborative vector per item; index files of LETTER and of CollisionGenRec) and
`tencentgr_1k_sample` (embedding 81). Ids come without their codebooks, so published ones are decoded by codebooks that
are refitted: the words whose sums are nearest to the vectors, by least squares. This is the best that a sum of words
can do for ids that are given, and favours ids that were built on these vectors; ours are decoded by their own codebooks
and, for a fair comparison, by refitted ones too.
"""

import argparse
import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from onepiece_comp.collisions import RULES, resolve_collisions
from onepiece_comp.config import TokenizerConfig
from onepiece_comp.console import say, table
from onepiece_comp.embeddings import find_embeddings, read_embedding
from onepiece_comp.id_figures import measure
from onepiece_comp.kmeans import Codebook
from onepiece_comp.quantisers import Additive, Quantiser, in_blocks
from onepiece_comp.collisions import Resolved
from onepiece_comp.tokenizer import fit_quantiser

PUBLISHED = {"LETTER": "letter.index.json.gz", "CollisionGenRec, k-means": "index_rkmeans_native.json.gz",
             "CollisionGenRec, k-means, zero collisions": "index_rkmeans_zcr.json.gz",
             "CollisionGenRec, RQ-VAE": "index_rqvae_native.json.gz"}
COLUMNS = ("ids", "decoded by", "items that share an id", "unique", "error", "neighbours kept", "seconds")
BEAUTY, TENCENT = "amazon2014_beauty", "tencentgr_1k_sample"
TENCENT_RULES = ("none", "greedy", "assignment", "random")


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
    return Additive([Codebook(part, np.zeros(size, np.float32)) for part in np.split(words, levels)])


def row(name: str, how: str, vectors: np.ndarray, quantiser: Quantiser, codes: np.ndarray, seconds: str) -> tuple[str, ...]:
    """Figures of ids [items, L or, with a counter, L + 1]."""
    levels = len(quantiser.codebooks)
    figures = measure(vectors, quantiser, codes[:, :levels], Resolved(codes, 0, 0), codes)["after"]
    shared, worth = figures[-1], figures[levels - 1]
    made = (name, how, f"{shared['shared']:.2%}", f"{shared['unique']:,}", f"{worth['relative_error']:.4f}",
            f"{worth['neighbours_kept']:.2%}", seconds)
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
        codes = resolve_collisions(vectors, before, quantiser, replace(config, resolve=rule)).codes
        seconds = f"{fitting + time.process_time() - started:.1f}"
        name = f"ours, {config.quantiser}, {rule}"
        rows.append(row(name, "its own codebooks", vectors, quantiser, codes, seconds))
        if refit and codes.shape[1] == config.levels:  # a counter has no words
            rows.append(row(name, "refitted", vectors, refitted(vectors, codes), codes, ""))
    return rows


def beauty_rows(folder: Path, config: TokenizerConfig) -> list[tuple]:
    """Published ids, then ours, at 4 x 256."""
    vectors = np.load(folder / "item_vectors_32.npy")[1:]  # row 0 is padding; index files count items from 0
    rows = []
    for name, file in PUBLISHED.items():
        codes = published_ids(folder / file)
        assert len(codes) == len(vectors), f"{file}: {len(codes)} items"
        rows.append(row(name, "refitted", vectors, refitted(vectors, codes), codes, ""))
    for quantiser, rules in (("residual_kmeans", tuple(RULES)), ("opq", ("none", "assignment")),
                             ("fsq", ("none", "assignment"))):
        rows += ours(vectors, 256, replace(config, levels=4, quantiser=quantiser), rules, refit=True)
    return rows


def real_embedding(folder: Path) -> np.ndarray:
    """The vectors [items, 32] of embedding 81, in the order of creative ids."""
    held = [(item, vector) for item, vector in read_embedding(find_embeddings(folder)["81"]) if vector is not None]
    return np.stack([vector for _, vector in sorted(held, key=lambda pair: pair[0])]).astype(np.float32)


def as_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", *("| " + " | ".join(cells) + " |" for cells in rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    config = TokenizerConfig()
    beauty = beauty_rows(options.data / BEAUTY, config)
    vectors = real_embedding(options.data / TENCENT)
    text = [
        "`python benchmarks/tokenizer_quality.py DATA`", "",
        "Error: squared error / variance. Neighbours kept: of the ten items nearest to an item by their vectors, the "
        "share that is among its ten nearest by decoded ids, over 2,000 items. Seconds: fitting, encoding and "
        "resolving, processor time. Refitted: by the codebooks that decode the given ids best, by least squares on the "
        "same vectors, which favours ids that were built on these vectors; published ids come without codebooks, so "
        "it is the only way to decode them, and the second line of ours is the comparison on equal terms.", "",
        f"## Amazon Beauty, {12101:,} items, 32-d collaborative vectors, 4 x 256 codes", "", *as_lines(beauty)]
    table("Amazon Beauty, 4 x 256", COLUMNS, beauty)
    for size in (256, 512):
        rows = ours(vectors, size, config, TENCENT_RULES, refit=False)
        table(f"TencentGR sample, emb_81, 2 x {size}", COLUMNS, rows)
        text += ["", f"## TencentGR sample, {len(vectors):,} vectors of embedding 81, 2 x {size} codes", "", *as_lines(rows)]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "tokenizer_quality.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
