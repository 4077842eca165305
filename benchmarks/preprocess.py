"""Reading seq.jsonl: the compiled scanner against plain json, on a real sample repeated, in one process.

    python benchmarks/preprocess.py SAMPLE --results benchmarks/results

`json` only parses the lines; `plain` is the whole plain reader (json, checks, columns); `compiled` is the scanner with
the same checks and the same columns, which are compared first. Interleaved, medians of the repeats: processor seconds
where one thread works, wall seconds of both readers where several do.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onepiece_comp.console import table
from onepiece_comp.logs.features import ItemFeatures, Profiles, split_features
from onepiece_comp.logs.json_lines import fill_item_features, joined, read_sequence_blocks
from onepiece_comp.logs.open_log import JsonLinesLog


def repeated(sample: Path, folder: Path, copies: int) -> JsonLinesLog:
    """A folder with `copies` of the sample's users."""
    for name in ("indexer.pkl", "item_feat_dict.json"):
        shutil.copy(sample / name, folder / name)
    text = (sample / "seq.jsonl").read_bytes().rstrip(b"\n") + b"\n"
    with open(folder / "seq.jsonl", "wb") as file:
        for _ in range(copies):
            file.write(text)
    return JsonLinesLog(folder)


def read(log: JsonLinesLog, reader: str, threads: int, *, known: bool) -> tuple:
    """(blocks joined, item features) of the whole log; `known` = every item has its own record already."""
    index = log.index()
    items, users, identity = split_features(index, {"103", "104", "105", "106", "107", "108", "109", "110"},
                                            len(index.items))
    matrix = ItemFeatures(items, len(index.items) + 1, ignored=identity)
    matrix.recorded[:] = known
    clock = time.process_time if threads == 1 else time.monotonic
    started = clock()
    blocks = list(read_sequence_blocks(log.sequences, matrix, Profiles(users, 16), most_item=len(index.items),
                                       reader=reader, threads=threads))
    return clock() - started, joined(blocks), matrix


def parse(log: JsonLinesLog) -> float:
    """Seconds of json.loads on every line."""
    started = time.process_time()
    with open(log.sequences, "rb") as file:
        for line in file:
            json.loads(line)
    return time.process_time() - started


def dictionary(folder: Path, sample: Path, copies: int, reader: str) -> tuple[float, np.ndarray, int]:
    """(seconds, features, bytes) of reading an item_feat_dict.json of `copies` times the sample's items."""
    index = JsonLinesLog(sample).index()
    path = folder / f"dictionary_{copies}.json"
    if not path.is_file():
        record = list(json.loads((sample / "item_feat_dict.json").read_text()).values())
        with open(path, "w") as file:
            for row in range(copies * len(record)):
                file.write(f'{", " if row else "{"}"{row + 1}": {json.dumps(record[row % len(record)])}')
            file.write("}")
    most = copies * len(json.loads((sample / "item_feat_dict.json").read_text()))
    items, _, identity = split_features(index, set(), len(index.items))
    matrix, started = ItemFeatures(items, most + 1, ignored=identity), time.process_time()
    for _ in fill_item_features(path, matrix, most_item=most, reader=reader):
        pass
    return time.process_time() - started, matrix.values, path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sample", type=Path)
    parser.add_argument("--copies", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        log = repeated(options.sample, folder, options.copies)
        size = log.sequences.stat().st_size
        plain, compiled = (read(log, reader, 1, known=False) for reader in ("plain", "compiled"))  # also compiles
        assert all(np.array_equal(a, b) for a, b in zip(plain[1], compiled[1])), "the readers differ"
        assert np.array_equal(plain[2].values, compiled[2].values), "the readers' item features differ"
        assert np.array_equal(dictionary(folder, options.sample, 1, "plain")[1],
                              dictionary(folder, options.sample, 1, "compiled")[1]), "the dictionaries differ"
        ways: dict[str, Callable[[], float]] = {
            "json.loads alone": lambda: parse(log),
            "plain reader": lambda: read(log, "plain", 1, known=True)[0],
            "compiled reader, 1 thread": lambda: read(log, "compiled", 1, known=True)[0],
            f"compiled reader, {max(2, cores)} threads, wall": lambda: read(log, "compiled", max(2, cores),
                                                                            known=True)[0]}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, way in ways.items():
                seconds[name].append(way())
        users, base = options.copies * 88, statistics.median(seconds["plain reader"])
        rows = [("seq.jsonl: " + name, f"{size / 1e6 / (t := statistics.median(times)):.0f}",
                 f"{users / t:,.0f} users/s",
                 f"{base / t:.1f}x") for name, times in seconds.items()]
        for reader in ("plain", "compiled"):
            times = [dictionary(folder, options.sample, 10, reader) for _ in range(options.repeats)]
            taken = statistics.median(t for t, *_ in times)
            base = taken if reader == "plain" else base
            rows.append((f"item_feat_dict.json: {reader} reader", f"{times[0][2] / 1e6 / taken:.0f}",
                         f"{len(times[0][1]) / taken:,.0f} items/s", f"{base / taken:.1f}x"))
    columns = ("way", "MB/s", "rate", "against plain")
    table(f"{size / 1e6:.0f} MB of real lines, median of {options.repeats}", columns, rows)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "preprocess.md").write_text("\n".join([
        f"`python benchmarks/preprocess.py SAMPLE --copies {options.copies} --repeats {options.repeats}`", "",
        f"{size / 1e6:.0f} MB of lines (88 real users repeated), {cores} cores, processor time of one thread unless "
        f"it says wall, median of {options.repeats}.", "",
        "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|",
        *("| " + " | ".join(row) + " |" for row in rows)])
        + "\n")


if __name__ == "__main__":
    main()
