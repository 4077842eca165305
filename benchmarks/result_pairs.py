"""Results of several ways of training, each in several seeds over the same users,
and their differences to the first way.

    python benchmarks/result_pairs.py work/split/truth.jsonl before work/before-*/result/result.json \
        --and after work/after-*/result/result.json > benchmarks/results/change.md

A difference is paired by user: seeds are averaged user by user before users are drawn anew.
"""

import argparse
from pathlib import Path

import numpy as np

from onepiece_comp.console import mean_and_spread
from onepiece_comp.evaluation.metrics import bootstrap_seeds
from onepiece_comp.evaluation.score import user_scores
from onepiece_comp.logs.truths import read_truth

RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", type=Path)
    parser.add_argument("first", nargs="+", help="a name, then result files, one a seed")
    parser.add_argument("--and", dest="others", nargs="+", action="append", default=[], help="the same of another way")
    options = parser.parse_args()
    truth = read_truth(options.truth)
    ways = {name: [user_scores(Path(file), truth) for file in files] for name, *files in (options.first,
        *options.others)}
    base = np.mean(ways[options.first[0]], axis=0)
    print(f"| {len(base):,} users | seeds | score | minus {options.first[0]} | 95 % interval |\n|---|---|---|---|---|")
    for name, seeds in ways.items():
        print(f"| {name} | {len(seeds)} | {mean_and_spread([float(seed.mean()) for seed in seeds])} | "
              f"{score_difference(seeds, base)} |")


def score_difference(seeds: list[np.ndarray], base: np.ndarray) -> str:
    found = bootstrap_seeds({"users": [seed - base for seed in seeds]}, resamples=RESAMPLES, seed=0)
    return f"{found.mean:+.4f} | {found.low:+.4f} .. {found.high:+.4f}"


if __name__ == "__main__":
    main()
