"""Ranked lists against the true targets: tables, slices, intervals, differences by user, score.json."""

from collections.abc import Mapping
from pathlib import Path

from onepiece_comp import console
from onepiece_comp.artefacts import fingerprint, write_json
from onepiece_comp.config import ScoreConfig
from onepiece_comp.config_reading import to_dict
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation.score import (
    candidate_ids, counted, filters, if_there, judged_ranks, notes, read_histories, read_ranks, read_truths,
    score_difference, show_scores, slice_labels, sliced_scores, weighted_forms)
from onepiece_comp.logs.formats import LIST
from onepiece_comp.stages.alone import run_alone


def score(result: Path, truth: Path, config: ScoreConfig, *, against: Mapping[str, Path] | None = None,
          history: Path | None = None, train_index: Path | None = None, out: Path | None = None) -> dict:
    """Judge `result`, print tables, write score.json beside it (or to `out`) and return what it holds.

    `against` names other results for paired differences (ours - theirs). `history` is predict_seq.jsonl, beside which
    an indexer.pkl is read, `train_index` the training folder's indexer.pkl; they default to eval/ and train/ beside
    `truth` where these exist, and without them there are no slices by length or warmth. InputError for a broken file.
    """
    result, truth = Path(result), Path(truth)
    if not 1 <= config.k <= LIST or config.resamples < 1:
        raise InputError("score", found=f"k={config.k}, resamples={config.resamples}",
                         expected=f"k from 1 to {LIST}, at least one resample", do="correct the value")
    truths = read_truths(truth)
    history = history or if_there(truth.parent / "eval" / "predict_seq.jsonl")
    train_index = train_index or if_there(truth.parent / "train" / "indexer.pkl")
    ours = read_ranks(result, truths)
    others = {name: (Path(path), read_ranks(Path(path), truths)) for name, path in (against or {}).items()}
    rankings = [ours, *(other for _, other in others.values())]
    met = read_histories(history, truths, rankings) if history else None
    candidates = candidate_ids(truth.parent / "eval" / "predict_set.jsonl")
    judged = [{**judged_ranks(ranks, config), **counted(number, ranks, met, candidates)}
              for number, ranks in enumerate(rankings)]
    slices = slice_labels(truths, met, train_index)
    report = {
        "result": str(result), "truth": str(truth), "truth_fingerprint": fingerprint(truth), "config": to_dict(config),
        "users": len(truths), **judged[0], "weighted": weighted_forms(ours.rank, truths, config),
        "repeated_targets": None if met is None else len(met.repeats),
        "slices": {kind: sliced_scores(kind, labels, ours.rank, config) for kind, labels in slices.items()},
        "against": {name: {"result": str(path), **values, "difference": score_difference(ours, other, config)}
                    for (name, (path, other)), values in zip(others.items(), judged[1:])}}
    out = Path(out) if out else result.parent / "score.json"
    write_json(out, report)
    show_scores(report)
    for line in (*notes(dict(zip(("ours", *others), rankings)), truths, candidates), *filters(report)):
        console.say(line)
    console.say(f"wrote {out}")
    return report


if __name__ == "__main__":
    run_alone(score)
