"""What settings may be, where a stage would fail late, or do something else without a word: checked when they are read.

Stands between `config.py`, whose fields tell their own ranges, and `config_reading.py`: here is what holds between
fields.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields

from onepiece_comp.config import Config, Fits
from onepiece_comp.console import table
from onepiece_comp.errors import InputError


def settings(config: Config) -> Iterator[tuple[str, object, str, Fits | None]]:
    """(section.name, value, meaning, what it may be) of every setting, in the order of config.py."""
    for section in fields(config):
        held = getattr(config, section.name)
        for each in fields(held):
            yield f"{section.name}.{each.name}", getattr(held,
                                                         each.name), each.metadata["meaning"], each.metadata["fits"]


def show_settings(config: Config, section: str = "") -> None:
    """Print the settings of a section, or of all: value, what it may be, meaning; InputError for an unknown section."""
    sections = [each.name for each in fields(config)]
    if section and section not in sections:
        raise InputError(section, found="no section of settings", expected=f"one of {', '.join(sections)}",
                         do="correct it")
    rows = [(name, repr(value), "" if fits is None else fits.words, meaning)
            for name, value, meaning, fits in settings(config) if not section or name.startswith(f"{section}.")]
    table("settings", ("--set", "value", "may be", "meaning"), rows)


def check_ranges(config: Config) -> None:
    """InputError for the first setting that no stage could work with."""
    for name, value, _, fits in settings(config):
        if fits is not None:
            _require(name, value, fits.test, fits.words)
    model, train = config.model, config.train
    _require("train.sampled_negatives", train.sampled_negatives, lambda count: count or train.loss != "bce",
             "1 or more with train.loss=bce, which compares a target with one of them")
    _require("model.heads", model.heads, lambda heads: model.width % heads == 0,
             f"a divisor of the width, {model.width}")
    _require("ranker.heads", config.ranker.heads, lambda heads: config.ranker.width % heads == 0,
             f"a divisor of its width, {config.ranker.width}")
    _require("model.rotary", model.rotary, lambda rotary: not rotary or model.width // model.heads % 2 == 0,
             "false, or heads of an even width")
    _require("model.active_experts", model.active_experts,
             lambda active: not model.experts or 1 <= active <= model.experts, f"1 to {model.experts}, the experts")


def _require(name: str, value: object, fits: Callable, expected: str) -> None:
    if not fits(value):
        raise InputError(name, found=repr(value), expected=expected, do="correct it")
