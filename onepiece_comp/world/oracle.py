"""The synthetic world's own truth, kept under raw/oracle/; the best and the blindest ranking of a split's candidates.

`ceiling` ranks by the probability that the item is the user's next clicked impression at the target's time (shown by
the policy, then clicked); no model can beat it but by luck. `random_ranking` is the other end. Both write the
platform's result form. Users are handled in chunks; the ceiling's work grows with users times items alive at once.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp import console
from onepiece_comp.artefacts import read_marker, write_json
from onepiece_comp.columns import ColumnWriter, load_column
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import LIST, read_candidates, read_index, read_sequences
from onepiece_comp.logs.raw_folder import OriginalIds
from onepiece_comp.logs.truths import Truth, read_truth
from onepiece_comp.world.arrays import (
    INTERESTS, MATCH_WEIGHT, PERIODS, TASTE, TASTE_WEIGHT, Items, Topics, Users, World, bucket_of, build_pools,
    exposure_lift, interests_at, match_interests, logistic)
from onepiece_comp.world.impressions import REPEAT

CHUNK = 1024  # users ranked together
CELLS = 4_000_000  # users times items scored at once
FOLDER = "oracle"


class OracleWriter:
    """Write the items' truth at once and the users' as they come, as `.npy` columns; use as a context manager."""

    def __init__(self, raw: Path, world: World, creative_id: np.ndarray):
        folder = Path(raw) / FOLDER
        folder.mkdir()
        for name, column in {**world.items._asdict(), "creative_id": creative_id}.items():
            np.save(folder / f"item_{name}.npy", column)
        self._folder, self._open, self._columns = folder, contextlib.ExitStack(), {}

    def append(self, users: Users, rows: np.ndarray) -> None:
        """Add the users of `rows`, in the order of the log."""
        for name, column in users._asdict().items():
            block = column[rows].reshape(len(rows), -1)
            if name not in self._columns:
                writer = ColumnWriter(self._folder, f"user_{name}", str(column.dtype), block.shape[1])
                self._columns[name] = self._open.enter_context(writer)
            self._columns[name].append(block)

    def __enter__(self) -> "OracleWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()


class Oracle(NamedTuple):
    """What a raw folder knows of its own making."""

    world: World
    creative_id: np.ndarray  # int64 [I]
    columns: dict[str, np.ndarray]  # of Users, memory-mapped, two-dimensional

    def users(self, rows: np.ndarray) -> Users:
        """The truth of some users, by their number in the log."""
        shapes = {"leaf": (-1, PERIODS, INTERESTS), "strength": (-1, PERIODS, INTERESTS), "since": (-1, PERIODS),
                  "taste": (-1, TASTE)}
        return Users(**{name: column[rows].reshape(shapes.get(name, -1)) for name, column in self.columns.items()})


class _Question(NamedTuple):
    """One user of the evaluation folder."""

    user: str  # original user id
    seen: list[int]  # creative ids of the history
    truth: Truth


def load_oracle(raw: Path) -> Oracle:
    """The truth under raw/oracle/; InputError where the folder is no synthetic world."""
    marker, folder = read_marker(raw, "raw"), Path(raw) / FOLDER
    if "world" not in marker or not folder.is_dir():
        raise InputError(raw, found="a raw folder without the truth of a synthetic world",
                         expected="one that synthesize wrote", do="give its folder: no other log has a ceiling")
    topics = Topics(marker["world"]["branch"])
    items = Items(**{name: np.array(load_column(folder, f"item_{name}")) for name in Items._fields})
    world = World(topics, items, build_pools(topics, items), marker["world"]["intercept"], marker["world"]["spare"])
    return Oracle(world, np.array(load_column(folder, "item_creative_id")),
                  {name: load_column(folder, f"user_{name}") for name in Users._fields})


def ceiling(raw: Path, evaluation: Path, truth: Path, out: Path, *, filter_seen: bool = True) -> Path:
    """Write `out`, each user's candidates by their true probability of being the next clicked impression.

    Seen ones are left out or, without the filter, as unlikely as the policy makes them. InputError where the split was
    not made from `raw`, or has fewer than ten candidates.
    """
    started, oracle = time.monotonic(), load_oracle(raw)
    row_of = _row_finder(oracle, evaluation)
    candidates = row_of(_candidates(evaluation))
    is_candidate = np.zeros(len(oracle.creative_id), bool)
    is_candidate[candidates] = True
    top10s, users = [], []
    for chunk in _chunks(evaluation, truth, what="users ranked by the truth"):
        seen = [row_of(question.seen) for question in chunk]
        for rows, own in zip(_rank(oracle, chunk, seen, is_candidate, again=0.0 if filter_seen else REPEAT), seen):
            if len(rows) < LIST:
                others = candidates[~np.isin(candidates, rows)]
                rows = np.concatenate([rows, others[np.argsort(np.isin(others, own), kind="stable")]])
            top10s.append(oracle.creative_id[rows[:LIST]].tolist())
        users += [question.user for question in chunk]
    return _write(out, top10s, users, started)


def random_ranking(evaluation: Path, truth: Path, out: Path, seed: int, *, filter_seen: bool = True) -> Path:
    """Write `out`, ten candidates at random for each user;
    by the filter none of their history while others are left.
    """
    started, candidates, rng = time.monotonic(), _candidates(evaluation), np.random.default_rng(seed)
    top10s, users = [], []
    for question in itertools.chain.from_iterable(_chunks(evaluation, truth, what="users ranked at random")):
        seen = set(question.seen) if filter_seen else set()
        drawn = rng.choice(candidates, min(len(candidates), LIST + len(seen)), replace=False).tolist()
        top10s.append(sorted(drawn, key=seen.__contains__)[:LIST])
        users.append(question.user)
    return _write(out, top10s, users, started)


def _row_finder(oracle: Oracle, place: Path) -> Callable[[np.ndarray | list[int]], np.ndarray]:
    """A function from creative ids to item rows; InputError for an id that the world does not have."""
    order = np.argsort(oracle.creative_id)
    ordered = oracle.creative_id[order]

    def find(creative_ids: np.ndarray | list[int]) -> np.ndarray:
        wanted = np.asarray(creative_ids, np.int64)
        at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        if (ordered[at] != wanted).any():
            raise InputError(place, found=f"item {wanted[ordered[at] != wanted][0]}",
                             expected="an item of this synthetic world",
                             do="give the raw folder that the split was made from")
        return order[at]

    return find


def _candidates(evaluation: Path) -> np.ndarray:
    """Creative ids int64 [M]; InputError for fewer than ten."""
    path = Path(evaluation) / "predict_set.jsonl"
    found = np.unique(np.fromiter((candidate.creative_id for candidate in read_candidates(path)), np.int64))
    if len(found) < LIST:
        raise InputError(path, found=f"{len(found)} candidates", expected=f"at least {LIST}", do="make the split again")
    return found


def _chunks(evaluation: Path, truth: Path, *, what: str) -> Iterator[list[_Question]]:
    """The users of the truth with their histories, in the order of predict_seq.jsonl."""
    path, targets = Path(evaluation) / "predict_seq.jsonl", {record.user: record for record in read_truth(truth)}
    names, total, answered = OriginalIds(read_index(Path(evaluation) / "indexer.pkl")), len(targets), 0
    lines = ((names.user(line.user), line) for line in console.progress(read_sequences(path), total=total, what=what))
    asked = (_Question(user, [names.item(event.item) for event in line.events], targets.pop(user))
             for user, line in lines if user in targets)
    while chunk := list(itertools.islice(asked, CHUNK)):
        answered += len(chunk)
        yield chunk
    if answered != total:
        raise InputError(path, found=f"{answered} of the {total} users of {Path(truth).name}", expected="all of them",
                         do="give the evaluation folder and the truth of one split")


def _rank(oracle: Oracle, chunk: list[_Question], seen: list[np.ndarray], is_candidate: np.ndarray, *,
          again: float) -> list[np.ndarray]:
    """For each user up to ten item rows, best first: alive at the target's time, a candidate;
    seen ones count `again`.
    """
    numbers = np.array([_user_number(oracle, question.user) for question in chunk])
    times = np.array([question.truth.time for question in chunk], np.int64)
    ranked: list[np.ndarray] = [np.empty(0, np.int64)] * len(chunk)
    buckets, position = bucket_of(times), np.full(len(oracle.creative_id), -1)
    for bucket in np.unique(buckets):
        rows, weight = _alive(oracle.world, bucket, is_candidate)
        position[rows] = np.arange(len(rows))
        members = np.flatnonzero(buckets == bucket)
        step = max(1, CELLS // max(1, len(rows)))
        for part in (members[i:i + step] for i in range(0, len(members), step)):
            score = weight * _click_next(oracle.world, oracle.users(numbers[part]), times[part], rows)
            for line, member in zip(score, part):
                at = position[seen[member]]
                line[at[at >= 0]] *= again
                best = np.argsort(-line, kind="stable")[:LIST]
                ranked[member] = rows[best[line[best] > 0]]
        position[rows] = -1
    return ranked


def _user_number(oracle: Oracle, user: str) -> int:
    number = int(user[5:]) if user[:5] == "user_" and user[5:].isdecimal() else 0
    if not 1 <= number <= len(oracle.columns["since"]):
        raise InputError("truth", found=f"user {user!r}", expected="a user of this synthetic world",
                         do="give the raw folder that the split was made from")
    return number - 1


def _alive(world: World, bucket: int, is_candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, weights) of the candidates alive in a bucket."""
    begin, end = world.pools.start[bucket, 0], world.pools.start[bucket, -1]
    rows, weight = world.pools.item[begin:end], np.diff(world.pools.cumulative[begin:end + 1])
    kept = is_candidate[rows]
    return rows[kept].astype(np.int64), weight[kept]


def _click_next(world: World, users: Users, times: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Lift by the policy times probability of a click, float64 [U, rows]; per leaf first, as items share leaves."""
    leaf, strength = interests_at(users, np.arange(len(times)), times)
    every_leaf = np.broadcast_to(np.arange(world.topics.leaves), (len(times), world.topics.leaves))
    lift = exposure_lift(world.topics, leaf[:, None], strength[:, None], every_leaf)
    liked = match_interests(world.topics, leaf[:, None], strength[:, None], every_leaf)
    of_row = world.items.leaf[rows]
    logit = (world.intercept + users.propensity[:, None] + MATCH_WEIGHT * liked[:, of_row] + world.items.quality[rows]
             + TASTE_WEIGHT / np.sqrt(TASTE) * users.taste @ world.items.latent[rows].T)
    return lift[:, of_row] * logistic(logit)


def _write(out: Path, top10s: list[list[int]], users: list[str], started: float) -> Path:
    write_json(Path(out), {"time": round(time.monotonic() - started, 3), "top10s": top10s, "user": users}, indent=None)
    return Path(out)
