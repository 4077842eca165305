"""A semantic id for every item: the stage between the two trainings."""

import time
from pathlib import Path

import numpy as np

from onepiece_comp import __version__
from onepiece_comp.artefacts import MARKERS, atomic_folder, peak_memory_mib, read_marker, write_json
from onepiece_comp.columns import load_column
from onepiece_comp.config import TokenizerConfig
from onepiece_comp.config_reading import result_settings
from onepiece_comp.logs.identity import ITEMS, original_ids
from onepiece_comp.stages.alone import run_alone
from onepiece_comp.tokenizer.build import check_settings, extended_ids, named_vectors, new_ids, report_tokenizer
from onepiece_comp.tokenizer.folder import load_tokenizer, write_tokenizer_columns
from onepiece_comp.tokenizer.item_vectors import open_vectors
from onepiece_comp.tokenizer.nearest_words import searching_on


def build_tokenizer(dataset: Path, out: Path, config: TokenizerConfig, *, vectors: str | None = None,
                    checkpoint: Path | None = None, extend: Path | None = None) -> Path:
    """Fit a quantiser to item vectors, give each item of `dataset` an id of its own, write the tokenizer folder `out`.

    `vectors` names sources as in `item_vectors.py`: an embedding column of the dataset ("emb_81"), a .npy file [n, d]
    whose rows are items + 1 item rows or belong to the creative ids of FILE_ids.npy or item_ids.npy beside it, a run,
    or several of them ("emb_81+RUN:2"). `checkpoint` is a run, whose item_vectors.npy is read. `extend` is an earlier
    tokenizer of the same sources: its items keep their ids, new ones take free ids near their vectors, nothing is
    fitted. Embeddings must have their names again; runs and files may have moved, and of them the width is all that is
    checked. InputError when ids, shapes, sources or settings do not fit, and when there are more items than ids.
    """
    dataset, started = Path(dataset), time.monotonic()
    named = named_vectors(vectors, checkpoint)
    marker, creative = read_marker(dataset, "dataset"), np.asarray(load_column(dataset, "creative_id"))
    old = None if extend is None else load_tokenizer(extend)
    if old is not None:
        check_settings(old, config, extend)
    original = original_ids(dataset, creative)
    held, present = open_vectors(dataset, creative, named, whiten=config.whiten, space=old.space if old else None)
    made_of = {"dataset": str(dataset.resolve()), "vectors": [[str(name), weight] for name, weight in named],
               "extends": str(extend or ""), **result_settings(config)}
    # `out` is checked before hours
    with atomic_folder(out, MARKERS["tokenizer"], made_of) as folder, searching_on(config.device):
        tokenizer, measured = (new_ids(held, present, creative, original, config) if old is None else
                               extended_ids(held, present, creative, original, old, extend))
        columns = write_tokenizer_columns(folder, tokenizer)
        figures = {**measured, "items": len(present), "items_without_vector": int((~present).sum()),
                   "retired": len(tokenizer.retired_id), "seconds": round(time.monotonic() - started, 2),
                   "peak_memory_mib": round(peak_memory_mib())}
        write_json(folder / MARKERS["tokenizer"], {
            "version": __version__, "config": tokenizer.config, "item_space": marker["item_space"], **columns,
            "numberings": {what: held for what, held in marker.get("numberings", {}).items() if what == ITEMS},
            "vectors": held.space.sources, "reductions": held.space.reductions, "quantiser": tokenizer.quantiser,
            "levels": tokenizer.levels, "codes_per_level": tokenizer.codes_per_level, "extends": str(extend or ""),
            "figures": figures})
    report_tokenizer(out, f"{tokenizer.quantiser}, {tokenizer.levels} x {tokenizer.codes_per_level} codes from "
                 f"{held.space.sources}", figures)
    return Path(out)


if __name__ == "__main__":
    run_alone(build_tokenizer)
