"""The tokenizer folder: one semantic id per item, keyed by its original id, with what made it. numpy only.

Stands between `item_vectors.py` and `tokenizer.py`, which writes it; training and inference read it here without faiss.
Columns: `codes` [items + 1, L] by item row, `creative_id` [items + 1], `prefix_codes` [items, L] sorted with
`prefix_items` (the prefix table of constrained search), `retired_*` (ids of items that the dataset no longer has: never
given out again), `quantiser_*`. `tokenizer.json` ends it and holds their checksum. Legend: L levels, C codes.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import fingerprint, load_column, read_marker
from onepiece_comp.errors import InputError
from onepiece_comp.item_vectors import places_of

_QUANTISER = "quantiser_"


class Tokenizer(NamedTuple):
    """A tokenizer folder, memory-mapped."""

    codes: np.ndarray  # int32 [items + 1, L]; row 0 is padding, -1
    creative_id: np.ndarray  # int64 [items + 1]
    levels: int
    codes_per_level: int
    quantiser: str  # its name
    arrays: dict[str, np.ndarray]  # what the quantiser is made from again
    retired_id: np.ndarray  # int64 [retired]
    retired_codes: np.ndarray  # int32 [retired, L]

    def codes_of(self, creative_id: np.ndarray) -> np.ndarray:
        """Codes [n, L] of original ids, -1 for items that have none."""
        return np.asarray(self.codes)[np.maximum(places_of(self.creative_id, creative_id), 0)]


def load_tokenizer(path: Path, item_space: str | None = None) -> Tokenizer:
    """Open a tokenizer folder.

    InputError when its ids are not those that were written, and when it was built for items other than `item_space`
    stands for (None: any).
    """
    path = Path(path)
    marker = read_marker(path, "tokenizer")
    if item_space is not None and marker["item_space"] != item_space:
        raise InputError(path, found="a tokenizer built for another dataset", expected="one for the same items",
                         do="run build-tokenizer on this dataset, with --extend to keep the ids of this tokenizer")
    column = {name: load_column(path, name) for name in ("codes", "creative_id", "retired_id", "retired_codes")}
    if fingerprint(*column.values()) != marker["checksum"]:
        raise InputError(path, found="semantic ids that differ from their checksum", expected="the files as written",
                         do="copy the folder again, or run build-tokenizer again")
    arrays = {file.stem.removeprefix(_QUANTISER): load_column(path, file.stem)
              for file in sorted(path.glob(f"{_QUANTISER}*.npy"))}
    return Tokenizer(levels=marker["levels"], codes_per_level=marker["codes_per_level"], arrays=arrays,
                     quantiser=marker["quantiser"], **column)


def write_columns(folder: Path, tokenizer: Tokenizer) -> str:
    """Write all columns; returns their checksum."""
    codes = tokenizer.codes
    by_id = np.lexsort(codes[1:].T[::-1])
    columns = {"codes": codes, "creative_id": tokenizer.creative_id, "retired_id": tokenizer.retired_id,
               "retired_codes": tokenizer.retired_codes}
    for name, column in {**columns, "prefix_codes": codes[1:][by_id], "prefix_items": (1 + by_id).astype(np.int32),
                         **{_QUANTISER + name: array for name, array in tokenizer.arrays.items()}}.items():
        np.save(folder / f"{name}.npy", column)
    return fingerprint(*columns.values())


