"""RecBole's atomic files as a raw folder: NAME.inter, and beside it NAME.item and NAME.user where there are any.

A converter of `convert.py`. The first line of an atomic file says `name:type` for each tab-separated field; types are
token, token_seq (words between spaces), float and float_seq. Source: recbole.io, "Atomic Files".
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from onepiece_comp.errors import InputError
from onepiece_comp.event_log import (
    LIKED, ORDINAL_START, ORDINAL_STEP, Extras, Ids, NumberedLog, ids, number_log, positions_as_seconds, write_raw)
from onepiece_comp.formats import CLICK, EXPOSURE
from onepiece_comp.log_features import (
    ITEM_FEATURES_FROM, NO_FEATURES, USER_FEATURES_FROM, FeatureTable, feature_table, spread_lists)
from onepiece_comp.log_files import TEXT, Rows, delimited, header
from onepiece_comp.log_times import ticks

TYPES = ("token", "token_seq", "float", "float_seq")
USER_NAMES, ITEM_NAMES = ("user_id", "session_id", "user"), ("item_id", "item")  # RecBole's own names first
TIME_NAMES, RATING_NAMES = ("timestamp", "time"), ("rating",)


class Fields(NamedTuple):
    """An atomic file and its fields: names to types, in the order of its columns."""

    path: Path
    types: dict[str, str]


class Roles(NamedTuple):
    """Which fields of the .inter file are what; "" where there is none."""

    user: str
    item: str
    time: str
    rating: str


def convert_recbole(source: Path, out: Path, *, user: str = "", item: str = "", time: str = "") -> Path:
    """A folder of atomic files (or its .inter file) as a raw folder; returns `out`.

    A rating makes every event an exposure, one of at least LIKED a click; without ratings all are clicks. Without times
    the order of the file stands for them. `user`, `item`, `time` name the fields where they have other names than
    RecBole's. InputError for a missing file or field and a row that is none, with its line.
    """
    path = inter_file(Path(source))
    fields = atomic_fields(path)
    roles = _roles(fields, user=user, item=item, time=time)
    rows = _rows(fields, [name for name in roles if name])
    users, items = ids(rows, f"{roles.user}:token"), ids(rows, f"{roles.item}:token")
    about = {"source": "recbole", "actions": "1, all: there is no rating", "times": "order only",
             "fields": {role: name for role, name in roles._asdict().items() if name}}
    action = np.full(len(users.codes), CLICK, np.int8)
    if roles.rating:
        rows.require(f"{roles.rating}:float")
        stars = rows.table.column(f"{roles.rating}:float").to_numpy()
        action = np.where(stars >= LIKED, CLICK, EXPOSURE).astype(np.int8)
        about["actions"] = f"0 any {roles.rating}, 1 a {roles.rating} of at least {LIKED}"
    log, original_ids, counts = _in_time(rows, roles, users, items, action, about)
    tables = [_features(path.with_suffix(suffix), held, about=about, first=first, is_item=is_item)
              for suffix, held, first, is_item in ((".user", users, USER_FEATURES_FROM, False),
                                                   (".item", items, ITEM_FEATURES_FROM, True))]
    return write_raw(Path(out), log, about, Extras(*tables, original_ids=original_ids, counts=counts))


def inter_file(source: Path) -> Path:
    """The one .inter file of a folder, or the file itself."""
    paths = sorted(source.glob("*.inter")) if source.is_dir() else [source]
    if len(paths) != 1 or not paths[0].is_file():
        names = ", ".join(path.name for path in paths) if source.is_dir() else "no such file"
        raise InputError(source, found=f"{len(paths)} files *.inter ({names or 'none'})", expected="one",
                         do="check the path; of several, give the path of one")
    return paths[0]


def is_recbole(source: Path) -> bool:
    """Whether this is an .inter file or a folder with one."""
    return any(source.glob("*.inter")) if source.is_dir() else source.suffix == ".inter"


def atomic_fields(path: Path) -> Fields:
    """The fields that the first line declares; InputError for one without a type of RecBole's."""
    types = {}
    for field in header(path, "\t"):
        name, _, kind = field.rpartition(":")
        if not name or kind not in TYPES or name in types:
            raise InputError(f"{path}:1", found=f"the field {field!r}" + (" a second time" if name in types else ""),
                             expected=f"name:type with a type of {', '.join(TYPES)}", do="correct the first line")
        types[name] = kind
    return Fields(path, types)


def _roles(fields: Fields, **named: str) -> Roles:
    return Roles(_field(fields, named["user"], "token", USER_NAMES, needed="user"),
                 _field(fields, named["item"], "token", ITEM_NAMES, needed="item"),
                 _field(fields, named["time"], "float", TIME_NAMES), _field(fields, "", "float", RATING_NAMES))


def _field(fields: Fields, named: str, kind: str, usual: tuple[str, ...], *, needed: str = "") -> str:
    """The named field, else the first usual name, else the only field of this type with the last usual name in it."""
    of_kind = [name for name, found in fields.types.items() if found == kind]
    for name in [named] if named else usual:
        if name in of_kind:
            return name
    alike = [name for name in of_kind if usual[-1] in name.lower()]
    if not named and len(alike) == 1:
        return alike[0]
    if named or needed:
        present = ", ".join(f"{name}:{found}" for name, found in fields.types.items())
        raise InputError(fields.path, found=f"the fields {present}", expected=f"{named or usual[0]}:{kind}",
                         do=f"name the right one with --{needed or 'time'}")
    return ""


def _rows(fields: Fields, names: list[str]) -> Rows:
    """These fields as columns under their full names; the rest is not kept."""
    types = {f"{name}:{fields.types[name]}": pa.float64() if fields.types[name] == "float" else TEXT for name in names}
    return delimited(fields.path, types, delimiter="\t", quoted=False)


def _in_time(rows: Rows, roles: Roles, users: Ids, items: Ids, action: np.ndarray, about: dict) -> NumberedLog:
    """The numbered log; `about` says what the times are."""
    if not roles.time:
        about |= {"ordinal_start": ORDINAL_START, "ordinal_step": ORDINAL_STEP}
        return number_log(users, items, action=action, ticks=positions_as_seconds(users.codes))
    moments = ticks(rows, f"{roles.time}:float")
    about["times"] = moments.stated
    return number_log(users, items, action=action, ticks=moments.values, ticks_per_second=moments.per_second)


def _features(path: Path, held: Ids, *, about: dict, first: int, is_item: bool) -> FeatureTable:
    """The features of the users or items of the log; none where there is no file."""
    if not path.is_file():
        return NO_FEATURES
    fields = atomic_fields(path)
    key = _field(fields, about["fields"]["item" if is_item else "user"], "token", ("",))
    left_out = [name for name, kind in fields.types.items() if kind == "float_seq"]
    if left_out:
        about[f"left out of {path.name}"] = f"{', '.join(left_out)}: lists of numbers"
    kept = [name for name in fields.types if name not in left_out]
    table = _rows(fields, kept).table.rename_columns(kept).to_pandas()
    table.insert(0, "id", table.pop(key))
    table = table[table["id"].isin(held.originals)].reset_index(drop=True)
    for name in (name for name in kept if name != key and fields.types[name] != "float"):
        texts = table[name].astype(object)
        table[name] = texts.str.split() if fields.types[name] == "token_seq" else texts
    groups: list[list[str]] = []
    if is_item:
        table, groups = spread_lists(table)
    return feature_table(table, first=first, shared=groups,
                         binned=[name for name in kept if fields.types[name] == "float"])
