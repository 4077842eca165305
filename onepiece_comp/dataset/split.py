"""Withhold one target per user, as the organisers did: raw/ to train/, eval/ and truth.jsonl.

Stands between `convert` or `synthesize` and `preprocess`; the rules are in `targets.py`. train/ is written from
events before the cut alone and has an index of its own, so that nothing later can reach it; only the embeddings
and the texts behind ids, which bear no times, are raw's own in both folders. The log is read twice, line by line;
memory holds the id maps and one record of features per item.
"""

import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp import console
from onepiece_comp.artefacts import files_under, link_or_copy, read_marker, write_json
from onepiece_comp.config import SplitConfig
from onepiece_comp.dataset.targets import NEVER, SplitWindow, divide, end_of_log, find_window, iso_time
from onepiece_comp.errors import InputError
from onepiece_comp.logs import open_log as log_source
from onepiece_comp.logs.formats import (
    ACTIONS, CLICK, CONVERSION, UNKNOWN_ACTION, Candidate, Event, Features, Index, SequenceWriter, UserLine,
    check_offsets, read_item_features, read_sequences)
from onepiece_comp.logs.identity import NAMES, stated_names
from onepiece_comp.logs.raw_folder import OriginalIds, RawWriter, to_predict, to_predict_features
from onepiece_comp.logs.truths import Truth, read_truth, write_truth

ACTION_NAMES = ("exposure", "click", "conversion", "unknown action")
SECONDS_PER_DAY = 86400


class Survey(NamedTuple):
    """The first reading of the log; arrays run over raw's re-ids of items, 0 unused."""

    users: int
    times: np.ndarray  # of all events, only where the cut is to be found
    first_seen: np.ndarray  # Unix seconds; NEVER for an item without events
    last_seen: np.ndarray  # Unix seconds; -1 for an item without events
    actions: Counter  # events of each action, None where the log has none


class SurveyedLog(NamedTuple):
    """What the second reading knows beforehand."""

    raw: log_source.Log
    index: Index
    names: OriginalIds
    stated: dict[int, str]  # raw's item_feat_dict.json by re-id, each record as JSON: dicts take ten times more
    survey: Survey
    window: SplitWindow
    config: SplitConfig


@dataclass
class Gathered:
    """What the second reading leaves for the candidate set and the report."""

    last_before: np.ndarray  # per re-id of raw: last time before the cut, -1 if none
    # per re-id of raw: original values as first seen, JSON
    first_features: dict[int, str] = field(default_factory=dict)
    target_items: Counter = field(default_factory=Counter)  # creative id to number of targets
    target_actions: Counter = field(default_factory=Counter)
    counts: Counter = field(default_factory=Counter)


def repeats(folder: Path) -> str:
    """How many targets of a split stand in their user's own history, for a person."""
    figures = read_marker(folder, "split")["figures"]
    found, targets = figures["targets seen in the history"], figures["eval users"]
    return f"{found:,} of {targets:,} targets ({found / targets:.1%}) stand in their user's own history"


def survey_log(source: log_source.Log, config: SplitConfig) -> SurveyedLog:
    """Check the raw folder of a log and read it for the first time."""
    raw, index = source.folder, source.index()
    if source.layout == "jsonl":
        check_offsets(source.sequences, raw / "seq_offsets.pkl")
    survey = _survey(source, items=len(index.items), config=config)
    window = find_window(config, times=survey.times, earliest=int(survey.first_seen.min()))
    path = raw / "item_feat_dict.json"
    stated = {reid: json.dumps(features) for reid, features in read_item_features(path)} if path.is_file() else {}
    return SurveyedLog(source, index, OriginalIds(index), stated, survey, window, config)


def _survey(source: log_source.Log, *, items: int, config: SplitConfig) -> Survey:
    """When each item was seen first and last, and the times of all events where the cut depends on them."""
    first, last, times, users, actions = np.full(items + 1, NEVER), np.full(items + 1, -1), array("q"), set(), Counter()
    until, automatic = end_of_log(config), config.mode != "leave_one_out" and config.cut == "auto"
    for line in console.progress(source.lines(), total=None, what="users surveyed"):
        if line.user in users:
            raise InputError(source.sequences, found=f"user {line.user!r} on two lines", expected="one line per user",
                             do="group the log by user")
        users.add(line.user)
        actions.update(event.action for event in line.events)
        item_reids = np.array([event.item for event in line.events], np.int64)
        seconds = np.array([event.time for event in line.events], np.int64)
        wrong = item_reids[(item_reids < 1) | (item_reids > items)]
        if len(wrong):
            raise InputError(f"{source.sequences}: user {line.user!r}", found=f"item {wrong[0]}",
                             expected=f"1 to {items}, as indexer.pkl numbers them", do="copy both files again")
        np.minimum.at(first, item_reids, seconds)
        np.maximum.at(last, item_reids, seconds)
        if automatic:
            times.extend(seconds[seconds < until].tolist())
    return Survey(len(users), np.frombuffer(times, np.int64) if times else np.empty(0, np.int64), first, last, actions)


def divide_log(log: SurveyedLog, folder: Path) -> tuple[Index, Gathered]:
    """Read the log again: write train/ and truth.jsonl, and the histories aside until train's index is whole."""
    gathered = Gathered(np.full(len(log.index.items) + 1, -1))
    for name in ("train", "eval", "histories"):
        (folder / name).mkdir()
    with RawWriter(folder / "train") as train, SequenceWriter(folder / "histories") as histories:
        write_truth(folder / "truth.jsonl", _divide_users(log, gathered, train=train, histories=histories))
    if not gathered.target_items:
        held = ", ".join(f"{count:,} of action {ACTION_NAMES[UNKNOWN_ACTION if action is None else action]}"
                         for action, count in log.survey.actions.most_common())
        raise InputError("split", found=f"no target (mode {log.config.mode}, cut {iso_time(log.window.cut)}; the log "
                                        f"has events {held})",
                         expected="a click or conversion after the cut",
                         do="choose an earlier cut or another mode, or convert "
                         "the log again with --action and --map if its actions mean something else")
    if not train.index.items:
        raise InputError("split", found="no event to train on", expected="events before the targets",
                         do="choose a later cut or hold fewer users out")
    return train.index, gathered


def _divide_users(log: SurveyedLog, gathered: Gathered, *, train: RawWriter,
                  histories: SequenceWriter) -> Iterator[Truth]:
    """Write each user to the sides that they belong to; yields the targets."""
    for raw_line in console.progress(log.raw.lines(), total=log.survey.users, what="users divided"):
        line = log.names.line(_in_window(raw_line, log.window, gathered.counts))
        _note_items(line, log, gathered)
        training, target, history = divide(line, log.window, log.config)
        if training:
            _register_items(training, log, train)
            train.add(_with_events(line, training, log.window))
            gathered.counts["events in train"] += len(training)
        if target:
            histories.write(_with_events(line, history, log.window))
            action = UNKNOWN_ACTION if target.action is None else target.action
            gathered.target_items[target.item] += 1
            gathered.target_actions[action] += 1
            gathered.counts["users without history"] += not history
            gathered.counts["targets seen in the history"] += any(event.item == target.item for event in history)
            yield Truth(str(line.user), target.item, action, target.time)
        elif not training:
            gathered.counts["users dropped"] += 1


def _in_window(line: UserLine, window: SplitWindow, counts: Counter) -> UserLine:
    """The events that exist, in time order; without a cut the order of the file is the protocol and stays."""
    events = line.events
    if any(later.time < earlier.time for earlier, later in zip(events, events[1:])):
        counts["users out of time order"] += 1
        if window.cut is not None:
            events = sorted(events, key=lambda event: event.time)
    return line._replace(events=[event for event in events if event.time < window.until])


def _with_events(line: UserLine, events: list[Event], window: SplitWindow) -> UserLine:
    """The line with these events alone; the profile takes the last one's time, as its own is close to the target's."""
    if not events:  # a line needs a record, even of an empty profile
        return line._replace(events=[], profile_time=window.cut)
    return line._replace(events=events, profile_time=None if line.profile_time is None else events[-1].time)


def _note_items(line: UserLine, log: SurveyedLog, gathered: Gathered) -> None:
    """Keep each item's features as first seen, and when it was last seen before the cut."""
    for event in line.events:
        reid = log.index.items[event.item]
        if event.time == log.survey.first_seen[reid] and reid not in gathered.first_features:
            gathered.first_features[reid] = json.dumps(event.features)
        if log.window.cut is not None and event.time < log.window.cut:
            gathered.last_before[reid] = max(gathered.last_before[reid], event.time)


def _register_items(events: list[Event], log: SurveyedLog, train: RawWriter) -> None:
    """Enter new items with the features of their record, then with what only raw's item_feat_dict.json knows."""
    for event in events:
        if event.item not in train.index.items:
            stated = _stated_before_cut(log.index.items[event.item], log)
            missing = {fid: value for fid, value in stated.items() if fid not in event.features}
            train.item(event.item, {**event.features, **missing})


def _stated_before_cut(reid: int, log: SurveyedLog) -> Features:
    """What item_feat_dict.json says of an item; its records bear no date, so that an item seen later is left out."""
    if reid not in log.stated or (log.window.cut is not None and log.survey.last_seen[reid] >= log.window.cut):
        return {}
    return log.names.features(json.loads(log.stated[reid]))


def write_histories(folder: Path, train_index: Index) -> None:
    """The histories as predict_seq.jsonl, now that train's index is known."""
    with SequenceWriter(folder / "eval", "predict_seq") as lines:
        for line in read_sequences(folder / "histories" / "seq.jsonl"):
            lines.write(to_predict(line, train_index))
    shutil.rmtree(folder / "histories")


def candidate_items(log: SurveyedLog, gathered: Gathered) -> list[tuple[int, int]]:
    """(creative id, raw's re-id) of the candidates by creative id, an order that tells nothing of the targets."""
    cut, first_seen, share = log.window.cut, log.survey.first_seen, log.config.cold_share
    chosen = first_seen < log.window.until
    if cut is not None:
        active_from = max(0, cut - log.config.active_days * SECONDS_PER_DAY) if log.config.active_days else 0
        cold = chosen & (first_seen >= cut)
        chosen = gathered.last_before >= active_from
        fresh = sorted(creative for creative, reid in log.index.items.items()
                       if cold[reid] and creative not in gathered.target_items)
        drawn = np.random.default_rng(log.config.seed).permutation(len(fresh))[:round(share * len(fresh))]
        for creative in [*gathered.target_items, *(fresh[number] for number in drawn)]:
            chosen[log.index.items[creative]] = True
    return sorted((creative, reid) for creative, reid in log.index.items.items() if chosen[reid])


def candidate_lines(items: list[tuple[int, int]], log: SurveyedLog, gathered: Gathered,
                    train_index: Index) -> Iterator[Candidate]:
    """The candidate set: each item's features as first seen, the missing ones from raw's item_feat_dict.json."""
    for retrieval_id, (creative_id, reid) in enumerate(items):
        stated = log.names.features(json.loads(log.stated.get(reid, "{}")))
        features = {**stated, **json.loads(gathered.first_features[reid])}
        yield Candidate(creative_id, retrieval_id, to_predict_features(features, train_index))


def write_action_types(folder: Path) -> None:
    """The targets' actions, as the second round's evaluation folder tells them."""
    write_json(folder / "eval" / "user_action_type.json",
               {truth.user: truth.action for truth in read_truth(folder / "truth.jsonl")
                if truth.action != UNKNOWN_ACTION})


def link_shared_files(raw: Path, folder: Path) -> None:
    """The evaluation folder sees train's index and features; both see raw's embeddings and the texts behind its ids."""
    stated = stated_names(raw)
    for side in ("train", "eval") if stated else ():
        write_json(folder / side / NAMES, stated, indent=None)
    for name in ("indexer.pkl", "item_feat_dict.json", "item_feat_num.json", "user_feat_num.json"):
        link_or_copy(folder / "train" / name, folder / "eval" / name)
    for source in (path for name in ("creative_emb", "mm_emb") for path in files_under(raw / name)):
        for side in ("train", "eval"):
            link_or_copy(source, folder / side / source.relative_to(raw))


def split_figures(log: SurveyedLog, gathered: Gathered, *, candidates: list[tuple[int, int]],
                  train_index: Index) -> dict[str,
    int]:
    """Every count of the report, under the words that the table shows."""
    counts, targets, actions = gathered.counts, gathered.target_items, gathered.target_actions
    warm = sum(creative in train_index.items for creative, _ in candidates)
    return {
        "users in log": log.survey.users, "users out of time order": counts["users out of time order"],
        "users dropped": counts["users dropped"], "users in train": len(train_index.users),
        "items in train": len(train_index.items), "events in train": counts["events in train"],
        "eval users": targets.total(), "users without history": counts["users without history"],
        **{f"targets: {ACTION_NAMES[action]}": actions[action] for action in range(ACTIONS)
           if actions[action] or action in (CLICK, CONVERSION)},
        "target items": len(targets),
        "cold targets": sum(number for creative, number in targets.items() if creative not in train_index.items),
        "targets seen in the history": counts["targets seen in the history"],
        "candidates": len(candidates), "candidates, warm": warm, "candidates, cold": len(candidates) - warm}
