"""Actions of other logs: exposure, click or conversion, told by numbers, known words, `--map`, or a rating's height.

What the converters share. A word that is not known is never guessed, and a rating that nothing reaches is no rating.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onepiece_comp.converters.event_log import ids
from onepiece_comp.converters.files import SourceRows
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import CLICK, CONVERSION, EXPOSURE

LIKED = 4  # stars from which a rating counts as a click
WORDS = {  # letters alone, small
    EXPOSURE: "exposure exposed expose impression impressions imp view viewed show shown display displayed",
    CLICK: "click clicked clicks",
    CONVERSION: "conversion converted convert purchase purchased buy bought order ordered transaction checkout payment "
                "cart addtocart like liked favorite favourite fav follow share comment forward subscribe install",
}
KNOWN_WORDS = {word: action for action, words in WORDS.items() for word in words.split()}
SHOWN_VALUES = 20


class Actions(NamedTuple):
    """The action of each row, and what the values of the column were taken for."""

    values: np.ndarray
    stated: str


def map_of(texts: Sequence[str]) -> dict[str, int]:
    """The actions of `--map VALUE=ACTION` by value; InputError for a text of another form."""
    actions = {}
    for text in texts:
        value, equals, action = text.rpartition("=")
        if not equals or action not in ("0", "1", "2"):
            raise InputError(f"--map {text}", found="no VALUE=ACTION", expected="for example purchase=2; 0 exposure, "
                             "1 click, 2 conversion", do="write it so")
        actions[value] = int(action)
    return actions


def actions_of(rows: SourceRows, name: str, mapped: dict[str, int]) -> Actions:
    """The column's values by `mapped`, then numbers 0 to 2 as they are, then by KNOWN_WORDS."""
    held = ids(rows, name)
    counts = dict(zip(held.originals, np.bincount(held.codes, minlength=len(held.originals)).tolist()))
    listed = ", ".join(f"{value!r} {times:,}" for value, times in
                       sorted(counts.items(), key=lambda pair: -pair[1])[:SHOWN_VALUES])
    for value in mapped:
        if value not in counts:
            raise InputError(rows.parts[0][0], found=f"no {name} {value!r} (but {listed})",
                             expected="the values of --map in the column", do="correct the option")
    found = [mapped.get(value, _known(value)) for value in held.originals]
    if None in found:
        code = found.index(None)
        value = held.originals[code]
        raise InputError(rows.place(int((held.codes == code).argmax())), found=f"{name} {value!r} (of {listed})",
                         expected="0 to 2, a known word (click, impression, purchase, ...) or a value of --map",
                         do=f"say what it is: --map {value}=0 for an exposure, {value}=1 a click, {value}=2 a "
                            f"conversion")
    stated = ", ".join(f"{value} = {action}" for value, action in zip(held.originals, found))
    return Actions(np.array(found, np.int8)[held.codes], f"{name}: {stated}")


def all_clicks(rows: SourceRows, why: str) -> Actions:
    """Every event a click, where the log tells no more."""
    return Actions(np.full(rows.table.num_rows, CLICK, np.int8), f"1, all: {why}")


def liked(rows: SourceRows, name: str, *, do: str) -> Actions:
    """Any rating is an exposure, one of at least LIKED a click;
    InputError where none is, for then its scale is another.

    `do` says how the values may be told instead.
    """
    rows.require(name)
    stars = rows.table.column(name).to_numpy()
    lowest, highest = float(np.nanmin(stars)), float(np.nanmax(stars))
    if not highest >= LIKED:
        raise InputError(rows.parts[0][0], found=f"{name} from {lowest:g} to {highest:g}, and so no click at all",
                         expected=f"one of at least {LIKED}", do=do)
    word = name.partition(":")[0]
    return Actions(np.where(stars >= LIKED, CLICK, EXPOSURE).astype(np.int8),
                   f"0 any {word}, 1 a {word} of at least {LIKED} (they are {lowest:g} to {highest:g})")


def _known(value: str) -> int | None:
    if re.fullmatch(r"\s*[012](\.0*)?\s*", value):
        return int(float(value))
    return KNOWN_WORDS.get(re.sub(r"[^a-z]", "", value.lower()))
