"""The points of a grid of sizes as sections of a report:
table, laws, exponents, frontier, forecast of the largest size.

Stands between `laws.py` and those who show it: `scaling.py` and `report.py`. Reads scaling.json alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import read_json
from onepiece_comp.console import mean_and_spread
from onepiece_comp.reports.page import Plot, Section, Table, Text
from onepiece_comp.studies.laws import best_law, fit, forecast, frontier, interval, judge

COLUMNS = ("row", "objective", "seed", "data", "dense", "tables", "events", "FLOP", "InfoNCE", "ids", "HR@10", "score",
           "minutes")
_SIZES = {"dense": "dense parameters N", "events": "events D", "flops": "FLOP C"}
_FEWEST = 4  # sizes from which a law is fitted


class Point(NamedTuple):
    """What one training reached; None where it does not train the objective that is judged."""

    dense: int  # parameters
    tables: int  # parameters of embeddings
    events: int  # trained on, epochs counted
    flops: float
    retrieval: float | None  # held-out InfoNCE per event
    semantic: float | None  # held-out cross-entropies of the codes, summed, per event
    hr: float | None
    ndcg: float | None
    score: float | None
    seconds: float
    codes: Sequence[float] = ()  # held-out cross-entropy of each code, those before it given; sums to `semantic`

    def cells(self) -> list[str]:
        """As the last columns of the table."""
        real = lambda value: "" if value is None else f"{value:.4f}"
        return [f"{self.dense:,}", f"{self.tables:,}", f"{self.events:,}", f"{self.flops:.3g}", real(self.retrieval),
                _ids(self.codes), real(self.hr), real(self.score), f"{self.seconds / 60:.1f}"]


def scaling_sections(file: Path, lines: Sequence[Sequence[str]] = ()) -> list[Section]:
    """Sections over scaling.json; `lines` are the rows of the table, those that did not run among them."""
    rows = [{**Point._field_defaults, **row} for row in read_json(file)["rows"]]
    lines = lines or [(row["row"], row["objective"], str(row["seed"]), f"{row['share']:g}",
                       *Point(**{name: row[name] for name in Point._fields}).cells()) for row in rows]
    sections = [Section("Grid", [Text("Loss is per event of users that no row trains on, with the same keys for every "
                                      "row; embedding tables are counted apart from dense parameters. The best law is "
                                      "that of the "
                                      "least AIC, corrected for few points, or of the least error on the sizes left "
                                      "out where "
                                      "there are too few points for the correction."),
                                 Table(Path(file).parent.name, COLUMNS, lines)])]
    sections += [Section("Alone and together", _together(rows))] if any(row["objective"] == "both"
                                                                        for row in rows) else []
    for objective in dict.fromkeys(row["objective"] for row in rows):
        mine = [row for row in rows if row["objective"] == objective and not row["beside"]]
        for name in dict.fromkeys(name for row in mine for name in _losses(row)):
            sections.append(Section(f"{name}, trained for {objective}",
                                    _laws([row for row in mine if name in _losses(row)], name)))
    return sections


def _losses(row: dict) -> dict[str, float]:
    """The held-out losses of a row by name."""
    codes = ([(f"code {level}", value) for level, value in enumerate(row["codes"], 1)] if row["semantic"] is not None
             else [])
    found = [("InfoNCE", row["retrieval"]), ("semantic ids", row["semantic"]), *codes]
    return {name: value for name, value in found if value is not None}


def _ids(codes: Sequence[float]) -> str:
    return f"{sum(codes):.4f} ({' + '.join(f'{code:.2f}' for code in codes)})" if codes else ""


def _together(rows: Sequence[dict]) -> list:
    """Each objective's held-out loss alone and beside the other, of the rows that have both; the same seeds."""
    at = {(row["row"], row["objective"], row["seed"]): _losses(row) for row in rows}
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        cells = [name]
        for alone, loss in (("InfoNCE", "InfoNCE"), ("ids", "semantic ids")):
            pairs = [(at[name, alone, seed][loss], found[loss]) for (row, objective, seed), found in at.items()
                     if row == name and objective == "both" and (name, alone, seed) in at]
            change = [both - single for single, both in pairs]
            cells += ["", "", "", "0"] if not pairs else [
                *(f"{value:.4f}" for value in np.mean(pairs, axis=0)),
                mean_and_spread(change, sign=True), str(len(pairs))]
        lines.append(cells)
    return [Text("Held-out losses of a model trained for one objective and of the same model trained for both; the "
                 "spread is "
                 "that of the differences over seeds. Both have the optimiser steps and users of the row."),
            Table("", ("row", "InfoNCE alone", "with ids", "change", "seeds", "ids alone", "with InfoNCE", "change",
                       "seeds"),
                  lines)]


def _laws(rows: Sequence[dict], loss: str) -> list:
    parts, table, cheapest = [], [], _frontier(rows, loss)
    for key, name in _SIZES.items():
        # sizes of models on all of the data, sizes of data under the model that saw most shares, cost of the frontier
        chosen = (cheapest if key == "flops"
                  else [(rows[place], _losses(rows[place])[loss]) for place in _varied(rows, key)])
        size, found = np.array([row[key] for row, _ in chosen], float), np.array([value for _, value in chosen])
        if len(np.unique(size)) < _FEWEST:
            parts.append(Text(f"{name}: {len(np.unique(size))} sizes, and a law needs {_FEWEST}."))
            continue
        judged = judge(size, found)
        best = best_law(judged)
        for one in judged:
            table.append((name, one.law.name, ", ".join(f"{value:.4g}" for value in one.law.values),
                          _interval(one, size, found),
                          f"{one.r2:.3f}", "" if one.aic is None else f"{one.aic:.1f}", f"{one.left_out:.4f}",
                          "yes" if one.law.name == best else ""))
        parts.append(_plot(name, size, found))
        said = ", ".join(f"{law} {value:.4f} (off by {off:+.4f})" for law,
                         (value, off) in forecast(size, found).items())
        parts.append(Text(f"{name}: forecast of the largest, which the fit did not see: {said}."))
    parts.append(Table("Compute-optimal runs: none cheaper is as good, means over seeds",
                       ("FLOP", "row", "data", "dense", "loss"), [
        (f"{row['flops']:.3g}", row["row"], f"{row['share']:g}", f"{row['dense']:,}", f"{value:.4f}") for row,
        value in cheapest]))
    laws = [Table("Laws", ("of", "law", "E, A, a | c, b | c", "95 % of the last", "R2", "AIC", "error left out",
                           "best"), table)]
    return (laws if table else []) + parts


def _varied(rows: Sequence[dict], key: str) -> np.ndarray:
    """Places of the rows that differ in `key` and not in what else decides the loss."""
    if key == "dense":
        return np.array([place for place, row in enumerate(rows) if row["share"] == 1.0], int)
    models = [row["dense"] for row in rows]
    most = max(set(models), key=lambda model: (len({row["events"] for row in rows if row["dense"] == model}), model))
    return np.array([place for place, row in enumerate(rows) if row["dense"] == most], int)


def _interval(judged: object, size: np.ndarray, loss: np.ndarray) -> str:
    low, high = interval(judged.law.name, size, loss, resamples=100)[-1]
    return f"{low:.4g} .. {high:.4g}"


def _plot(name: str, size: np.ndarray, loss: np.ndarray) -> Plot:
    line = np.geomspace(size.min(), size.max(), 60)
    at = np.concatenate([line, size])
    order = np.argsort(at, kind="stable")
    curves = {law: np.asarray(fit(law, size, loss).at(at))[order] for law in ("power", "log-linear", "constant")}
    measured = np.concatenate([np.full(len(line), np.nan), loss])[order]
    return Plot(f"Loss by {name}", at[order], {"measured": measured, **curves}, name, "held-out loss", log="x",
                points=("measured",))


def _frontier(rows: Sequence[dict], loss: str) -> list[tuple[dict, float]]:
    """Trainings that no cheaper one equals, and their losses: means over seeds, for a lucky seed is no better model."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["row"], []).append(_losses(row)[loss])
    one = {row["row"]: row for row in rows}
    means = [(one[name], float(np.mean(values))) for name, values in found.items()]
    places = frontier(np.array([row["flops"] for row, _ in means]), np.array([value for _, value in means]))
    return [means[place] for place in places]
