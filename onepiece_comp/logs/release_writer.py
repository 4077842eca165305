"""Writing the files of the public Parquet release: from a stream of users, or from a folder of JSON lines.

The counterpart of `release.py`: `seq/`, `user_feat/`, `item_feat/`, `candidate/`, `mm_emb/` in several parts
each, and `indexer.pkl`. Feature 111, the events' own item features and profile times are left out, as there. Memory
holds a group of rows per table, the id maps and one record of features per item.
"""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from onepiece_comp.errors import InputError
from onepiece_comp.logs.embeddings import find_embeddings, read_embedding
from onepiece_comp.logs.formats import (
    Candidate, Features, Index, UserLine, read_candidates, read_item_features, write_index)
from onepiece_comp.logs.open_log import open_log
from onepiece_comp.logs.raw_folder import RawWriter

USER_FEATURES = ("103", "104", "105", "106", "107", "108", "109", "110")
USER_LISTS = ("106", "107", "108", "110")
ITEM_FEATURES = ("100", "101", "102", "112", "114", "115", "116", "117", "118", "119", "120", "121", "122")
LEFT_OUT = "111"  # one value per creative
PARTS, EMBEDDING_PARTS = 10, 5  # files per table in TencentGR-1M
_GROUP_ROWS = 4096
_GROUP_NUMBERS = 1 << 20  # of vectors

_EVENT = pa.struct([("item_id", pa.int64()), ("action_type", pa.int32()), ("timestamp", pa.int64())])
_VALUE = pa.struct([("cold_start", pa.int64()), ("feature_value", pa.string())])


class PartWriter:
    """Rows of one table, a group at a time, in files of `rows_per_part`; use as a context manager.

    `column` makes an Arrow array of what `add` was given for a column, by name; by default Arrow does it.
    """

    def __init__(self, folder: Path, schema: pa.Schema, *, rows_per_part: int, group_rows: int = _GROUP_ROWS,
                 column: Callable[[str, list], pa.Array] | None = None):
        self.folder, self.schema, self._per_part = Path(folder), schema, max(1, rows_per_part)
        self._group = max(1, min(group_rows, self._per_part))
        self._column = column or (lambda name, values: pa.array(values, schema.field(name).type))
        self._values: list[tuple] = []
        self._file: parquet.ParquetWriter | None = None
        self._parts = self._in_part = 0
        self.folder.mkdir(parents=True)

    def add(self, *values: object) -> None:
        """One row, in the order of the schema."""
        self._values.append(values)
        if len(self._values) == self._group or self._in_part + len(self._values) == self._per_part:
            self._flush()

    def _flush(self) -> None:
        if self._file is None:
            self._file = parquet.ParquetWriter(self.folder / f"part-{self._parts:05d}.snappy.parquet", self.schema)
            self._parts, self._in_part = self._parts + 1, 0
        if self._values:
            self._file.write_table(self._table())
            self._in_part += len(self._values)
            self._values = []
        if self._in_part == self._per_part:
            self._close()

    def _table(self) -> pa.Table:
        try:
            columns = [self._column(name, list(values)) for name, values in zip(self.schema.names, zip(*self._values))]
            return pa.table(columns, schema=self.schema)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise InputError(self.folder, found=f"a value that does not fit its column ({error})",
                             expected=", ".join(f"{field.name} {field.type}" for field in self.schema),
                             do="keep this log as JSON lines") from error

    def _close(self) -> None:
        self._file.close()
        self._file, self._in_part = None, 0

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None and (self._values or not self._parts):
            self._flush()  # an empty table has a file too
        if self._file is not None:
            self._close()


class UserTables:
    """`seq/` and `user_feat/`, user by user; use as a context manager."""

    def __init__(self, folder: Path, features: Collection[str], *, lists: Collection[str] = USER_LISTS,
                 rows_per_part: int):
        self._features = tuple(features)
        kind = lambda fid: pa.list_(pa.int64()) if fid in lists else pa.int64()
        self._user_feat = PartWriter(
            folder / "user_feat", pa.schema([("user_id", pa.int64()), *((fid, kind(fid)) for fid in self._features)]),
            rows_per_part=rows_per_part)
        self._seq = PartWriter(folder / "seq", pa.schema([("user_id", pa.int64()), ("seq", pa.list_(_EVENT))]),
                               rows_per_part=rows_per_part, column=_sequence_column)

    def write(self, line: UserLine) -> None:
        """One user in re-ids; without a profile record there is no row in user_feat/."""
        self._seq.add(line.user, line.events)
        if line.profile_time is not None or line.profile:
            unknown = line.profile.keys() - set(self._features)
            if unknown:
                raise InputError(self._user_feat.folder, found=f"user feature {min(unknown)!r} of user {line.user!r}",
                                 expected=f"one of {', '.join(self._features)}", do="keep this log as JSON lines")
            self._user_feat.add(line.user, *map(line.profile.get, self._features))

    def __enter__(self) -> "UserTables":
        return self

    def __exit__(self, *exc: object) -> None:
        self._seq.__exit__(*exc)
        self._user_feat.__exit__(*exc)


def _sequence_column(name: str, values: list) -> pa.Array:
    if name == "user_id":
        return pa.array(values, pa.int64())
    start = np.cumsum([0, *map(len, values)])
    events = list(itertools.chain.from_iterable(values))
    column = {"item_id": [event.item for event in events], "action_type": [event.action for event in events],
              "timestamp": [event.time for event in events]}
    events = pa.StructArray.from_arrays([pa.array(column[field.name], field.type) for field in _EVENT],
                                        fields=list(_EVENT))
    return pa.ListArray.from_arrays(pa.array(start, pa.int32()), events)


def item_table(folder: Path, features: Collection[str], *, rows_per_part: int) -> PartWriter:
    """`item_feat/`; a row is the item's re-id and its value of each feature, None where it has none."""
    schema = pa.schema([("item_id", pa.int64()), *((fid, pa.int64()) for fid in features)])
    return PartWriter(folder / "item_feat", schema, rows_per_part=rows_per_part)


def write_candidate_table(folder: Path, candidates: Iterable[Candidate],
                          features: Collection[str] = ITEM_FEATURES) -> None:
    """`candidate/`: values that training has not seen (text) are marked as cold."""
    schema = pa.schema([("item_id", pa.int64()), ("retrieval_id", pa.int64()), *((fid, _VALUE) for fid in features)])
    value = lambda one: None if one is None else {"cold_start": int(isinstance(one, str)), "feature_value": str(one)}
    with PartWriter(folder / "candidate", schema, rows_per_part=1 << 40) as table:
        for candidate in candidates:
            table.add(candidate.creative_id, candidate.retrieval_id,
                      *(value(candidate.features.get(fid)) for fid in features))


def write_embedding_table(data: Path, feature: str, vectors: Iterable[tuple[int, np.ndarray | None]], *, width: int,
                          rows_per_part: int) -> None:
    """`mm_emb/emb_{feature}_{width}_parquet/`: ids as text, vectors as lists of doubles, null where there is none."""

    def column(name: str, values: list) -> pa.Array:
        if name == "anonymous_cid":
            return pa.array([str(creative_id) for creative_id in values], pa.string())
        numbers = [np.asarray(vector, np.float64) for vector in values if vector is not None]
        start = np.cumsum([0, *(0 if vector is None else len(vector) for vector in values)])
        return pa.ListArray.from_arrays(pa.array(start, pa.int32()), pa.array(np.concatenate(numbers or [np.empty(0)])),
                                        mask=pa.array([vector is None for vector in values]))

    schema = pa.schema([("anonymous_cid", pa.string()), ("emb", pa.list_(pa.float64()))])
    with PartWriter(Path(data) / "mm_emb" / f"emb_{feature}_{width}_parquet", schema, rows_per_part=rows_per_part,
                    group_rows=_GROUP_NUMBERS // max(1, width), column=column) as table:
        for creative_id, vector in vectors:
            table.add(creative_id, vector)


class ReleaseWriter(RawWriter):
    """A RawWriter that writes the release's files instead of the organisers'; `users` is how many will come."""

    def __init__(self, folder: Path, *, users: int):
        self._users = users
        super().__init__(folder)

    def _open_sequences(self) -> UserTables:
        return UserTables(self.folder, USER_FEATURES, rows_per_part=-(-self._users // PARTS))

    def _finish(self) -> None:
        write_index(self.folder / "indexer.pkl", self.index)
        with item_table(self.folder, ITEM_FEATURES, rows_per_part=-(-len(self._item_features) // PARTS)) as table:
            for reid, features in self._item_features.items():
                table.add(reid, *map(features.get, ITEM_FEATURES))


def write_release(raw: Path, out: Path, *, parts: int = PARTS, lists: Collection[str] = USER_LISTS) -> Path:
    """Write what a folder of JSON lines holds, and its candidates where it has them, as the release's files.

    Every user's and item's number stays. An item without a record takes the features of its first event. `parts` is
    how many files a table would have whose rows are all of the index.
    """
    raw, out = Path(raw), Path(out)
    log = open_log(raw)
    index, user_features = log.index(), sorted(log.user_feature_ids())
    index.features.pop(LEFT_OUT, None)
    item_features = sorted(index.features.keys() - set(user_features))
    users_per_part, items_per_part = -(-len(index.users) // parts), -(-len(index.items) // parts)
    out.mkdir(parents=True, exist_ok=True)
    write_index(out / "indexer.pkl", index)
    with UserTables(out, user_features, lists=lists, rows_per_part=users_per_part) as users, \
            item_table(out, item_features, rows_per_part=items_per_part) as items:
        for reid, features in _item_records(raw / "item_feat_dict.json", index, log.lines(), users):
            items.add(reid, *map(features.get, item_features))
    if (raw / "predict_set.jsonl").is_file():
        write_candidate_table(out, read_candidates(raw / "predict_set.jsonl"), item_features)
    for source in find_embeddings(raw).values():
        with contextlib.closing(read_embedding(source)) as vectors:
            write_embedding_table(out, source.feature, vectors, width=source.labelled_width,
                                  rows_per_part=items_per_part)
    return out


def _item_records(path: Path, index: Index, lines: Iterator[UserLine],
                  users: UserTables) -> Iterator[tuple[int, Features]]:
    """(re-id, features) of every item once: as the dictionary says, else as its first event; writes the users too."""
    recorded = bytearray(len(index.items) + 1)
    for reid, features in read_item_features(path) if path.is_file() else ():
        recorded[reid] = 1
        yield reid, features
    for line in lines:
        users.write(line)
        for event in line.events:
            if not recorded[event.item]:
                recorded[event.item] = 1
                yield event.item, event.features
