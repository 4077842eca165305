"""Embedding tables of each form, read one record at a time and in blocks, in one run, equal results checked first.

    python benchmarks/embeddings.py --results benchmarks/results

Synthetic tables in a temporary folder. One thread, processor time, median of the repeats; memory is what one way takes
at its peak over what it began with, in a process of its own. Ratios carry over, times do not.
"""

import argparse
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from onepiece_comp.console import say, table
from onepiece_comp.logs.embedding_blocks import read_blocks
from onepiece_comp.logs.embeddings import EmbeddingSource, find_embeddings, read_embedding

FIRST_ID = 20_000_000_001
FORMS = {"lines": "JSON lines", "pickle": "pickle", "parquet": "Parquet"}


def vectors(items: int, width: int, rows: int = 2000) -> Iterator[tuple[int, np.ndarray]]:
    """(first id, float32 [n, width]) in stretches; unit vectors, as the published ones are."""
    rng = np.random.default_rng(0)
    for start in range(0, items, rows):
        block = rng.normal(size=(min(rows, items - start), width)).astype(np.float32)
        yield FIRST_ID + start, block / np.linalg.norm(block, axis=1, keepdims=True)


def write_lines(data: Path, items: int, width: int) -> None:
    folder = data / "creative_emb" / f"emb_81_{width}"
    folder.mkdir(parents=True)
    for number, (first, block) in enumerate(vectors(items, width)):
        with open(folder / f"part-{number:05d}", "w") as file:
            for creative_id, row in enumerate(block.astype(float).tolist(), start=first):
                file.write(json.dumps({"anonymous_cid": creative_id, "emb": row}) + "\n")


def write_pickle(data: Path, items: int, width: int) -> None:
    (data / "creative_emb").mkdir(parents=True)
    entries = {first + i: row.copy() for first, block in vectors(items, width) for i, row in enumerate(block)}
    (data / "creative_emb" / f"emb_81_{width}.pkl").write_bytes(pickle.dumps(entries, protocol=4))


def write_parquet(data: Path, items: int, width: int) -> None:
    folder = data / "mm_emb" / f"emb_81_{width}_parquet"
    folder.mkdir(parents=True)
    kind = pyarrow.schema([("anonymous_cid", pyarrow.string()), ("emb", pyarrow.list_(pyarrow.float64()))])
    with pyarrow.parquet.ParquetWriter(folder / "part-00000.parquet", kind) as writer:
        for first, block in vectors(items, width, rows=10_000):
            ids = pyarrow.array([str(first + i) for i in range(len(block))])
            starts = pyarrow.array(np.arange(len(block) + 1, dtype=np.int32) * width)
            lists = pyarrow.ListArray.from_arrays(starts, pyarrow.array(block.reshape(-1).astype(np.float64)))
            writer.write_table(pyarrow.table([ids, lists], schema=kind))


def fast(source: EmbeddingSource) -> float:
    """The sum of all numbers, read in blocks."""
    return sum(float(block.vectors.sum(dtype=np.float64)) for block in read_blocks(source, reader="compiled"))


def plain(source: EmbeddingSource) -> float:
    """The same, one record at a time."""
    return sum(float(vector.sum(dtype=np.float64)) for _, vector in read_embedding(source))


WAYS = {"fast": fast, "plain": plain}


def seconds(source: EmbeddingSource, repeats: int) -> tuple[float, float]:
    """Median processor seconds of both ways, run in turn."""
    np.testing.assert_allclose(fast(source), plain(source), atol=1e-3)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(repeats):
        for name, way in WAYS.items():
            start = time.process_time()
            way(source)
            times[name].append(time.process_time() - start)
    return statistics.median(times["fast"]), statistics.median(times["plain"])


def memory_of(data: Path, way: str) -> float:
    """MiB by which one way raises the peak of a fresh process, compiled code and libraries loaded before."""
    command = [sys.executable, __file__, "--memory-of", way, str(data)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_memory(way: str, data: Path) -> None:
    """What `memory_of` runs: the growth of the peak once a table of a few records has loaded the libraries."""
    WAYS[way](find_embeddings(data / "few")["81"])
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, compiling included, is forgotten (Linux)
    before = _resident_mib("VmRSS")
    WAYS[way](find_embeddings(data)["81"])
    print(_resident_mib("VmHWM") - before)


def _resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process alone: getrusage counts the parent that started it."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def measure(form: str, items: int, width: int, repeats: int) -> tuple[str, ...]:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write = {"lines": write_lines, "pickle": write_pickle, "parquet": write_parquet}[form]
        write(data, items, width)
        write(data / "few", 10, width)
        source = find_embeddings(data)["81"]
        size = sum(part.stat().st_size for part in source.parts()) / 1e6
        ours, theirs = seconds(source, repeats)
        memory = [f"{memory_of(data, way):.0f}" for way in WAYS]
    say(f"{form}, {items} x {width}: {theirs / ours:.1f}x")
    return (f"{FORMS[form]}, {items:,} x {width:,}, {size:,.0f} MB", f"{size / ours:,.0f}", f"{size / theirs:,.0f}",
            f"{items / ours:,.0f}", f"{items / theirs:,.0f}", f"{theirs / ours:.1f}x", *memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--narrow", type=int, nargs=2, default=(200_000, 32), metavar=("ITEMS", "WIDTH"))
    parser.add_argument("--wide", type=int, nargs=2, default=(4_000, 4096), metavar=("ITEMS", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--memory-of", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options.memory_of[0], Path(options.memory_of[1]))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    pyarrow.set_cpu_count(1)
    cases = [(form, *options.narrow) for form in FORMS] + [(form, *options.wide) for form in ("lines", "parquet")]
    rows = [measure(form, items, width, options.repeats) for form, items, width in cases]
    columns = ("table", "MB/s in blocks", "one by one", "vectors/s in blocks", "one by one", "ratio",
               "MiB in blocks", "one by one")
    table(f"embedding tables, one thread, median of {options.repeats}", columns, rows)
    options.results.mkdir(parents=True, exist_ok=True)
    lines = [
        f"`python benchmarks/{' '.join([Path(__file__).name, *sys.argv[1:]])}`", "",
        f"Python {platform.python_version()}, numpy {np.__version__}, pyarrow {pyarrow.__version__}, one thread, "
        f"processor time, median of {options.repeats}; MB of the file, MiB by which the peak of memory grows.", "",
        "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|",
        *("| " + " | ".join(row) + " |" for row in rows)]
    (options.results / "embeddings.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
