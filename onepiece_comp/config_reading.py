"""Configurations from presets for size, strict YAML files and `--set` overrides, and from what a checkpoint stored.

Order of precedence: field defaults, preset, file, `--set section.key=value`. A wrong key or type is an error
that names file, line and the nearest valid name. A checkpoint carries its configuration as JSON.
"""

import dataclasses
import datetime
import difflib
import json
import types
import typing
from pathlib import Path

from onepiece_comp.config import Config
from onepiece_comp.config_ranges import check_ranges
from onepiece_comp.errors import InputError
from onepiece_comp.presets import PRESETS

NEUTRAL = frozenset("threads reader engine engine_address engine_workers save_minutes log_every cache".split())


def _nearest(name: str, valid: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), valid := list(valid), n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(valid)}"


def _coerce(value: object, kind: object, place: str) -> object:
    """`value` as the field's type: whole numbers pass for floats and texts, dates for texts, lists for tuples;
    no more.
    """
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(place, found=repr(value), expected="a list", do="write it as [a, b]")
        inner = typing.get_args(kind)[0]
        return tuple(_coerce(item, inner, place) for item in value)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _coerce(value, typing.get_args(kind)[0], place)
    if kind is str and isinstance(value, (int, datetime.date)) and not isinstance(value, bool):
        # dates and seconds that YAML has read
        return value.isoformat() if isinstance(value, datetime.date) else str(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise InputError(place, found=f"{value!r} ({type(value).__name__})", expected=f"a {kind.__name__}",
                         do="correct the value")
    return value


def _replace(section: object, values: dict, place: typing.Callable[[str], str]) -> object:
    kinds = typing.get_type_hints(type(section))
    for key in values:
        if key not in kinds:
            raise InputError(place(key), found=f"the unknown key {key!r}",
                             expected=f"a key of {type(section).__name__}",
                             do=_nearest(key, kinds))
    return dataclasses.replace(section, **{k: _coerce(v, kinds[k], place(k)) for k, v in values.items()})


def merge(config: Config, values: dict, place: typing.Callable[..., str]) -> Config:
    """`config` with the sections and keys of `values` replaced; `place(section, key)` names where they stand."""
    sections = [f.name for f in dataclasses.fields(Config)]
    replaced = {}
    for name, section_values in values.items():
        if name not in sections:
            raise InputError(place(name), found=f"the unknown section {name!r}",
                             expected=f"one of {', '.join(sections)}", do=_nearest(name, sections))
        if not isinstance(section_values, dict):
            raise InputError(place(name), found=repr(section_values), expected="keys and values under the section",
                             do="indent the section's keys")
        replaced[name] = _replace(getattr(config, name), section_values, lambda key, name=name: place(name, key))
    return dataclasses.replace(config, **replaced)


def read_yaml(path: Path) -> tuple[object, dict[tuple[str, ...], int]]:
    """A YAML file's value and the line of each key (of sections and of the keys in them)."""
    import yaml

    if not path.is_file():
        raise InputError(path, found="no such file", expected="a YAML configuration", do="check the path")
    try:
        text = path.read_text("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # no UTF-8, and dates that there are not
        raise InputError(path, found=f"no valid YAML ({' '.join(str(error).split())})", expected="sections of keys",
                         do="correct the file") from error
    lines: dict[tuple[str, ...], int] = {}
    for section, body in node.value if isinstance(node, yaml.MappingNode) else []:
        if (section.value,) in lines:
            raise InputError(f"{path}:{section.start_mark.line + 1}", found=f"{section.value!r} a second time",
                             expected="each section once", do="join them")
        lines[section.value,] = section.start_mark.line + 1
        for key, _ in body.value if isinstance(body, yaml.MappingNode) else []:
            if (section.value, key.value) in lines:
                raise InputError(f"{path}:{key.start_mark.line + 1}", found=f"{key.value!r} a second time",
                                 expected="each key once", do="remove one of them")
            lines[section.value, key.value] = key.start_mark.line + 1
    return value, lines


def load_config(preset: str = "tiny", file: Path | None = None, sets: typing.Sequence[str] = ()) -> Config:
    """The configuration from a preset, a YAML file and `section.key=value` overrides, in this order."""
    if preset not in PRESETS:
        raise InputError("--preset", found=repr(preset), expected=f"one of {', '.join(PRESETS)}",
                         do=_nearest(preset, PRESETS))
    return override(merge(Config(), PRESETS[preset], lambda *keys: f"preset {preset}: {'.'.join(keys)}"), file, sets)


def override(config: Config, file: Path | None, sets: typing.Sequence[str]) -> Config:
    """`config` changed by a YAML file, then by `section.key=value` overrides;
    InputError for what is out of its range.
    """
    if file is not None:
        value, lines = read_yaml(Path(file))
        if value is not None and not isinstance(value, dict):
            raise InputError(file, found=type(value).__name__, expected="sections of keys",
                             do="see docs/configuration.md")
        config = merge(config, value or {}, lambda *keys: f"{file}:{lines.get(keys, 1)}")
    for text in sets:
        key, equals, value_text = text.partition("=")
        section, dot, name = key.partition(".")
        if not equals or not dot:
            raise InputError(f"--set {text}", found="no section.key=value", expected="for example train.epochs=4",
                             do="write it so")
        config = merge(config, {section: {name: parse_value(value_text)}}, lambda *keys: f"--set {text}")
    check_ranges(config)
    return config


def parse_value(text: str) -> object:
    """A `--set` value: JSON where it is JSON (numbers, true, lists), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:  # a bare word such as cascade
        return text


def to_dict(config: object) -> dict:
    """A config dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def result_settings(config: object) -> dict:
    """`to_dict` without the settings that change how something is made, never what: of these alone keys are made."""
    return {name: value for name, value in to_dict(config).items() if name not in NEUTRAL}


def from_dict(kind: type, values: dict, place: object) -> typing.Any:
    """The inverse of `to_dict` for one section, as strict as a file."""
    return _replace(kind(), values, lambda key: f"{place}: {key}")
