"""A folder with a log, whatever its layout: the organisers' JSON lines or the public Parquet release.

`open_log` tells which it is. Every layout offers the same things: the index, the features that users have, the
items' features, the users as blocks of columns (fast, for `preprocess.py`), and the users as lines (one at a time, for
who rewrites a log). Embedding tables are found by `embeddings.py` in either.
"""

import itertools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from onepiece_comp.artefacts import files_under, fingerprint, read_json
from onepiece_comp.errors import InputError
from onepiece_comp.logs.features import ItemFeatures, Profiles
from onepiece_comp.logs.formats import Index, UserLine, read_index, read_sequences
from onepiece_comp.logs.json_lines import fill_item_features, line_spans, read_sequence_blocks
from onepiece_comp.logs.user_blocks import EventBlock, Part

if TYPE_CHECKING:
    from onepiece_comp.logs.release import ReleaseLog

_USERS_TO_LEARN_FEATURES_FROM = 2000
_ENDS = 1 << 20  # bytes at both ends of a file that its fingerprint covers


class Log(Protocol):
    """What a layout offers."""

    folder: Path
    layout: str  # jsonl | parquet
    sequences: Path  # the file or folder that holds the users

    def files(self) -> list[Path]:
        """The files that tell one log from another."""

    def index(self) -> Index:
        """The numbering of users, items and feature values."""

    def user_feature_ids(self) -> set[str]:
        """Features that users have."""

    def item_features(self, matrix: ItemFeatures, *, most_item: int, reader: str) -> Iterator[int] | None:
        """Fill `matrix` with the items' own records, yielding how many are done; None where the log has none."""

    def blocks(self, matrix: ItemFeatures, profiles: Profiles, *, most_item: int, reader: str,
               threads: int, part: Part | None = None) -> Iterator[EventBlock]:
        """The users, or those of one part, as columns; items without a record take those of their first event."""

    def parts(self, count: int) -> list[Part]:
        """The log in about `count` parts of about one size, in order."""

    def lines(self) -> Iterator[UserLine]:
        """The users one at a time."""


class JsonLinesLog:
    """The organisers' training folder: seq.jsonl, indexer.pkl, item_feat_dict.json."""

    layout = "jsonl"

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.sequences = self.folder / "seq.jsonl"

    def files(self) -> list[Path]:
        return [self.sequences]

    def index(self) -> Index:
        return read_index(self.folder / "indexer.pkl")

    def user_feature_ids(self) -> set[str]:
        """Those that user_feat_num.json names and those of the first profiles."""
        stated = self.folder / "user_feat_num.json"
        ids = set(read_json(stated)) if stated.is_file() else set()
        for line in itertools.islice(self.lines(), _USERS_TO_LEARN_FEATURES_FROM):
            ids.update(line.profile)
        return ids

    def item_features(self, matrix: ItemFeatures, *, most_item: int, reader: str) -> Iterator[int] | None:
        path = self.folder / "item_feat_dict.json"
        return fill_item_features(path, matrix, most_item=most_item, reader=reader) if path.is_file() else None

    def blocks(self, matrix: ItemFeatures, profiles: Profiles, *, most_item: int, reader: str,
               threads: int, part: Part | None = None) -> Iterator[EventBlock]:
        return read_sequence_blocks(
            self.sequences, matrix, profiles, most_item=most_item, reader=reader, threads=threads,
            offsets=self.folder / "seq_offsets.pkl" if part is None else None, span=part and (part.start, part.stop))

    def parts(self, count: int) -> list[Part]:
        return [Part(self.sequences.name, *span) for span in line_spans(self.sequences, count)]

    def lines(self) -> Iterator[UserLine]:
        return read_sequences(self.sequences)


def is_release(folder: Path) -> bool:
    """Whether a folder has the layout of the public Parquet release."""
    return not (folder / "seq.jsonl").is_file() and (folder / "seq").is_dir()


def open_log(folder: Path) -> Log:
    """The log in `folder`; InputError when there is none of a known layout."""
    folder = Path(folder)
    if (folder / "seq.jsonl").is_file():
        return JsonLinesLog(folder)
    if is_release(folder):
        return open_release(folder)
    raise InputError(folder / "seq.jsonl", found="no such file",
                     expected="the competition's training files, or the folder seq/ of the public release",
                     do="give the folder that holds seq.jsonl (a split's train/) or seq/")


def open_release(folder: Path) -> "ReleaseLog":
    """The public release in `folder`; InputError where pyarrow is missing."""
    if find_spec("pyarrow") is None:
        raise InputError(folder, found="Parquet files, and no pyarrow to read them", expected="pyarrow",
                         do="pip install pyarrow")
    from onepiece_comp.logs.release import ReleaseLog

    return ReleaseLog(folder)


def log_fingerprint(folder: Path) -> str:
    """Sixteen hex digits of a data folder by names, sizes and both ends of its files: 100 GB take seconds."""
    parts: list[object] = []
    for path in files_under(Path(folder)):
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(_ENDS)
            file.seek(max(0, size - _ENDS))
            parts += [str(path.relative_to(folder)), size, head.hex(), file.read(_ENDS).hex()]
    if not parts:
        raise InputError(folder, found="no files", expected="the training files", do="check the path")
    return fingerprint(*parts)
