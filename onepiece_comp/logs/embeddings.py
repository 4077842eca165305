"""Multi-modal item embeddings on disk, in the three forms that they are published in, one record at a time.

`creative_emb/emb_{feature}_{width}/` holds JSON lines `{"anonymous_cid": id, "emb": [...]}`, `emb_81_32.pkl` a pickled
dict of id to array, `mm_emb/emb_{feature}_{width}_parquet/` the columns `anonymous_cid` (text) and `emb` (a list).
Ids are numbers or numeric strings; `emb` may be absent, null or empty: such an item has no vector. The width in the
name is a label: the vectors themselves decide. `embedding_blocks.py` reads the same in blocks; this is its reference.
"""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onepiece_comp.errors import InputError
from onepiece_comp.logs.pickles import load_pickle

if TYPE_CHECKING:
    import pyarrow.parquet

LONGEST_LINE = 16 << 20  # bytes; a line of 4,096 numbers has 90,000
LARGEST_VALUE = float(np.finfo(np.float16).max)  # of an embedding: columns are float16, squares are float32
WIDEST = 1 << 16  # a longer vector is a damaged length
_MOST_ID = (1 << 63) - 1
_NAME = re.compile(r"emb_(\d+)_(\d+)(\.pkl|_parquet)?$")
_RECORD = '{"anonymous_cid": id, "emb": [...]}'


class EmbeddingSource(NamedTuple):
    """One embedding table of a data folder."""

    feature: str  # feature id, for example "81"
    labelled_width: int
    path: Path
    kind: str  # lines | pickle | parquet

    def parts(self) -> list[Path]:
        """The files of the table in the order in which they are read."""
        if self.kind == "pickle":
            return [self.path]
        files = [path for path in self.path.iterdir() if path.is_file() and not path.name.startswith(".")]
        return sorted(path for path in files if self.kind == "lines" or path.suffix == ".parquet")


def find_embeddings(data: Path) -> dict[str, EmbeddingSource]:
    """The embedding tables under `data/creative_emb` and `data/mm_emb` by feature id.

    Where a table is there twice, `creative_emb` comes before `mm_emb` and a folder before a pickle.
    """
    found: dict[str, EmbeddingSource] = {}
    for place in ("creative_emb", "mm_emb"):
        for path in sorted((Path(data) / place).glob("emb_*")):
            match = _NAME.match(path.name)
            if match and path.is_dir() != (match[3] == ".pkl"):
                kind = "pickle" if path.is_file() else "parquet" if any(path.glob("*.parquet")) else "lines"
                found.setdefault(match[1], EmbeddingSource(match[1], int(match[2]), path, kind))
    return {fid: found[fid] for fid in sorted(found)}


def not_a_record(place: object, reason: object) -> InputError:
    """The refusal of something that is no embedding record."""
    return InputError(place, found=f"no embedding record ({reason})", expected=_RECORD, do="copy the file again")


def numbered_id(value: object) -> int:
    """A creative id from what stands in the file; ValueError, TypeError or OverflowError where it is none."""
    creative_id = int(value)
    if not 0 <= creative_id <= _MOST_ID:
        raise ValueError(f"the id {creative_id}")
    return creative_id


def parse_embedding_line(line: bytes, place: str) -> tuple[int, object] | None:
    """(creative id, what stands under emb) of one line; None for a blank one."""
    if len(line) > LONGEST_LINE:
        raise not_a_record(place, f"a line of more than {LONGEST_LINE:,} bytes")
    if not line.strip():
        return None
    try:
        value = json.loads(line)
        return numbered_id(value["anonymous_cid"]), value.get("emb")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise not_a_record(place, error) from error


def to_vector(values: object, *, place: object, width: int | None) -> np.ndarray | None:
    """The float32 vector of one record, None where it has none.

    InputError where it is not numeric, not finite, or not of the `width` of the vectors before (None = any).
    """
    if values is None:
        return None
    if not (isinstance(values, np.ndarray) and values.dtype == np.float32):
        values = _converted(values, place)
    found = values.size
    if found == 0:
        return None
    if found != (width or found) or found > WIDEST or values.ndim != 1:
        raise InputError(
            place,
            found=f"an embedding of width {found}",
            expected=f"{width}, as in the lines before" if width else f"one list of at most {WIDEST:,} numbers",
            do="remove the line or the table, or leave the table out (--set preprocess.embeddings=[...])",
        )
    if not np.isfinite(values).all():
        raise InputError(place, found="a value that is not finite", expected="finite numbers", do="remove the line")
    return values


def _converted(values: object, place: object) -> np.ndarray:
    """A list or an array as float32; numbers beyond its range become infinite."""
    try:
        if isinstance(values, np.ndarray):
            if values.dtype.kind not in "fiub" or values.size > WIDEST:
                raise TypeError(f"{values.dtype} {list(values.shape)}")
        elif not isinstance(values, (list, tuple)):
            raise TypeError(type(values).__name__)
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            place, found="a vector that is not numeric", expected="numbers", do="copy the file again"
        ) from error


def _lines(path: Path) -> Iterator[tuple[str, int, object]]:
    with open(path, "rb") as file:
        for number, line in enumerate(iter(functools.partial(file.readline, LONGEST_LINE + 1), b""), start=1):
            place = f"{path}:{number}"
            record = parse_embedding_line(line, place)
            if record:
                yield place, *record


def _entries(path: Path) -> Iterator[tuple[str, int, object]]:
    for key, vector in load_pickle(path, dict).items():
        yield f"{path}: id {key}", pickled_id(key, path), vector


def pickled_id(key: object, path: Path) -> int:
    """The creative id that a key of a pickled dict is; InputError where it is none."""
    try:
        return numbered_id(key)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(path, found=f"the id {key!r:.80}", expected="a number", do="copy the file again") from error


def _rows(path: Path) -> Iterator[tuple[str, int, object]]:
    import pyarrow

    try:
        with open_parquet(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=["anonymous_cid", "emb"]):
                for record in batch.to_pylist():
                    number += 1
                    place = f"{path}: row {number}"
                    try:
                        yield place, numbered_id(record["anonymous_cid"]), record["emb"]
                    except (ValueError, KeyError, TypeError, OverflowError) as error:
                        raise not_a_record(place, error) from error
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable_parquet(path, error) from error


def open_parquet(path: Path) -> "pyarrow.parquet.ParquetFile":
    """A Parquet file of which pages are decoded as they come: by default pyarrow holds whole row groups."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


def unreadable_parquet(path: Path, error: Exception) -> InputError:
    """The refusal of a Parquet file that pyarrow cannot read."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return InputError(path, found=f"no readable Parquet ({reason})", expected="columns anonymous_cid and emb",
                      do="copy the file again")


def read_embedding(source: EmbeddingSource) -> Iterator[tuple[int, np.ndarray | None]]:
    """(creative id, float32 vector or None where the record has none); a pickle is held whole, the others streamed.

    InputError when two vectors of the table differ in width or hold something that is no finite number.
    """
    width, records = None, {"lines": _lines, "pickle": _entries, "parquet": _rows}[source.kind]
    for part in source.parts():
        for place, creative_id, values in records(part):
            vector = to_vector(values, place=place, width=width)
            width = width if vector is None else vector.size
            yield creative_id, vector


def write_embedding(data: Path, feature: str, vectors: Iterator[tuple[int, np.ndarray | None]], *, width: int,
                    lines_per_part: int = 20000) -> None:
    """Write `creative_emb/emb_{feature}_{width}/part-00000...` as the organisers' JSON lines."""
    folder = Path(data) / "creative_emb" / f"emb_{feature}_{width}"
    folder.mkdir(parents=True)
    file, written = None, 0
    for creative_id, vector in vectors:
        if written % lines_per_part == 0:
            if file:
                file.close()
            file = open(folder / f"part-{written // lines_per_part:05d}", "w", encoding="utf-8")
        record = {"anonymous_cid": int(creative_id)}
        if vector is not None:
            record["emb"] = np.round(np.asarray(vector, np.float64), 6).tolist()
        file.write(json.dumps(record) + "\n")
        written += 1
    if file:
        file.close()
