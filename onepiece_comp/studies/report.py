"""A page over one or several finished runs: what went in, how it learned, what came out, and which run is better.

The last thing that a person reads; it trains and ranks nothing. `run_sections.py` and `item_sections.py` have the
parts of a run; the comparison pairs the runs by user, with bootstrap intervals and a sign-flip test, where they
answered the same truth.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from onepiece_comp.artefacts import fingerprint, names_apart, read_json
from onepiece_comp.console import say
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation.metrics import bootstrap_difference, sign_flip_test
from onepiece_comp.evaluation.score import user_scores
from onepiece_comp.logs.formats import LIST
from onepiece_comp.logs.truths import read_truth
from onepiece_comp.reports.drawings import interval_chart
from onepiece_comp.reports.item_sections import item_sections
from onepiece_comp.reports.page import Drawing, Section, Table, Text, can_plot, write_report
from onepiece_comp.reports.run_sections import STAGES, figures_at, missing, read_score, run_sections
from onepiece_comp.studies.scaling_sections import scaling_sections

_RESAMPLES = 1000
_OF_A_RUN = ("scaling.json", "stages.json", "dataset", "retrieval", "joint", "result", "score.json", "split")


def report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page over the work folders `runs` to `out`; returns it. InputError for a folder that is none."""
    started, runs, out = time.monotonic(), [Path(run) for run in runs], Path(out)
    for work in runs:
        if not work.is_dir() or not any((work / name).exists() for name in _OF_A_RUN):
            raise InputError(work, found="no work folder" if work.is_dir() else "no such folder",
                             expected="a folder as `onepiece-comp run RAW WORK` makes it", do="check the path")
    names = names_apart(runs, "report")
    sections = _comparison(dict(zip(names, runs))) if len(runs) > 1 else []
    for name, work in zip(names, runs):
        prefix = f"{name}: " if len(runs) > 1 else ""
        sections += [section._replace(title=prefix + section.title) for section in _of_one(work)]
    write_report(out, f"{'Runs' if len(runs) > 1 else 'Run'} {', '.join(names)}", sections)
    say(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s"
        + ("" if can_plot() else " (without plots: they need matplotlib)"))
    return out


def _of_one(work: Path) -> list[Section]:
    """The sections of a run, or of a grid of sizes."""
    grid = work / "scaling.json"
    return scaling_sections(grid) if grid.is_file() else run_sections(work) + item_sections(work)


def _comparison(runs: Mapping[str, Path]) -> list[Section]:
    read = {name: read_score(work) for name, work in runs.items()}
    reports = {name: found for name, found in read.items() if isinstance(found, dict)}
    parts: list = [found for found in read.values() if isinstance(found, Text)]
    rows = [(title, {name: tuple(one[key][part] for part in ("mean", "low", "high"))
                     for name, one in reports.items() if one["config"]["k"] == k})
            for k in sorted({one["config"]["k"] for one in reports.values()}) for title, key in figures_at(k)]
    if reports:
        parts.append(Drawing("Figures with 95 % intervals", interval_chart(rows)))
        parts.append(_settings(runs))
    cuts = {one["config"]["k"] for one in reports.values()}
    return [Section("Comparison", parts),
            Section("Paired differences", _pairs(runs, cuts.pop() if len(cuts) == 1 else LIST))]


def _settings(runs: Mapping[str, Path]) -> Table:
    """In what the runs' last trainings and their rankings differ, and what these read."""
    flat = {name: _flat(work) for name, work in runs.items()}
    keys = list(dict.fromkeys(key for values in flat.values() for key in values))
    differing = [key for key in keys if len({str(values.get(key)) for values in flat.values()}) > 1]
    return Table("Settings that differ", ("setting", *flat), [(key, *(values.get(key, "") for values in flat.values()))
                                                             for key in differing] or [("none", *[""] * len(flat))])


def _flat(work: Path) -> dict[str, object]:
    """Settings and inputs of a run by name: of its ranking, and of the joint training or, where there is none,
    the first.
    """
    funnel = work / "result" / "funnel.json"
    file = next((work / stage / "config.json" for stage in reversed(STAGES)
                 if (work / stage / "config.json").is_file()), None)
    config, ranking = (read_json(path) if path and path.is_file() else {} for path in (file, funnel))
    return {**{f"infer.{key}": value for key, value in ranking.get("settings", {}).items()},
            **{key: config[key] for key in ("version", "dataset", "tokenizer", "warm_start") if key in config},
            **{f"{part}.{key}": value for part in ("model", "train") for key, value in config.get(part, {}).items()}}


def _pairs(runs: Mapping[str, Path], k: int) -> list:
    """Differences between runs that answered the same users for the same targets, lists cut at k."""
    files = {name: (work / "result" / "result.json", work / "split" / "truth.jsonl") for name, work in runs.items()}
    held = {name: pair for name, pair in files.items() if all(file.is_file() for file in pair)}
    truth = {name: read_truth(pair[1]) for name, pair in held.items()}
    same = {name: fingerprint([tuple(one) for one in truths]) for name, truths in truth.items()}
    parts: list = [missing(work, "result/result.json") for name, work in runs.items() if name not in held]
    values, figure = {name: user_scores(held[name][0], truth[name], k) for name in held}, figures_at(k)[-1][0]
    rows, told = [], []
    for first, second in combinations(held, 2):
        if same[first] != same[second]:
            parts.append(Text(f"{first} and {second} answered different truths: no pairs."))
            continue
        interval = bootstrap_difference(values[first], values[second], resamples=_RESAMPLES, seed=0)
        chance = sign_flip_test(values[first], values[second], resamples=_RESAMPLES, seed=0)
        rows.append((f"{first} - {second}", {"score": tuple(interval)}))
        told.append((f"{first} - {second}", f"{len(values[first]):,}", f"{interval.mean:+.5f}",
                     f"{interval.low:+.5f} .. {interval.high:+.5f}", f"{chance:.4f}",
                     "yes" if interval.excludes_zero else "no"))
    if rows:
        parts += [Drawing(f"Difference of the {figure}, paired by user", interval_chart(rows, zero=True)),
                  Table(f"Paired differences of the {figure}", ("runs", "users", "difference", "95 % interval",
                                                            "p (sign flips)", "interval excludes 0"), told)]
    return parts or [Text("No two runs have a result.")]
