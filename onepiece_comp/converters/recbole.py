"""RecBole's atomic files as a raw folder: NAME.inter, and beside it NAME.item and NAME.user where there are any.

A converter of `convert.py`. The first line of an atomic file says `name:type` for each field (between tabs, but commas
and spaces occur); types are token, token_seq (words between spaces), float and float_seq. Source: recbole.io, "Atomic
Files".
"""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from onepiece_comp.converters.actions import Actions, actions_of, all_clicks, liked, map_of
from onepiece_comp.converters.event_log import (
    ORDINAL_START, ORDINAL_STEP, Extras, Ids, NumberedLog, as_held, ids, number_log, of_the_log, positions_as_seconds,
    write_raw)
from onepiece_comp.converters.feature_tables import (
    ITEM_FEATURES_FROM, NO_FEATURES, USER_FEATURES_FROM, FeatureTable, feature_table, spread_lists)
from onepiece_comp.converters.files import TEXT, SourceRows, candidates
from onepiece_comp.converters.tables import UNQUOTED, delimited, header
from onepiece_comp.converters.times import ticks
from onepiece_comp.errors import InputError

TYPES = ("token", "token_seq", "float", "float_seq")
FIELD_SEPARATORS = {"\t": "tabs", ",": "commas", " ": "spaces"}
USER_NAMES, ITEM_NAMES = ("user_id", "session_id", "user"), ("item_id", "item")  # RecBole's own names first
TIME_NAMES = ("timestamp", "date", "datetime", "time")
RATING_NAMES = ("rating", "stars", "overall")
ACTION_NAMES = ("label", "click", "is_click", "behavior_type", "behavior", "behaviour", "action_type", "action",
                "event_type", "event")


class Fields(NamedTuple):
    """An atomic file and its fields: names to types, in the order of its columns, and what stands between them."""

    path: Path
    types: dict[str, str]
    separator: str


class Roles(NamedTuple):
    """Which fields of the .inter file are what; "" where there is none."""

    user: str
    item: str
    time: str
    rating: str  # read by its height
    action: str  # read by its values


def convert_recbole(source: Path, out: Path, *, user: str = "", item: str = "", time: str = "", action: str = "",
                    action_map: Sequence[str] = ()) -> Path:
    """A folder of atomic files (or its .inter file, each may be gzipped) as a raw folder; returns `out`.

    A rating makes every event an exposure, one of at least LIKED a click; a label or kind of behaviour is read as a
    table's `--action` is; without either all are clicks. Without times the order of the file stands for them. `user`,
    `item`, `time`, `action` name the fields where they have other names than RecBole's. InputError for a missing file
    or field, for histories in a row, ratings that never reach LIKED, and a row that is none, with its line.
    """
    path = inter_file(Path(source))
    fields = atomic_fields(path)
    _refuse_histories(fields, item)
    roles = _roles(fields, user=user, item=item, time=time, action=action)
    if action_map and not roles.action:
        raise InputError("--map", found="values of actions without --action", expected="both", do="name the field")
    rows = _event_rows(fields, roles)
    rows.require()
    users, items = ids(rows, f"{roles.user}:token"), ids(rows, f"{roles.item}:token")
    actions = _actions(rows, fields, roles, map_of(action_map))
    about = {"source": "recbole", "actions": actions.stated, "times": "order only",
             "fields": {role: name for role, name in roles._asdict().items() if name}}
    if fields.separator != "\t":
        about["separated by"] = FIELD_SEPARATORS[fields.separator]
    log, original_ids, counts = _in_time(rows, fields, roles, users, items, actions, about)
    unread = [name for name in fields.types if name not in roles]
    tables = [_features(path, suffix, held, about=about, unread=unread, first=first, is_item=is_item)
              for suffix, held, first, is_item in ((".user", users, USER_FEATURES_FROM, False),
                                                   (".item", items, ITEM_FEATURES_FROM, True))]
    about |= {"not read": ", ".join(unread)} if unread else {}
    return write_raw(Path(out), log, about, Extras(*tables, original_ids=original_ids, counts=counts))


def inter_file(source: Path) -> Path:
    """The one .inter file of a folder, gzipped or not, or the file itself."""
    paths = candidates(source, "*.inter") if source.is_dir() else [source]
    if len(paths) != 1 or not paths[0].is_file():
        names = ", ".join(path.name for path in paths) if source.is_dir() else "no such file"
        raise InputError(source, found=f"{len(paths)} files *.inter ({names or 'none'})", expected="one",
                         do="check the path; of several, give the path of one")
    return paths[0]


def is_recbole(source: Path) -> bool:
    """Whether this is an .inter file or a folder with one."""
    return bool(candidates(source, "*.inter")) if source.is_dir() else source.name.endswith((".inter", ".inter.gz"))


def atomic_fields(path: Path) -> Fields:
    """The fields that the first line declares; InputError for one without a type of RecBole's."""
    separator = next((each for each in FIELD_SEPARATORS if len(header(path, each)) > 1), "\t")
    types = {}
    for field in header(path, separator):
        name, _, kind = field.rpartition(":")
        if not name or kind not in TYPES or name in types:
            raise InputError(f"{path}:1", found=f"the field {field!r}" + (" a second time" if name in types else ""),
                             expected=f"name:type with a type of {', '.join(TYPES)}", do="correct the first line")
        types[name] = kind
    return Fields(path, types, separator)


def _refuse_histories(fields: Fields, item: str) -> None:
    """InputError for RecBole's files of sequences: a row there holds a whole history, and users have many rows."""
    for name, kind in fields.types.items():
        if kind == "token_seq" and name.removesuffix("_list") in {item, *ITEM_NAMES} and name.endswith("_list"):
            raise InputError(f"{fields.path}:1", found=f"a history in each row ({name}:{kind})",
                             expected="an event a row",
                             do="write a row for each event, or a line of user and items for `convert sequences`")


def _roles(fields: Fields, *, user: str, item: str, time: str, action: str) -> Roles:
    outcomes = [name for name in fields.types if name.lower() in RATING_NAMES + ACTION_NAMES]
    if len(outcomes) > 1 and not action:
        raise InputError(f"{fields.path}:1", found=f"the outcomes {', '.join(outcomes)}", expected="one",
                         do="name the one to read with --action, and with --map what its values are")
    rating = next((name for name in outcomes if name.lower() in RATING_NAMES and not action), "")
    return Roles(_field(fields, user, ("token",), USER_NAMES, option="user", needed=True),
                 _field(fields, item, ("token",), ITEM_NAMES, option="item", needed=True),
                 _field(fields, time, ("float", "token"), TIME_NAMES, option="time"), rating,
                 "" if rating else _field(fields, action or "".join(outcomes), ("token", "float"), (), option="action"))


def _field(fields: Fields, named: str, kinds: tuple[str, ...], usual: tuple[str, ...], *, option: str,
           needed: bool = False) -> str:
    """The named field, else the first usual name, else the only one of the first type with the last usual name in
    it.
    """
    for name in [named] if named else usual:
        if fields.types.get(name) in kinds:
            return name
    alike = [name for name, kind in fields.types.items() if kind == kinds[0] and usual and usual[-1] in name.lower()]
    if not named and len(alike) == 1:
        return alike[0]
    if named or needed:
        present = ", ".join(f"{name}:{found}" for name, found in fields.types.items())
        raise InputError(fields.path, found=f"the fields {present}", expected=f"{named or usual[0]}:{kinds[0]}",
                         do=f"name the right one with --{option}")
    return ""


def _event_rows(fields: Fields, roles: Roles) -> SourceRows:
    """The fields that have a role; a rating is a number whatever its type says, an action is kept as it is written."""
    kinds = {roles.rating: pa.float64(), roles.action: TEXT, roles.user: TEXT, roles.item: TEXT,
             roles.time: pa.string() if fields.types.get(roles.time) == "token" else pa.float64()}
    return _rows(fields, {name: kind for name, kind in kinds.items() if name})


def _rows(fields: Fields, kinds: dict[str, pa.DataType]) -> SourceRows:
    """These fields as columns under their full names; the rest is not kept."""
    return delimited(fields.path, {f"{name}:{fields.types[name]}": kind for name, kind in kinds.items()},
                     separator=fields.separator, quote="" if fields.separator == "," else UNQUOTED)


def _actions(rows: SourceRows, fields: Fields, roles: Roles, mapped: dict[str, int]) -> Actions:
    if roles.rating:
        return liked(rows, f"{roles.rating}:{fields.types[roles.rating]}", do=f"if 1 is a click give --action "
                     f"{roles.rating}, on another scale --map VALUE=ACTION for its values too")
    if roles.action:
        return actions_of(rows, f"{roles.action}:{fields.types[roles.action]}", mapped)
    return all_clicks(rows, "there is no rating, label or behaviour that --action names")


def _in_time(rows: SourceRows, fields: Fields, roles: Roles, users: Ids, items: Ids, actions: Actions,
             about: dict) -> NumberedLog:
    """The numbered log; `about` says what the times are."""
    if not roles.time:
        about |= {"ordinal_start": ORDINAL_START, "ordinal_step": ORDINAL_STEP}
        return number_log(users, items, action=actions.values, ticks=positions_as_seconds(users.codes))
    moments = ticks(rows, f"{roles.time}:{fields.types[roles.time]}")
    about["times"] = moments.stated
    return number_log(users, items, action=actions.values, ticks=moments.values,
                      ticks_per_second=moments.per_second, exact=bool(roles.action))


def _beside(path: Path, suffix: str, unread: list[str]) -> Path | None:
    """NAME.item or NAME.user of this NAME.inter, gzipped or not; those of other names go to `unread`."""
    name = path.name.removesuffix(".gz").removesuffix(".inter") + suffix
    paths = candidates(path.parent, glob.escape(name))
    if len(paths) > 1:
        raise InputError(path.parent, found=f"{name} and {name}.gz", expected="one", do="take one of them away")
    if not paths:
        unread += [other.name for other in candidates(path.parent, f"*{suffix}")]
    return paths[0] if paths else None


def _features(inter: Path, suffix: str, held: Ids, *, about: dict, unread: list[str], first: int,
              is_item: bool) -> FeatureTable:
    """The features of the users or items of the log; none where there is no file."""
    path = _beside(inter, suffix, unread)
    if path is None:
        return NO_FEATURES
    fields = atomic_fields(path)
    option = "item" if is_item else "user"
    key = _field(fields, about["fields"][option], ("token",), (), option=option)
    left_out = [name for name, kind in fields.types.items() if kind == "float_seq"]
    if left_out:
        about[f"left out of {path.name}"] = f"{', '.join(left_out)}: lists of numbers"
    kept = [name for name in fields.types if name not in left_out]
    read = _rows(fields, {name: pa.float64() if fields.types[name] == "float" else TEXT for name in kept})
    table = read.table.rename_columns(kept).to_pandas()
    table.insert(0, "id", table.pop(key))
    table["id"] = as_held(table["id"], held.originals)
    table = of_the_log(table, held.originals, path, f"{option}s")
    for name in (name for name in kept if name != key and fields.types[name] != "float"):
        texts = table[name].astype(object)
        table[name] = texts.str.split() if fields.types[name] == "token_seq" else texts
    groups: list[list[str]] = []
    if is_item:
        table, groups = spread_lists(table)
    return feature_table(table, first=first, shared=groups,
                         binned=[name for name in kept if fields.types[name] == "float"])
