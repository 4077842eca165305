"""Users of a log as columns, a block at a time: what every layout of a log is read into.

`json_lines.py` makes blocks of JSON lines, `release.py` of the public Parquet files; `preprocess.py` writes
them to disk. `block_of` makes one from parsed lines: slow and plain, it is what the fast readers are tested against
and what they fall back to. Legend: U users, E events, P profile tokens of the block.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from onepiece_comp.logs.features import ItemFeatures, Profiles
from onepiece_comp.logs.formats import UNKNOWN_ACTION, UserLine


class Part(NamedTuple):
    """Consecutive users of a log: some bytes of a file of lines, or some row groups of a Parquet file."""

    file: str
    start: int
    stop: int


class EventBlock(NamedTuple):
    """Users in the order of the log; the events of each in the order of the file, whatever their times."""

    user_start: np.ndarray  # int64 [U + 1], into the events
    item: np.ndarray  # int64 [E], re-ids
    action: np.ndarray  # int8 [E], UNKNOWN_ACTION where the log has none
    time_seconds: np.ndarray  # int64 [E]
    token_start: np.ndarray  # int64 [U + 1], into the tokens
    token: np.ndarray  # int32 [P], of the joint user vocabulary, ascending within a user
    profile_place: np.ndarray  # int64 [U], events before the profile record, -1 where there is none
    user: np.ndarray | None = None  # int64 [U], `user_key` of each; None where nobody asks


def starts_of(lengths: Iterable[int]) -> np.ndarray:
    """Where each of consecutive stretches begins, and the end of the last: int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))])


def user_key(user: int | str) -> int:
    """A number of 63 bits for a user's id: the re-id itself, of a text its digest."""
    if isinstance(user, int):
        return user % (1 << 63)
    return int.from_bytes(hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def block_of(lines: Iterable[UserLine], matrix: ItemFeatures, profiles: Profiles) -> EventBlock:
    """A block of parsed lines; items that `matrix` has no record of take the features of their first event."""
    lines = list(lines)
    events = [event for line in lines for event in line.events]
    for event in events:
        if event.item >= len(matrix.recorded) or not matrix.recorded[event.item]:
            matrix.add(event.item, event.features)
    tokens = [profiles.tokens(line.profile) for line in lines]
    return EventBlock(
        starts_of(len(line.events) for line in lines),
        np.fromiter((event.item for event in events), np.int64, len(events)),
        np.fromiter((UNKNOWN_ACTION if e.action is None else e.action for e in events), np.int8, len(events)),
        np.fromiter((event.time for event in events), np.int64, len(events)),
        starts_of(map(len, tokens)),
        np.fromiter((token for bag in tokens for token in bag), np.int32),
        np.fromiter((-1 if line.profile_place is None else line.profile_place for line in lines), np.int64),
        np.fromiter((user_key(line.user) for line in lines), np.int64, len(lines)))


def _of_one_user(block: EventBlock) -> np.ndarray:
    """Whether each event and the one behind it are of one user, bool [E - 1]."""
    same, borders = np.ones(max(0, len(block.item) - 1), bool), block.user_start[1:-1]
    same[borders[(borders > 0) & (borders < len(block.item))] - 1] = False
    return same


def in_time_order(block: EventBlock) -> EventBlock:
    """The block with each user's events sorted by time; ties keep the file's order."""
    if not (_of_one_user(block) & (np.diff(block.time_seconds) < 0)).any():
        return block
    user = np.repeat(np.arange(len(block.user_start) - 1), np.diff(block.user_start))
    order = np.lexsort((block.time_seconds, user))
    return block._replace(item=block.item[order], action=block.action[order], time_seconds=block.time_seconds[order])


def count_corners(block: EventBlock) -> Counter:
    """What is out of the ordinary in a block as it stands in the file, and how much of the usual."""
    lengths, actions = np.diff(block.user_start), np.bincount(block.action, minlength=UNKNOWN_ACTION + 1)
    same_user, step = _of_one_user(block), np.diff(block.time_seconds)
    tied = same_user & (step == 0)
    user = np.repeat(np.arange(len(lengths)), lengths)
    repeated = tied & (np.diff(block.item) == 0) & (np.diff(block.action) == 0)
    place = block.profile_place
    counts = {
        "users": len(lengths), "events": len(block.item), "exposures": actions[0], "clicks": actions[1],
        "conversions": actions[2], "null actions": actions[UNKNOWN_ACTION],
        "events at the time of the one before": tied.sum(), "events that repeat the one before": repeated.sum(),
        "users not in time order": len(np.unique(user[:-1][same_user & (step < 0)])),
        "users without profile record": (place < 0).sum(), "users without events": (lengths == 0).sum(),
        "profile records last": ((place == lengths) & (place >= 0)).sum(),
        "profile records first": ((place == 0) & (lengths > 0)).sum(),
        "profile records mid-sequence": ((place > 0) & (place < lengths)).sum()}
    return Counter({name: int(count) for name, count in counts.items()})
