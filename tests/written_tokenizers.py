"""What a tokenizer reads, written by hand, and the tokenizer made of it."""

import json

import numpy as np

from onepiece_comp.artefacts import write_json
from onepiece_comp.config import TokenizerConfig
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.tokenizer.folder import load_tokenizer



def write_dataset(folder, creative, vectors, present=None):
    """What the tokenizer reads of a dataset; items without a vector are False in `present`."""
    folder.mkdir()
    padded = np.concatenate([np.zeros((1, vectors.shape[1])), vectors])
    np.save(folder / "creative_id.npy", np.concatenate([[0], creative]).astype(np.int64))
    np.save(folder / "emb_81.npy", padded.astype(np.float16))
    np.save(folder / "emb_81_present.npy",
            np.concatenate([[False], np.ones(len(creative), bool) if present is None else present]))
    write_json(folder / "schema.json", {"items": len(creative), "item_space": f"space of {len(creative)}"})
    return folder


def build(tmp_path, vectors, *, creative=None, present=None, name="a", **settings):
    """The codes [items, L] and marker of a tokenizer built from an embedding column."""
    creative = 1000 + np.arange(len(vectors)) if creative is None else creative
    dataset = write_dataset(tmp_path / f"dataset_{name}", creative, vectors, present)
    out = build_tokenizer(dataset, tmp_path / name, TokenizerConfig(**settings), vectors="emb_81")
    codes = load_tokenizer(out, f"space of {len(creative)}").codes
    assert codes.shape[0] == len(creative) + 1 and (codes[0] == -1).all()
    return np.array(codes[1:]), json.loads((out / "tokenizer.json").read_text())


def assert_own_ids(codes, size):
    assert codes.min() >= 0 and codes.max() < size
    assert len(np.unique(codes, axis=0)) == len(codes)
