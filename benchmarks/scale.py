"""Preprocessing at the real size: a log of a million users with the published statistics, written fast, then read.

    python benchmarks/scale.py work/scale --users 1000000 --results benchmarks/results

The log is noise of the right shape (arXiv 2604.04976: lengths, click rate, 4.77 items a user, cardinalities and
coverage of the features, emb_81 of 32 numbers), not a world to learn from: `synthesize` makes those. Making it is
timed apart. `preprocess` runs in a process of its own, whose peak memory is reported. 10 million users = ten times.
"""

import argparse
import json
import pickle
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numba
import numpy as np

from onepiece_comp.artefacts import read_json
from onepiece_comp.console import progress, table

ITEMS_PER_USER, FIRST_CREATIVE, END, SPAN_DAYS = 4.7745, 20_000_000_027, 1_748_736_000, 140
# feature id: distinct values at a million users, share of items that have it (arXiv 2604.04976, Table 2)
FEATURES = {"112": (30, 0.979), "117": (497, 0.979), "118": (1426, 0.979), "119": (4191, 0.979), "120": (3392, 0.978),
            "100": (6, 0.9993), "101": (51, 0.9993), "102": (90_709, 0.9903), "122": (90_919, 0.9993),
            "114": (20, 0.9991), "115": (691, 0.3202), "116": (18, 0.999), "121": (2_135_891, 1.0)}
PROFILE = b'{"103": %d, "104": %d, "105": %d, "106": [%d, %d], "109": %d}'
COVERAGE_81, WIDTH_81 = 0.961, 32
USERS_PER_BLOCK, ITEMS_PER_BLOCK = 4096, 200_000


@numba.njit(cache=True)
def _put_number(out, at, value):
    digits = 1
    power = 10
    while value >= power:
        power *= 10
        digits += 1
    for place in range(at + digits - 1, at - 1, -1):
        out[place] = 48 + value % 10
        value //= 10
    return at + digits


@numba.njit(cache=True)
def _put(out, at, text):
    out[at:at + len(text)] = text
    return at + len(text)


@numba.njit(cache=True)
def _render_lines(out, user, start, item, action, seconds, profile, profile_start, record, record_start, texts, starts):
    """Lines of some users into `out`; returns the bytes written. `record` holds each item's features as JSON."""
    opening, between, null, comma, profile_head, profile_tail, end = texts
    at = 0
    for u in range(len(user)):
        starts[u] = at
        at = _put(out, at, opening)
        for i in range(start[u], start[u + 1]):
            at = _put_number(out, at, user[u])
            at = _put(out, at, comma)
            at = _put_number(out, at, item[i])
            at = _put(out, at, null)
            at = _put(out, at, record[record_start[item[i] - 1]:record_start[item[i]]])
            at = _put(out, at, comma)
            out[at] = 48 + action[i]
            at = _put(out, at + 1, comma)
            at = _put_number(out, at, seconds[i])
            at = _put(out, at, between)
        at = _put_number(out, at, user[u])
        at = _put(out, at, profile_head)
        at = _put(out, at, profile[profile_start[u]:profile_start[u + 1]])
        at = _put(out, at, profile_tail)
        at = _put_number(out, at, seconds[start[u + 1] - 1] + 100_000)
        at = _put(out, at, end)
    return at


@numba.njit(cache=True)
def _render_vectors(out, creative, vectors, texts):
    """JSON lines of embeddings, six decimals."""
    head, middle, end = texts
    at = 0
    for i in range(len(creative)):
        at = _put(out, at, head)
        at = _put_number(out, at, creative[i])
        at = _put(out, at, middle)
        for j in range(vectors.shape[1]):
            if j:
                out[at], out[at + 1] = 44, 32
                at += 2
            value = vectors[i, j]
            if value < 0:
                out[at] = 45
                at += 1
            out[at], out[at + 1] = 48, 46
            at += 2
            rest = min(999_999, int(abs(value) * 1e6))
            for place in range(at + 5, at - 1, -1):
                out[place] = 48 + rest % 10
                rest //= 10
            at += 6
        at = _put(out, at, end)
    return at


def _bytes(*texts: bytes) -> tuple[np.ndarray, ...]:
    return tuple(np.frombuffer(text, np.uint8) for text in texts)


def _item_records(items: int, rng: np.random.Generator, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features of every item as JSON, one behind the other, with their starts; item_feat_dict.json on the way."""
    parts, lengths = [], []
    with open(folder / "item_feat_dict.json", "wb") as file:
        for start in progress(range(0, items, ITEMS_PER_BLOCK), total=None, what="blocks of items"):
            count = min(ITEMS_PER_BLOCK, items - start)
            columns = [(f'"{fid}": '.encode(), rng.integers(1, size + 1, count).tolist(),
                        (rng.random(count) < share).tolist())
                       for fid, (size, share) in FEATURES.items()]
            records = [b"{" + b", ".join([name + b"%d" % values[i] for name, values, there in columns
                                          if there[i]]) + b"}"
                       for i in range(count)]
            file.write(b"".join([b'%s"%d": %s' % (b", " if start + i else b"{", start + i + 1, record)
                                 for i, record in enumerate(records)]))
            parts.append(np.frombuffer(b"".join(records), np.uint8))
            lengths.append(np.fromiter(map(len, records), np.int64, count))
        file.write(b"}")
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(np.concatenate(lengths))])


def _write_index(folder: Path, users: int, creative: np.ndarray) -> None:
    features = defaultdict(dict)
    sizes = {**{fid: size for fid, (size, _) in FEATURES.items()}, "103": 86, "104": 2, "105": 7, "106": 14, "109": 3}
    for fid, size in sizes.items():
        features[fid] = {int(fid) * 10_000_000 + value: value for value in range(1, size + 1)}
    index = {"u": {f"user_{number:08d}": number for number in range(1, users + 1)},
             "i": dict(zip(creative.tolist(), range(1, len(creative) + 1))), "f": features, "a": {1: 1, 0: 2}}
    with open(folder / "indexer.pkl", "wb") as file:
        pickle.dump(index, file, protocol=2)


def _write_users(folder: Path, users: int, items: int, record: np.ndarray, record_start: np.ndarray,
                 rng: np.random.Generator) -> int:
    """seq.jsonl and its offsets; returns the number of events. Few items have most of the events, as published."""
    texts = _bytes(b"[[", b"], [", b", null, ", b", ", b", null, ", b", null, null, ", b"]]\n")
    offsets, offset, events = [], 0, 0
    with open(folder / "seq.jsonl", "wb") as file:
        for first in progress(range(0, users, USERS_PER_BLOCK), total=-(-users // USERS_PER_BLOCK),
                              what="blocks of users"):
            count = min(USERS_PER_BLOCK, users - first)
            length = np.maximum(100 - rng.gamma(0.6, 15, count).astype(np.int64), 12)
            start = np.concatenate([[0], np.cumsum(length)])
            item = (items * rng.random(start[-1]) ** 3.2).astype(np.int64) + 1
            action = (rng.random(start[-1]) < 0.0981).astype(np.int64)
            owner = np.repeat(np.arange(count), length)
            age = rng.random(start[-1]) * np.minimum(25 * np.exp(rng.normal(0, 0.65, count)), SPAN_DAYS)[owner] * 86400
            ordered = np.sort(owner * 1e9 - age)  # by user, oldest first
            seconds = (END - 1 + ordered - owner * 1e9).astype(np.int64)
            figures = np.column_stack([rng.integers(1, high, count) for high in (87, 3, 8, 15, 15, 4)]).tolist()
            profiles = [PROFILE % tuple(row) for row in figures]
            profile_start = np.concatenate([[0], np.cumsum(np.fromiter(map(len, profiles), np.int64, count))])
            out, starts = np.empty(start[-1] * 320 + count * 400, np.uint8), np.empty(count, np.int64)
            written = _render_lines(out, np.arange(first + 1, first + count + 1), start, item, action, seconds,
                                    np.frombuffer(b"".join(profiles), np.uint8), profile_start, record, record_start,
                                    texts, starts)
            file.write(out[:written])
            offsets.append(starts + offset)
            offset, events = offset + written, events + int(start[-1])
    with open(folder / "seq_offsets.pkl", "wb") as file:
        pickle.dump(np.concatenate(offsets).tolist(), file, protocol=2)
    return events


def _write_vectors(folder: Path, creative: np.ndarray, rng: np.random.Generator) -> None:
    place = folder / "creative_emb" / f"emb_81_{WIDTH_81}"
    place.mkdir(parents=True)
    texts = _bytes(b'{"anonymous_cid": ', b', "emb": [', b"]}\n")
    covered = creative[rng.random(len(creative)) < COVERAGE_81]
    for number, start in enumerate(range(0, len(covered), ITEMS_PER_BLOCK)):
        ids = covered[start:start + ITEMS_PER_BLOCK]
        vectors = rng.normal(size=(len(ids), WIDTH_81))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        out = np.empty(len(ids) * (60 + 11 * WIDTH_81), np.uint8)
        out[:_render_vectors(out, ids, vectors, texts)].tofile(place / f"part-{number:05d}")


def make(folder: Path, users: int, seed: int) -> dict[str, int]:
    """Write the log; returns its figures."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng, items = np.random.default_rng(seed), round(users * ITEMS_PER_USER)
    creative = FIRST_CREATIVE + np.cumsum(rng.integers(1, 3, items))
    _write_index(folder, users, creative)
    record, record_start = _item_records(items, rng, folder)
    events = _write_users(folder, users, items, record, record_start, rng)
    _write_vectors(folder, creative, rng)
    (folder / "user_feat_num.json").write_text(json.dumps({"103": 86, "104": 2, "105": 7, "106": 14, "109": 3}))
    figures = {"users": users, "items": items, "events": events}
    (folder / "made.json").write_text(json.dumps(figures))
    return figures


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--make-only", action="store_true", help="write the log and stop")
    parser.add_argument("--keep", action="store_true", help="use the log that is there; remove nothing")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    raw, dataset, began = options.work / "train", options.work / "dataset", time.monotonic()
    if options.make_only:
        make(raw, options.users, options.seed)
        return
    if not (options.keep and (raw / "made.json").is_file()):  # in a process of its own: memory is measured after it
        subprocess.run([sys.executable, __file__, str(options.work), "--users", str(options.users), "--seed",
                        str(options.seed), "--make-only"], check=True)
    made, making = read_json(raw / "made.json"), time.monotonic() - began
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "onepiece_comp", "preprocess", str(raw), str(dataset), "--set",
                    'preprocess.embeddings=["81"]'], check=True)
    seconds, source = time.monotonic() - began, read_json(dataset / "schema.json")["source"]
    rows = [("users", f"{made['users']:,}", f"{10 * made['users']:,}"), ("items", f"{made['items']:,}", ""),
            ("events", f"{made['events']:,}", f"{10 * made['events']:,}"),
            ("seq.jsonl, GB", f"{(raw / 'seq.jsonl').stat().st_size / 1e9:.1f}",
             f"{(raw / 'seq.jsonl').stat().st_size / 1e8:.0f}"),
            ("item_feat_dict.json, GB", f"{(raw / 'item_feat_dict.json').stat().st_size / 1e9:.2f}", ""),
            ("making the log, s", "kept from before" if options.keep else f"{making:.0f}", ""),
            ("preprocess, s", f"{seconds:.0f}", f"{10 * seconds:.0f}"), ("users/s", f"{made['users'] / seconds:,.0f}",
                                                                         ""),
            ("peak memory, MiB", f"{source['peak_memory_mib']:,}", ""),
            ("dataset/, GB", f"{_size(dataset) / 1e9:.2f}", f"{_size(dataset) / 1e8:.1f}")]
    columns = ("preprocess at size", "measured", "times ten")
    table(*(columns[:1]), columns, rows)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "scale.md").write_text("\n".join([
        f"`python benchmarks/scale.py WORK --users {options.users}`", "",
        "Two cores; JSON lines, item_feat_dict.json and emb_81; times ten = extrapolated, not run.", "",
        "| " + " | ".join(columns) + " |", "|---" * 3 + "|", *("| " + " | ".join(row) + " |" for row in rows)]) + "\n")
    if not options.keep:
        shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
