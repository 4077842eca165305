"""The judge as a stage: a result file against truth.jsonl gives tables and score.json.

HR@k, NDCG@k and score with 95 % bootstrap intervals, the second round's action-weighted forms, the same by history
length, repeated or new, warm or cold target and action, and paired differences to other results on the same users. What
nobody can hit and rankings under different filters are counted and said. Arithmetic: `metrics.py`; source: Tencent
Advertising Algorithm Challenge 2025 (arXiv 2604.04976), section 6.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp import console
from onepiece_comp.artefacts import read_json
from onepiece_comp.config import ScoreConfig
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation import metrics
from onepiece_comp.logs.formats import (
    CLICK, CONVERSION, EXPOSURE, LIST, UNKNOWN_ACTION, read_candidates, read_index, read_sequences)
from onepiece_comp.logs.raw_folder import OriginalIds
from onepiece_comp.logs.truths import Truth, read_truth

ACTION_NAMES = {EXPOSURE: "exposure", CLICK: "click", CONVERSION: "conversion", UNKNOWN_ACTION: "unknown"}
HISTORY_BUCKETS = {0: "0", 1: "1-4", 5: "5-9", 10: "10-19", 20: "20-49", 50: "50+"}  # by their first length, in events
_ABSENT = "not in the file"
LABELS = {"history": (*HISTORY_BUCKETS.values(), _ABSENT), "repeat": ("yes", "no", _ABSENT), "target": ("warm", "cold"),
          "action": tuple(ACTION_NAMES.values())}


class TargetRanks(NamedTuple):
    """Where a result has the target of each user of the truth."""

    rank: np.ndarray  # int64 [users], 1-based, 0 = not in the list
    items: np.ndarray  # int64 [users, LIST], the lists; -1 for a user that the result lacks
    missing: list[str]  # users of the truth that the result lacks: misses
    ignored: list[str]  # users of the result that the truth lacks


class Histories(NamedTuple):
    """What the users of the truth had met before their target."""

    length: dict[str, int]  # events of each user of the file
    repeats: set[str]  # users whose target is among them
    shown: list[int]  # of each result: lists that hold one of them


def read_truths(path: Path) -> list[Truth]:
    truths = read_truth(path)
    if not truths:
        raise InputError(path, found="no users", expected="at least one line", do="make the split again")
    strange = next((truth for truth in truths if truth.action not in ACTION_NAMES), None)
    if strange:
        raise InputError(f"{path}: user {strange.user}", found=f"action {strange.action!r}",
                         expected=f"one of {', '.join(map(str, ACTION_NAMES))}", do="make the split again")
    return truths


def if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def read_ranks(path: Path, truths: list[Truth]) -> TargetRanks:
    """The rank of each user's target in a result file; InputError where the file is not a whole, valid result."""
    lists = _read_result(path)
    known = {truth.user for truth in truths}
    ignored = [user for user in lists if user not in known]
    if len(ignored) == len(lists):
        raise InputError(path, found="none of the users of the truth", expected="a result for the same split",
                         do="check that both paths belong together")
    rank = [_rank(lists.get(truth.user, ()), truth.item) for truth in truths]
    items = [lists.get(truth.user, [-1] * LIST) for truth in truths]
    missing = [truth.user for truth in truths if truth.user not in lists]
    return TargetRanks(np.array(rank, np.int64), np.array(items, np.int64), missing, ignored)


def user_scores(result: Path, truths: list[Truth], k: int = LIST) -> np.ndarray:
    """The score of each user of the truth, float64 [users]: their mean is the result's."""
    return _measures(read_ranks(Path(result), truths).rank, k)["score"]


def _rank(items: list[int] | tuple, target: int) -> int:
    return items.index(target) + 1 if target in items else 0


def _read_result(path: Path) -> dict[str, list[int]]:
    """User to list, checked: the keys, as many lists as users, each user once, ten distinct whole numbers."""
    value, again = read_json(path), "write the result again with infer"
    if not isinstance(value, dict) or not {"time", "top10s", "user"} <= value.keys():
        found = f"the keys {sorted(value)}" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise InputError(path, found=found, expected="an object with time, top10s and user", do=again)
    lists, users = value["top10s"], value["user"]
    if not (isinstance(lists, list) and isinstance(users, list) and len(lists) == len(users)):
        sizes = [len(part) if isinstance(part, list) else type(part).__name__ for part in (lists, users)]
        raise InputError(path, found=f"top10s and user of lengths {sizes}", expected="lists of equal length", do=again)
    by_user: dict[str, list[int]] = {}
    for user, items in zip(users, lists):
        if not isinstance(user, str) or user in by_user:
            raise InputError(path, found=f"the user {user!r}" + (" twice" if isinstance(user, str) else ""),
                             expected="original ids as text, each once", do=again)
        if not isinstance(items, list) or not all(type(item) is int and 0 <= item < 1 << 63 for item in items):
            raise InputError(f"{path}: user {user}", found=f"items {items!r}",
                             expected="whole numbers (creative ids) of at most 63 bits", do=again)
        if len(items) != LIST or len(set(items)) != LIST:
            raise InputError(f"{path}: user {user}", found=f"{len(items)} items, {len(set(items))} distinct",
                             expected=f"{LIST} distinct items", do=again)
        by_user[user] = items
    return by_user


def _measures(rank: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The three figures of each user."""
    hit, gain = metrics.hit_rate(rank, k), metrics.ndcg(rank, k)
    return {"hr": hit, "ndcg": gain, "score": metrics.combined_score(hit, gain)}


def _intervals(values: Mapping[str, np.ndarray], config: ScoreConfig, weight: np.ndarray | None = None) -> dict:
    return {name: metrics.bootstrap_mean(column, resamples=config.resamples, seed=config.seed, weight=weight)._asdict()
            for name, column in values.items()}


def judged_ranks(ranks: TargetRanks, config: ScoreConfig) -> dict:
    return {"missing_users": len(ranks.missing), "ignored_users": len(ranks.ignored),
            **_intervals(_measures(ranks.rank, config.k), config)}


def weighted_forms(rank: np.ndarray, truths: list[Truth], config: ScoreConfig) -> dict[str, dict | None]:
    """The two readings of the second round; None where no target has weight."""
    weight = metrics.relevance([truth.action for truth in truths])
    if not weight.any():
        return {"per_user": None, "global": None}
    measures = _measures(rank, config.k)
    ratios = {name: metrics.per_user_ratio(values, weight) for name, values in measures.items()}
    return {"per_user": {"users": int((weight > 0).sum()), **_intervals(ratios, config)},
            "global": {"users": len(truths), **_intervals(measures, config, weight)}}


def slice_labels(truths: list[Truth], met: Histories | None, train_index: Path | None) -> dict[str, list[str]]:
    """A label for each user of the truth, by each way to slice that the files at hand allow."""
    labels = {}
    if met:
        labels["history"] = [bucket(met.length.get(truth.user)) for truth in truths]
        labels["repeat"] = [_ABSENT if truth.user not in met.length else "yes" if truth.user in met.repeats else "no"
                            for truth in truths]
    if train_index:
        known = read_index(train_index).items
        labels["target"] = ["warm" if truth.item in known else "cold" for truth in truths]
    labels["action"] = [ACTION_NAMES[truth.action] for truth in truths]
    return labels


def read_histories(path: Path, truths: list[Truth], rankings: list[TargetRanks]) -> Histories:
    """What predict_seq.jsonl tells of the truth's users and their lists; an indexer.pkl beside it undoes re-ids."""
    names = OriginalIds(read_index(Path(path).with_name("indexer.pkl"))._replace(features={}))
    place = {truth.user: number for number, truth in enumerate(truths)}
    met = Histories({}, set(), [0] * len(rankings))
    for line in read_sequences(path):
        user = names.user(line.user)
        if user in place:
            number, own = place[user], {names.item(event.item) for event in line.events}
            if user in met.length:
                raise InputError(path, found=f"user {user} on two lines", expected="one line per user", do="merge them")
            met.length[user] = len(line.events)
            met.repeats.update([user] if truths[number].item in own else ())
            for which, ranks in enumerate(rankings):
                met.shown[which] += not own.isdisjoint(ranks.items[number].tolist())
    return met


def candidate_ids(path: Path) -> np.ndarray | None:
    """The candidate set beside the truth, int64; None where there is none."""
    return np.fromiter((one.creative_id for one in read_candidates(path)), np.int64) if path.is_file() else None


def _outside(items: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
    """Which of `items`, of any shape, are no candidates; none where the candidates are not known."""
    return np.zeros(items.shape, bool) if candidates is None else (items >= 0) & ~np.isin(items, candidates)


def counted(number: int, ranks: TargetRanks, met: Histories | None, candidates: np.ndarray | None) -> dict[str,
    int | None]:
    """How many lists of a ranking hold what their user had met, and what is no candidate; None where none can know."""
    strange = int(_outside(ranks.items, candidates).any(1).sum())
    return {"lists_with_seen_items": None if met is None else met.shown[number],
            "lists_with_no_candidates": None if candidates is None else strange}


def bucket(length: int | None) -> str:
    """The label of a history length: 0, 1-4, 5-9, 10-19, 20-49, 50+; None is a user that the file lacks."""
    if length is None:
        return LABELS["history"][-1]
    return HISTORY_BUCKETS[max(first for first in HISTORY_BUCKETS if first <= length)]


def sliced_scores(kind: str, labels: list[str], rank: np.ndarray, config: ScoreConfig) -> dict[str, dict]:
    """Figures of each label that occurs."""
    column, figures = np.array(labels), {}
    for label in LABELS[kind]:
        chosen = rank[column == label]
        if len(chosen):
            figures[label] = {"users": len(chosen), **_intervals(_measures(chosen, config.k), config)}
    return figures


def score_difference(ours: TargetRanks, other: TargetRanks, config: ScoreConfig) -> dict[str, dict]:
    """Paired intervals of ours - theirs for each figure."""
    mine, yours, differences = _measures(ours.rank, config.k), _measures(other.rank, config.k), {}
    for name in mine:
        interval = metrics.bootstrap_difference(mine[name], yours[name], resamples=config.resamples, seed=config.seed)
        differences[name] = {**interval._asdict(), "excludes_zero": interval.excludes_zero}
    return differences


def _figures(row: dict, users: int) -> tuple[str, ...]:
    """The cells of a ranking or a slice; one user has no interval."""
    interval = _range(row["score"]) if users > 1 else "one user"
    return (f"{users:,}", *(f"{row[name]['mean']:.5f}" for name in ("hr", "ndcg", "score")), interval)


def _range(interval: dict, sign: str = "") -> str:
    return f"{interval['low']:{sign}.5f} .. {interval['high']:{sign}.5f}"


def notes(rankings: Mapping[str, TargetRanks], truths: list[Truth], candidates: np.ndarray | None) -> Iterator[str]:
    """What nobody can hit or does not belong together, each with a count and an example."""
    for name, ranks in rankings.items():
        if ranks.missing or ranks.ignored:
            yield (f"{name}: {len(ranks.missing):,} users of the truth are missing (counted as misses), "
                   f"{len(ranks.ignored):,} users that the truth lacks were ignored, for example "
                   f"{' and '.join(users[0] for users in (ranks.missing, ranks.ignored) if users)}")
        strange = _outside(ranks.items, candidates)
        if strange.any():
            user, place = np.argwhere(strange)[0]
            yield (f"{name}: the lists of {strange.any(1).sum():,} users hold items that are no candidates, for "
                   f"example {ranks.items[user, place]} for user {truths[user].user}")
    if candidates is not None and len(np.unique(candidates)) <= LIST:
        yield f"{len(np.unique(candidates))} candidates: a list of {LIST} holds them all, so HR@{LIST} tells nothing"
    lost = np.flatnonzero(_outside(np.array([truth.item for truth in truths], np.int64), candidates))
    if len(lost):
        yield (f"{len(lost):,} of {len(truths):,} targets are no candidates, for example {truths[lost[0]].item} of "
               f"user {truths[lost[0]].user}: nobody can hit them, and they count as misses")


def filters(report: dict) -> Iterator[str]:
    """How many targets are repeats, and which rankings can have them: a rival under another filter is none."""
    repeats, users, ours = report["repeated_targets"], report["users"], report["lists_with_seen_items"]
    if not repeats:
        return
    yield f"{repeats:,} of {users:,} targets ({repeats / users:.1%}) stand in their user's own history"
    unlike = [name for name, other in report["against"].items() if bool(other["lists_with_seen_items"]) != bool(ours)]
    if unlike:
        shows = f"shows seen items to {ours:,} users" if ours else "shows nobody a seen item"
        yield f"ours {shows}, unlike {', '.join(unlike)}: another filter (infer.filter_seen) is part of that difference"


def show_scores(report: dict) -> None:
    k, users = report["config"]["k"], report["users"]
    columns = ("ranking", "users", f"HR@{k}", f"NDCG@{k}", "score", "95 % interval",
               "ours - it", "95 % interval", "differs")
    rows = [("ours", *_figures(report, users), "", "", "")]
    for name, other in report["against"].items():
        difference = other["difference"]["score"]
        rows.append((name, *_figures(other, users), f"{difference['mean']:+.5f}", _range(difference, "+"),
                     "yes" if difference["excludes_zero"] else "no"))
    console.table(f"Score of {report['result']}", columns, rows)
    slices = [(f"{kind}: {label}", row) for kind, labels in report["slices"].items() for label, row in labels.items()]
    forms = [(f"weighted by action, {form.replace('_', ' ')}", row) for form, row in report["weighted"].items() if row]
    console.table("Ours by slice, and weighted as in the second round", columns[:6],
                  [(name, *_figures(row, row["users"])) for name, row in slices + forms])
