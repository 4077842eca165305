"""Writing the organisers' training files from any stream of users, and moving lines between id spaces.

A line *in original ids* has the user's original id (str), creative ids and raw feature values (int). `RawWriter`
gives re-ids by first appearance, as `indexer.pkl` does; `to_original` undoes it; `to_predict` writes what an index
does not know as the organisers do: raw creative id, user id as str, feature values as str.
"""

from collections.abc import Callable
from pathlib import Path

from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import (
    Event, Features, Index, ItemFeatureWriter, SequenceWriter, UserLine, write_feature_counts, write_index)


def _map_values(features: Features, value_of: Callable[[str, object], object]) -> Features:
    """Apply `value_of(feature id, value)` to every value, inside lists too."""
    return {fid: [value_of(fid, v) for v in value] if isinstance(value, list) else value_of(fid, value)
            for fid, value in features.items()}


class RawWriter:
    """Write seq.jsonl, offsets, indexer, item_feat_dict and feature counts of one folder, user by user.

    Memory: the id maps and one feature record per item, not the log.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.index = Index({}, {}, {})
        self._item_features: dict[int, Features] = {}
        self._user_features: set[str] = set()
        self._sequences = self._open_sequences()

    def _open_sequences(self) -> SequenceWriter:
        return SequenceWriter(self.folder)

    def _value(self, fid: str, raw: object) -> int:
        values = self.index.features.setdefault(fid, {})
        try:
            return values.setdefault(int(raw), len(values) + 1)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"feature {fid}", found=f"the value {raw!r}", expected="a whole number, or a list of them",
                             do="correct the log's records of this feature") from error

    def item(self, creative_id: int, features: Features) -> tuple[int, Features]:
        """The re-id and re-mapped features of an item; the first record of an item enters item_feat_dict.json."""
        reid = self.index.items.setdefault(creative_id, len(self.index.items) + 1)
        mapped = _map_values(features, self._value)
        self._item_features.setdefault(reid, mapped)
        return reid, mapped

    def add(self, line: UserLine) -> None:
        """Write one user, given in original ids."""
        reid = self.index.users.setdefault(str(line.user), len(self.index.users) + 1)
        self._user_features.update(line.profile)
        profile = _map_values(line.profile, self._value)
        events = [Event(*self.item(e.item, e.features), e.action, e.time) for e in line.events]
        self._sequences.write(UserLine(reid, profile, line.profile_time, events))

    def __enter__(self) -> "RawWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._sequences.__exit__(*exc)
        if exc[0] is None:
            self._finish()

    def _finish(self) -> None:
        write_index(self.folder / "indexer.pkl", self.index)
        write_feature_counts(self.folder, self.index, self._user_features)
        with ItemFeatureWriter(self.folder / "item_feat_dict.json") as items:
            for reid, features in self._item_features.items():
                items.write(reid, features)


class OriginalIds:
    """The inverse of an index: re-ids back to original users, creative ids and raw feature values."""

    def __init__(self, index: Index):
        self._users = {reid: user for user, reid in index.users.items()}
        self._items = {reid: creative for creative, reid in index.items.items()}
        self._features = {fid: {reid: raw for raw, reid in values.items()} for fid, values in index.features.items()}

    def _value(self, fid: str, value: object) -> int:
        """A re-id's raw value; a text of digits already is one; what has no entry stands for itself."""
        if isinstance(value, str):
            return int(value) if value.isdecimal() else value
        return self._features.get(fid, {}).get(value, value) if isinstance(value, int) else value

    def user(self, user: int | str) -> str:
        return user if isinstance(user, str) else self._users.get(user, str(user))

    def item(self, item: int) -> int:
        return self._items.get(item, item)

    def features(self, features: Features) -> Features:
        return _map_values(features, self._value)

    def line(self, line: UserLine) -> UserLine:
        """The line in original ids."""
        events = [e._replace(item=self.item(e.item), features=self.features(e.features)) for e in line.events]
        return UserLine(self.user(line.user), self.features(line.profile), line.profile_time, events)


def to_predict_features(features: Features, index: Index) -> Features:
    """Raw values to re-ids; values that `index` does not know become strings."""
    return _map_values(features, lambda fid, raw: index.features.get(fid, {}).get(raw, str(raw)))


def to_predict(line: UserLine, index: Index) -> UserLine:
    """A line in original ids as `predict_seq.jsonl` has it under `index`."""
    events = [e._replace(item=index.items.get(e.item, e.item), features=to_predict_features(e.features, index))
              for e in line.events]
    return UserLine(index.users.get(line.user, line.user), to_predict_features(line.profile, index),
                    line.profile_time, events)
