"""One work folder of `run` as sections of a report: data, training, funnel, scores by slice, experts.

Stands after the judge and before `report.py`. Reads only what the stages wrote (JSON and memory-mapped columns), so
that it takes seconds; where a file is missing the section says which command makes it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from onepiece_comp.artefacts import MARKERS, fingerprint, read_json, read_marker
from onepiece_comp.columns import load_column
from onepiece_comp.evaluation.metrics import bootstrap_mean
from onepiece_comp.evaluation.score import user_scores
from onepiece_comp.logs.formats import LIST
from onepiece_comp.logs.truths import read_truth
from onepiece_comp.reports.drawings import funnel_chart, interval_chart
from onepiece_comp.reports.log_figures import gini
from onepiece_comp.reports.log_sections import length_bars, rank_curve
from onepiece_comp.reports.page import BARS, Cards, Drawing, Plot, Section, Table, Text

STAGES = ("retrieval", "joint")
_POPULARITY = {0: "never in training", 1: "1-4 events", 5: "5-19 events", 20: "20-99 events", 100: "100+ events"}
_RESAMPLES = 500
_MAKES = {"split": "onepiece-comp split RAW {work}/split",
          "dataset": "onepiece-comp preprocess {work}/split/train {work}/dataset",
          "retrieval": "onepiece-comp train {work}/dataset {work}/retrieval",
          "joint": "onepiece-comp train {work}/dataset {work}/joint --tokenizer {work}/tokenizer --warm-start "
                   "{work}/retrieval",
          "tokenizer": "onepiece-comp build-tokenizer {work}/dataset {work}/tokenizer --ckpt {work}/retrieval",
          "result": "onepiece-comp infer --ckpt {work}/joint --data {work}/split/eval --truth "
                    "{work}/split/truth.jsonl --out {work}/result",
          "score.json": "onepiece-comp score {work}/result/result.json {work}/split/truth.jsonl"}


def missing(work: Path, file: str) -> Text:
    """What is said in the place of a section whose file is not there."""
    command = _MAKES.get(Path(file).parts[0], "onepiece-comp run RAW {work}").format(work=work)
    return Text(f"{work / file} is missing; this makes it: {command}", warning=True)


def section_or_missing(title: str, work: Path, needs: Sequence[str], make: Callable[[], list]) -> Section:
    """The section that `make` gives, or what is missing of the files that it `needs`."""
    absent = [file for file in needs if not (work / file).exists()]
    return Section(title, [missing(work, file) for file in absent] if absent else make())


def run_sections(work: Path) -> list[Section]:
    """The sections of a run that need figures alone."""
    data, truth, result = "dataset/schema.json", "split/truth.jsonl", "result/result.json"
    return [section_or_missing("Data", work, [data, "split/split.json"], lambda: _data(work)), _training(work),
            section_or_missing("Funnel", work, ["result/funnel.json"], lambda: _funnel(work)),
            Section("Score by slice", _slices(work)),
            section_or_missing("Score by popularity of the target", work, [data, truth, result],
                               lambda: _popularity(work)),
            _experts(work)]


def _data(work: Path) -> list:
    folder, split = work / "dataset", read_json(work / "split" / "split.json")
    marker, figures = read_marker(folder, "dataset"), split["figures"]
    corners, count = marker.get("corners", {}), np.asarray(load_column(folder, "item_count"))[1:]
    start = np.asarray(load_column(folder, "user_start"))
    rank, events = rank_curve(count)
    edges, users = length_bars(np.bincount(np.diff(start)))
    cards = [(what, f"{figures[key]:,}", word) for what, key, word in (
        ("users in training", "users in train", ""), ("events in training", "events in train", ""),
        ("items in training", "items in train", ""), ("users to answer", "eval users", ""),
        ("candidates", "candidates", f"{figures.get('candidates, cold', 0):,} of them cold"),
        ("cold targets", "cold targets", "items that training never saw"),
        ("repeated targets", "targets seen in the history", "items of the user's own history")) if key in figures]
    cards.append(("Gini of items' events", f"{gini(count[count > 0]):.2f}", "0 = all items alike"))
    cover = [(name, f"{width}", f"{100 * found['items'] / max(1, found['items'] + found['missing']):.1f} %")
             for name, width in marker.get("embeddings", {}).items() if (found := marker["coverage"].get(name))]
    return [Cards(cards), Plot("Events per user in training", edges, {"users": users}, "events", "users", BARS),
            Plot("Item popularity by rank", rank, {"events": events}, "rank of the item", "events", log="xy"),
            Table("Training log", ("what", "count"), [(name, f"{value:,}") for name, value in corners.items()]),
            *([Table("Embeddings", ("feature", "width", "items that have it"), cover)] if cover else []),
            Text(f"Split: {split['config']['mode']}" + (f", cut at {split['cut_time']}." if split.get("cut_time")
                                                        else "."))]


def read_run_log(run: Path) -> list[dict]:
    """The records of a run's log; the line that a kill cut short is left out."""
    records = []
    for line in (run / "log.jsonl").read_text("utf-8").splitlines() if (run / "log.jsonl").is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:  # cut short
            continue
    return records


def curves(records: Sequence[dict], names: dict[str, str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(steps, label to values) of those of `names` (key to label) that some record has and that are not all 0."""
    held = [record for record in records if any(name in record for name in names)]
    values = {label: np.array([record.get(name, np.nan) for record in held], float) for name, label in names.items()}
    return np.array([record["global_step"] for record in held]), {
        label: column for label, column in values.items() if np.any(np.nan_to_num(column))}


_CURVES = (("Losses", {"Loss/retrieval": "InfoNCE", "Loss/semantic": "semantic ids", "Loss/conditioned": "conditioned",
                       "Loss/balance": "balance"}, "loss", ""),
           ("On held-out users", {"valid/HR@10": "HR@10", "valid/NDCG@10": "NDCG@10", "valid/score": "score"}, "figure",
            ""),
           ("Learning rates", {"learning_rate": "AdamW", "muon_learning_rate": "Muon"}, "rate", "y"),
           ("Gradient norm", {"gradient_norm": "norm"}, "norm before clipping", "y"),
           ("Speed", {"users_per_second": "users/s"}, "users per second", ""))


def _training(work: Path) -> Section:
    parts = []
    for stage in STAGES:
        records = read_run_log(work / stage)
        if not records:
            parts.append(missing(work, f"{stage}/log.jsonl"))
            continue
        if (work / stage / MARKERS["run"]).is_file():
            figures = read_marker(work / stage, "run")["figures"]
            parts.append(Cards([(f"{stage}: {name.replace('_', ' ')}",
                                 f"{value:,}" if isinstance(value, int) else f"{value:,.4g}", "")
                                for name, value in figures.items()]))
        for title, names, unit, log in _CURVES:
            steps, series = curves(records, names)
            if series:
                parts.append(Plot(f"{stage}: {title}", steps, series, "step", unit, log=log))
    return Section("Training", parts)


def _experts(work: Path) -> Section:
    parts, names = [], {"expert_gini": "Gini (0 = equal)", "expert_entropy": "entropy (1 = equal)"}
    for stage in STAGES:
        steps, series = curves(read_run_log(work / stage), names)
        if series:
            unused = [record.get("experts_unused", 0) for record in read_run_log(work / stage)]
            parts += [Plot(f"{stage}: load of the experts", steps, series, "step", "share"),
                      Text(f"{stage}: at most {max(unused)} experts without a token in an interval of the log.")]
    return Section("Experts", parts or [Text("No log tells the load of experts: the model has none, or did not "
                                             "train.")])


def _funnel(work: Path) -> list:
    funnel = read_json(work / "result" / "funnel.json")
    steps = [(step["step"], float(step["per_user"]), step.get("targets")) for step in funnel["steps"]]
    told = {name.removeprefix("best ").replace(",", ""): share for name, _, share in steps if share is not None}
    told["10"] = told.pop("ten", None)
    cards = [(f"recall at {depth}", f"{100 * told[depth]:.1f} %" if told.get(depth) is not None else "not told", "")
             for depth in ("10", "100", "384", "1000")]
    parts = [Cards([*cards, ("users per second", f"{funnel['users_per_second']:,}", f"{funnel['mode']}")]),
             Drawing("Candidates and targets after each step", funnel_chart(steps))]
    if told.get("1000") is None:
        parts.append(Text("Recall at 1000 is told where the ranking goes so deep: onepiece-comp infer --mode retrieval "
                          "--truth TRUTH. A cascade ends with the survivors and the union."))
    filled = [(name, f"{count:,}") for name, count in funnel.get("filled", {}).items() if count]
    return parts + ([Table("Places filled up", ("from", "places"), filled)] if filled else [])


def _three(interval: dict) -> tuple[float, float, float]:
    return interval["mean"], interval["low"], interval["high"]


def read_score(work: Path) -> dict | Text:
    """What the judge said of the run's result, as `run` or `score` left it;
    a warning where it is of another result or truth.
    """
    result, truth = work / "result" / "result.json", work / "split" / "truth.jsonl"
    reports = [read_json(file) for file in (work / "score.json", work / "result" / "score.json") if file.is_file()]
    if not reports:
        return missing(work, "score.json")
    if not (result.is_file() and truth.is_file()):
        return reports[0]  # nothing to hold it against
    same = [report for report in reports if report["truth_fingerprint"] == fingerprint(truth)]
    truths = read_truth(truth) if same else []
    for report in same:
        if abs(user_scores(result, truths, report["config"]["k"]).mean() - report["score"]["mean"]) < 1e-9:
            return report
    return Text(f"The score in {work} is of another {'result' if same else 'truth'} than stands there; this makes it "
                f"anew: "
                f"{_MAKES['score.json'].format(work=work)}", warning=True)


def figures_at(k: int) -> tuple[tuple[str, str], ...]:
    """(label, key of score.json) of the figures of lists cut at k."""
    return (f"HR@{k}", "hr"), (f"NDCG@{k}", "ndcg"), ("score" if k == LIST else f"score@{k}", "score")


def _slices(work: Path) -> list:
    report = read_score(work)
    if isinstance(report, Text):
        return [report]
    parts = [Cards([(name, f"{report[key]['mean']:.4f}", f"{report[key]['low']:.4f} .. {report[key]['high']:.4f}")
                    for name, key in figures_at(report["config"]["k"])])]
    for kind, labels in report["slices"].items():
        rows = [(f"{label} ({row['users']:,})", {"score": _three(row["score"])}) for label, row in labels.items()]
        parts.append(Drawing(f"Score by {kind}" + (" (events)" if kind == "history" else ""), interval_chart(rows)))
    others = [(name, {"score": _three(row["score"])}) for name, row in report["against"].items()]
    parts.append(Drawing("Beside other rankings of the same users",
                         interval_chart([("this result", {"score": _three(report["score"])}), *others])))
    return parts


def target_counts(work: Path) -> np.ndarray:
    """Events in training of each user's target, in the order of the truth."""
    ids, count = (np.asarray(load_column(work / "dataset", name)) for name in ("creative_id", "item_count"))
    events = dict(zip(ids.tolist(), count.tolist()))
    return np.array([events.get(truth.item, 0) for truth in read_truth(work / "split" / "truth.jsonl")])


def _popularity(work: Path) -> list:
    report = read_score(work)
    k = report["config"]["k"] if isinstance(report, dict) else LIST
    values = user_scores(work / "result" / "result.json", read_truth(work / "split" / "truth.jsonl"), k)
    bucket, firsts = target_counts(work), list(_POPULARITY)
    place, rows = np.searchsorted(firsts, bucket, side="right") - 1, []
    for number, label in enumerate(_POPULARITY.values()):
        chosen = values[place == number]
        if len(chosen):
            interval = bootstrap_mean(chosen, resamples=_RESAMPLES, seed=0)
            rows.append((f"{label} ({len(chosen):,})", {"score": tuple(interval)}))
    return [Drawing(f"{figures_at(k)[-1][0].capitalize()} by events of the target in training", interval_chart(rows))]
