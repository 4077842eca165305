"""Several synthetic worlds from log to score: how much of the way from popularity to the ceiling is closed.

    python benchmarks/worlds.py work/worlds --seeds 1 2 3 --set train.epochs=3 --results benchmarks/results

Each world is the default one under another seed, with the default preset but for --set. Resumable: what is done is
reused.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from onepiece_comp.config_reading import load_config
from onepiece_comp.console import table
from onepiece_comp.stages.run import run_all
from onepiece_comp.stages.synthesize import synthesize

NAMES = ("random", "popularity", "popularity_day", "item_knn", "retrieval", "beam", "cascade", "ceiling")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--users", type=int, default=0, help="size of the worlds, 0 = the default")
    parser.add_argument("--set", dest="sets", nargs="*", default=[], help="section.key=value")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    config, worlds = load_config(sets=options.sets), {}
    for seed in options.seeds:
        raw, work = options.work / f"raw-{seed}", options.work / f"world-{seed}"
        settings = dataclasses.replace(config.synthesize, seed=seed, users=options.users or config.synthesize.users)
        if not (raw / "raw.json").is_file():
            synthesize(raw, settings)
        worlds[seed] = figures(json.loads(run_all(raw, work, config).read_text()))
    rows = [
        (name, *(f"{worlds[seed][name]:.4f}" for seed in worlds))
        for name in NAMES
        if all(name in w for w in worlds.values())
    ]
    for base in ("popularity", "popularity_day"):
        share = [(w["cascade"] - w[base]) / (w["ceiling"] - w[base]) for w in worlds.values()]
        rows.append((f"share of the way from {base} to the ceiling", *(f"{100 * value:.1f} %" for value in share)))
    columns = ("score", *(f"seed {seed}" for seed in worlds))
    table("synthetic worlds, default size", columns, rows)
    options.results.mkdir(parents=True, exist_ok=True)
    command = (
        "python benchmarks/worlds.py WORK --seeds "
        + " ".join(map(str, worlds))
        + (f" --users {options.users}" if options.users else "")
        + (f" --set {' '.join(options.sets)}" if options.sets else "")
    )
    name = f"worlds-{options.users}" if options.users else "worlds"
    lines = [
        f"`{command}`",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    (options.results / f"{name}.md").write_text("\n".join(lines) + "\n")


def figures(report: dict) -> dict[str, float]:
    """Score of every ranking in a score.json; `cascade` is the submission."""
    scores = {name: other["score"]["mean"] for name, other in report["against"].items()}
    return {**scores, "cascade": report["score"]["mean"]}


if __name__ == "__main__":
    main()
