"""`truth.jsonl`: what a split withheld from each user, one record per line;
`split.py` writes it, `evaluation/score.py` reads it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from onepiece_comp.errors import InputError


class Truth(NamedTuple):
    """One line of `truth.jsonl`: what was withheld from a user."""

    user: str  # original user id
    item: int  # creative id
    action: int
    time: int


_KINDS = {"user": (str, "an original id as text"), "item": (int, "a creative id, a whole number"),
          "action": (int, "a whole number"), "time": (int, "Unix seconds, a whole number")}


def _check(truth: Truth, place: str) -> None:
    """InputError for a value of another type: an item that is a text equals no answer, and would be a miss."""
    for name, value in truth._asdict().items():
        kind, expected = _KINDS[name]
        if type(value) is not kind or (kind is int and not abs(value) < 1 << 63):  # to isinstance True is an int
            raise InputError(place, found=f"the {name} {value!r}", expected=expected, do="make the split again")


def read_truth(path: Path) -> list[Truth]:
    """`truth.jsonl`; InputError with file and line, also for a value of another type and a user that stands twice."""
    path, truths, seen = Path(path), [], set()
    if not path.is_file():
        raise InputError(path, found="no such file", expected="truth.jsonl of a split", do="check the path")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                truth = Truth(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}:{number}", found=f"no truth record ({error})",
                                 expected="an object with user, item, action and time",
                                 do="make the split again") from error
            _check(truth, f"{path}:{number}")
            if truth.user in seen:
                raise InputError(f"{path}:{number}", found=f"user {truth.user} twice", expected="each user once",
                                 do="make the split again")
            seen.add(truth.user)
            truths.append(truth)
    return truths


def write_truth(path: Path, truths: Iterator[Truth]) -> None:
    """Write `truth.jsonl`."""
    with open(path, "w", encoding="utf-8") as file:
        for truth in truths:
            file.write(json.dumps(truth._asdict()) + "\n")
