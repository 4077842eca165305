"""The public release of the challenge's data (TencentGR-1M, TencentGR-10M) as a log: Parquet instead of JSON lines.

`seq/` holds a user's events, `user_feat/` and `item_feat/` the features, `candidate/` the ads to choose from,
`indexer.pkl` the numbering. It has no feature 111, no item features per event and no profile times: here a profile
stands behind its user's last event, at its time, and an event shows its item's one record. The files of users and of
their features are cut and ordered differently, so the features are held in memory: some 60 bytes a user.
Everything else is streamed and goes from Arrow's buffers to numpy without a Python object per event.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from onepiece_comp.errors import InputError
from onepiece_comp.logs.features import OUTSIDE_SCHEMA, OUTSIDE_VOCABULARY, Feature, ItemFeatures, Profiles
from onepiece_comp.logs.formats import UNKNOWN_ACTION, Candidate, Event, Features, Index, UserLine, read_index
from onepiece_comp.logs.parquet_tables import (
    NULL, WHOLE, WHOLE_OR_LIST, Batch, ParquetTable, fields, is_list, is_struct, is_text, is_whole, lengths,
    whole_numbers)
from onepiece_comp.logs.user_blocks import EventBlock, Part, starts_of

_EVENTS = ("list<struct<item_id int64, action_type int32, timestamp int64>>", lambda kind: is_list(kind) and is_struct(
    kind.value_type, item_id=is_whole, action_type=is_whole, timestamp=is_whole))
_CANDIDATE_VALUE = ("struct<cold_start int64, feature_value string>", lambda kind: is_struct(
    kind, cold_start=is_whole, feature_value=is_text))
_ANY_VALUE = 1 << 31  # vocabulary size under which every value that the matrix can hold is known


class ReleaseLog:
    """A folder of the release; what it offers is told in `log_source.Log`."""

    layout = "parquet"

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.sequences = self.folder / "seq"
        self._items: int | None = None

    def files(self) -> list[Path]:
        return [part for name in ("seq", "user_feat", "item_feat") for part in ParquetTable(self.folder / name).parts]

    def index(self) -> Index:
        index = read_index(self.folder / "indexer.pkl")
        self._items = len(index.items)
        return index

    def user_feature_ids(self) -> set[str]:
        return set(ParquetTable(self.folder / "user_feat").features())

    def item_features(self, matrix: ItemFeatures, *, most_item: int, reader: str = "auto") -> Iterator[int]:
        """Fill `matrix` from item_feat/; as `ItemFeatures.add` does, the first record that has a feature decides."""
        table, done = ParquetTable(self.folder / "item_feat"), 0
        features = table.features()
        for batch in table.batches({"item_id": WHOLE, **{fid: WHOLE for fid in features}}):
            item = whole_numbers(batch.columns["item_id"])
            _refuse(batch, np.arange(batch.rows), "item", item, wrong=(item < 1) | (item > most_item),
                    expected=f"1 to {most_item}, as in indexer.pkl")
            matrix.recorded[item] = True
            for fid in features:
                _fill(matrix, item, fid, whole_numbers(batch.columns[fid]))
            done += batch.rows
            yield done

    def blocks(self, matrix: ItemFeatures, profiles: Profiles, *, most_item: int, reader: str = "auto",
               threads: int = 0, part: Part | None = None) -> Iterator[EventBlock]:
        users = UserFeatures(self.folder / "user_feat")
        for user, events in self._events(most_item, threads=threads, part=part):
            row = users.rows(user)
            token_start, token = users.tokens(row, profiles)
            yield EventBlock(events.start, events.item, events.action, events.time_seconds, token_start, token,
                             np.where(row < 0, -1, np.diff(events.start)), user)

    def parts(self, count: int) -> list[Part]:
        return ParquetTable(self.sequences).row_groups(count)

    def user_ids(self) -> np.ndarray:
        """The re-id of each user in the order of `blocks`, int64 [users]."""
        parts = [_user_ids(batch) for batch in ParquetTable(self.sequences).batches({"user_id": WHOLE})]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def lines(self) -> Iterator[UserLine]:
        users, table = UserFeatures(self.folder / "user_feat"), ParquetTable(self.folder / "item_feat")
        items = len(self.index().items) if self._items is None else self._items
        matrix = ItemFeatures([Feature(fid, _ANY_VALUE, 0) for fid in table.features()], items + 1)
        for _ in self.item_features(matrix, most_item=items):
            pass
        for user, events in self._events(items, threads=1):
            row = users.rows(user)
            for number, (line_events, profile) in enumerate(zip(_event_lists(events, matrix), users.profiles(row))):
                last = max((event.time for event in line_events), default=0)
                recorded = row[number] >= 0 or not line_events  # a line of nothing would be none
                yield UserLine(int(user[number]), profile, last if recorded else None, line_events,
                               len(line_events) if recorded else None)

    def candidates(self) -> Iterator[Candidate]:
        """The candidate set in the order of its files; a value that training has not seen is a str."""
        table = ParquetTable(self.folder / "candidate")
        kinds = {"item_id": WHOLE, "retrieval_id": WHOLE, **{fid: _CANDIDATE_VALUE for fid in table.features()}}
        for batch in table.batches(kinds):
            yield from _candidates(batch)

    def _events(self, most_item: int, *, threads: int, part: Part | None = None,
                ) -> Iterator[tuple[np.ndarray, "_Events"]]:
        """(re-ids int64 [U], their events) of each batch."""
        for batch in ParquetTable(self.sequences).batches({"user_id": WHOLE, "seq": _EVENTS}, threads=threads,
                                                          part=part):
            yield _user_ids(batch), _events(batch, most_item)


class _Events(NamedTuple):
    """The events of consecutive users."""

    start: np.ndarray  # int64 [U + 1]
    item: np.ndarray  # int64 [E]
    action: np.ndarray  # int8 [E]
    time_seconds: np.ndarray  # int64 [E]


def _refuse(batch: Batch, row: np.ndarray, what: str, values: np.ndarray, *, wrong: np.ndarray, expected: str) -> None:
    """InputError for the first of `values` that is wrong; `row` tells the row of each."""
    if wrong.any():
        at = int(np.argmax(wrong))
        event = int(at - np.argmax(row == row[at]))
        found = f"{what} {'null' if values[at] == NULL else values[at]}"
        if "seq" in batch.columns and what != "user":
            found += f" in event {event}"
        raise InputError(batch.place(int(row[at])), found=found, expected=expected,
                         do="use the files of one release together, as they are published")


def _user_ids(batch: Batch) -> np.ndarray:
    user = whole_numbers(batch.columns["user_id"])
    _refuse(batch, np.arange(batch.rows), "user", user, wrong=user < 1, expected="a whole number from 1")
    return user


def _events(batch: Batch, most_item: int) -> _Events:
    lists = batch.columns["seq"]
    start = starts_of(lengths(lists))
    of = fields(lists.flatten())
    item, time = whole_numbers(of["item_id"]), whole_numbers(of["timestamp"])
    action = whole_numbers(of["action_type"], UNKNOWN_ACTION)
    given = action if not of["action_type"].null_count else np.where(of["action_type"].is_null(), 0, action)
    checks = (("item", item, (item < 1) | (item > most_item), f"1 to {most_item}, as in indexer.pkl"),
              ("action", action, (given < 0) | (given > 2), "0 exposure, 1 click, 2 conversion or null"),
              ("time", time, (time < 0) | (time >= 1 << 40), "Unix seconds"))
    for what, values, wrong, expected in checks:
        if wrong.any():
            row = np.repeat(np.arange(batch.rows), np.diff(start))
            _refuse(batch, row, what, values, wrong=wrong, expected=expected)
    return _Events(start, item, action.astype(np.int8), time)


def _event_lists(events: _Events, matrix: ItemFeatures) -> Iterator[list[Event]]:
    """The events of each user, with the record of their item; one record serves all events of a batch."""
    distinct, which = np.unique(events.item, return_inverse=True)
    fids = list(matrix.columns())
    record = [{fid: value for fid, value in zip(fids, row) if value} for row in matrix.values[distinct].tolist()]
    item, time, which = events.item.tolist(), events.time_seconds.tolist(), which.tolist()
    action = [None if value == UNKNOWN_ACTION else value for value in events.action.tolist()]
    for begin, end in zip(events.start[:-1].tolist(), events.start[1:].tolist()):
        yield [Event(item[i], record[which[i]], action[i], time[i]) for i in range(begin, end)]


def _fill(matrix: ItemFeatures, item: np.ndarray, fid: str, values: np.ndarray) -> None:
    """One feature of some records, NULL where a record lacks it."""
    there = values != NULL
    if fid not in matrix.columns():
        matrix.odd[OUTSIDE_SCHEMA] += int(there.sum()) if fid not in matrix.ignored else 0
        return
    column, size = list(matrix.columns()).index(fid), matrix.columns()[fid]
    good = (values > 0) & (values < size)
    matrix.odd[OUTSIDE_VOCABULARY] += int((there & ~good).sum())
    open_ = good & (matrix.values[item, column] == 0)
    matrix.values[item[open_][::-1], column] = values[open_][::-1]  # backwards: of an item's records the first stays


class UserFeatures:
    """The features of all users by re-id, one Arrow column each."""

    def __init__(self, folder: Path):
        table = ParquetTable(folder)
        parts: dict[str, list[pa.Array]] = {fid: [] for fid in table.features()}
        ids = [np.empty(0, np.int64)]
        for batch in table.batches({"user_id": WHOLE, **{fid: WHOLE_OR_LIST for fid in parts}}):
            ids.append(_user_ids(batch))
            for fid in parts:
                parts[fid].append(_compact(batch.columns[fid], parts[fid], batch, fid))
        user = np.concatenate(ids)
        self._order = np.argsort(user, kind="stable")
        self._user = user[self._order]
        twice = self._user[1:][np.diff(self._user) == 0]
        if len(twice):
            raise InputError(folder, found=f"user {twice[0]} on two rows", expected="one row per user",
                             do="use the files of one release, each once")
        self._columns = {fid: pa.concat_arrays(parts.pop(fid)) for fid in list(parts) if parts[fid]}

    def rows(self, user: np.ndarray) -> np.ndarray:
        """Where the features of each user stand, int64 [U]; -1 where there are none."""
        if not len(self._user):
            return np.full(len(user), -1)
        at = np.minimum(np.searchsorted(self._user, user), len(self._user) - 1)
        return np.where(self._user[at] == user, self._order[at], -1)

    def tokens(self, row: np.ndarray, profiles: Profiles) -> tuple[np.ndarray, np.ndarray]:
        """(start int64 [U + 1], tokens int32, ascending within a user); what is odd is counted as `profiles` does."""
        known, vocabulary, odd = np.flatnonzero(row >= 0), profiles.columns(), np.zeros(4, np.int64)
        owners, tokens = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for fid, column in self._columns.items():
            values = column.take(pa.array(row[known]))
            if fid not in vocabulary:
                odd[0] += len(values) - values.null_count
                continue
            owner, value = _flat(values, profiles.most, odd)
            size, offset = vocabulary[fid]
            good = (value > 0) & (value < size)
            odd[1] += np.count_nonzero(~good)
            owners.append(known[owner[good]])
            tokens.append(offset + value[good])
        profiles.count_odd(odd)
        owner, token = np.concatenate(owners), np.concatenate(tokens)
        return (starts_of(np.bincount(owner, minlength=len(row))), token[np.lexsort((token, owner))].astype(np.int32))

    def profiles(self, row: np.ndarray) -> Iterator[Features]:
        """The profile of each row, {} for -1."""
        known = np.flatnonzero(row >= 0)
        found: list[Features] = [{} for _ in row]
        for fid, column in self._columns.items():
            for place, value in zip(known.tolist(), column.take(pa.array(row[known])).to_pylist()):
                if value is not None:
                    found[place][fid] = value
        return iter(found)


def _compact(column: pa.Array, before: list[pa.Array], batch: Batch, fid: str) -> pa.Array:
    """A user feature in int32: all users' are held at once."""
    kind = pa.list_(pa.int32()) if is_list(column.type) else pa.int32()
    if before and before[0].type != kind:
        raise InputError(f"{batch.path}: column {fid!r}", found=str(column.type),
                         expected="the type of the files before", do="use the files of one release together")
    try:
        return column.cast(kind)
    except pa.ArrowInvalid as error:
        raise InputError(f"{batch.path}: column {fid!r}", found=f"a value that is no feature value ({error})",
                         expected="re-ids of indexer.pkl", do="copy the file again") from error


def _flat(values: pa.Array, most: int, odd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place of the owner, value) of the values of a feature, up to `most` of each list; null within a list is 0."""
    if not is_list(values.type):
        value = whole_numbers(values)
        owner = np.flatnonzero(value != NULL)
        return owner, value[owner]
    length = lengths(values)
    odd[2] += len(values) - values.null_count
    odd[3] += np.maximum(0, length - most).sum()
    owner = np.repeat(np.arange(len(length)), length)
    kept = np.arange(len(owner)) - np.repeat(np.cumsum(length) - length, length) < most
    return owner[kept], whole_numbers(values.flatten(), 0)[kept]


def _candidates(batch: Batch) -> Iterator[Candidate]:
    ids = {}
    for name in ("item_id", "retrieval_id"):
        ids[name] = whole_numbers(batch.columns[name])
        _refuse(batch, np.arange(batch.rows), name, ids[name], wrong=ids[name] < 0, expected="a whole number from 0")
    features: list[Features] = [{} for _ in range(batch.rows)]
    for fid in (name for name in batch.columns if name not in ids):
        of = fields(batch.columns[fid])
        cold = whole_numbers(of["cold_start"], 0).tolist()
        try:
            texts = of["feature_value"].to_pylist()
        except UnicodeDecodeError as error:
            raise InputError(f"{batch.path}: column {fid!r}", found="bytes that are no text", expected="feature values",
                             do="copy the file again") from error
        for row, text in enumerate(texts):
            if text is not None:
                features[row][fid] = text if cold[row] else _re_id(text, batch, row, fid)
    for creative, retrieval, record in zip(ids["item_id"].tolist(), ids["retrieval_id"].tolist(), features):
        yield Candidate(creative, retrieval, record)


def _re_id(text: str, batch: Batch, row: int, fid: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InputError(batch.place(row), found=f"feature {fid} = {text!r:.40}, not marked as cold",
                         expected="a re-id of indexer.pkl", do="copy the file again")
    return int(text)
