"""Semantic ids: none shared, none lost, none dependent on the order of items; the fast assignment equals a slow one."""

import numpy as np
import pytest

from onepiece_comp.artefacts import write_json
from onepiece_comp.collisions import resolve, squared_distance
from onepiece_comp.config import TokenizerConfig
from onepiece_comp.embeddings import find_embeddings, read_embedding
from onepiece_comp.errors import InputError
from onepiece_comp.tokenizer import build_tokenizer, decode, default_codes, encode, fit, load_tokenizer


def _dataset(folder, vectors, creative=None, present=None):
    """A dataset folder with just what the tokenizer reads."""
    folder.mkdir(parents=True)
    items = len(vectors)
    creative = np.arange(items) + 20_000_000_000 if creative is None else creative
    np.save(folder / "creative_id.npy", np.concatenate([[0], creative]))
    np.save(folder / "emb_81.npy", np.concatenate([np.zeros((1, vectors.shape[1])), vectors]).astype(np.float16))
    np.save(folder / "emb_81_present.npy", np.concatenate([[False], np.ones(items, bool) if present is None else present]))
    write_json(folder / "schema.json", {"item_space": f"space of {items}"})
    return folder


def _clusters(groups=6, each=5, seed=0):
    """Groups far apart, members of a group in a small checkerboard."""
    rng = np.random.default_rng(seed)
    centre = 40 * rng.normal(size=(groups, 4))
    return np.concatenate([c + rng.normal(size=(each, 4)) for c in centre]), np.repeat(np.arange(groups), each)


def test_groups_far_apart_never_share_a_first_code(tmp_path):
    vectors, group = _clusters()
    build_tokenizer(_dataset(tmp_path / "d", vectors), tmp_path / "t", TokenizerConfig(codes=16), vectors="emb_81")
    first = load_tokenizer(tmp_path / "t", "space of 30").codes[1:, 0]
    assert all(len(set(group[first == code])) == 1 for code in set(first)) and len(set(first)) >= 6


def test_every_item_has_an_id_of_its_own_and_the_prefix_table_lists_them_all(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(200, 6)).round(1)
    vectors[50:90] = vectors[0]
    build_tokenizer(_dataset(tmp_path / "d", vectors), tmp_path / "t", TokenizerConfig(), vectors="emb_81")
    codes = load_tokenizer(tmp_path / "t", "space of 200").codes
    assert codes[0].tolist() == [-1, -1] and (codes[1:] >= 0).all() and len(np.unique(codes[1:], axis=0)) == 200
    table, items = np.load(tmp_path / "t" / "prefix_codes.npy"), np.load(tmp_path / "t" / "prefix_items.npy")
    assert sorted(items) == list(range(1, 201)) and (codes[items] == table).all()
    assert sorted(map(tuple, table)) == list(map(tuple, table))


def test_ids_do_not_depend_on_the_order_of_items(tmp_path):
    vectors, shuffle = np.random.default_rng(1).normal(size=(80, 5)), np.random.default_rng(2).permutation(80)
    creative = 20_000_000_000 + 7 * np.arange(80)
    for name, order in (("a", np.arange(80)), ("b", shuffle)):
        build_tokenizer(_dataset(tmp_path / name, vectors[order], creative[order]), tmp_path / f"t{name}", TokenizerConfig(codes=16),
                        vectors="emb_81")
    first, second = (load_tokenizer(tmp_path / name, "space of 80").codes[1:] for name in ("ta", "tb"))
    np.testing.assert_array_equal(first[shuffle], second)


def test_decoding_is_the_sum_of_the_codewords_and_encoding_takes_the_nearest():
    vectors = np.random.default_rng(3).normal(size=(300, 4)).astype(np.float32)
    books = fit(vectors, TokenizerConfig(levels=3), 8)
    codes = encode(vectors, books)
    for n in range(0, 300, 17):
        residual = vectors[n].copy()
        for level, book in enumerate(books):
            assert codes[n, level] == ((residual - book) ** 2).sum(1).argmin()
            residual -= book[codes[n, level]]
        np.testing.assert_allclose(vectors[n] - residual, decode(codes[n:n + 1], books)[0], atol=1e-5)


def _slow(codes, vectors, books, neighbours):
    """The same rule, one item at a time over plain sets (two levels, no prefix full)."""
    error = [float(((v - books[0][c[0]] - books[1][c[1]]) ** 2).sum()) for v, c in zip(vectors, codes)]
    taken, out = set(), [tuple(c) for c in codes]
    waiting = []
    for item in sorted(range(len(codes)), key=lambda i: (error[i], i)):
        if out[item] in taken:
            waiting.append(item)
        else:
            taken.add(out[item])
    for item in waiting:
        distance = ((vectors[item] - books[0][out[item][0]] - books[1]) ** 2).sum(1)
        near = distance.argsort(kind="stable").tolist()
        code = next(c for c in near[:neighbours] + near if (out[item][0], c) not in taken)
        out[item] = (out[item][0], code)
        taken.add(out[item])
    return np.array(out)


@pytest.mark.parametrize("neighbours", [1, 3, 50])
def test_the_assignment_equals_a_slow_reference(neighbours):
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(60, 3)).astype(np.float32)
    books = [rng.normal(size=(4, 3)).astype(np.float32), 0.5 * rng.normal(size=(30, 3)).astype(np.float32)]
    codes = encode(vectors, books)
    resolved = resolve(codes, vectors, books, neighbours=neighbours, last=np.zeros(60, bool))
    np.testing.assert_array_equal(resolved.codes, _slow(codes, vectors, books, neighbours))
    assert resolved.moved > 5 and resolved.overflowed == 0


@pytest.mark.parametrize("levels", [2, 3])
def test_a_full_prefix_spills_to_others_until_every_id_is_used(levels):
    """All items equal and exactly as many as ids."""
    books = [np.eye(3, 4, dtype=np.float32) * (level + 1) for level in range(levels)]
    vectors = np.zeros((3 ** levels, 4), np.float32)
    resolved = resolve(encode(vectors, books), vectors, books, neighbours=2, last=np.zeros(len(vectors), bool))
    assert len(np.unique(resolved.codes, axis=0)) == 3 ** levels and resolved.overflowed == 3 ** levels - 3


def test_a_spill_goes_to_the_nearest_prefix_with_room():
    books = [np.array([[0.0], [10.0], [3.0]], np.float32), np.array([[0.0], [0.1]], np.float32)]
    vectors = np.array([[0.0], [0.1], [0.9]], np.float32)
    resolved = resolve(encode(vectors, books), vectors, books, neighbours=2, last=np.zeros(3, bool))
    assert resolved.codes.tolist() == [[0, 0], [0, 1], [2, 0]] and resolved.overflowed == 1


def test_items_without_a_vector_yield_to_those_with_one():
    books = [np.zeros((1, 1), np.float32), np.array([[0.0], [5.0]], np.float32)]
    vectors = np.array([[0.0], [0.4]], np.float32)
    resolved = resolve(encode(vectors, books), vectors, books, neighbours=2, last=np.array([True, False]))
    assert resolved.codes.tolist() == [[0, 1], [0, 0]]


def test_one_level_one_item_and_equal_items_work(tmp_path):
    for name, vectors, config in (("one", np.ones((1, 3)), TokenizerConfig()), ("equal", np.ones((40, 3)), TokenizerConfig()),
                                  ("flat", np.random.default_rng(0).normal(size=(30, 3)), TokenizerConfig(levels=1, codes=64))):
        build_tokenizer(_dataset(tmp_path / name, vectors), tmp_path / f"t{name}", config, vectors="emb_81")
        codes = load_tokenizer(tmp_path / f"t{name}", f"space of {len(vectors)}").codes[1:]
        assert len(np.unique(codes, axis=0)) == len(vectors)


def test_items_without_a_vector_still_get_an_id_and_are_counted(tmp_path):
    vectors, present = np.random.default_rng(5).normal(size=(50, 3)), np.arange(50) % 5 > 0
    build_tokenizer(_dataset(tmp_path / "d", vectors, present=present), tmp_path / "t", TokenizerConfig(), vectors="emb_81")
    assert len(np.unique(load_tokenizer(tmp_path / "t", "space of 50").codes[1:], axis=0)) == 50
    import json
    assert json.loads((tmp_path / "t" / "tokenizer.json").read_text())["figures"]["without_vector"] == 10


def test_more_items_than_ids_is_an_error_that_says_so(tmp_path):
    vectors = np.random.default_rng(6).normal(size=(30, 3))
    with pytest.raises(InputError, match="30 items for 25 ids"):
        build_tokenizer(_dataset(tmp_path / "d", vectors), tmp_path / "t", TokenizerConfig(codes=5), vectors="emb_81")
    assert not (tmp_path / "t").exists()


def test_vectors_and_tokenizers_of_other_items_are_refused(tmp_path):
    data = _dataset(tmp_path / "d", np.random.default_rng(7).normal(size=(30, 3)))
    run = tmp_path / "run"
    run.mkdir()
    np.save(run / "item_vectors.npy", np.ones((6, 3), np.float32))
    np.save(run / "item_ids.npy", np.arange(6))
    with pytest.raises(InputError, match="0 of them of this dataset"):
        build_tokenizer(data, tmp_path / "t", TokenizerConfig(), checkpoint=run)
    with pytest.raises(InputError, match="one of: emb_81"):
        build_tokenizer(data, tmp_path / "t", TokenizerConfig(), vectors="emb_99")
    with pytest.raises(InputError, match="neither"):
        build_tokenizer(data, tmp_path / "t", TokenizerConfig())
    build_tokenizer(data, tmp_path / "t", TokenizerConfig(), vectors="emb_81")
    with pytest.raises(InputError, match="another dataset"):
        load_tokenizer(tmp_path / "t", "space of 31")


def test_vectors_of_a_run_are_put_in_place_by_their_ids(tmp_path):
    vectors = np.random.default_rng(8).normal(size=(40, 3)).astype(np.float32)
    data, run, order = _dataset(tmp_path / "d", vectors), tmp_path / "run", np.random.default_rng(9).permutation(41)
    run.mkdir()
    ids = np.concatenate([[0], np.arange(40) + 20_000_000_000])
    np.save(run / "item_vectors.npy", np.concatenate([np.zeros((1, 3), np.float32), vectors])[order])
    np.save(run / "item_ids.npy", ids[order])
    np.save(tmp_path / "plain.npy", np.concatenate([np.zeros((1, 3), np.float32), vectors]))
    build_tokenizer(data, tmp_path / "a", TokenizerConfig(), checkpoint=run)
    build_tokenizer(data, tmp_path / "b", TokenizerConfig(), vectors=str(tmp_path / "plain.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "a" / "codes.npy"), np.load(tmp_path / "b" / "codes.npy"))


def test_codebooks_grow_with_the_catalogue_up_to_the_papers_size():
    assert [default_codes(items, 2) for items in (10, 64, 65, 16_384, 20_000, 4_783_154, 19_099_627)] == [16, 16, 32, 256, 512, 8192, 16384]


def test_distances_are_squared_euclidean():
    a, b = np.random.default_rng(0).normal(size=(4, 3)), np.random.default_rng(1).normal(size=(5, 3))
    np.testing.assert_allclose(squared_distance(a, b), ((a[:, None] - b[None]) ** 2).sum(2), atol=1e-9)


def test_real_embeddings_end_without_a_shared_id(tmp_path, data_dir):
    source = find_embeddings(data_dir / "tencentgr_1k_sample")["81"]
    vectors = np.stack([v for _, (c, v) in zip(range(6000), read_embedding(source)) if v is not None])
    build_tokenizer(_dataset(tmp_path / "d", vectors), tmp_path / "t", TokenizerConfig(codes=128, points_per_code=40), vectors="emb_81")
    codes = np.load(tmp_path / "t" / "codes.npy")[1:]
    assert len(np.unique(codes, axis=0)) == len(vectors) > 5900
