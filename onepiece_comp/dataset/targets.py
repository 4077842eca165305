"""Which event of a user is the target, which are history, which may train: the rules of `split.py`, without files.

The target is the impression of the first conversion at or after the cut, else of the first click; the history is what
lies strictly before it (Tencent Advertising Algorithm Challenge 2025, arXiv 2604.04976, sections 3.2 and 6). Two more
protocols: held-out users, whom training never sees, and leave-one-out, whose target is a user's last event.
"""

import hashlib
from datetime import datetime, timezone
from typing import NamedTuple

import numpy as np

from onepiece_comp.config import SplitConfig
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import CLICK, CONVERSION, Event, UserLine

MODES = ("competition", "held_out", "leave_one_out")
NEVER = np.iinfo(np.int64).max
_LATEST = 253_402_300_800  # the year 10,000, which no date can tell


class SplitWindow(NamedTuple):
    """Events before `cut` may train, those from `until` on do not exist; Unix seconds. `cut` is None without one."""

    cut: int | None
    until: int


class Division(NamedTuple):
    """What one user's events give; `history` is the evaluation line of a user with a target."""

    training: list[Event]
    target: Event | None
    history: list[Event]


def check_config(config: SplitConfig) -> None:
    """InputError for an unknown mode or a share out of range."""
    if config.mode not in MODES:
        raise InputError("split.mode", found=repr(config.mode), expected=f"one of {', '.join(MODES)}", do="choose one")
    limits = (("auto_cut", config.auto_cut, 0 < config.auto_cut < 1, "a share between 0 and 1"),
              ("held_out", config.held_out, 0 < config.held_out <= 1, "a share above 0, at most 1"),
              ("cold_share", config.cold_share, 0 <= config.cold_share <= 1, "a share from 0 to 1"),
              ("active_days", config.active_days, config.active_days >= 0, "days, 0 for all"))
    for name, value, valid, expected in limits:
        if not valid:
            raise InputError(f"split.{name}", found=repr(value), expected=expected, do="correct the value")


def unix_seconds(text: str, place: str) -> int:
    """Unix seconds as written, or of an ISO time; without a zone it is UTC. Fractions round up: 1.5 s is after 1 s."""
    if text.strip().isdecimal():
        if int(text) >= _LATEST:
            raise InputError(place, found=text, expected="Unix seconds", do="divide by 1,000 if these are milliseconds")
        return int(text)
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))  # Python 3.10 does not know Z
    except ValueError as error:
        raise InputError(place, found=repr(text), expected="an ISO time such as 2022-05-06T00:00:00Z or Unix seconds",
                         do="correct the time") from error
    return int(np.ceil((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()))


def iso_time(seconds: int | None) -> str | None:
    """Unix seconds as an ISO time in UTC; None stays None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def end_of_log(config: SplitConfig) -> int:
    """`until` in Unix seconds, NEVER where there is none; leave-one-out knows no times."""
    unbounded = config.mode == "leave_one_out" or not config.until
    return NEVER if unbounded else unix_seconds(config.until, "split.until")


def find_window(config: SplitConfig, *, times: np.ndarray, earliest: int) -> SplitWindow:
    """The window as configured; cut "auto" is the exact `auto_cut` quantile of `times` (the time of that rank).

    InputError where nothing lies before the cut, or `until` is not after it.
    """
    until = end_of_log(config)
    if config.mode == "leave_one_out":
        return SplitWindow(None, until)
    if config.cut != "auto":
        cut = unix_seconds(config.cut, "split.cut")
    elif len(times):
        rank = int(config.auto_cut * len(times))
        cut = int(np.partition(times, rank)[rank])
    else:
        raise InputError("split", found="a log without events", expected="events to divide", do="check the log")
    if until <= cut:
        raise InputError("split.until", found=iso_time(until), expected=f"a time after the cut {iso_time(cut)}",
                         do="correct one of them")
    if earliest >= cut:
        raise InputError("split.cut", found=f"no event before {iso_time(cut)}", expected="events to train on",
                         do="choose a later cut, or split.mode=leave_one_out for a log of one moment")
    return SplitWindow(cut, until)


def is_held_out(user: str, config: SplitConfig) -> bool:
    """Whether a user with a target is drawn: a hash of the id decides, so that the order of the log does not."""
    digest = hashlib.sha256(f"{config.seed}:{user}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < config.held_out * 2.0 ** 64


def divide(line: UserLine, window: SplitWindow, config: SplitConfig) -> Division:
    """Training events, target and history of one user in original ids, the events in time order if there is a cut.

    >>> events = [Event(7, {}, 0, 10), Event(8, {}, 1, 20), Event(9, {}, 2, 30)]
    >>> divide(UserLine("u", {}, None, events), Window(20, NEVER), SplitConfig()).target.item
    9
    """
    events = line.events
    if window.cut is None:
        has_target = len(events) > 1
        return Division(events[:-1], events[-1], events[:-1]) if has_target else Division(events, None, [])
    training = [event for event in events if event.time < window.cut]
    after = [event for event in events if event.time >= window.cut]
    target = next((event for action in (CONVERSION, CLICK) for event in after if event.action == action), None)
    if target and config.mode == "held_out":
        if not is_held_out(str(line.user), config):
            return Division(training, None, [])
        training = []
    return Division(training, target, [event for event in events if event.time < target.time] if target else [])
