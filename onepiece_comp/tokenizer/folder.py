"""The tokenizer folder: one semantic id per item, keyed by its original id, with what made it. numpy only.

Stands between `item_vectors.py` and `build.py`, which writes it; training and inference read it here without faiss.
Columns: `codes` [items + 1, L] by item row, `creative_id` [items + 1] and, where these are not the original ids,
`item_name`; `retired_*` (ids of items that the dataset no longer has: never given out again), `quantiser_*`, of a
fusion `fusion_*`. `tokenizer.json` ends it: it names the columns and holds a checksum of the ids and the fusion.
Legend: L levels, C codes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import MARKERS, fingerprint, read_marker
from onepiece_comp.columns import load_column
from onepiece_comp.errors import InputError
from onepiece_comp.logs.identity import ITEMS, NAME_COLUMN, Numbering, check_same, stored_numberings
from onepiece_comp.tokenizer.item_vectors import Frame, Space, places_of

_QUANTISER, _MEAN, _AXES = "quantiser_", "fusion_mean_", "fusion_axes_"
_IDS = ("codes", "creative_id", "retired_id", "retired_codes")
_KEYS = ("checksum", "codes_per_level", "config", "item_space", "levels", "quantiser", "vectors")  # of the marker


class Tokenizer(NamedTuple):
    """A tokenizer folder, memory-mapped."""

    codes: np.ndarray  # int32 [items + 1, L]; row 0 is padding, -1
    creative_id: np.ndarray  # int64 [items + 1]
    levels: int
    codes_per_level: int
    quantiser: str  # its name
    arrays: dict[str, np.ndarray]  # what the quantiser is made from again
    original_id: np.ndarray  # [items + 1], the names of a log whose ids are no numbers; else the creative ids
    retired_id: np.ndarray  # [retired], original ids
    retired_codes: np.ndarray  # int32 [retired, L]
    config: dict  # settings that the words were fitted with
    space: Space  # of the vectors

    def codes_of(self, creative_id: np.ndarray) -> np.ndarray:
        """Codes [n, L] of original ids, -1 for items that have none."""
        return np.asarray(self.codes)[np.maximum(places_of(self.creative_id, creative_id), 0)]


def load_tokenizer(path: Path, item_space: str | None = None,
                   numberings: Mapping[str, Numbering] | None = None) -> Tokenizer:
    """Open a tokenizer folder.

    InputError when a file or an entry of the marker is missing, when its ids are not those that were written, and when
    it was built for items other than a dataset's `item_space` and `numberings` stand for (None: any).
    """
    path = Path(path)
    marker = read_marker(path, "tokenizer")
    missing = [key for key in _KEYS if key not in marker]
    if missing:
        raise InputError(path / MARKERS["tokenizer"], found=f"no {', '.join(missing)}", do="make the tokenizer again",
                         expected="the marker of a whole tokenizer")
    do = "run build-tokenizer on this dataset, with --extend to keep the ids of this tokenizer"
    if numberings is not None:
        items = {what: known for what, known in numberings.items() if what == ITEMS}
        check_same(path, stored_numberings(marker), items, other="the dataset", do=do)
    if item_space is not None and marker["item_space"] != item_space:
        raise InputError(path, found="a tokenizer built for another dataset", expected="one for the same items", do=do)
    names = _columns(path, marker)
    column = {name: load_column(path, name) for name in (*_IDS, NAME_COLUMN) if name in _IDS or name in names}
    frames = tuple(Frame(*(np.array(load_column(path, f"{what}{number}")) for what in (_MEAN, _AXES)))
                   for number in range(sum(name.startswith(_MEAN) for name in names)))
    if _checksum(column, frames) != marker["checksum"]:
        raise InputError(path, found="semantic ids that differ from their checksum", expected="the files as written",
                         do="copy the folder again, or run build-tokenizer again")
    arrays = {name.removeprefix(_QUANTISER): load_column(path, name) for name in names if name.startswith(_QUANTISER)}
    return Tokenizer(levels=marker["levels"], codes_per_level=marker["codes_per_level"], arrays=arrays,
                     quantiser=marker["quantiser"], config=marker["config"],
                     space=Space(marker["vectors"], marker.get("reductions"), frames),
                     original_id=column.pop(NAME_COLUMN, column["creative_id"]), **column)


def _columns(path: Path, marker: dict) -> list[str]:
    """Names of all columns; the marker of an earlier version names none, then those that are there."""
    if "columns" not in marker:
        return sorted(file.stem for file in path.glob("*.npy"))
    lost = [name for name in marker["columns"] if not (path / f"{name}.npy").is_file()]
    if lost:
        raise InputError(path, found=f"no {', '.join(f'{name}.npy' for name in lost)}",
                         expected=f"the columns that {MARKERS['tokenizer']} names",
                         do="copy the folder again, or run build-tokenizer again")
    return marker["columns"]


def write_tokenizer_columns(folder: Path, tokenizer: Tokenizer) -> dict:
    """Write all columns; returns what the marker says of them, `columns` and `checksum`."""
    ids = {name: getattr(tokenizer, name) for name in _IDS}
    fusion = {f"{what}{number}": array for number, frame in enumerate(tokenizer.space.frames)
              for what, array in zip((_MEAN, _AXES), frame)}
    if tokenizer.original_id.dtype.kind == "S":
        ids[NAME_COLUMN] = tokenizer.original_id
    columns = {**ids, **fusion, **{_QUANTISER + name: array for name, array in tokenizer.arrays.items()}}
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    return {"columns": sorted(columns), "checksum": _checksum(ids, tokenizer.space.frames)}


def _checksum(ids: dict[str, np.ndarray], frames: tuple[Frame, ...]) -> str:
    columns = (ids[name] for name in (*_IDS, NAME_COLUMN) if name in ids)
    return fingerprint(*columns, *(array for frame in frames for array in frame))
