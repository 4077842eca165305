"""What the numbers of a log stand for: original ids of items and feature values, and whether two artefacts agree.

`indexer.pkl` numbers items and feature values; a converter's original_ids.json and raw.json tell the texts behind them.
A `Numbering` is a digest over the original ids in the order of their numbers with a few examples: compact enough for a
schema, and so for every checkpoint, whatever the size. Numbers only ever grow, so that a longer numbering agrees with
an earlier one where its beginning has the same digest. An artefact of an earlier version has none: then what could not
be checked is said.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import fingerprint, read_json
from onepiece_comp.columns import load_column
from onepiece_comp.console import say
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import Index

ITEMS, NAMES, NAME_COLUMN = "items", "original_ids.json", "item_name"
_OF_RAW = ("item_id_offset", "features", "feature_values", "feature_bins")  # entries of a converter's raw.json
_WIDTH, _HEAD = 48, 31  # bytes of a text in a column; a longer one is its head and a digest


class Numbering(NamedTuple):
    """What the numbers 1..count of items, or of one feature's values, stand for."""

    count: int
    digest: str
    named: bool  # by texts; else the indexer's own keys are the original ids
    examples: dict[str, str]  # some numbers with their originals


class Names(NamedTuple):
    """The texts behind the numbers of a converted log; all empty for a log whose own ids are numbers."""

    items: Mapping[str, str]  # by creative id less `offset`
    offset: int
    columns: Mapping[str, str]  # by feature id
    values: Mapping[str, Mapping[str, int]]  # by feature id: text to value
    bins: Mapping[str, list[float]]  # by feature id: edges


def stated_names(folder: Path) -> dict:
    """What a raw, training or evaluation folder says of the texts behind its numbers, as original_ids.json has it."""
    stated: dict = {}
    for name, keys in (("raw.json", _OF_RAW), (NAMES, (*_OF_RAW, ITEMS, "users"))):
        if (Path(folder) / name).is_file():
            held = read_json(Path(folder) / name)
            if not isinstance(held, dict):
                raise InputError(Path(folder) / name, found=type(held).__name__, expected="a JSON object",
                                 do="write it again")
            stated |= {key: held[key] for key in keys if key in held}
    wrong = [key for key, value in stated.items() if not isinstance(value, int if key == "item_id_offset" else dict)]
    if wrong:
        raise InputError(Path(folder) / NAMES, found=f"{wrong[0]} that is a {type(stated[wrong[0]]).__name__}",
                         expected="a mapping of ids", do="convert the log again")
    return stated


def read_names(folder: Path) -> Names:
    """The texts behind the numbers of a raw, training or evaluation folder."""
    stated = stated_names(folder)
    return Names(stated.get(ITEMS, {}), stated.get("item_id_offset", 0), stated.get("features", {}),
                 stated.get("feature_values", {}), stated.get("feature_bins", {}))


def item_names(creative: np.ndarray, names: Names) -> np.ndarray | None:
    """The original id of each item row, bytes [items + 1]; None where creative ids are the original ids."""
    if not names.items:
        return None
    known = (names.items.get(str(number - names.offset), number) for number in creative[1:].tolist())
    return np.array([b"", *map(_short, known)], f"S{_WIDTH}")


def original_ids(folder: Path, creative: np.ndarray) -> np.ndarray:
    """What tells the items of a dataset or run folder from all others, by row: their names, else their creative ids."""
    return load_column(folder, NAME_COLUMN) if (Path(folder) / f"{NAME_COLUMN}.npy").is_file() else creative


def numberings(creative: np.ndarray, index: Index, names: Names, counts: Mapping[str, int]) -> dict[str, Numbering]:
    """The numbering of the items in `creative` [items + 1] and of the first `counts` values of each feature.

    A feature that the index does not have is left out.
    """
    found = {ITEMS: _number_items(creative, item_names(creative, names))}
    return found | {fid: _number_values(index.features[fid], fid, names, count) for fid, count in counts.items()
                    if index.features.get(fid) and count}


def _number_items(creative: np.ndarray, names: np.ndarray | None) -> Numbering:
    at = _examples(len(creative) - 1)
    if names is None:
        return Numbering(len(creative) - 1, fingerprint(creative), False, {str(n): str(creative[n]) for n in at})
    return Numbering(len(creative) - 1, fingerprint(creative, names), True,
                     {str(n): f"{original_text(names[n])} (creative id {creative[n]})" for n in at})


def _number_values(values: Mapping[object, int], fid: str, names: Names, count: int) -> Numbering:
    most = min(count, max(values.values()))
    raw: list[object] = [None] * (most + 1)
    for value, number in values.items():
        if 0 < number <= most:
            raw[number] = value
    named = fid in names.columns
    if named:
        texts = {number: text for text, number in names.values.get(fid, {}).items()}
        raw = [None if value is None else _value_text(value, fid, names, texts) for value in raw]
    column = _column([("" if named else 0) if value is None else value for value in raw])
    return Numbering(most, fingerprint(column), named, {str(n): original_text(column[n]) for n in _examples(most)})


def _value_text(raw: object, fid: str, names: Names, texts: Mapping[int, str]) -> str:
    """A value in words: 'genre Drama', 'price from 2.5 to 4.0', 'year 1999'."""
    edges = names.bins.get(fid)
    if edges is not None and isinstance(raw, int) and 0 <= raw <= len(edges):
        low, high = edges[raw - 1] if raw else "-", edges[raw] if raw < len(edges) else "-"
        return f"{names.columns[fid]} from {low} to {high}"
    return f"{names.columns[fid]} {texts.get(raw, raw) if isinstance(raw, int) else raw}"


def _column(values: list) -> np.ndarray:
    """Whole numbers as int64, anything else as texts."""
    if all(type(value) is int and -1 << 63 <= value < 1 << 63 for value in values):
        return np.array(values, np.int64)
    return np.array([_short(value) for value in values], f"S{_WIDTH}")


def _short(text: object) -> bytes:
    whole = str(text).encode("utf-8", "surrogatepass")
    if len(whole) <= _WIDTH:
        return whole
    return whole[:_HEAD] + b"~" + hashlib.blake2b(whole, digest_size=8).hexdigest().encode()


def original_text(value: object) -> str:
    """An entry of `original_ids` as a person knows it."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _examples(count: int) -> list[int]:
    """Numbers shown as examples: 1, 2, 4, 8, ... and the last, which whatever is inserted before it shifts."""
    return sorted({*(1 << bit for bit in range(count.bit_length())), count}) if count else []


def stored_numberings(marker: Mapping) -> dict[str, Numbering]:
    """Those that a marker or a schema holds; none in one of an earlier version."""
    return {what: Numbering(*held) for what, held in marker.get("numberings", {}).items()}


def check_same(place: object, here: Mapping[str, Numbering], there: Mapping[str, Numbering], *, other: str,
               do: str) -> None:
    """InputError with an example of both sides unless all that `there` numbers is numbered alike `here`.

    `other` names the artefact of `there`. What one side does not know, or has texts for on one side alone, is said.
    """
    unknown = [what for what, known in there.items() if what not in here or here[what].named != known.named]
    for what, known in sorted(there.items(), key=lambda pair: pair[0] != ITEMS):  # of many differences, that of items
        if what not in unknown and here[what][:2] != known[:2]:
            _refuse(place, what, here[what], known, other, do)
    if unknown or not there:
        which = ", ".join(_words(what) for what in unknown[:5]) if there else "items and feature values"
        say(f"note: {place}: whether {which} are those of {other} could not be checked: one of the two tells no "
            f"original ids "
            "(an earlier version made it, or original_ids.json is missing)")


def _refuse(place: object, what: str, here: Numbering, there: Numbering, other: str, do: str) -> None:
    number = next((number for number, text in there.examples.items()
                   if number in here.examples and here.examples[number] != text), None)
    if number is not None:
        raise InputError(place, found=f"{_words(what)}: number {number} is {here.examples[number]!r}",
                         expected=f"{there.examples[number]!r}, as in {other}", do=do)
    raise InputError(place, found=f"{_words(what)} that are numbered otherwise: 1 to {here.count:,}",
                     expected=f"the numbers 1 to {there.count:,} of {other}", do=do)


def _words(what: str) -> str:
    return "items" if what == ITEMS else f"values of feature {what}"
