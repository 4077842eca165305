"""What an evaluation folder asks for: its histories as figures of a log, its candidates, the truth where it is known.

`describe.py` shows it. Histories hold items that training never saw, under their creative ids; they are numbered here
behind the index. The lines go through the plain parser, as their unseen ids are text. Memory: the index, the
candidates' ids, one record per target.
"""

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.console import progress
from onepiece_comp.dataset.embedding_tables import RowLookup
from onepiece_comp.logs.features import creative_by_row
from onepiece_comp.logs.formats import UNKNOWN_ACTION, Candidate, UserLine, read_candidates, read_index, read_sequences
from onepiece_comp.logs.truths import read_truth
from onepiece_comp.logs.user_blocks import EventBlock, starts_of
from onepiece_comp.reports.log_figures import LogFigures, LogTally
from onepiece_comp.reports.log_warnings import Protocol

_LINES_PER_BLOCK = 4096


class Asked(NamedTuple):
    """An evaluation folder in figures."""

    protocol: Protocol
    histories: LogFigures
    late_profiles: int  # users whose profile record bears a time after their last event


def read_protocol(folder: Path, truth: Path | None = None) -> Asked:
    """Read `predict_seq.jsonl`, `predict_set.jsonl` and `indexer.pkl` of a folder; `truth` is a truth.jsonl.

    InputError names the file and the line of what is broken.
    """
    folder, index = Path(folder), read_index(Path(folder) / "indexer.pkl")
    creative, name_of = creative_by_row(index.items), {reid: user for user, reid in index.users.items()}
    asked, candidate = count_candidates(read_candidates(folder / "predict_set.jsonl"), creative)
    target_of = {one.user: one.item for one in read_truth(truth)} if truth else {}
    histories = _Histories(creative, name_of, target_of)
    tally = LogTally(len(index.items))
    lines = progress(read_sequences(folder / "predict_seq.jsonl"), total=None, what="users to serve")
    while lines_of_block := list(islice(lines, _LINES_PER_BLOCK)):
        tally.add(histories.block(lines_of_block))
    target = np.fromiter(target_of.values(), np.int64, len(target_of))
    asked = asked._replace(
        users=histories.users, users_without_history=histories.without_history, targets=len(target),
        cold_targets=int((RowLookup(creative).rows(target) == 0).sum()),
        targets_among_candidates=int(np.isin(target, candidate).sum()), targets_in_history=histories.with_target,
        targets_of_absent_users=len(target) - len(histories.met))
    return Asked(asked, tally.figures(), histories.late_profiles)


def count_candidates(candidates: Iterable[Candidate], creative: np.ndarray) -> tuple[Protocol, np.ndarray]:
    """A candidate set in figures and its different creative ids; `creative` int64 [items + 1] are those of training."""
    ids, unseen = array("q"), 0
    for candidate in progress(candidates, total=None, what="candidates"):
        ids.append(candidate.creative_id)
        unseen += any(isinstance(value, str) for value in _values(candidate.features))
    distinct = np.unique(np.array(ids, np.int64))
    warm = int((RowLookup(creative).rows(distinct) > 0).sum())
    return Protocol(len(ids), warm, len(ids) - len(distinct), unseen), distinct


def _values(features: dict) -> Iterator[object]:
    for value in features.values():
        yield from value if isinstance(value, list) else (value,)


class _Histories:
    """Lines to blocks, counting on the way what only whole lines tell."""

    def __init__(self, creative: np.ndarray, name_of: dict[int, str], target_of: dict[str, int]):
        self._creative, self._name_of, self._target_of = creative, name_of, target_of
        self._cold: dict[int, int] = {}  # creative id to a number behind the index
        self.users = self.without_history = self.with_target = self.late_profiles = 0
        self.met: set[str] = set()  # users with a target

    def block(self, lines: list[UserLine]) -> EventBlock:
        """The lines as columns, without profiles."""
        for line in lines:
            self._count(line)
        events = [event for line in lines for event in line.events]
        column = lambda values, dtype: np.fromiter(values, dtype, len(events))
        return EventBlock(
            starts_of(len(line.events) for line in lines), column((self._number(e.item) for e in events), np.int64),
            column((UNKNOWN_ACTION if e.action is None else e.action for e in events), np.int8),
            column((e.time for e in events), np.int64), np.zeros(len(lines) + 1, np.int64), np.empty(0, np.int32),
            np.array([-1 if line.profile_place is None else line.profile_place for line in lines], np.int64))

    def _number(self, item: int) -> int:
        known = item < len(self._creative)
        return item if known else self._cold.setdefault(item, len(self._creative) + len(self._cold))

    def _count(self, line: UserLine) -> None:
        self.users += 1
        self.without_history += not line.events
        self.late_profiles += has_late_profile(line)
        user = line.user if isinstance(line.user, str) else self._name_of.get(line.user, str(line.user))
        if user in self._target_of:
            self.met.add(user)
            target = self._target_of[user]
            self.with_target += any(self._original(event.item) == target for event in line.events)

    def _original(self, item: int) -> int:
        return int(self._creative[item]) if item < len(self._creative) else item


def has_late_profile(line: UserLine) -> bool:
    """Whether the profile record bears a time after the user's last event: such a time tells of the hidden target."""
    return bool(line.events) and line.profile_time is not None and line.profile_time > max(e.time for e in line.events)
