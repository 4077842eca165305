"""One embedding table of items in each of its published forms, for the tests."""

import json
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet

from onepiece_comp.logs.embeddings import find_embeddings

FIRST_ID = 20_000_000_001
WIDTH = 6


def item_vectors(count=40, width=WIDTH, seed=0):
    """Vectors by creative id, in no order; every fifth item has none."""
    rng = np.random.default_rng(seed)
    return {FIRST_ID + int(i): None if i % 5 == 0 else rng.normal(size=width).astype(np.float32)
            for i in rng.permutation(count)}


def as_lines(data, vectors, *, name="emb_81_6", parts=3):
    folder = data / "creative_emb" / name
    folder.mkdir(parents=True)
    records = list(vectors.items())
    for part in range(parts):
        lines = [json.dumps({"anonymous_cid": key, **({} if vector is None else {"emb": vector.tolist()})})
                 for key, vector in records[part::parts]]
        (folder / f"part-{part:05d}").write_text("\n".join(lines) + "\n" * (part % 2))
    return find_embeddings(data)["81"]


def as_pickle(data, vectors, *, protocol=4, key=int):
    (data / "creative_emb").mkdir(parents=True)
    content = {key(creative_id): vector for creative_id, vector in vectors.items()}
    (data / "creative_emb" / "emb_81_6.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    return find_embeddings(data)["81"]


def as_parquet(data, vectors, *, files=2, row_group=7):
    folder = data / "mm_emb" / "emb_81_6_parquet"
    folder.mkdir(parents=True)
    records = list(vectors.items())
    for number in range(files):
        held = records[number::files]
        table = pyarrow.table({"anonymous_cid": pyarrow.array([str(key) for key, _ in held]), "emb": pyarrow.array(
            [None if v is None else v.astype(float).tolist() for _, v in held], pyarrow.list_(pyarrow.float64()))})
        pyarrow.parquet.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=row_group)
    return find_embeddings(data)["81"]


def one_part(data, text):
    folder = data / "creative_emb" / "emb_81_2"
    folder.mkdir(parents=True)
    (folder / "part-00000").write_text(text)
    return find_embeddings(data)["81"]


FORMS = {"lines": as_lines, "pickle": as_pickle, "parquet": as_parquet}
