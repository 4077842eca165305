"""What could be reached in a synthetic world: rankings that are told parts of the truth.

    python benchmarks/world_limits.py work/worlds --seeds 1 2 3 --results benchmarks/results

Reads the worlds that worlds.py made. The moment is the user's last event or the cut, if that is later: a model cannot
know the target's time. "Topics told" takes the user's interests from the share of each topic in the history (leaf,
middle, root; half-life 10 days), with every item's true topic known; it knows no taste, no quality, no drift.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from onepiece_comp.console import table
from onepiece_comp.evaluation import metrics
from onepiece_comp.logs.formats import read_candidates, read_index, read_sequences
from onepiece_comp.logs.raw_folder import OriginalIds
from onepiece_comp.logs.truths import read_truth
from onepiece_comp.world.arrays import DAY, bucket_of
from onepiece_comp.world.oracle import _alive, _click_next, load_oracle

HALF_LIFE_DAYS, NOWHERE = 10.0, -30.0
ROWS = ("truth at the target's time", "truth at the moment", "true interests, popularity by count",
        "topics told, true popularity", "topics told, popularity by count")


def scores(raw: Path, split: Path, every: int) -> dict[str, float]:
    """Score of each ranking over every `every`-th user."""
    oracle, cut = load_oracle(raw), json.loads((split / "split.json").read_text())["cut"]
    row_of = {int(creative): row for row, creative in enumerate(oracle.creative_id)}
    candidate = np.array([row_of[c.creative_id] for c in read_candidates(split / "eval" / "predict_set.jsonl")])
    place = np.full(len(oracle.creative_id), -1)
    place[candidate] = np.arange(len(candidate))
    original = OriginalIds(read_index(split / "eval" / "indexer.pkl"))
    truth = {record.user: record for record in read_truth(split / "truth.jsonl")}
    counts = recent_counts(
        split / "train" / "seq.jsonl", OriginalIds(read_index(split / "train" / "indexer.pkl")), row_of, cut
    )
    hits: dict[str, list[int]] = {name: [] for name in ROWS}
    for number, line in enumerate(read_sequences(split / "eval" / "predict_seq.jsonl")):
        if number % every:
            continue
        user = original.user(line.user)
        items = np.array([row_of[original.item(event.item)] for event in line.events], np.int64)
        times = np.array([event.time for event in line.events], np.int64)
        target = place[row_of[truth[user].item]]
        moment = max(cut, int(times.max(initial=0)))
        users = oracle.users(np.array([int(user[5:]) - 1]))
        told = topics_told(oracle.world.items.leaf, items, times, moment, candidate, oracle.world.topics.branch)
        popularity = {time: log_weight(oracle, time, candidate) for time in (moment, truth[user].time)}
        liked = {time: np.log(_click_next(oracle.world, users, np.array([time]), candidate)[0]) for time in popularity}
        rankings = (liked[truth[user].time] + popularity[truth[user].time], liked[moment] + popularity[moment],
                    liked[moment] + counts[candidate], told + popularity[moment], told + counts[candidate])
        seen = place[items]
        for name, score in zip(ROWS, rankings):
            score[seen[seen >= 0]] = -np.inf
            rank = int((score > score[target]).sum()) + 1 if np.isfinite(score[target]) else 0
            hits[name].append(rank if rank <= 10 else 0)
    return {name: float(metrics.combined_score(metrics.hit_rate(np.array(r), 10).mean(),
                                               metrics.ndcg(np.array(r), 10).mean()))
            for name, r in hits.items()}


def recent_counts(path: Path, original: OriginalIds, row_of: dict[int, int], cut: int) -> np.ndarray:
    """log(.1 + events of the last day before the cut) of every item of the world."""
    counts = np.zeros(len(row_of))
    for line in read_sequences(path):
        for event in line.events:
            counts[row_of[original.item(event.item)]] += event.time >= cut - DAY
    return np.log(0.1 + counts)


def log_weight(oracle, time: int, candidate: np.ndarray) -> np.ndarray:
    """Log of the policy's true weight of each candidate at a time."""
    rows, weight = _alive(oracle.world, int(bucket_of(np.array([time]))[0]), np.ones(len(oracle.creative_id), bool))
    full = np.full(len(oracle.creative_id), NOWHERE)
    full[rows] = np.log(weight + 1e-12)
    return full[candidate]


def topics_told(
    leaf: np.ndarray, items: np.ndarray, times: np.ndarray, moment: int, candidate: np.ndarray, branch: int
) -> np.ndarray:
    """Log of a lift made of the history's shares of the candidate's leaf, middle node and root."""
    weight = 0.5 ** ((moment - times) / DAY / HALF_LIFE_DAYS)
    nodes, lift = int(leaf.max()) + 1, np.full(len(candidate), 0.3)
    for size, part in ((1, 0.5), (branch, 0.3), (branch ** 2, 0.2)):
        share = np.bincount(leaf[items] // size, weight, -(-nodes // size))
        lift += part * (share / max(share.sum(), 1e-9))[leaf[candidate] // size] * nodes / size
    return np.log(lift)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--every", type=int, default=3, help="look at every n-th user")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    worlds = [
        scores(options.work / f"raw-{seed}", options.work / f"world-{seed}" / "split", options.every)
        for seed in options.seeds
    ]
    rows = [
        (name, *(f"{world[name]:.4f} ({100 * world[name] / world[ROWS[0]]:.0f} %)" for world in worlds))
        for name in ROWS
    ]
    columns = ("score (share of the ceiling)", *(f"seed {seed}" for seed in options.seeds))
    table("what could be reached", columns, rows)
    options.results.mkdir(parents=True, exist_ok=True)
    lines = [
        f"`python benchmarks/world_limits.py WORK --seeds {' '.join(map(str, options.seeds))} --every {options.every}`",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    (options.results / "world_limits.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
