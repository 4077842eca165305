"""Answers kept in parts while a long inference runs, so that it goes on where it stopped and can be shared out.

A part is some thousand users of the order in which they are ranked. Its file stands under OUT/parts/KEY, KEY telling
checkpoint, settings, users and candidates apart; of n shards, shard i makes the parts i, i + n, ... Whoever finds all
parts joins them: that is `infer` without `--shard`. Legend: N users of a part.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import atomic_file
from onepiece_comp.errors import InputError

BATCHES_PER_PART = 64


class Answers(NamedTuple):
    """What is known of the users of a part."""

    chosen: np.ndarray  # int64 [N, 10], candidate numbers
    counts: dict[str, Counter]  # kept and survived by step, filled by kind
    seconds: float


class Parts:
    """The parts of one inference; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, key: str, *, shard: tuple[int, int] = (0, 1)):
        self._folder, (self.shard, self.shards) = folder and folder / "parts" / key, shard

    @staticmethod
    def count(batches: Sequence[np.ndarray]) -> int:
        return -(-len(batches) // BATCHES_PER_PART)

    def mine(self, batches: Sequence[np.ndarray]) -> Iterator[tuple[int, list[np.ndarray], Answers | None]]:
        """(number, batches of users, what is kept of them) of each part that this shard makes or has to hand."""
        for number, start in enumerate(range(0, len(batches), BATCHES_PER_PART)):
            kept = self._load(number)
            if kept is not None or number % self.shards == self.shard:
                yield number, list(batches[start:start + BATCHES_PER_PART]), kept

    def save(self, number: int, answers: Answers) -> None:
        if self._folder is None:
            return
        with atomic_file(self._file(number)) as temporary, open(temporary, "wb") as file:
            np.savez(file, chosen=answers.chosen, seconds=answers.seconds, counts=json.dumps(answers.counts))

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npz"

    def _load(self, number: int) -> Answers | None:
        if self._folder is None or not self._file(number).is_file():
            return None
        try:
            with np.load(self._file(number), allow_pickle=False) as file:
                counts = {name: Counter(values) for name, values in json.loads(str(file["counts"])).items()}
                return Answers(file["chosen"], counts, float(file["seconds"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(self._file(number), found=f"no readable answers ({error})", expected="a file as written",
                             do="remove it: it is made again") from error


def read_shard(text: str) -> tuple[int, int]:
    """"2/8" is (1, 8): the second of eight; InputError for anything else."""
    number, slash, total = text.partition("/")
    if slash and number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total):
        return int(number) - 1, int(total)
    raise InputError("--shard", found=repr(text), expected="I/N, from 1/N to N/N", do="for example --shard 2/8")
