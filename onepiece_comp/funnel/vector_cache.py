"""Candidate vectors kept on disk: a second inference with the same weights and candidates maps them into memory.

Stands between `retrieval.py` and `candidates.py`. `candidate_vectors/` holds one set, `unit.npy` and `metric.npy` in
float32, so that answers are those of fresh vectors; `vectors.json` tells whose they are and their checksum. It stands
in the checkpoint's folder or, where that cannot be written, in the output's.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp import __version__
from onepiece_comp.artefacts import atomic_folder, fingerprint, read_json, write_json
from onepiece_comp.console import say
from onepiece_comp.dataset.evaluation_folder import Evaluation
from onepiece_comp.errors import InputError
from onepiece_comp.models.retrieval import EncodedItems
from onepiece_comp.training.checkpoint import CONFIG, MODEL, Checkpoint

FOLDER, _MARKER = "candidate_vectors", "vectors.json"
_COLUMNS = ("unit", "metric")
_ROWS_PER_BLOCK = 1 << 16


class VectorCache(NamedTuple):
    """Where vectors are looked for and kept, first place first, and whose they are."""

    folders: Sequence[Path]
    key: str

    def get(self, make: Callable[[], EncodedItems], device: torch.device) -> EncodedItems:
        """The kept vectors or, where there are none, those that `make` gives, which are then kept."""
        for folder in self.folders:
            kept = self._read(folder)
            if kept is not None:
                say(f"candidate vectors: read from {folder}")
                return EncodedItems(*(part if part is None else part.to(device) for part in kept))
        made = make()
        self._keep(made)
        return made

    def _read(self, folder: Path) -> EncodedItems | None:
        """None where there are none of ours; a line is said where they are spoiled."""
        if not (folder / _MARKER).is_file():
            return None
        try:
            marker = read_json(folder / _MARKER)
            if marker["key"] != self.key:
                return None
            # opened once: what is checked is what is used, even where another job puts its own in their place meanwhile
            mapped = [np.load(folder / f"{name}.npy", mmap_mode="c") for name in marker["columns"]]
            whole = fingerprint(*mapped) == marker["checksum"]
        # cut short, gone, or another version's
        except (InputError, KeyError, TypeError, ValueError, OSError, EOFError):
            whole = False
        if not whole:
            say(f"candidate vectors: made anew, those in {folder} are not as they were written")
            return None
        parts = [torch.from_numpy(part) for part in mapped]
        return EncodedItems(parts[0], parts[1] if len(parts) > 1 else None)

    def _keep(self, vectors: EncodedItems) -> None:
        """Write them to the first folder that takes them; without one, inference goes on all the same."""
        columns = {name: part.cpu().numpy() for name, part in zip(_COLUMNS, vectors) if part is not None}
        for folder in self.folders:
            try:
                with atomic_folder(folder, _MARKER) as out:
                    for name, part in columns.items():
                        np.save(out / f"{name}.npy", part)
                    write_json(out / _MARKER, {"key": self.key, "columns": list(columns),
                                               "checksum": fingerprint(*columns.values())})
            except (InputError, OSError):  # read-only, full, or another process was first: the next one
                continue
            say(f"candidate vectors: kept in {folder}")
            return


def vector_cache(checkpoint: Checkpoint, evaluation: Evaluation, device: torch.device, *, beside: Path) -> VectorCache:
    """The cache of these candidates' vectors in the checkpoint's folder, else in `beside`.

    Its key covers the weights, their settings, the kind of device and all that the item tower reads of a candidate.
    """
    items, rows = evaluation.items, evaluation.candidate
    columns = {"creative_id": items.creative_id, "id_row": items.id_row, "features": items.features}
    columns |= {f"emb_{fid}": column for fid, column in items.embeddings.items()}
    columns |= {f"emb_{fid}_present": column for fid, column in items.present.items()}
    blocks = [rows[start:start + _ROWS_PER_BLOCK] for start in range(0, len(rows), _ROWS_PER_BLOCK)]
    read = {name: [fingerprint(column[block]) for block in blocks] for name, column in columns.items()}
    key = fingerprint(__version__, checkpoint.path / MODEL, checkpoint.path / CONFIG, device.type, read)
    return VectorCache((checkpoint.path / FOLDER, beside / FOLDER), key)
