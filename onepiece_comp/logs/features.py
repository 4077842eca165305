"""Features as numbers: the schema of a dataset, item feature matrices, user profiles as bags of tokens.

Every feature has a slice of a joint vocabulary: token = offset + value, value 0 = missing or unknown. An item has
one value per feature; a user's profile is a bag of tokens, so list-valued features need no special case.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import Features, Index
from onepiece_comp.logs.identity import ITEMS, Numbering, check_same, stored_numberings

OUTSIDE_SCHEMA, OUTSIDE_VOCABULARY = "feature outside the schema", "value outside the vocabulary"
LISTED, BEYOND_MOST = "list-valued user feature", "values beyond max_array_values"


class Feature(NamedTuple):
    """One feature of the joint vocabulary: values 0..size-1 stand at tokens offset..offset+size-1."""

    id: str
    size: int
    offset: int


class Schema(NamedTuple):
    """What a model must know of a dataset; stored in `schema.json` and in every checkpoint."""

    items: int  # I; item rows are 1..I
    item_features: list[Feature]
    user_features: list[Feature]
    embeddings: dict[str, int]  # feature id to width
    item_space: str  # fingerprint of creative ids in row order
    trend_bucket_seconds: int
    trend_end_second: int  # where the training log's last popularity bucket ends
    max_array_values: int = 16  # kept of a list-valued user feature
    numberings: dict[str, Numbering] = {}  # of items, and of values by feature id; none in earlier versions

    def to_dict(self) -> dict:
        return {**self._asdict(), "item_features": [list(f) for f in self.item_features],
                "user_features": [list(f) for f in self.user_features],
                "numberings": {what: list(numbering) for what, numbering in self.numberings.items()}}

    @classmethod
    def from_dict(cls, value: dict, place: object) -> "Schema":
        """The inverse of `to_dict`; InputError names `place` when a field is missing."""
        again = {"expected": "the schema of this version", "do": "run preprocess again, or copy the artefact again"}
        try:
            fields = {name: value[name] for name in cls._fields if name in value or name not in cls._field_defaults}
            for name in ("item_features", "user_features"):
                fields[name] = [Feature(*feature) for feature in fields[name]]
            fields["numberings"] = stored_numberings(value)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(place, found=f"a schema without {error}", **again) from error
        schema = cls(**fields)
        for name, fits in schema._checks():
            if not fits:
                raise InputError(f"{place}: schema.{name}", found=str(fields[name])[:80], **again)
        return schema

    def _checks(self) -> Iterable[tuple[str, bool]]:
        """Each field with whether it can be what it is said to be."""
        whole = lambda number, least: type(number) is int and least <= number < 1 << 62
        for name in ("item_features", "user_features"):
            offset, fits = 0, True
            for feature in getattr(self, name):
                fits = fits and isinstance(feature.id, str) and whole(feature.size, 1) and feature.offset == offset
                offset += feature.size if fits else 0
            yield name, fits
        yield ("embeddings", isinstance(self.embeddings, dict)
               and all(whole(width, 1) for width in self.embeddings.values()))
        yield "item_space", isinstance(self.item_space, str)
        yield "numberings", all(whole(each.count, 0) and isinstance(each.digest, str) and isinstance(each.named, bool)
                                and isinstance(each.examples, dict) for each in self.numberings.values())
        yield from ((name, whole(getattr(self, name), least)) for name, least in (
            ("items", 0), ("trend_bucket_seconds", 1), ("trend_end_second", -(1 << 62)), ("max_array_values", 1)))


def creative_by_row(items: dict[int, int]) -> np.ndarray:
    """The creative id of each row, int64 [items + 1], row 0 = padding = 0, from an index's items."""
    creative = np.zeros(len(items) + 1, np.int64)
    creative[list(items.values())] = list(items)
    return creative


def joint_vocabulary(sizes: Iterable[tuple[str, int]]) -> list[Feature]:
    """Features with consecutive slices. `sizes` gives feature id and number of known values.

    >>> joint_vocabulary([("103", 2), ("104", 5)])
    [Feature(id='103', size=3, offset=0), Feature(id='104', size=6, offset=3)]
    """
    features, offset = [], 0
    for fid, known in sizes:
        features.append(Feature(fid, known + 1, offset))
        offset += known + 1
    return features


def vocabulary_size(features: list[Feature]) -> int:
    """Rows of the joint embedding table of `features`."""
    return features[-1].offset + features[-1].size if features else 0


def known_values(*kinds: list[Feature]) -> dict[str, int]:
    """Number of known values of each feature."""
    return {feature.id: feature.size - 1 for features in kinds for feature in features}


def split_features(
    index: Index, user_feature_ids: set[str], items: int
) -> tuple[list[Feature], list[Feature], list[str]]:
    """Item features, user features, and the ids left out because they name the item itself.

    A feature with nearly one value per item (111 in the competition) repeats the item id.
    """
    known = {fid: max(values.values(), default=0) for fid, values in index.features.items()}
    item_ids = sorted((fid for fid in known if fid not in user_feature_ids), key=lambda fid: (len(fid), fid))
    identity = [fid for fid in item_ids if items >= 100 and known[fid] >= 0.9 * items]
    kept = [(fid, known[fid]) for fid in item_ids if fid not in identity]
    users = [(fid, known.get(fid, 0)) for fid in sorted(user_feature_ids, key=lambda fid: (len(fid), fid))]
    return joint_vocabulary(kept), joint_vocabulary(users), identity


def check_copied_tables(place: object, copied: Schema, schema: Schema, *, with_ids: bool) -> None:
    """InputError where tables of one size, whose rows stand for other items or values, would be copied to `schema`."""
    do, held = "start from a run on the same data", []
    if with_ids and copied.items == schema.items:
        held.append(ITEMS)
    for ours, theirs in ((schema.item_features, copied.item_features), (schema.user_features, copied.user_features)):
        if ours and vocabulary_size(ours) == vocabulary_size(theirs):
            if ours != theirs:
                raise InputError(place, found=f"features {_sizes(theirs)}",
                                 expected=f"{_sizes(ours)}, as in the dataset", do=do)
            held += [feature.id for feature in ours]
    if not held:
        return
    here, there = ({what: numbering for what, numbering in each.numberings.items() if what in held} for each in (copied,
        schema))
    check_same(place, here, there, other="the dataset", do=do)
    if ITEMS in held and copied.item_space != schema.item_space:
        raise InputError(place, found=f"{copied.items:,} items that are not those of the dataset", do=do,
                         expected="a run on the same items")


def _sizes(features: list[Feature]) -> str:
    return ", ".join(f"{feature.id} of {feature.size - 1:,} values" for feature in features)


class ItemFeatures:
    """A matrix [rows, F] of item feature values that is filled record by record and grows as rows come.

    The first record of a row that has a feature decides its value. `odd` counts what did not fit: values
    outside the vocabulary, features that are not in the schema, lists.
    """

    def __init__(self, features: list[Feature], rows: int, ignored: Iterable[str] = ()):
        self.features, self.ignored = features, frozenset(ignored)
        self._column = {f.id: (i, f.size) for i, f in enumerate(features)}
        self.values = np.zeros((rows, len(features)), np.int32)
        self.recorded = np.zeros(rows, bool)
        self.odd: Counter[str] = Counter()

    def _grow(self, row: int) -> None:
        rows = max(row + 1, 2 * len(self.values))
        self.values = np.concatenate([self.values, np.zeros((rows - len(self.values), self.values.shape[1]), np.int32)])
        self.recorded = np.concatenate([self.recorded, np.zeros(rows - len(self.recorded), bool)])

    def columns(self) -> dict[str, int]:
        """Feature ids in the order of the matrix, with the size of each vocabulary (values are below it)."""
        return {fid: size for fid, (_, size) in self._column.items()}

    def count_odd(self, counts: np.ndarray) -> None:
        """Add [features outside the schema, values outside the vocabulary] that another reader has counted."""
        for what, count in zip((OUTSIDE_SCHEMA, OUTSIDE_VOCABULARY), counts.tolist()):
            self.odd[what] += count

    def contradicts(self, row: int, features: Features) -> bool:
        """Whether a record has another value of what is known of `row`."""
        return any(isinstance(value, int) and fid in self._column and self.values[row, self._column[fid][0]] not in (0,
            value)
                   for fid, value in features.items())

    def add(self, row: int, features: Features) -> None:
        """Fill what is still missing in `row` from one record."""
        if row >= len(self.values):
            self._grow(row)
        self.recorded[row] = True
        for fid, value in features.items():
            if fid not in self._column:
                self.odd[OUTSIDE_SCHEMA] += fid not in self.ignored
                continue
            column, size = self._column[fid]
            if isinstance(value, list):
                self.odd["list-valued item feature"] += 1
                value = value[0] if value else 0
            if not isinstance(value, int) or not 0 < value < size:
                self.odd["unseen value" if isinstance(value, str) else OUTSIDE_VOCABULARY] += 1
            elif not self.values[row, column]:
                self.values[row, column] = value


class Profiles:
    """Profiles to bags of tokens; counts lists and values that the vocabulary lacks."""

    def __init__(self, features: list[Feature], max_array_values: int):
        self.features = features
        self._features = {f.id: f for f in features}
        self.most = max_array_values
        self.odd: Counter[str] = Counter()

    def columns(self) -> dict[str, tuple[int, int]]:
        """Feature ids with size and offset of each vocabulary."""
        return {fid: (feature.size, feature.offset) for fid, feature in self._features.items()}

    def count_odd(self, counts: np.ndarray) -> None:
        """Add what another reader has counted, in the order of the names here."""
        for what, count in zip((OUTSIDE_SCHEMA, OUTSIDE_VOCABULARY, LISTED, BEYOND_MOST), counts.tolist()):
            self.odd[what] += count

    def tokens(self, profile: Features) -> list[int]:
        """The tokens of one profile in ascending order, for example {"104": 2, "106": [1, 4]} to three tokens."""
        tokens = []
        for fid, value in profile.items():
            feature = self._features.get(fid)
            if feature is None:
                self.odd[OUTSIDE_SCHEMA] += 1
                continue
            if isinstance(value, list):
                self.odd[LISTED] += 1
                self.odd[BEYOND_MOST] += max(0, len(value) - self.most)
            for one in value[:self.most] if isinstance(value, list) else (value,):
                if isinstance(one, int) and 0 < one < feature.size:
                    tokens.append(feature.offset + one)
                else:
                    self.odd["unseen value" if isinstance(one, str) else OUTSIDE_VOCABULARY] += 1
        return sorted(tokens)
