"""A tokenizer folder keeps its ids: keyed by original id, checked, extended without moving any, joined from sources."""

import subprocess
import sys

import numpy as np
import pytest
from test_tokenizer import assert_own_ids, build, write_dataset

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.item_vectors import named_sources, open_vectors
from onepiece_comp.semantic_ids import load_tokenizer
from onepiece_comp.tokenizer import build_tokenizer, restored_quantiser

VECTORS = np.random.default_rng(9).normal(size=(60, 4)).round(2)


def test_ids_are_found_by_original_id_and_strangers_have_none(tmp_path):
    creative = np.random.default_rng(1).permutation(900)[:60] + 5
    codes, _ = build(tmp_path, VECTORS, creative=creative, codes=16)
    tokenizer = load_tokenizer(tmp_path / "a")
    np.testing.assert_array_equal(tokenizer.codes_of(creative[[7, 3, 3]]), codes[[7, 3, 3]])
    assert (tokenizer.codes_of(np.array([10 ** 9, 0, -4])) == -1).all()


def test_ids_that_changed_on_disk_are_refused(tmp_path):
    build(tmp_path, VECTORS, codes=16)
    codes = np.load(tmp_path / "a" / "codes.npy")
    codes[5], codes[6] = codes[6].copy(), codes[5].copy()
    np.save(tmp_path / "a" / "codes.npy", codes)
    with pytest.raises(InputError, match="differ from their checksum"):
        load_tokenizer(tmp_path / "a", "space of 60")


def test_the_folder_is_read_without_faiss_and_torch(tmp_path):
    build(tmp_path, VECTORS, codes=16)
    code = ("import sys; sys.modules.update(faiss=None, torch=None, numba=None)\n"
            "from onepiece_comp.semantic_ids import load_tokenizer\n"
            f"assert load_tokenizer({str(tmp_path / 'a')!r}).codes.shape == (61, 2)")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("quantiser", ["residual_kmeans", "nested_kmeans", "opq", "fsq"])
def test_a_stored_quantiser_encodes_as_the_one_that_was_fitted(tmp_path, quantiser):
    codes, _ = build(tmp_path, VECTORS, codes=32, quantiser=quantiser, resolve="none")
    stored = restored_quantiser(load_tokenizer(tmp_path / "a"))
    np.testing.assert_array_equal(stored.encode(VECTORS.astype(np.float16).astype(np.float32)), codes)


def test_old_ids_never_move_and_new_items_take_free_ids_near_their_vectors(tmp_path):
    creative = 100 + np.arange(60)
    old, _ = build(tmp_path, VECTORS, creative=creative, codes=16)
    keep = np.r_[10:60]  # ten items leave, twenty come, in another order, two of them without a vector
    more = np.concatenate([VECTORS[keep], VECTORS[:20] + 0.01])
    ids = np.concatenate([creative[keep], 500 + np.arange(20)])
    shuffle = np.random.default_rng(0).permutation(70)
    present = np.ones(70, bool)
    present[[68, 69]] = False
    dataset = write_dataset(tmp_path / "later", ids[shuffle], more[shuffle], present[shuffle])
    build_tokenizer(dataset, tmp_path / "b", TokenizerConfig(), vectors="emb_81", extend=tmp_path / "a")
    later = load_tokenizer(tmp_path / "b", "space of 70")
    np.testing.assert_array_equal(later.codes_of(creative[keep]), old[keep])
    assert_own_ids(np.concatenate([later.codes[1:], later.retired_codes]), 16)
    assert sorted(later.retired_id.tolist()) == creative[:10].tolist()
    new, quantiser = later.codes_of(500 + np.arange(18)), restored_quantiser(later)
    far = np.square(more[50:68] - quantiser.decode(new)).sum(1).mean()
    assert far < 0.5 * np.square(more[50:68] - more.mean(0)).sum(1).mean()

    again = write_dataset(tmp_path / "again", creative, VECTORS)  # the ten come back to the ids that they had
    build_tokenizer(again, tmp_path / "c", TokenizerConfig(), vectors="emb_81", extend=tmp_path / "b")
    back = load_tokenizer(tmp_path / "c")
    np.testing.assert_array_equal(back.codes_of(creative), old)
    assert len(back.retired_id) == 20


def test_what_cannot_be_extended_is_said(tmp_path):
    build(tmp_path, VECTORS, codes=8)
    wide = write_dataset(tmp_path / "wide", 7 + np.arange(60), np.ones((60, 5)))
    many = write_dataset(tmp_path / "many", 7 + np.arange(60), VECTORS)
    build(tmp_path, VECTORS, codes=64, resolve="counter", name="counted")
    for dataset, tokenizer, message in ((wide, "a", "a tokenizer of vectors 4 wide, expected 5 wide"),
                                        (many, "a", "60 ids in use and 60 new items, expected at most 64"),
                                        (many, "counted", "ids that end in a counter"), (many, "no", "no such folder")):
        with pytest.raises(InputError, match=message):
            build_tokenizer(dataset, tmp_path / "x", TokenizerConfig(), vectors="emb_81", extend=tmp_path / tokenizer)
    assert not (tmp_path / "x").exists()


def test_a_counter_is_one_more_code(tmp_path):
    codes, marker = build(tmp_path, np.repeat(VECTORS[:20], 3, axis=0), codes=16, resolve="counter")
    assert codes.shape == (60, 3) and marker["levels"] == 3 and len(np.unique(codes, axis=0)) == 60
    assert (codes.reshape(20, 3, 3)[:, :, :2] == codes.reshape(20, 3, 3)[:, :1, :2]).all()
    present = np.arange(60) % 5 > 0
    codes, _ = build(tmp_path, VECTORS, codes=16, resolve="counter", present=present, name="b")
    assert len(np.unique(codes, axis=0)) == 60 and (codes[~present, 2] == 0).all()


def test_several_sources_stand_side_by_side_white_and_weighted(tmp_path):
    draw = np.random.default_rng(0)
    left = (draw.normal(size=(400, 3)) * [100, 1, 0.01] + 7).astype(np.float32)
    right, creative = draw.normal(size=(400, 2)).astype(np.float32), np.concatenate([[0], 10 + np.arange(400)])
    dataset = write_dataset(tmp_path / "dataset", creative[1:], left)
    right[5] = 0
    np.save(tmp_path / "right.npy", np.concatenate([np.zeros((1, 2)), right]))
    held, present = open_vectors(dataset, creative, named_sources(f"emb_81+{tmp_path / 'right.npy'}:2"), whiten=True)
    whole = held[:]
    assert held.shape == whole.shape == (400, 5) and present.all()
    covariance = np.cov(whole[np.arange(400) != 5].T)
    np.testing.assert_allclose(covariance[:3, :3], np.eye(3) / 3, atol=0.02)
    np.testing.assert_allclose(covariance[3:, 3:], 4 * np.eye(2) / 2, atol=0.05)
    assert (whole[5, 3:] == 0).all() and (whole[5, :3] != 0).any()
    np.testing.assert_array_equal(held[np.array([9, 2])], whole[[9, 2]])
    plain, _ = open_vectors(dataset, creative, named_sources(f"emb_81:3+{tmp_path / 'right.npy'}"), whiten=False)
    centred = left.astype(np.float16) - left.astype(np.float16).mean(0, dtype=np.float64)
    np.testing.assert_allclose(plain[:][:, :3], 3 * centred / np.square(centred).sum(1).mean() ** 0.5, atol=1e-3)


@pytest.mark.parametrize("text", ["emb_81:0", "emb_81:-1", "emb_81:x+run", "run:nan"])
def test_a_weight_is_a_number_above_zero(text):
    with pytest.raises(InputError, match="NAME or NAME:WEIGHT"):
        named_sources(text)
