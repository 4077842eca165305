"""One score.json, or those of several seeds, as a Markdown table, for README and docs.

    python benchmarks/score_table.py work/score.json --command "onepiece-comp run ..." > benchmarks/results/kuairand.md

Of several: means over the seeds, the score's standard deviation, and from the lowest to the highest bound of the seeds'
intervals.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from onepiece_comp.console import mean_and_spread

ORDER = (
    "cascade",
    "retrieval",
    "beam",
    "popularity_day",
    "popularity",
    "popularity_exposure",
    "item_knn",
    "random",
    "ceiling",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("score", type=Path, nargs="+")
    parser.add_argument("--command", action="append", default=[])
    options = parser.parse_args()
    reports = [json.loads(path.read_text()) for path in options.score]
    k, seeds = reports[0]["config"]["k"], "" if len(reports) == 1 else f", {len(reports)} seeds"
    for command in options.command:
        print(f"    {command}")
    print(
        f"\n| {reports[0]['users']:,} users{seeds} | HR@{k} | NDCG@{k} | score | submission minus this row, 95 % "
        f"interval |\n|---|---|---|---|---|"
    )
    low, high = _bounds([report["score"] for report in reports])
    print(_row("**submission**", reports, f"score {low:.4f} .. {high:.4f}"))
    names = sorted(reports[0]["against"], key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    for name in names:
        others = [report["against"][name] for report in reports]
        differences = [other["difference"]["score"] for other in others]
        low, high = _bounds(differences)
        print(_row(name, others, "the submission itself" if low == high == 0 else
                   f"{mean(one['mean'] for one in differences):+.4f}, {low:+.4f} .. {high:+.4f}"))


def _bounds(intervals: Sequence[dict]) -> tuple[float, float]:
    return min(one["low"] for one in intervals), max(one["high"] for one in intervals)


def _row(name: str, seeds: Sequence[dict], last: str) -> str:
    figures = [f"{mean(one[key]['mean'] for one in seeds):.4f}" for key in ("hr", "ndcg")]
    return "| " + " | ".join([name, *figures, mean_and_spread([one["score"]["mean"] for one in seeds]), last]) + " |"


if __name__ == "__main__":
    main()
