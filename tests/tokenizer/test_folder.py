"""A tokenizer folder keeps its ids: keyed by original id, checked, extended without moving any, joined from sources."""

import json
import subprocess
import sys

import numpy as np
import pytest
from written_tokenizers import assert_own_ids, build, write_dataset

from onepiece_comp.artefacts import fingerprint, write_json
from onepiece_comp.config import TokenizerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.tokenizer.build import restored_quantiser
from onepiece_comp.tokenizer.folder import load_tokenizer
from onepiece_comp.tokenizer.item_vectors import named_sources, open_vectors, same_sources

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
            "from onepiece_comp.tokenizer.folder import load_tokenizer\n"
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


def two_sources(folder, creative, left, right):
    """A dataset with emb_81 and emb_82."""
    write_dataset(folder, creative, left)
    np.save(folder / "emb_82.npy", np.concatenate([np.zeros((1, right.shape[1])), right]).astype(np.float16))
    np.save(folder / "emb_82_present.npy", np.arange(len(creative) + 1) > 0)
    return folder


def fused(tmp_path):
    """A tokenizer `a` of emb_81+emb_82:2 of 60 items, their two sources, and what `build_tokenizer` takes for them."""
    left, right = VECTORS * [9, 1, 1, 1], np.random.default_rng(3).normal(size=(60, 3)).round(2)
    dataset = two_sources(tmp_path / "first", 100 + np.arange(60), left, right)
    build_tokenizer(dataset, tmp_path / "a", TokenizerConfig(codes=64), vectors="emb_81+emb_82:2")
    return left, right


def test_a_fusion_is_extended_in_the_space_of_its_words(tmp_path):
    """New items with the vectors of old ones come under their first codes, whatever else is new and turns the axes."""
    left, right = fused(tmp_path)
    far = np.random.default_rng(4).normal(size=(90, 7)) * [1, 30, 1, 5, 40, 1, 1] + 20
    ids = np.concatenate([500 + np.arange(60), 900 + np.arange(90)])
    later = two_sources(tmp_path / "later", ids, np.concatenate([left, far[:, :4]]),
                        np.concatenate([right, far[:, 4:]]))
    build_tokenizer(later, tmp_path / "b", TokenizerConfig(), vectors="emb_81+emb_82:2", extend=tmp_path / "a")
    old, new = load_tokenizer(tmp_path / "a"), load_tokenizer(tmp_path / "b")
    np.testing.assert_array_equal(new.codes_of(500 + np.arange(60))[:, 0], old.codes_of(100 + np.arange(60))[:, 0])
    assert len(new.space.frames) == 2
    for kept, frame in zip(new.space.frames, old.space.frames):
        np.testing.assert_array_equal(kept.mean, frame.mean)
        np.testing.assert_array_equal(kept.axes, frame.axes)


def test_vectors_of_a_fusion_are_the_same_again_in_its_frames(tmp_path):
    left, right = fused(tmp_path)
    named, creative = named_sources("emb_81+emb_82:2"), np.append(0, 100 + np.arange(60))
    first, _ = open_vectors(tmp_path / "first", creative, named, whiten=True)
    half = two_sources(tmp_path / "half", creative[1:31], left[:30], right[:30])
    again, _ = open_vectors(half, creative[:31], named, whiten=True, space=load_tokenizer(tmp_path / "a").space)
    np.testing.assert_allclose(again[:], first[:][:30], rtol=1e-5, atol=1e-6)
    alone, _ = open_vectors(half, creative[:31], named, whiten=True)
    assert np.abs(alone[:] - first[:][:30]).max() > 0.1
    wide = two_sources(tmp_path / "wide", creative[1:], left, np.column_stack([right, right]))
    with pytest.raises(InputError, match="emb_82: found vectors 6 wide, expected 3 wide"):
        build_tokenizer(wide, tmp_path / "x", TokenizerConfig(), vectors="emb_81+emb_82:2", extend=tmp_path / "a")


def test_a_fusion_s_frames_are_under_the_checksum_and_a_fusion_without_them_is_not_extended(tmp_path):
    fused(tmp_path)
    axes = np.load(tmp_path / "a" / "fusion_axes_1.npy")
    marker = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    np.save(tmp_path / "a" / "fusion_axes_1.npy", 2 * axes)
    with pytest.raises(InputError, match="differ from their checksum"):
        load_tokenizer(tmp_path / "a")
    for file in (tmp_path / "a").glob("fusion_*"):
        file.unlink()
    ids = [np.load(tmp_path / "a" / f"{name}.npy") for name in ("codes", "creative_id", "retired_id", "retired_codes")]
    del marker["columns"]  # as an earlier version wrote it
    write_json(tmp_path / "a" / "tokenizer.json", {**marker, "checksum": fingerprint(*ids)})
    assert load_tokenizer(tmp_path / "a").space.frames == ()
    with pytest.raises(InputError, match="a fusion whose means and axes an earlier version did not keep"):
        build_tokenizer(tmp_path / "first", tmp_path / "x", TokenizerConfig(), vectors="emb_81+emb_82:2",
                        extend=tmp_path / "a")


@pytest.mark.parametrize("earlier, now, same", [
    ("emb_81", "emb_81", True), ("emb_81", "emb_82", False), ("emb_81", "emb_81:2", False), ("emb_81", "v.npy", False),
    ("v.npy", "emb_81", False), ("old/run", "moved/run", True), ("v.npy", "moved/v.npy", True),
    ("run", "run/item_vectors.npy", True), ("emb_81+run:2", "emb_81+moved:2", True),
    ("emb_81+run", "run+emb_81", False),
    ("emb_81+run:2", "emb_81+run:3", False), ("emb_81+emb_82", "emb_82+emb_81", False),
    ("emb_81+run", "emb_81", False)])
def test_embeddings_keep_their_names_and_weights_and_other_sources_may_have_moved(earlier, now, same):
    assert same_sources(earlier, named_sources(now)) == same


def test_an_embedding_that_another_dataset_reduced_in_its_own_way_is_refused(tmp_path):
    first, later = (two_sources(tmp_path / name, 100 + np.arange(60), VECTORS, VECTORS) for name in ("first", "later"))
    np.save(first / "emb_81_pca.npy", np.ones((5, 9), np.float32))
    build_tokenizer(first, tmp_path / "a", TokenizerConfig(codes=16), vectors="emb_81")
    for projection in (None, np.zeros((5, 9), np.float32)):
        if projection is not None:
            np.save(later / "emb_81_pca.npy", projection)
        with pytest.raises(InputError, match="expected the same projection of emb_81"):
            build_tokenizer(later, tmp_path / "b", TokenizerConfig(), vectors="emb_81", extend=tmp_path / "a")
    np.save(later / "emb_81_pca.npy", np.ones((5, 9), np.float32))
    build_tokenizer(later, tmp_path / "b", TokenizerConfig(), vectors="emb_81", extend=tmp_path / "a")
    marker = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    del marker["reductions"]  # an earlier version did not tell
    write_json(tmp_path / "a" / "tokenizer.json", marker)
    np.save(later / "emb_81_pca.npy", np.zeros((5, 9), np.float32))
    build_tokenizer(later, tmp_path / "c", TokenizerConfig(), vectors="emb_81", extend=tmp_path / "a")


def test_a_tokenizer_is_extended_with_the_sources_and_settings_that_it_was_built_with(tmp_path):
    first = two_sources(tmp_path / "first", 100 + np.arange(60), VECTORS, VECTORS[::-1])
    build_tokenizer(first, tmp_path / "a", TokenizerConfig(codes=16, balance=0.5), vectors="emb_81")
    with pytest.raises(InputError, match="found emb_82, expected emb_81, as in the earlier"):
        build_tokenizer(first, tmp_path / "x", TokenizerConfig(), vectors="emb_82", extend=tmp_path / "a")
    for asked, message in (({"codes": 32}, "a tokenizer of codes=16, expected codes=32 as asked"),
                           ({"quantiser": "opq", "seed": 1}, "a tokenizer of quantiser=residual_kmeans, seed=0")):
        with pytest.raises(InputError, match=message):
            build_tokenizer(first, tmp_path / "x", TokenizerConfig(**asked), vectors="emb_81", extend=tmp_path / "a")
    asked = TokenizerConfig(codes=16, device="cpu")
    build_tokenizer(first, tmp_path / "b", asked, vectors="emb_81", extend=tmp_path / "a")
    config = [json.loads((tmp_path / name / "tokenizer.json").read_text())["config"] for name in "ab"]
    assert config[0] == config[1] and config[1]["balance"] == 0.5


def test_items_that_share_ids_are_extended_by_counting_the_ids(tmp_path):
    """Forty items on six ids of 64, and thirty new ones: more items than ids, but not more ids."""
    old, _ = build(tmp_path, np.repeat(VECTORS[:5], 8, axis=0), codes=8, resolve="none")
    assert len(np.unique(old, axis=0)) == 5
    ids = np.concatenate([1000 + np.arange(40), 2000 + np.arange(30)])
    later = write_dataset(tmp_path / "later", ids, np.concatenate([np.repeat(VECTORS[:5], 8, axis=0), VECTORS[:30]]))
    build_tokenizer(later, tmp_path / "b", TokenizerConfig(), vectors="emb_81", extend=tmp_path / "a")
    tokenizer = load_tokenizer(tmp_path / "b")
    np.testing.assert_array_equal(tokenizer.codes_of(ids[:40]), old)
    assert_own_ids(np.concatenate([np.unique(old, axis=0), tokenizer.codes_of(ids[40:])]), 8)


@pytest.mark.parametrize("lost", ["quantiser_codebook_1", "quantiser_price_0", "retired_id", "codes"])
def test_a_folder_that_lost_a_column_is_refused_by_its_name(tmp_path, lost):
    build(tmp_path, VECTORS, codes=16)
    (tmp_path / "a" / f"{lost}.npy").unlink()
    with pytest.raises(InputError, match=f"found no {lost}.npy, expected the columns that tokenizer.json names"):
        load_tokenizer(tmp_path / "a")


def test_a_marker_that_lost_its_checksum_is_refused(tmp_path):
    _, marker = build(tmp_path, VECTORS, codes=16)
    del marker["checksum"], marker["levels"]
    write_json(tmp_path / "a" / "tokenizer.json", marker)
    with pytest.raises(InputError, match="tokenizer.json: found no checksum, levels"):
        load_tokenizer(tmp_path / "a")


def test_each_source_of_a_fusion_has_a_vector_of_some_item(tmp_path):
    dataset = two_sources(tmp_path / "dataset", 100 + np.arange(60), VECTORS, np.zeros((60, 2)))
    with pytest.raises(InputError, match="emb_82: found no vector for any of 60 items"):
        build_tokenizer(dataset, tmp_path / "x", TokenizerConfig(), vectors="emb_81+emb_82")


@pytest.mark.parametrize("text", ["emb_81+", "+emb_81", "", "emb_81+ ", ":2"])
def test_a_source_has_a_name(text):
    with pytest.raises(InputError, match="NAME or NAME:WEIGHT"):
        named_sources(text)
