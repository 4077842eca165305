"""A public benchmark's results as sections of a page that can be sent on: figures, differences, trainings, cost.

Stands between `pairs.py` and `report.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onepiece_comp.benchmark.full_ranking import CUTS, FILTERS
from onepiece_comp.benchmark.pairs import BASELINES, baselines_of, own_interval, pair_cells
from onepiece_comp.console import mean_and_spread
from onepiece_comp.reports.drawings import interval_chart
from onepiece_comp.reports.page import Cards, Drawing, Plot, Section, Table, Text

METRICS = tuple(f"{name}@{cut}" for cut in CUTS for name in ("hr", "ndcg"))
_MAKE_UP = ("coverage@10", "popularity@10")
_CURVES = 6  # as many as there are colours
Rows = Mapping[str, Sequence[tuple[Path, dict]]]  # files of each row and what they hold


def benchmark_sections(name: str, rows: Rows, compared: Mapping[str, dict]) -> list[Section]:
    """Sections over the rows that have results; `compared` as `against_baselines` gives it."""
    ran = {row: results for row, results in rows.items() if results}
    if not ran:
        return [Section("Figures", [Text("No row has been run.")])]
    missing = [row for row in rows if row not in ran]
    return [_data(name, next(iter(ran.values()))[0][1]["about"], missing), _figures(ran), _differences(ran, compared),
            _trainings(ran), _cost(ran)]


def _data(name: str, about: dict, missing: Sequence[str]) -> Section:
    cards = Cards([("users", f"{about['users']:,}", f"{about['users_left_out']:,} with too few events left out"),
                   ("items", f"{about['items']:,}", "all are ranked"), ("events", f"{about['events']:,}", "")])
    texts = [Text(f"{name}, version {about['version']}: last event = test, the one before = validation, the rest "
                  f"trains; history of "
                  f"{about['max_length']}; events of the same time in the order of the "
                  f"{'file' if about['ties'] == 'file' else 'dice'}. "
                  "Weights are of the best validation NDCG@10; a target that ties takes the last place.")]
    texts += [Text("A quick run: it shows that all works, its figures say nothing.",
                   warning=True)] if about["quick"] else []
    texts += [Text(f"Not run: {', '.join(missing)}.")] if missing else []
    return Section("Data and protocol", [cards, *texts])


def _figures(ran: Rows) -> Section:
    lines = [(row, kind, len(results), *(_cell(results, kind, metric) for metric in (*METRICS, *_MAKE_UP)))
             for row, results in ran.items() for kind in FILTERS]
    chart = interval_chart([(row, {kind: own_interval(results, kind) for kind in FILTERS}) for row,
                            results in ran.items()])
    return Section("Figures", [
        Text("Means over seeds; `unseen` leaves out the items of the history. The chart's intervals, 95 %, are over "
             "users."),
        Drawing("NDCG@10", chart), Table("", ("row", "items", "seeds", *METRICS, *_MAKE_UP), lines)])


def _cell(results: Sequence[tuple[Path, dict]], kind: str, metric: str) -> str:
    return mean_and_spread([found["figures"][kind].get(metric, float("nan")) for _, found in results])


def _differences(ran: Rows, compared: Mapping[str, dict]) -> Section:
    parts: list = [Text("NDCG@10 of a row less that of a baseline, paired by user, mean over the seeds that both "
                        "have; 95 % intervals "
                        "of bootstraps over users.")]
    for baseline, pairs in compared.items():
        parts.append(Drawing(f"To {baseline}", interval_chart([
            (row, {kind: tuple(pair[kind][part] for part in ("mean", "low", "high")) for kind in FILTERS})
            for row, pair in pairs.items()], zero=True)))
    lines = [(row, kind, *pair_cells(compared, row, kind)) for row in ran for kind in FILTERS]
    lines = [line for line in lines if any(line[2:])]
    return Section("Differences by user", [*parts, Table("", ("row", "items", *baselines_of(compared)), lines)] if lines
                   else [
        Text(f"None of {', '.join(BASELINES)} has been run beside another row.")])


def _trainings(ran: Rows) -> Section:
    best = sorted((row for row, results in ran.items() if results[0][1]["epochs"]),
                  key=lambda row: -max(epoch["valid_ndcg"] for epoch in ran[row][0][1]["epochs"]))[:_CURVES]
    curves = {row: [epoch["valid_ndcg"] for epoch in ran[row][0][1]["epochs"]] for row in best}
    longest = max(map(len, curves.values()), default=0)
    padded = {row: np.array([*values, *[np.nan] * (longest - len(values))]) for row, values in curves.items()}
    return Section("Training", [Plot("Validation NDCG@10, first seed", np.arange(1, longest + 1), padded, "epoch",
                                     "NDCG@10")]
                   if curves else [Text("No row that trains has been run.")])


def _cost(ran: Rows) -> Section:
    mean = lambda results, name: float(np.mean([found[name] or 0 for _, found in results]))
    return Section("Cost", [Table("Means over seeds; a first stage that rows share counts in each", (
        "row", "parameters", "best epoch", "wall minutes", "CPU minutes", "threads", "users/s", "peak MiB"), [
        (row, f"{mean(results, 'parameters'):,.0f}", f"{mean(results, 'best_epoch'):.0f}",
         f"{mean(results, 'seconds') / 60:.1f}",
         f"{mean(results, 'cpu_seconds') / 60:.1f}", f"{mean(results, 'threads'):.0f}",
         f"{mean(results, 'users_per_second'):,.0f}",
         f"{mean(results, 'peak_memory_mib'):,.0f}") for row, results in ran.items()])])
