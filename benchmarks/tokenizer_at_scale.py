"""The tokenizer at the competition's full size: build-tokenizer as a process of its own, its time and its memory.

    python benchmarks/tokenizer_at_scale.py WORK --items 17500000 --codes 16384 --results benchmarks/results

WORK gets a dataset folder of creative ids and float16 vectors, 64 wide, of the same tree of clusters as in
`tokenizer/build.py` (2.2 GB at full size). Memory is watched from outside: what the process itself holds, file pages
that the system may drop apart.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from tokenizer import WIDTH, clustered

from onepiece_comp.artefacts import write_json
from onepiece_comp.console import table

_ROWS = 1 << 20


def write_dataset(folder: Path, items: int) -> None:
    """Creative ids in no order, a vector for all but every hundredth item."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(1)
    np.save(folder / "creative_id.npy", np.concatenate([[0], 1000 + draw.permutation(items)]).astype(np.int64))
    present = np.arange(items + 1) % 100 != 0
    np.save(folder / "emb_81_present.npy", present)
    matrix = np.lib.format.open_memmap(folder / "emb_81.npy", "w+", np.float16, (items + 1, WIDTH))
    for start in range(1, items + 1, _ROWS):
        stop = min(start + _ROWS, items + 1)
        matrix[start:stop] = clustered(stop - start, noise_seed=start)
    matrix.flush()
    write_json(folder / "schema.json", {"items": items, "item_space": f"made, {items}"})


def watch(process: subprocess.Popen) -> dict[str, int]:
    """The peak of the process's own pages and of mapped file pages, KiB, filled while it runs."""
    peak = {"RssAnon": 0, "RssFile": 0}

    def look() -> None:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            for line in lines:
                name, _, value = line.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]))
            time.sleep(0.2)

    threading.Thread(target=look, daemon=True).start()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--items", type=int, default=17_500_000)
    parser.add_argument("--codes", type=int, default=16_384)
    parser.add_argument("--points", type=int, default=32, help="vectors per code that a level is fitted to")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    data, out = options.work / f"dataset-{options.items}", options.work / f"tokenizer-{options.items}"
    if not (data / "schema.json").is_file():
        write_dataset(data, options.items)
    started = time.monotonic()
    settings = {"codes": options.codes, "points_per_code": options.points, "iterations": 6, "device": options.device}
    process = subprocess.Popen([
        sys.executable, "-m", "onepiece_comp", "build-tokenizer", str(data), str(out), "--vectors", "emb_81",
        *(part for key, value in settings.items() for part in ("--set", f"tokenizer.{key}={json.dumps(value)}"))])
    peak = watch(process)
    if process.wait():
        sys.exit(process.returncode)
    took = time.monotonic() - started
    figures = json.loads((out / "tokenizer.json").read_text())["figures"]
    before, after = figures["before"][-1], figures["after"][-1]
    rows = [
        ("seconds, all", f"{took:,.0f}"),
        ("cores", str(len(os.sched_getaffinity(0)))),
        ("memory of its own, MiB at the peak", f"{peak['RssAnon'] / 1024:,.0f}"),
        ("mapped file pages, MiB at the peak", f"{peak['RssFile'] / 1024:,.0f}"),
        ("items that share an id, before and after", f"{before['shared']:.2%} and {after['shared']:.2%}"),
        ("unique ids, before and after", f"{before['unique']:,} and {after['unique']:,}"),
        ("error / variance, before and after", f"{before['relative_error']:.4f} and {after['relative_error']:.4f}"),
        ("neighbours kept, before and after", f"{before['neighbours_kept']:.2%} and {after['neighbours_kept']:.2%}"),
        ("items without a vector", f"{figures['items_without_vector']:,}"),
        ("moved, and to another prefix", f"{figures['moved']:,} and {figures['overflowed']:,}"),
    ]
    title = (f"{options.items:,} items, vectors of {WIDTH}, 2 x {options.codes:,} codes, "
             f"fitted to {options.points} a code")
    table(title, ("what", "value"), rows)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "tokenizer_at_scale.md").write_text("\n".join([
        f"`python benchmarks/tokenizer_at_scale.py WORK --items {options.items} --codes {options.codes} "
        f"--points {options.points} --device {options.device}`", "", title, "", "| what | value |", "|---|---|",
        *(f"| {what} | {value} |" for what, value in rows)]) + "\n")


if __name__ == "__main__":
    main()
