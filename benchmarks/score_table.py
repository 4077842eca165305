"""A score.json as a Markdown table, for README and docs.

    python benchmarks/score_table.py work/score.json --command "onepiece-comp run ..." > benchmarks/results/kuairand.md
"""

import argparse
import json
from pathlib import Path

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
    parser.add_argument("score", type=Path)
    parser.add_argument("--command", action="append", default=[])
    options = parser.parse_args()
    report = json.loads(options.score.read_text())
    k = report["config"]["k"]
    for command in options.command:
        print(f"    {command}")
    print(
        f"\n| {report['users']:,} users | HR@{k} | NDCG@{k} | score | submission - it, 95 % interval |\n|---|---|---|---|---|"
    )
    print(_row("**submission**", report, f"score {report['score']['low']:.4f} .. {report['score']['high']:.4f}"))
    for name in sorted(report["against"], key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        other = report["against"][name]
        difference = other["difference"]["score"]
        same = difference["low"] == difference["high"] == 0
        print(_row(name, other, "the submission itself" if same else
                   f"{difference['mean']:+.4f}, {difference['low']:+.4f} .. {difference['high']:+.4f}"))


def _row(name: str, figures: dict, last: str) -> str:
    return "| " + " | ".join([name, *(f"{figures[key]['mean']:.4f}" for key in ("hr", "ndcg", "score")), last]) + " |"


if __name__ == "__main__":
    main()
