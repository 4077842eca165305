"""Inference as a stage: a checkpoint and an evaluation folder in, a checked result.json out.

`result.json` has the form that the platform's driver writes: {"time": seconds, "top10s": [...], "user": [...]}, plain
ints, ten distinct candidates for each user of `predict_seq.jsonl`. `funnel.json` tells how many candidates each step
kept and, where the truth is at hand, how many targets survived it.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp import __version__
from onepiece_comp.artefacts import fingerprint, peak_memory_mib, read_json
from onepiece_comp.config import Config, InferConfig
from onepiece_comp.config_reading import from_dict, override, result_settings
from onepiece_comp.console import progress, say
from onepiece_comp.dataset.evaluation_folder import Evaluation
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.answer_parts import Answers, Parts
from onepiece_comp.funnel.cascade import DEPTHS, Funnel
from onepiece_comp.funnel.rerank import Reranker, load_ranker
from onepiece_comp.logs.formats import ACTION_NAMES, LIST
from onepiece_comp.logs.truths import read_truth
from onepiece_comp.training.checkpoint import CONFIG, MODEL, Checkpoint, find_checkpoint

WITHOUT_RANKER = "without_ranker"
MODES = ("retrieval", "beam", "cascade")
_RECALL_USERS = 256  # for whom an approximate index is compared with exact retrieval


class Submission(NamedTuple):
    """What the platform's `infer()` returns, and the funnel."""

    top10s: list[list[int]]  # creative ids
    users: list[str]
    funnel: dict


def recommend(
    checkpoint: Checkpoint, evaluation: Evaluation, config: InferConfig, *, truth: Path | None = None,
    keep: Path | None = None, shard: tuple[int, int] = (0, 1),
) -> Submission | None:
    """Rank the candidates for every user of the evaluation, users of like history length together.

    With a folder `keep` answers are kept there in parts: a second call goes on where the first one stopped, and a
    `shard` (number, of how many) makes its share alone. None where parts of other shards are missing.
    """
    config = dataclasses.replace(config, mode=choose_mode(config.mode, checkpoint))
    device = next(checkpoint.model.parameters()).device
    reranker = load_ranker(Path(config.ranker), checkpoint, config.mode) if config.ranker else None
    ranker = Funnel(checkpoint, evaluation, config, device, keep=keep, depth=max(DEPTHS) if truth else LIST,
                    reranker=reranker if reranker is not None and reranker.kept else None)
    users = np.argsort(np.diff(evaluation.user_start), kind="stable")
    target = _targets(truth, evaluation, ranker) if truth else None
    parts = Parts(keep, _key(checkpoint, evaluation, config, target, reranker) if keep else "", shard=shard)
    chosen = np.full((len(users), LIST), -1, np.int64)
    total: dict[str, Counter] = {name: Counter() for name in ("kept", "survived", "filled")}
    batches, seconds = [users[i:i + config.batch_users] for i in range(0, len(users), config.batch_users)], 0.0
    for number, part, known in parts.mine(batches):
        if known is None:
            known = _answers(ranker, part, target, f"{config.mode}, part {number + 1} of {parts.count(batches)}")
            parts.save(number, known)
        chosen[np.concatenate(part)] = known.chosen
        seconds += known.seconds
        for name, counts in known.counts.items():
            total[name].update(counts)
    if (chosen < 0).any():
        return None
    creative = evaluation.items.creative_id[evaluation.candidate[chosen]]
    funnel = _funnel(evaluation, ranker, config.mode, total["kept"], total["survived"] if target is not None else None,
                     total["filled"], seconds)
    if reranker is not None:
        funnel["ranker"] = {"path": config.ranker, "kept": reranker.kept, "depth": reranker.depth}
    if ranker.approximate:
        funnel["index"] = _index_figures(ranker, users)
    submission = Submission(creative.tolist(), evaluation.users, funnel)
    check(submission, set(evaluation.items.creative_id[evaluation.candidate].tolist()))
    return submission


def _answers(ranker: Funnel, batches: list[np.ndarray], target: np.ndarray | None, what: str) -> Answers:
    """Rank some batches of users."""
    started, chosen = time.monotonic(), []
    counts: dict[str, Counter] = {name: Counter() for name in ("kept", "survived", "filled")}
    for batch in progress(batches, total=len(batches), what=what):
        ranked = ranker.rank(batch)
        chosen.append(ranked.index)
        counts["filled"].update(ranked.filled)
        for step, numbers in ranked.stages.items():
            counts["kept"][step] += sum(len(row) for row in numbers)
            if target is not None:
                counts["survived"][step] += sum(int(target[user] in row) for user, row in zip(batch, numbers))
    return Answers(np.concatenate(chosen), counts, time.monotonic() - started)


def _key(checkpoint: Checkpoint, evaluation: Evaluation, config: InferConfig, target: np.ndarray | None,
         reranker: Reranker | None) -> str:
    """What kept answers belong to: all that is read of the evaluation, the weights and the settings."""
    items = evaluation.items
    columns = [column for column in evaluation if isinstance(column, np.ndarray)]
    columns += [items.creative_id, items.id_row, items.features,
                *(part[fid] for part in (items.embeddings, items.present) for fid in sorted(part))]
    return fingerprint(__version__, checkpoint.path / MODEL, checkpoint.path / CONFIG, result_settings(config),
                       reranker and reranker.key, evaluation.users, *columns, np.zeros(0) if target is None else target)


def choose_mode(mode: str, checkpoint: Checkpoint) -> str:
    """`auto` is the cascade where the checkpoint has semantic ids; InputError where it lacks what the mode needs."""
    has_ids = checkpoint.model.decoder is not None
    if mode == "auto":
        return "cascade" if has_ids else "retrieval"
    if mode not in MODES:
        raise InputError(
            "infer.mode", found=repr(mode), expected=f"auto or one of {', '.join(MODES)}", do="correct the mode"
        )
    if mode != "retrieval" and not has_ids:
        raise InputError(
            checkpoint.path,
            found="a checkpoint without semantic ids",
            expected=f"one trained with a tokenizer for mode {mode}",
            do="train with --tokenizer, or use mode retrieval",
        )
    return mode


def _targets(truth: Path, evaluation: Evaluation, ranker: Funnel) -> np.ndarray:
    """Each user's target as a candidate number, -1 where unknown; says how many are, InputError where all are."""
    local = {int(creative): row for row, creative in enumerate(evaluation.items.creative_id)}
    target_of = {record.user: record.item for record in read_truth(truth)}
    number = ranker.candidates.number[[local.get(target_of.get(user, 0), 0) for user in evaluation.users]]
    absent = [user for user in evaluation.users if user not in target_of]
    if len(absent) == len(number):
        raise InputError(truth, found="none of the users to answer", expected="the truth of the same split",
                         do="check that truth and evaluation folder belong together")
    lost = [user for user, place in zip(evaluation.users, number) if place < 0 and user in target_of]
    if absent:
        say(f"funnel: {len(absent):,} of {len(number):,} users have no target in {truth}, for example {absent[0]}: "
            "misses")
    if lost:
        say(f"funnel: {len(lost):,} targets are no candidates, for example {target_of[lost[0]]} of user {lost[0]}: "
            "misses")
    return number


def _funnel(evaluation: Evaluation, ranker: Funnel, mode: str, kept: Counter, survived: Counter | None, filled: Counter,
            seconds: float) -> dict:
    users = len(evaluation.users)
    steps = [{"step": "candidates", "per_user": float(len(evaluation.candidate))},
             {"step": "seen in training", "per_user": float(ranker.candidates.warm_M.sum())}]
    for step in kept:
        steps.append({"step": step, "per_user": kept[step] / users})
        if survived is not None:
            steps[-1]["targets"] = survived[step] / users
    without = int((np.diff(evaluation.user_start) == 0).sum())
    return {
        "mode": mode,
        "asked_for": {ACTION_NAMES[action] if action < len(ACTION_NAMES) else "any action": int(count)
                      for action, count in zip(*np.unique(ranker.action, return_counts=True))},
        "users": users,
        "users_without_history": without,
        "steps": steps,
        "filled": dict(filled),
        "seconds": round(seconds, 2),
        "users_per_second": round(users / seconds, 1),
        "peak_memory_mib": round(peak_memory_mib()),
    }


def _index_figures(ranker: Funnel, users: np.ndarray) -> dict:
    """What the approximate index misses, by exact retrieval for some users of every history length."""
    sample, config = users[::-(-len(users) // _RECALL_USERS)], ranker.config
    depths = sorted({LIST, config.union} - {0}) if config.mode == "cascade" else [LIST]
    return {"kind": config.index, "fetch": config.index_fetch, "effort": config.index_effort, "users": len(sample),
            **{f"recall_at_{k}": round(ranker.index_recall(sample, k), 4) for k in depths}}


def check(submission: Submission, candidates: set[int]) -> None:
    """Our own promise: ten distinct candidates, plain ints, for every user, each user once."""
    assert len(submission.top10s) == len(submission.users) == len(set(submission.users)), "a user is lost or doubled"
    for user, ten in zip(submission.users, submission.top10s):
        assert len(set(ten)) == LIST and candidates.issuperset(ten), f"user {user} got {ten}"
        assert all(type(item) is int for item in ten), f"user {user} got items that are no plain ints"


def stored_config(checkpoint: Path, file: Path | None, sets: Sequence[str]) -> InferConfig:
    """The inference settings that a checkpoint carries, changed by a YAML file and overrides."""
    path = find_checkpoint(checkpoint) / CONFIG
    stored = from_dict(InferConfig, read_json(path).get("infer", {}), path)
    return override(Config(infer=stored), file, sets).infer
