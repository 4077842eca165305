"""Multi-modal item embeddings on disk: `creative_emb/emb_{feature}_{width}`, a pickle or a folder of JSON lines.

A line is `{"anonymous_cid": id, "emb": [...]}`; ids are numbers or numeric strings; `emb` may be absent, null
or empty, and such an item has no vector. The width in the name is a label: the vectors themselves decide.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.errors import InputError
from onepiece_comp.pickles import load_pickle

_NAME = re.compile(r"emb_(\d+)_(\d+)(\.pkl)?$")


class EmbeddingSource(NamedTuple):
    """One embedding table of a data folder."""

    feature: str  # feature id, for example "81"
    labelled_width: int
    path: Path


def find_embeddings(data: Path) -> dict[str, EmbeddingSource]:
    """The embedding tables under `data/creative_emb` by feature id; a folder is preferred to a pickle."""
    found: dict[str, EmbeddingSource] = {}
    for path in sorted((Path(data) / "creative_emb").glob("emb_*")):
        match = _NAME.match(path.name)
        if match and (path.is_dir() != bool(match[3])):
            found.setdefault(match[1], EmbeddingSource(match[1], int(match[2]), path))
    return found


def _lines(path: Path) -> Iterator[tuple[str, int, object]]:
    for part in sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")):
        with open(part, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                place = f"{part}:{number}"
                try:
                    value = json.loads(line)
                    yield place, int(value["anonymous_cid"]), value.get("emb")
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise InputError(
                        place,
                        found=f"no embedding record ({error})",
                        expected='{"anonymous_cid": id, "emb": [...]}',
                        do="copy the file again",
                    ) from error


def _entries(path: Path) -> Iterator[tuple[str, int, object]]:
    for creative_id, vector in load_pickle(path, dict).items():
        try:
            yield f"{path}: id {creative_id}", int(creative_id), vector
        except (ValueError, TypeError) as error:
            raise InputError(
                path, found=f"the id {creative_id!r}", expected="a number", do="copy the file again"
            ) from error


def read_embedding(source: EmbeddingSource) -> Iterator[tuple[int, np.ndarray | None]]:
    """(creative id, float32 vector or None where the record has none), streamed from JSON lines.

    InputError when two vectors of the table differ in width or hold something that is no finite number.
    """
    width = None
    for place, creative_id, values in _lines(source.path) if source.path.is_dir() else _entries(source.path):
        if values is None or len(values) == 0:
            yield creative_id, None
            continue
        try:
            vector = np.asarray(values, np.float32)
        except (ValueError, TypeError) as error:
            raise InputError(
                place, found="a vector that is not numeric", expected="numbers", do="copy the file again"
            ) from error
        width = width or vector.size
        if vector.ndim != 1 or vector.size != width:
            raise InputError(
                place,
                found=f"an embedding of width {vector.size}",
                expected=f"{width}, as in the lines before",
                do="remove the line or the table, or leave the table out (--set preprocess.embeddings=[...])",
            )
        if not np.isfinite(vector).all():
            raise InputError(place, found="a value that is not finite", expected="finite numbers", do="remove the line")
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
