"""A log as the public Parquet release against the same log as JSON lines, in one process, equal columns first.

    python benchmarks/parquet.py --users 3000 --results benchmarks/results

One thread, processor time, median of the repeats; ratios carry over, times do not. Then a release of random rows with
the published lengths and coverages, every table one file of one row group, the hardest case for memory: read by a
process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from onepiece_comp.config import SynthesizeConfig
from onepiece_comp.console import table
from onepiece_comp.logs.features import ItemFeatures, Profiles, joint_vocabulary, split_features
from onepiece_comp.logs.json_lines import compiler_present, joined
from onepiece_comp.logs.open_log import Log, open_log
from onepiece_comp.logs.release import ReleaseLog
from onepiece_comp.logs.release_writer import write_release
from onepiece_comp.logs.user_blocks import EventBlock
from onepiece_comp.stages.synthesize import synthesize

WAYS = (("JSON lines, plain", "jsonl", "plain"), ("JSON lines, compiled", "jsonl", "compiled"),
        ("Parquet", "parquet", "auto"))
ITEM_VALUES = {"100": 6, "101": 51, "102": 90_709, "112": 30, "114": 20, "115": 691, "116": 18, "117": 497, "118": 1426,
               "119": 4191, "120": 3392, "121": 2_135_891, "122": 90_919}  # arXiv 2604.04976, Table 2
USER_VALUES = {"103": (86, 0.999, 1), "104": (2, 0.996, 1), "105": (7, 0.858, 1), "109": (3, 0.999, 1),
               "106": (14, 0.879, 3), "107": (19, 0.387, 1), "108": (4, 0.17, 1), "110": (2, 0.43, 2)}  # most in a list
ITEMS_PER_USER = 4.8


def reading(log: Log, reader: str) -> Callable[[], EventBlock]:
    """A function that reads items and users into columns."""
    index = log.index()
    items, users, _ = split_features(index, log.user_feature_ids(), len(index.items))
    most_item = len(index.items)

    def read() -> EventBlock:
        matrix, profiles = ItemFeatures(items, most_item + 1), Profiles(users, 16)
        for _ in log.item_features(matrix, most_item=most_item, reader=reader):
            pass
        return joined(list(log.blocks(matrix, profiles, most_item=most_item, reader=reader, threads=1)))
    return read


def check(one: EventBlock, other: EventBlock) -> None:
    """Equal in all but where the profile stands, which the release does not tell."""
    for name in set(one._fields) - {"profile_place"}:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def measure(ways: dict[str, Callable[[], EventBlock]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each, run in turn."""
    first = {name: read() for name, read in ways.items()}
    for block in first.values():
        check(block, first["Parquet"])
    del first
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, read in ways.items():
            start = time.process_time()
            read()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def random_release(folder: Path, users: int) -> Path:
    """seq/, user_feat/ and item_feat/ of `users` users, each one row group."""
    rng, items = np.random.default_rng(0), round(users * ITEMS_PER_USER)
    length = np.minimum(100, rng.integers(82, 101, users))
    events = int(length.sum())
    made = {"item_id": pa.array(rng.zipf(1.3, events) % items + 1),
            "action_type": pa.array((rng.random(events) < 0.098).astype(np.int32), mask=rng.random(events) < 0.009),
            "timestamp": pa.array(1_736_000_000 + np.sort(rng.integers(0, 12_000_000, events)))}
    lists = lambda sizes, values, mask=None: pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32()), values, mask=mask)
    sequence = lists(length, pa.StructArray.from_arrays(list(made.values()), names=list(made)))
    profile = {"user_id": pa.array(rng.permutation(users) + 1)}
    for fid, (known, coverage, most) in USER_VALUES.items():
        mask, sizes = rng.random(users) > coverage, rng.integers(1, most + 1, users)
        values = rng.integers(1, known + 1, int(sizes.sum()))
        is_list = fid in ("106", "107", "108", "110")
        profile[fid] = lists(sizes, pa.array(values), pa.array(mask)) if is_list else pa.array(values, mask=mask)
    record = {fid: pa.array(rng.integers(1, known + 1, items), mask=rng.random(items) > 0.98)
              for fid, known in ITEM_VALUES.items()}
    tables = {"seq": {"user_id": pa.array(np.arange(1, users + 1)), "seq": sequence}, "user_feat": profile,
              "item_feat": {"item_id": pa.array(np.arange(1, items + 1)), **record}}
    for name, columns in tables.items():
        (folder / name).mkdir(parents=True)
        path = folder / name / "part-00000.snappy.parquet"
        pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=1 << 26)
    return folder


def read_large(folder: Path, users: int) -> dict[str, float]:
    """Processor seconds and peak MiB of reading `random_release`; to be run in a process of its own."""
    log, most_item = ReleaseLog(folder), round(users * ITEMS_PER_USER)
    sizes = [(fid, known) for fid, (known, _, _) in USER_VALUES.items()]
    profiles = Profiles(joint_vocabulary(sizes), 16)
    matrix = ItemFeatures(joint_vocabulary(ITEM_VALUES.items()), most_item + 1)
    figures, start = {"MiB before": own_peak_mib()}, time.process_time()
    for _ in log.item_features(matrix, most_item=most_item):
        pass
    figures["item seconds"], start = time.process_time() - start, time.process_time()
    figures["events"] = sum(len(block.item) for block in log.blocks(matrix, profiles, most_item=most_item, threads=1))
    return {**figures, "user seconds": time.process_time() - start, "MiB": own_peak_mib()}


def own_peak_mib() -> float:
    """Peak memory since this program began; getrusage would count the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def large_lines(users: int, place: Path) -> list[str]:
    """The second part of the report."""
    folder = random_release(place, users)
    done = subprocess.run([sys.executable, __file__, "--read", str(folder), "--large-users", str(users)],
                          capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    megabytes = size(folder, "seq", "user_feat", "item_feat") / 1e6
    return [f"{users:,} users, {figures['events']:,} events, {round(users * ITEMS_PER_USER):,} items, "
            f"{megabytes:.0f} MB, one row group per table: items {figures['item seconds']:.2f} s, "
            f"users {figures['user seconds']:.2f} s "
            f"({users / figures['user seconds']:,.0f} users/s); peak memory {figures['MiB']:.0f} MiB, of which "
            f"{figures['MiB before']:.0f} MiB before reading."]


def size(folder: Path, *names: str) -> int:
    """Bytes of some files and folders."""
    paths = [folder / name for name in names]
    return sum(path.stat().st_size for one in paths for path in [one, *one.rglob("*")] if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large-users", type=int, default=100_000)
    parser.add_argument("--read", type=Path, help="Only read this random release, and print the figures.")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read_large(options.read, options.large_users)))
        return
    with tempfile.TemporaryDirectory() as place:
        raw = synthesize(Path(place) / "raw", SynthesizeConfig(users=options.users, feature_111=False))
        release = write_release(raw, Path(place) / "release")
        folder = {"jsonl": raw, "parquet": release}
        ways = {name: reading(open_log(folder[layout]), reader) for name, layout, reader in WAYS
                if reader != "compiled" or compiler_present()}
        seconds = measure(ways, options.repeats)
        megabytes = {"jsonl": size(raw, "seq.jsonl", "item_feat_dict.json") / 1e6,
                     "parquet": size(release, "seq", "user_feat", "item_feat") / 1e6}
        large = large_lines(options.large_users, Path(place) / "large")
    rows = [(name, f"{megabytes[layout]:.1f}", f"{options.users / seconds[name]:,.0f}",
             f"{seconds['JSON lines, plain'] / seconds[name]:.1f}x") for name, layout, _ in WAYS if name in seconds]
    columns = ("items and users into columns", "MB on disk", "users/s", "ratio to plain")
    said = f"{options.users:,} users, pyarrow {pa.__version__}, one thread, processor time, median of {options.repeats}"
    table(said, columns, rows)
    print(*large, sep="\n")
    options.results.mkdir(parents=True, exist_ok=True)
    lines = [f"`python benchmarks/parquet.py --users {options.users}`", "", f"{said}.", "",
             "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|",
             *("| " + " | ".join(row) + " |" for row in rows), "", *large]
    (options.results / "parquet.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
