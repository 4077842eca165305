"""The cascade step by step: beam, exact retrieval, the paper's cascade, union, the conditioned query; widths of both.

    python benchmarks/cascade_table.py world work/world-1 work/world-2 work/world-3 --results benchmarks/results

Each WORK is a folder that `onepiece-comp run` or worlds.py has made; several are seeds of one data set. What they lack
(a joint stage with the conditioned query, a ranker) is trained into WORK, after the rows that need neither. The main
rows are run for all of them, the grid of widths for the first. Differences are to exact retrieval by the same weights,
paired by user: the mean over the seeds that answered the same truth, users drawn anew; over several truths, as of
several worlds, their mean. Cold targets are items that training
never saw: their share of the targets, and the score on them, tell what is left to win there. Resumable: rankings are
kept in WORK/cascade_table.
"""

import argparse
import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import MARKERS, fingerprint, is_made_of, make_unless_made, read_json, write_json
from onepiece_comp.config import Config
from onepiece_comp.config_reading import load_config, to_dict
from onepiece_comp.console import mean_and_spread, say, table
from onepiece_comp.evaluation.metrics import Interval, bootstrap_seeds
from onepiece_comp.evaluation.score import user_scores
from onepiece_comp.logs.truths import read_truth
from onepiece_comp.stages.infer import infer
from onepiece_comp.stages.score import score
from onepiece_comp.stages.train import train_or_resume
from onepiece_comp.stages.train_ranker import train_ranker
from onepiece_comp.training.checkpoint import find_checkpoint

PAPER = {"mode": "cascade", "union": 0, "semantic_weight": 0.0, "cold_ids": False}
EXACT, RANKER = "exact, joint stage", "cascade_ranker"
COLUMNS = ("row", "seeds", "HR@10", "NDCG@10", "score", f"to '{EXACT}'", "95 % interval", "warm targets",
           "cold targets",
           "target kept", "kept a user", "users/s")


class Row(NamedTuple):
    """A way to rank."""

    name: str
    run: str  # folder of the checkpoint: retrieval, joint or conditioned
    changes: dict
    ranker: bool = False  # order the first of what survives anew, whatever the ranker's validation says


MAIN = (
    Row(EXACT, "joint", {"mode": "retrieval"}),
    Row("exact, retrieval stage", "retrieval", {"mode": "retrieval"}),
    Row("beam alone", "joint", {"mode": "beam"}),
    Row("the paper's cascade: beam, then the embedding", "joint", PAPER),
    Row("the same, cold candidates with ids", "joint", {**PAPER, "cold_ids": True}),
    Row("the same, fused scores", "joint", {"mode": "cascade", "union": 0}),
    Row("union, the embedding alone", "joint", {"mode": "cascade", "semantic_weight": 0.0}),
    Row("union, fused scores (default)", "joint", {"mode": "cascade"}),
    Row("484 exact neighbours, fused scores, no beam", "joint", {"mode": "cascade", "survivors": 0, "union": 484}),
    Row("union, fused scores, then the ranker", "joint", {"mode": "cascade"}, ranker=True),
    Row("484 exact neighbours, no beam, then the ranker", "joint", {"mode": "cascade", "survivors": 0, "union": 484},
        ranker=True),
    Row("default, cold candidates dropped", "joint", {"mode": "cascade", "filter_cold": True}),
    Row("conditioned query", "conditioned", {"mode": "cascade", "union": 0}),
    Row("conditioned query, union", "conditioned", {"mode": "cascade"}),
)
DECIDING = (EXACT, "beam alone", "the paper's cascade: beam, then the embedding", "the same, fused scores",
            "union, fused scores (default)")
WIDTHS = (
    *(Row(f"default, beam {beam}", "joint", {"mode": "cascade", "beam": beam}) for beam in (5, 50, 100)),
    *(Row(f"default, {kept} survivors", "joint", {"mode": "cascade", "survivors": kept}) for kept in (64, 768)),
    *(Row(f"the paper's cascade, beam {beam}, {kept} survivors", "joint", {**PAPER, "beam": beam, "survivors": kept})
      for beam, kept in ((5, 64), (50, 384), (100, 768))),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the data set, in the table's file name")
    parser.add_argument("work", type=Path, nargs="+")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--set", dest="sets", action="append", default=[], help="section.key=value")
    parser.add_argument("--few", choices=("none", "further", "all"), default="none",
                        help="only the rows that decide: of the further WORKs, or of all")
    parser.add_argument("--hours", type=float, default=4.0, help="after which no row is begun")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    config = load_config(options.preset, options.config, options.sets)
    until = time.monotonic() + 3600 * options.hours
    found: dict[str, dict[Path, dict]] = {row.name: {} for row in rows_of(0, options.few)}
    for number, work in enumerate(options.work):
        for row in sorted(rows_of(number, options.few), key=lambda row: (row.run == "conditioned", row.ranker)):
            if (figures := one(row, work, config, until)) is not None:
                found[row.name][work] = figures
    lines = [line(name, values) for name, values in found.items()]
    table(f"the cascade on {options.name}", COLUMNS, lines)
    write(options, lines)


def rows_of(number: int, few: str) -> tuple[Row, ...]:
    """The rows to run on a WORK, by its place in the command line."""
    if few == "all" or (few == "further" and number):
        return tuple(row for row in MAIN if row.name in DECIDING)
    return MAIN if number else (*MAIN, *WIDTHS)


def one(row: Row, work: Path, config: Config, until: float) -> dict | None:
    """Figures of a row on one work folder: those kept, or new ones where there is time."""
    run = work / row.run
    if row.run == "conditioned" and not conditioned(work, config, until):
        return None
    out = work / "cascade_table" / folder(row.name)
    settings = dataclasses.replace(config.infer, **row.changes)
    if row.ranker and not ranker(work, config, until):
        return None
    if row.ranker:
        settings = dataclasses.replace(settings, ranker=str(work / RANKER))
    key = fingerprint(to_dict(settings), to_dict(config.score), find_checkpoint(run).name,
                      (run / "run.json").read_text(),
                      *([work / RANKER / MARKERS["ranker"]] if row.ranker else []))
    kept = read_json(out / "row.json") if (out / "row.json").is_file() else {}
    if kept.get("key") == key:
        return kept
    if time.monotonic() > until:
        return None
    say(f"== {work}: {row.name}")
    shutil.rmtree(out, ignore_errors=True)
    parts = work / "split"
    infer(run, out, settings, data=parts / "eval", truth=parts / "truth.jsonl")
    judged = score(out / "result.json", parts / "truth.jsonl", config.score)
    write_json(out / "row.json", {"key": key, **figures_of(judged, read_json(out / "funnel.json"))})
    return read_json(out / "row.json")


def ranker(work: Path, config: Config, until: float) -> bool:
    """Whether a ranker of these settings for the joint stage stands in WORK; trained now if there is time."""
    settings = dataclasses.replace(config.ranker, keep="always")
    made_of = fingerprint(to_dict(settings), to_dict(config.infer), work / "joint" / MARKERS["run"])
    return trained(work / RANKER, MARKERS["ranker"], made_of, until, lambda: train_ranker(
        work / "joint", work / "dataset", work / RANKER, settings, config.infer))


def conditioned(work: Path, config: Config, until: float) -> bool:
    """Whether a joint stage with the conditioned query stands in WORK; trained now if there is time."""
    settings = dataclasses.replace(config, model=dataclasses.replace(config.model, conditioned=True))
    made_of = fingerprint(to_dict(settings.model), to_dict(settings.train), work / "retrieval" / MARKERS["run"],
                          work / "tokenizer" / MARKERS["tokenizer"])
    return trained(work / "conditioned", MARKERS["run"], made_of, until, lambda: train_or_resume(
        work / "dataset", work / "conditioned", settings, tokenizer=work / "tokenizer", warm=work / "retrieval"))


def trained(folder: Path, marker: str, made_of: str, until: float, make: Callable[[], object]) -> bool:
    """Call `make` if `folder` is not whole, or of other things, and there is time; whether it is whole now."""
    note = folder.with_name(f"{folder.name}.made_of.json")
    held = (folder / marker).is_file() and is_made_of(note, made_of)
    if held or time.monotonic() > until:
        return held
    say(f"== {folder}")
    make_unless_made(note, made_of, whole=False, make=make)
    return True


def folder(name: str) -> str:
    """A row's name as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def figures_of(judged: dict, funnel: dict) -> dict:
    """What the table tells of a ranking."""
    steps = {step["step"]: step for step in funnel["steps"]}
    last = steps.get("union") or steps.get("beam")
    by_target = {name: judged["slices"]["target"].get(name) for name in ("warm", "cold")}
    return {**{name: judged[name]["mean"] for name in ("hr", "ndcg", "score")},
            **{name: part["score"]["mean"] if part else 0.0 for name, part in by_target.items()},
            "cold_share": by_target["cold"]["users"] / judged["users"] if by_target["cold"] else 0.0,
            "targets": last and last.get("targets"), "per_user": last and last["per_user"],
            "users_per_second": funnel["users_per_second"]}


def to_exact(name: str, works: Sequence[Path]) -> Interval:
    """The score of a row less that of exact retrieval over its seeds, with its interval over users."""
    gains: dict[str, list[np.ndarray]] = {}
    for work in works:
        truths = read_truth(work / "split" / "truth.jsonl")
        ours, exact = (user_scores(work / "cascade_table" / folder(row) / "result.json", truths) for row in (name,
            EXACT))
        gains.setdefault(fingerprint([tuple(one) for one in truths]), []).append(ours - exact)
    return bootstrap_seeds(gains, resamples=2000, seed=0)


def line(name: str, values: Mapping[Path, dict]) -> tuple[str, ...]:
    """A row of the table over its seeds."""
    if not values:
        return (name, "0", *["not run"] * (len(COLUMNS) - 2))
    figures, apart = list(values.values()), ("", "")
    mean = lambda field: float(np.mean([value[field] for value in figures]))
    if name != EXACT:
        difference = to_exact(name, list(values))
        apart = (f"{difference.mean:+.4f}", f"{difference.low:+.4f} .. {difference.high:+.4f}")
    kept = ("", "") if figures[0]["per_user"] is None else (f"{100 * mean('targets'):.1f} %", f"{mean('per_user'):.0f}")
    return (name, str(len(values)), f"{mean('hr'):.4f}", f"{mean('ndcg'):.4f}",
            mean_and_spread([value["score"] for value in figures]), *apart,
            f"{mean('warm'):.4f}", f"{mean('cold'):.4f} of {100 * mean('cold_share'):.0f} %", *kept,
            f"{mean('users_per_second'):.0f}")


def write(options: argparse.Namespace, lines: list[tuple[str, ...]]) -> None:
    """The table as Markdown, with the command that makes it."""
    asked = [f"python benchmarks/cascade_table.py {options.name}", *(["WORK"] * len(options.work)),
             *([f"--preset {options.preset}"] if options.preset != "tiny" else []),
             *([f"--config benchmarks/{options.config.name}"] if options.config else []),
             *(f"--set {change}" for change in options.sets),
             *([f"--few {options.few}"] if options.few != "none" else [])]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"cascade_{options.name}.md").write_text("\n".join([
        f"`{' '.join(asked)}`", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|",
        *("| " + " | ".join(cells) + " |" for cells in lines)]) + "\n")


if __name__ == "__main__":
    main()
