"""What will hurt whoever trains on a log: pure functions from figures to warnings with a reason and an advice.

`describe.py` shows them. A threshold is a share beyond which the effect is no longer small beside the differences
between good models; what breaks the protocol itself (a leak, a duplicate) warns from the first case on.
"""

from collections import Counter
from typing import NamedTuple

from onepiece_comp.config import ModelConfig
from onepiece_comp.logs.formats import LIST
from onepiece_comp.reports.log_figures import LogFigures, action_shares

_MANY_TIES, _MANY_COLD, _MANY_LACKING = 0.05, 0.2, 0.1
_COLD_TARGETS, _SEEN_TARGETS = 0.1, 0.01


class Warned(NamedTuple):
    """One thing to know before training."""

    found: str
    reason: str
    advice: str

    def line(self) -> str:
        return f"{self.found}: {self.reason}; {self.advice}"


class Coverage(NamedTuple):
    """How many of the items with events (or of the users) have a feature or an embedding."""

    name: str
    have: int
    of: int
    values: int = 0  # different values that occur, or the width of the vectors
    known: int = 0  # values that the index numbers

    @property
    def share(self) -> float:
        return self.have / max(1, self.of)


class Protocol(NamedTuple):
    """What an evaluation folder asks for, and where a truth is at hand, what the answer is."""

    candidates: int
    warm_candidates: int
    repeated_candidates: int
    candidates_with_unseen_values: int
    users: int = 0  # 0 where a candidate set comes without users
    users_without_history: int = 0
    targets: int = 0  # 0 without a truth
    cold_targets: int = 0
    targets_among_candidates: int = 0
    targets_in_history: int = 0
    targets_of_absent_users: int = 0


def percent(share: float) -> str:
    """A share for the eye, for example 0.0123 to 1.2 %; a small one keeps a digit."""
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.1g} %"


def log_warnings(figures: LogFigures) -> list[Warned]:
    """Warnings about the events of a log."""
    return [*order_warnings(figures), *_time_warnings(figures), *_shape_warnings(figures)]


def order_warnings(figures: LogFigures) -> list[Warned]:
    """Warnings about the order of the events, of a log or of the histories of an evaluation folder."""
    counts, warned = figures.counts, []
    if counts["duplicates"]:
        warned.append(Warned(
            f"{counts['duplicates']:,} exact duplicates ({percent(figures.share('duplicates'))} of the events)",
            "a copy of the target in the history makes the answer known, and copies weigh twice in training",
            "remove them before the split"))
    if counts["users not in time order"]:
        warned.append(Warned(
            f"{counts['users not in time order']:,} of {counts['users']:,} users are not in time order",
            "whoever reads the file as it stands learns from the future", "preprocess and split sort them (stable); "
            "sort the file for other readers"))
    if figures.share("ties") > _MANY_TIES:
        warned.append(Warned(
            f"{percent(figures.share('ties'))} of the events bear the time of the one before",
            "the order in the file decides which is the target and what came before it, and an unstable sort moves it",
            "keep the file's order when you sort, and quote the split's fingerprint with every score"))
    return warned


def _time_warnings(figures: LogFigures) -> list[Warned]:
    counts, warned = figures.counts, []
    if counts["events in impossible years"]:
        warned.append(Warned(
            f"{counts['events in impossible years']:,} events before 1990 or after 2100",
            "the unit of the times looks wrong (Unix seconds are expected, not milliseconds, minutes or days)",
            "convert the log again with its times in seconds"))
    if counts["events after the cut"]:
        warned.append(Warned(
            f"{counts['events after the cut']:,} training events at or after the cut",
            "training sees what the evaluation asks for", "make the split again from the whole log"))
    if len(figures.day) == 1:
        warned.append(Warned(
            "a single day of data", "a cut in time leaves hardly anything on one side, and there is no trend to learn",
            "split it with --set split.mode=leave_one_out, or take more days"))
    elif figures.cold_share() > _MANY_COLD:
        warned.append(Warned(
            f"{percent(figures.cold_share())} of the last day's events are on items first seen that day",
            "so many targets will be cold, and an id-based model cannot rank them",
            "keep features and embeddings for all items, and report warm and cold targets apart"))
    return warned


def _shape_warnings(figures: LogFigures) -> list[Warned]:
    warned, most = [], ModelConfig().max_events
    longer = int(figures.users_of_length[most + 1:].sum())
    if longer:
        warned.append(Warned(
            f"{longer:,} of {figures.counts['users']:,} users have more than {most} events",
            "the model reads the last ones only", "raise model.max_events if the rest matters"))
    present = [name for name, share in action_shares(figures.counts).items() if share and name != "null actions"]
    if len(present) == 1:
        without = ", and a split by time finds no targets" if present == ["exposures"] else ""
        warned.append(Warned(
            f"one action only ({present[0]})",
            f"conditioning on the action and weights by action have no effect{without}",
            "map the log's actions to 0, 1 and 2 if it has more" + (", else use --set split.mode=leave_one_out"
                                                                    if without else "")))
    return warned


def coverage_warnings(lacking: Coverage, embeddings: list[Coverage], *, any_features: bool, identity: list[str],
                      ) -> list[Warned]:
    """Warnings about what is known of the items.

    `lacking` are those without any feature, `identity` the features that only repeat the item id.
    """
    warned = []
    if lacking.share > _MANY_LACKING:
        warned.append(Warned(
            f"{lacking.have:,} of {lacking.of:,} items with events ({percent(lacking.share)}) have no feature at all",
            "only their ids tell them apart, so the cold ones cannot be told apart",
            "give a record of features for every item" if any_features else "convert the log with its table of items"))
    for cover in embeddings:
        if 1 - cover.share > _MANY_LACKING:
            warned.append(Warned(
                f"{percent(1 - cover.share)} of the items with events have no {cover.name}",
                "the model sees a vector of zeros for them, and the tokenizer guesses their codes",
                "make the missing vectors, or leave the table out (--set preprocess.embeddings=[...])"))
    if identity:
        warned.append(Warned(
            f"feature {', '.join(identity)} has nearly one value per item",
            "it repeats the item id: a large table that teaches nothing new and is unknown for every new item",
            "leave it out; preprocess does"))
    return warned


def profile_warnings(late: int, looked_at: int) -> list[Warned]:
    """Profile records whose time lies after the user's last event: close to the hidden target in some logs."""
    if not late:
        return []
    return [Warned(
        f"the profile record of {late:,} of the first {looked_at:,} users bears a time after their last event",
        "that time is close to the hidden target's, so that it leaks", "never use it as a feature; nothing here does")]


def protocol_warnings(asked: Protocol) -> list[Warned]:
    """Warnings about candidates and targets."""
    warned = []
    distinct = asked.candidates - asked.repeated_candidates
    if distinct < LIST:
        warned.append(Warned(f"{distinct} different candidates", "a result lists ten different ones for each user",
                             "check the candidate set"))
    if asked.repeated_candidates:
        warned.append(Warned(f"{asked.repeated_candidates:,} candidates stand twice", "infer refuses them",
                             "keep each creative id once"))
    if asked.targets:
        warned += _target_warnings(asked)
    return warned


def _target_warnings(asked: Protocol) -> list[Warned]:
    outside, warned = asked.targets - asked.targets_among_candidates, []
    of_targets = lambda count: f"{count:,} of {asked.targets:,} targets ({percent(count / asked.targets)})"
    if outside:
        warned.append(Warned(f"{of_targets(outside)} are no candidates", "nobody can hit them: they bound every score",
                             "add them to the candidate set, or leave their users out"))
    if asked.cold_targets > _COLD_TARGETS * asked.targets:
        warned.append(Warned(f"{of_targets(asked.cold_targets)} are cold: training has never seen the item",
                             "models by id alone cannot rank them", "compare scores of warm and cold targets apart"))
    if asked.targets_in_history > _SEEN_TARGETS * asked.targets:
        warned.append(Warned(f"{of_targets(asked.targets_in_history)} stand in their user's history",
                             "a filter of seen items drops them",
                             "compare the scores with --set infer.filter_seen=false and true"))
    if asked.targets_of_absent_users:
        warned.append(Warned(f"{of_targets(asked.targets_of_absent_users)} belong to users without a line in "
                             "predict_seq.jsonl", "no result will name these users: misses",
                             "use truth and evaluation folder of one split"))
    return warned


def odd_warnings(odd: Counter) -> list[Warned]:
    """Values that a reader could not place, by kind."""
    return [Warned(f"{count:,} times a {what}", "such values are read as missing",
                   "use the index and the log of one release together")
            for what, count in odd.items() if count and what.startswith(("feature outside", "value outside"))]
