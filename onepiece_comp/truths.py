"""`truth.jsonl`: what a split withheld from each user, one record per line; `split.py` writes it, `scoring.py` reads it."""

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


def read_truth(path: Path) -> list[Truth]:
    """`truth.jsonl`; InputError with file and line, also for a user that stands twice."""
    path, truths, seen = Path(path), [], set()
    if not path.is_file():
        raise InputError(path, found="no such file", expected="truth.jsonl of a split", do="check the path")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                truth = Truth(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}:{number}", found=f"no truth record ({error})",
                                 expected="an object with user, item, action and time", do="make the split again") from error
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
