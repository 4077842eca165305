"""The competition's files, read and written: the only place that knows the platform's words.

`seq.jsonl` and `predict_seq.jsonl` (one user per line), their `*_offsets.pkl`, `indexer.pkl`,
`item_feat_dict.json`, `predict_set.jsonl`, `user_action_type.json`. Embeddings: `embeddings.py`.
Inside the toolkit a *creative id* is the original id of an item and a *re-id* its number in `indexer.pkl`
(1..I; 0 = padding or unknown). Lines are read one at a time; every rejection names file and line.
"""

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from onepiece_comp.artefacts import read_json, write_json
from onepiece_comp.errors import InputError
from onepiece_comp.logs.pickles import load_pickle, save_pickle

EXPOSURE, CLICK, CONVERSION, UNKNOWN_ACTION = 0, 1, 2, 3
ACTION_NAMES = ("exposure", "click", "conversion", "unknown")
ACTIONS = len(ACTION_NAMES)
LIST = 10  # items of an answer
LONGEST_LINE = 64 << 20  # bytes; a line of 100 events has some 20,000
FIELDS = "user, item, user features, item features, action, time"

Features = dict  # feature id (str) -> int, str (a value unseen in training) or a list of these


class Event(NamedTuple):
    """One interaction. `item` is a re-id, or in predict files the creative id of an unknown item."""

    item: int
    features: Features
    action: int | None
    time: int  # Unix seconds


class UserLine(NamedTuple):
    """One line of a sequence file. `user` is a re-id, or the original id (str) of an unknown user."""

    user: int | str
    profile: Features  # {} where the line has no profile record
    profile_time: int | None  # close to the hidden target's time in the organisers' files: never a feature
    events: list[Event]  # in file order
    profile_place: int | None = None  # events that stand before the profile record in the file


class Index(NamedTuple):
    """`indexer.pkl`: original ids and values to re-ids, each from 1."""

    users: dict[str, int]
    items: dict[int, int]
    features: dict[str, dict[int, int]]


class Candidate(NamedTuple):
    """One line of `predict_set.jsonl`."""

    creative_id: int
    retrieval_id: int
    features: Features


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _features(value: object, place: object, what: str) -> Features:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(place, found=f"{what} that are a {type(value).__name__}", expected="an object or null",
                         do="write the line again")
    return value


def _event(record: list, place: object, number: int) -> Event:
    _, item, _, features, action, time = record
    if not _is_int(item) or item < 0:
        raise InputError(place, found=f"item {item!r} in event {number}", expected="a whole number from 1",
                         do="write the line again")
    if action is not None and not (_is_int(action) and 0 <= action <= 2):
        raise InputError(place, found=f"action {action!r} in event {number}",
                         expected="0 exposure, 1 click, 2 conversion or null", do="correct the action")
    if not _is_int(time) or not 0 <= time < 1 << 40:
        raise InputError(place, found=f"time {time!r} in event {number}", expected="Unix seconds",
                         do="correct the time")
    return Event(item, _features(features, place, "item features"), action, time)


def parse_user_line(line: bytes | str, place: object) -> UserLine:
    """One line of `seq.jsonl` or `predict_seq.jsonl`; the profile record may stand anywhere in it."""
    try:
        records = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(place, found=f"no valid JSON ({error})", expected="a JSON array of records",
                         do="the file may be cut short: copy it again") from error
    if not isinstance(records, list) or not records:
        raise InputError(place, found="no records", expected=f"a JSON array of records ({FIELDS})",
                         do="remove the line")
    user, profile, profile_time, profile_place, events = None, {}, None, None, []
    for number, record in enumerate(records):
        if not isinstance(record, list) or len(record) != 6:
            found = (f"event {number} of {len(record)} fields" if isinstance(record, list)
                     else f"event {number} that is no array")
            raise InputError(place, found=found, expected=f"6 ({FIELDS})", do="write the line again")
        if user is None:
            user = record[0]
        if record[0] != user or not (_is_int(user) or isinstance(user, str)):
            raise InputError(place, found=f"user {record[0]!r} in event {number}",
                             expected=f"one user ({user!r}) per line",
                             do="group the log by user")
        if record[1] is None:
            profile, profile_time = _features(record[2], place, "user features"), record[5]
            if profile_time is not None and not _is_int(profile_time):
                raise InputError(place, found=f"time {profile_time!r} in the profile record",
                                 expected="Unix seconds, or null",
                                 do="correct the time")
            profile_place = len(events)
        else:
            events.append(_event(record, place, number))
    return UserLine(user, profile, profile_time, events, profile_place)


def sequence_lines(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, bytes]]:
    """(line number, offset, text) of every line that is not blank; InputError for one without an end.

    `start` and `stop` are offsets of lines to begin with and to stop before; numbers count from 1 at `start`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a sequence file, one user per line",
                         do="check the path: a training folder has seq.jsonl, an evaluation folder predict_seq.jsonl")
    with open(path, "rb") as file:
        number, offset = 0, file.seek(start)
        while (stop is None or offset < stop) and (line := file.readline(LONGEST_LINE + 1)):
            number += 1
            if len(line) > LONGEST_LINE:
                raise InputError(f"{path}:{number}", found=f"a line of more than {LONGEST_LINE >> 20} MiB",
                                 expected="one user per line", do="check that this is a sequence file")
            if line.strip():
                yield number, offset, line
            offset += len(line)


def read_sequences(path: Path) -> Iterator[UserLine]:
    """The users of a sequence file, one at a time; InputError with file and line for what is not one."""
    for number, _, line in sequence_lines(path):
        yield parse_user_line(line, f"{path}:{number}")


def check_offsets(sequences: Path, offsets: Path) -> None:
    """Every offset must be the start of a line, and there must be as many as lines (InputError).

    A missing offsets file is fine: nothing here seeks.
    """
    if not offsets.is_file():
        return
    stated = load_pickle(offsets, list)
    actual = [offset for _, offset, _ in sequence_lines(sequences)]
    if stated != actual:
        first = next((i for i, (a, b) in enumerate(zip(stated, actual)) if a != b), min(len(stated), len(actual)))
        raise InputError(offsets, found=f"{len(stated)} offsets that part from the file at line {first + 1}",
                         expected=f"the {len(actual)} line starts of {sequences.name}",
                         do="copy both files again, or remove the offsets: they are not needed here")


class SequenceWriter:
    """Write `{name}.jsonl` and `{name}_offsets.pkl` line by line; use as a context manager."""

    def __init__(self, folder: Path, name: str = "seq"):
        self._offsets_path = Path(folder) / f"{name}_offsets.pkl"
        self._file = open(Path(folder) / f"{name}.jsonl", "wb")
        self._offsets: list[int] = []

    def write(self, line: UserLine) -> None:
        """Records in time order, the profile at its own time after the events of that time."""
        records = [[line.user, e.item, None, e.features, e.action, e.time] for e in line.events]
        if line.profile_time is not None:
            after = sum(event.time <= line.profile_time for event in line.events)
            records.insert(after, [line.user, None, line.profile, None, None, line.profile_time])
        self._offsets.append(self._file.tell())
        self._file.write(json.dumps(records).encode() + b"\n")

    def __enter__(self) -> "SequenceWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        save_pickle(self._offsets_path, self._offsets)


def read_index(path: Path) -> Index:
    """`indexer.pkl`; item keys may be numbers or numeric strings."""
    value = load_pickle(path, dict)
    for key in ("u", "i", "f"):
        if not isinstance(value.get(key), dict):
            raise InputError(path, found=f"no mapping under {key!r}", expected="the keys 'u', 'i' and 'f'",
                             do="check that this is the competition's indexer.pkl")
    try:
        items = {int(creative): int(reid) for creative, reid in value["i"].items()}
        users = {str(user): int(reid) for user, reid in value["u"].items()}
    except (TypeError, ValueError) as error:
        raise InputError(path, found=f"an id that is no number ({error})", expected="ids to whole numbers",
                         do="copy the file again") from error
    if items and (min(items.values()) < 1 or max(items.values()) > len(items)):
        raise InputError(path, found=f"item numbers {min(items.values())} to {max(items.values())} for {len(items)} "
                                     f"items",
                         expected="1 to the number of items", do="copy the file again")
    return Index(users, items, {str(k): dict(v) for k, v in value["f"].items()})


def write_index(path: Path, index: Index) -> None:
    """Write `indexer.pkl` with the organisers' keys and container types."""
    features = defaultdict(dict)
    features.update(index.features)
    save_pickle(path, {"u": index.users, "i": index.items, "f": features, "a": {1: 1, 0: 2}})


_CHUNK = 1 << 20
_BETWEEN = re.compile(r"[\s,{]*")
_COLON = re.compile(r"\s*:\s*")


def read_item_features(path: Path, start: int = 0) -> Iterator[tuple[int, Features]]:
    """`item_feat_dict.json` as (re-id, features), streamed: the file is one object and may be near a gigabyte.

    `start` = offset of the first key to read, for who has read those before it.
    """
    decoder, buffer, position, ended = json.JSONDecoder(), "", 0, False
    with open(path, "rb") as binary:
        binary.seek(start)
        file = io.TextIOWrapper(binary, encoding="utf-8", errors="replace")
        while True:
            start = _BETWEEN.match(buffer, position).end()
            if buffer[start:start + 1] == "}":
                return
            try:
                key, after = decoder.raw_decode(buffer, start)
                colon = _COLON.match(buffer, after)
                if not colon:
                    raise ValueError("no colon after a key")
                features, position = decoder.raw_decode(buffer, colon.end())
            except (ValueError, RecursionError) as error:  # the item may go on in the next chunk
                if ended:
                    raise InputError(path, found=f"no whole JSON object ({getattr(error, 'msg', error)})",
                                     expected='{"re-id": {features}, ...}',
                                     do="the file may be cut short: copy it again") from error
                more = file.read(max(_CHUNK, len(buffer) - position))
                ended, buffer, position = not more, buffer[position:] + more, 0
                continue
            if not (isinstance(key, str) and key.isdigit() and isinstance(features, dict)):
                raise InputError(f"{path}: key {key!r}", found=type(features).__name__, expected="features of a re-id",
                                 do="copy the file again")
            yield int(key), features


class ItemFeatureWriter:
    """Write `item_feat_dict.json` item by item; use as a context manager."""

    def __init__(self, path: Path):
        self._file, self._separator = open(path, "w", encoding="utf-8"), "{"

    def write(self, reid: int, features: Features) -> None:
        self._file.write(f'{self._separator}"{reid}": {json.dumps(features)}')
        self._separator = ", "

    def __enter__(self) -> "ItemFeatureWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.write("}" if self._separator == ", " else "{}")
        self._file.close()


def _whole(value: object) -> int:
    """A whole number, or its digits as text; ValueError for others: int() would cut 5.9 to another item."""
    if _is_int(value) or (isinstance(value, str) and value.isdecimal()):
        return int(value)
    raise ValueError(f"the id {value!r} is no whole number")


def read_candidates(path: Path) -> Iterator[Candidate]:
    """`predict_set.jsonl`, one candidate at a time; InputError with file and line."""
    if not path.is_file():
        raise InputError(path, found="no such file", expected="the candidate set", do="check the evaluation folder")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                value = json.loads(line)
                yield Candidate(_whole(value["creative_id"]), _whole(value["retrieval_id"]),
                                _features(value.get("features"), place, "features"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise InputError(place, found=f"no candidate ({type(error).__name__}: {error})",
                                 expected="an object with creative_id, retrieval_id and features",
                                 do="the file may be cut short: copy it again") from error


def write_candidates(path: Path, candidates: Iterator[Candidate]) -> None:
    """Write `predict_set.jsonl`."""
    with open(path, "w", encoding="utf-8") as file:
        for candidate in candidates:
            file.write(json.dumps(candidate._asdict()) + "\n")


def read_action_types(folder: Path) -> dict[str, int]:
    """`user_action_type.json` of an evaluation folder: original user id to the target's action; {} if absent."""
    path = Path(folder) / "user_action_type.json"
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict) or not all(action in (0, 1, 2) for action in value.values()):
        raise InputError(path, found="other values", expected="user id to 0, 1 or 2", do="copy the file again")
    return {str(user): int(action) for user, action in value.items()}


def write_feature_counts(folder: Path, index: Index, user_features: set[str]) -> None:
    """Write `item_feat_num.json` and `user_feat_num.json`: feature id to vocabulary size."""
    for name, keep in (("user_feat_num", True), ("item_feat_num", False)):
        write_json(Path(folder) / f"{name}.json",
                   {fid: len(values) for fid, values in index.features.items() if (fid in user_features) == keep})
