"""Every item has a semantic id of its own, near its vector, whatever the vectors and the order of items are."""


import numpy as np
import pytest
from written_tokenizers import assert_own_ids, build

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.logs.embeddings import find_embeddings, read_embedding
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.tokenizer import quantisers
from onepiece_comp.tokenizer.build import choose_codes, restored_quantiser
from onepiece_comp.tokenizer.folder import load_tokenizer
from onepiece_comp.tokenizer.id_tree import emptiest_ids, id_numbers


def checkerboard():
    """Sixteen vectors: four far corners, four near corners around each, in the order corner by corner."""
    square = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], float)
    return (100 * square[:, None] + square).reshape(-1, 2)


def test_far_corners_get_the_first_code_and_near_corners_the_second(tmp_path):
    codes, marker = build(tmp_path, checkerboard(), codes=4, iterations=50)
    corners = codes.reshape(4, 4, 2)
    assert (corners[:, :, 0] == corners[:, :1, 0]).all() and len(set(corners[:, 0, 0])) == 4
    assert (corners[:, :, 1] == corners[:1, :, 1]).all() and len(set(corners[0, :, 1])) == 4
    assert marker["figures"]["before"][-1]["shared"] == 0 and marker["figures"]["moved"] == 0
    assert marker["figures"]["after"][-1]["relative_error"] < 1e-6
    assert marker["figures"]["after"][0]["relative_error"] == pytest.approx(2 / 20002)
    assert [level["perplexity"] for level in marker["figures"]["after"]] == pytest.approx([4, 4])


def test_the_sum_of_the_codewords_is_the_item_s_vector_where_nothing_had_to_move(tmp_path):
    vectors = checkerboard()
    codes, _ = build(tmp_path, vectors, codes=4, iterations=50)
    quantiser = restored_quantiser(load_tokenizer(tmp_path / "a", "space of 16"))
    np.testing.assert_allclose(quantiser.decode(codes), vectors, atol=0.1)
    assert np.allclose(np.square(vectors - quantiser.decode_prefix(codes[:, :1])).sum(1), 2, atol=0.1)


@pytest.mark.parametrize("levels, size", [(1, 64), (2, 8), (3, 4)])
def test_no_two_items_share_an_id_even_when_every_id_is_used(tmp_path, levels, size):
    vectors = np.random.default_rng(0).normal(size=(size ** levels, 3)) ** 3
    codes, marker = build(tmp_path, vectors, levels=levels, codes=size)
    assert_own_ids(codes, size)
    after = marker["figures"]["after"][-1]
    assert after["shared"] == after["collision_rate"] == 0 and after["unique"] == size ** levels


def test_figures_count_shared_ids_as_defined(tmp_path):
    vectors = np.repeat(checkerboard(), [3] + [1] * 15, axis=0)
    _, marker = build(tmp_path, vectors, codes=5, iterations=50, resolve="greedy")
    before = marker["figures"]["before"][-1]
    groups = 18 - before["unique"]
    assert before["collision_rate"] == pytest.approx(groups / 18) and before["largest_group"] >= 3
    assert before["shared"] >= 3 / 18 and marker["figures"]["moved"] == groups


def test_items_without_a_vector_fill_the_emptiest_prefixes_and_are_counted(tmp_path):
    taken = np.array([[0, 0], [0, 1], [1, 3]])
    spread = emptiest_ids(taken, 4, 5)
    assert spread.tolist() == [[1, 0], [2, 0], [2, 1], [3, 0], [3, 1]]
    assert len(set(id_numbers(np.vstack([taken, emptiest_ids(taken, 4, 13)]), 4))) == 16
    vectors, present = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 4 > 0
    vectors[1] = 0  # present and all zero: no vector either
    codes, marker = build(tmp_path, vectors, present=present, codes=16)
    assert_own_ids(codes, 16)
    assert marker["figures"]["items_without_vector"] == 11


def test_ids_follow_the_creative_ids_and_not_the_item_rows(tmp_path):
    generator = np.random.default_rng(3)
    vectors, creative = generator.normal(size=(200, 4)).round(1), generator.permutation(5000)[:200] + 1
    vectors[:50] = vectors[0]  # equal errors, so that ties are broken too
    present, other = generator.random(200) < 0.9, generator.permutation(200)
    codes, _ = build(tmp_path, vectors, creative=creative, present=present, codes=16)
    permuted, _ = build(tmp_path, vectors[other], creative=creative[other], present=present[other], codes=16, name="b")
    np.testing.assert_array_equal(codes[other], permuted)


def test_a_codebook_is_fitted_to_no_more_vectors_per_code_than_asked(tmp_path, monkeypatch):
    seen, fit = [], quantisers.fit_codebook
    monkeypatch.setattr(quantisers, "fit_codebook",
                        lambda points, *more, **settings: (seen.append(len(points)), fit(points, *more, **settings))[1])
    codes, _ = build(tmp_path, np.random.default_rng(4).normal(size=(200, 3)), codes=16, points_per_code=5)
    assert_own_ids(codes, 16)
    assert seen == [80, 80]


@pytest.mark.parametrize("vectors", [np.ones((1, 2)), np.full((60, 3), 0.5), np.eye(5)[[0, 1, 1, 2]],
                                     np.random.default_rng(5).normal(size=(20, 3))])
def test_few_or_equal_vectors_still_give_every_item_an_id_without_a_warning(tmp_path, vectors, capfd):
    codes, marker = build(tmp_path, vectors)
    assert_own_ids(codes, 16)
    assert marker["codes_per_level"] == 16 and "WARNING" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("items, levels, size", [(1, 2, 16), (1024, 2, 64), (1025, 2, 128), (1000, 3, 16),
                                                 (17_600_000, 2, 16384), (10 ** 8, 2, 16384)])
def test_the_codebook_leaves_four_ids_per_item_between_16_and_16384_codes(items, levels, size):
    assert choose_codes(items, TokenizerConfig(levels=levels)) == size


def test_more_items_than_ids_are_refused(tmp_path):
    with pytest.raises(InputError, match="17 items for 16 ids"):
        build(tmp_path, np.ones((17, 2)), codes=4)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("settings", [{"levels": 0}, {"codes": -1}, {"neighbours": 0}, {"levels": 9, "codes": 256}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match="tokenizer settings"):
        choose_codes(10, TokenizerConfig(**settings))


def test_an_unknown_rule_is_refused_before_anything_is_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr(quantisers, "fit_codebook", None)
    with pytest.raises(InputError, match="tokenizer.resolve: found 'best'"):
        build(tmp_path, checkerboard(), resolve="best")


def test_a_run_s_vectors_are_matched_by_creative_id_and_refused_for_another_dataset(tmp_path):
    vectors, creative = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float16), 500 + np.arange(30)
    expected, _ = build(tmp_path, vectors, creative=creative, codes=8)
    run, other = tmp_path / "run", np.random.default_rng(0).permutation(30)
    run.mkdir()
    np.save(run / "item_vectors.npy", np.concatenate([np.zeros((1, 4)), vectors[other]]).astype(np.float32))
    np.save(run / "item_ids.npy", np.concatenate([[0], creative[other]]))
    for source in ({"checkpoint": run}, {"vectors": str(run / "item_vectors.npy")}):
        made = build_tokenizer(tmp_path / "dataset_a", tmp_path / next(iter(source)), TokenizerConfig(codes=8),
                               **source)
        np.testing.assert_array_equal(load_tokenizer(made, "space of 30").codes[1:], expected)
    np.save(run / "item_ids.npy", np.concatenate([[0], creative[other] + 1]))
    with pytest.raises(InputError, match="found 29 of the dataset's 30 items, and 1 others"):
        build_tokenizer(tmp_path / "dataset_a", tmp_path / "c", TokenizerConfig(codes=8), checkpoint=run)


def test_vector_files_without_ids_must_have_a_row_per_item_row_and_sources_must_be_clear(tmp_path):
    vectors, stage = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float16), TokenizerConfig(codes=8)
    expected, _ = build(tmp_path, vectors, codes=8)
    dataset, file = tmp_path / "dataset_a", tmp_path / "v.npy"
    np.save(file, np.concatenate([np.zeros((1, 4)), vectors]))
    build_tokenizer(dataset, tmp_path / "b", stage, vectors=str(file))
    np.testing.assert_array_equal(load_tokenizer(tmp_path / "b", "space of 30").codes[1:], expected)
    for rows, message in ((vectors, "found 30 rows"), (np.full((31, 4), np.nan), "30 vectors with values such as nan"),
                          (np.eye(31, 4) * 1e19,
                           "3 vectors with values such as 1e.19, expected finite numbers of at most 65,504"),
                          (np.eye(31, 4) * -66e3, "3 vectors with values such as -6.6e"),
                          (np.zeros((31, 4)), "no vector for any of 30 items"), (np.ones(31), r"float64 \[31\]")):
        np.save(file, rows)
        with pytest.raises(InputError, match=message):
            build_tokenizer(dataset, tmp_path / "c", stage, vectors=str(file))
    for source, message in (({"vectors": "emb_99"}, "expected one of: emb_81"), ({}, "neither"),
                            ({"vectors": "emb_81", "checkpoint": tmp_path}, "both"),
                            ({"checkpoint": tmp_path}, "no such file"), ({"vectors": "no.npy"}, "no such file")):
        with pytest.raises(InputError, match=message):
            build_tokenizer(dataset, tmp_path / "c", stage, **source)


def test_a_tokenizer_of_another_dataset_is_refused(tmp_path):
    build(tmp_path, np.random.default_rng(2).normal(size=(30, 4)))
    with pytest.raises(InputError, match="built for another dataset"):
        load_tokenizer(tmp_path / "a", "space of 31")


def test_real_embeddings_end_without_a_shared_id(tmp_path, data_dir):
    source = find_embeddings(data_dir / "tencentgr_1k_sample")["81"]
    pairs = [pair for _, pair in zip(range(5000), read_embedding(source)) if pair[1] is not None]
    codes, marker = build(tmp_path, np.stack([vector for _, vector in pairs]), creative=np.array([c for c, _ in pairs]))
    assert_own_ids(codes, 256)
    assert marker["figures"]["before"][-1]["shared"] > 0.2
    assert marker["figures"]["after"][-1]["relative_error"] < 0.15


def test_an_output_that_is_not_ours_is_refused_before_anything_is_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr(quantisers, "fit_codebook", None)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="something that this tool did not write"):
        build(tmp_path, checkerboard())
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["thesis.txt"]
