"""Embedding tables: three forms of one table give one matrix; reduction keeps what it says and reaches inference."""

import os
import shutil

import numpy as np
import pytest
import torch
from embedding_forms import FIRST_ID, FORMS, WIDTH, as_lines, item_vectors, one_part

from onepiece_comp.columns import load_column
from onepiece_comp.config import PreprocessConfig
from onepiece_comp.config_reading import load_config
from onepiece_comp.dataset import embedding_tables, reduction
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.dataset.preprocess import load_dataset
from onepiece_comp.errors import InputError
from onepiece_comp.stages.preprocess import preprocess
from onepiece_comp.stages.train import train
from onepiece_comp.training.checkpoint import load_checkpoint


def _creative(vectors, unknown=2):
    """Item rows in the order of the ids, with items that no table knows and without the last of the table."""
    return np.concatenate([[0], np.arange(FIRST_ID - unknown, FIRST_ID + len(vectors) - 1)])


def _columns(folder, fid="81"):
    return np.array(load_column(folder, f"emb_{fid}")), np.array(load_column(folder, f"emb_{fid}_present"))


def _write(data, out, creative, **settings):
    out.mkdir()
    found = embedding_tables.write_embedding_tables(data, out, creative, PreprocessConfig(**settings))
    return _columns(out), found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_gives_the_matrix_that_a_loop_over_its_records_gives(tmp_path, form):
    vectors = item_vectors()
    FORMS[form](tmp_path / "data", vectors)
    creative = _creative(vectors)
    expected, there = np.zeros((len(creative), WIDTH), np.float16), np.zeros(len(creative), bool)
    for creative_id, vector in vectors.items():
        row = creative_id - creative[1] + 1
        if vector is not None and row < len(creative):
            expected[row], there[row] = vector, True
    (matrix, present), (widths, coverage) = _write(tmp_path / "data", tmp_path / "out", creative)
    assert matrix.dtype == np.float16 and matrix.tobytes() == expected.tobytes()
    assert present.tolist() == there.tolist() and there.sum() == 31 and not present[:3].any()
    assert widths == {"81": WIDTH}
    assert coverage == {"81": {"items": 31, "missing": len(creative) - 32, "records_without_emb": 8}}
    assert sorted(os.listdir(tmp_path / "out")) == ["emb_81.npy", "emb_81_present.npy"]


def test_rows_of_ids_are_those_of_a_dict(tmp_path):
    rng = np.random.default_rng(0)
    creative = np.concatenate([[0], rng.permutation(10_000)[:300] + 5])
    row_of = {int(creative_id): row for row, creative_id in enumerate(creative) if row}
    asked = np.array([0, -1, 4, 10**12, *range(5, 10_050)])
    assert embedding_tables.RowLookup(creative).rows(asked).tolist() == [row_of.get(int(i), 0) for i in asked]
    assert not embedding_tables.RowLookup(np.zeros(1, np.int64)).rows(asked).any()


def test_of_an_id_that_stands_twice_the_last_vector_counts(tmp_path):
    one_part(tmp_path, "".join(f'{{"anonymous_cid": 5, "emb": [{i}, 1]}}\n' for i in range(4)))
    (matrix, _), (_, coverage) = _write(tmp_path, tmp_path / "out", np.array([0, 5]))
    assert matrix.tolist() == [[0, 0], [3, 1]] and coverage["81"]["items"] == 1


def test_a_value_that_float16_cannot_hold_is_named(tmp_path):
    one_part(tmp_path, '{"anonymous_cid": 5, "emb": [1, 1]}\n{"anonymous_cid": 6, "emb": [1, -70000]}\n')
    with pytest.raises(InputError, match="id 6: found the value 7e[+]04"):
        _write(tmp_path, tmp_path / "out", np.array([0, 5, 6]))


def _planted(count=400, width=32, rank=4, seed=0):
    """Vectors of `rank` dimensions within `width`, far from zero, with a little noise."""
    rng = np.random.default_rng(seed)
    plane = np.linalg.qr(rng.normal(size=(width, rank)))[0].T
    values = 7 + rng.normal(size=(count, rank)) * [4, 3, 2, 1] @ plane + 0.001 * rng.normal(size=(count, width))
    return {FIRST_ID + i: values[i].astype(np.float32) for i in range(count)}, plane


def test_reduction_finds_the_planted_plane_and_says_how_much_it_kept(tmp_path):
    vectors, plane = _planted()
    as_lines(tmp_path / "data", vectors)
    creative = np.concatenate([[0], list(vectors)])
    (matrix, present), (widths, coverage) = _write(
        tmp_path / "data", tmp_path / "out", creative, reduce_embeddings_to=4, max_embedding_width=16)
    assert widths == {"81": 4} and matrix.shape == (401, 4) and present[1:].all()
    assert coverage["81"]["raw_width"] == 32 and coverage["81"]["variance_kept"] > 0.999
    projection = reduction.load_projections(tmp_path / "out", widths)["81"]
    np.testing.assert_allclose(projection.components @ projection.components.T, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(projection.components @ plane.T @ plane, projection.components, atol=2e-3)
    exact = np.stack(list(vectors.values()))
    np.testing.assert_allclose(matrix[1:] @ projection.components + projection.mean, exact, atol=0.02)
    rows = embedding_tables.coverage_rows(widths, coverage)
    assert ("emb_81: share of the variance kept of 32", coverage["81"]["variance_kept"]) in rows


def test_a_projection_is_that_of_all_blocks_together_however_far_from_zero_they_lie():
    vectors, _ = _planted()
    values = np.stack(list(vectors.values())).astype(float) + 30_000
    values = values[values[:, 0].argsort()]  # so that blocks differ in their means
    blocks = [block.astype(np.float32) for block in np.array_split(values, 7)]
    projection = reduction.fit_projection([np.empty((0, 32), np.float32), *blocks], width=32, components=3)
    exact = np.linalg.eigh(np.cov(values.T))[1][:, ::-1].T[:3]
    np.testing.assert_allclose(np.abs((projection.components * exact).sum(1)), 1, atol=1e-3)
    np.testing.assert_allclose(projection.mean, values.mean(0), rtol=1e-6)
    assert (projection.components[np.arange(3), np.abs(projection.components).argmax(1)] > 0).all()
    nothing = reduction.fit_projection([], width=5, components=2)
    assert nothing.apply(np.eye(5, dtype=np.float32)).shape == (5, 2)


def test_the_share_kept_is_that_of_all_items_and_falls_with_the_width(tmp_path):
    vectors, _ = _planted()
    as_lines(tmp_path / "data", vectors)
    creative = np.concatenate([[0], list(vectors)])
    _, (_, coverage) = _write(tmp_path / "data", tmp_path / "out", creative, reduce_embeddings_to=2)
    values = np.stack(list(vectors.values()))
    variance = np.linalg.eigvalsh(np.cov(values.T))[::-1]
    assert coverage["81"]["variance_kept"] == pytest.approx(variance[:2].sum() / variance.sum(), abs=1e-3)


def test_narrow_tables_and_a_switch_that_is_off_are_left_as_they_are(tmp_path):
    vectors = item_vectors()
    as_lines(tmp_path / "data", vectors)
    creative = _creative(vectors)
    (plain, _), found = _write(tmp_path / "data", tmp_path / "off", creative)
    (same, _), found_again = _write(tmp_path / "data", tmp_path / "on", creative, reduce_embeddings_to=WIDTH)
    assert same.tobytes() == plain.tobytes() and found == found_again
    assert not list(tmp_path.glob("o*/*_pca.npy"))
    with pytest.raises(InputError, match="reduce_embeddings_to"):
        _write(tmp_path / "data", tmp_path / "wrong", creative, reduce_embeddings_to=-1)


def test_too_wide_tables_are_left_out(tmp_path, capsys):
    as_lines(tmp_path / "data", item_vectors())
    out, settings = tmp_path / "out", PreprocessConfig(max_embedding_width=WIDTH - 1)
    out.mkdir()
    assert embedding_tables.write_embedding_tables(tmp_path / "data", out, np.arange(3), settings) == ({}, {})
    assert not os.listdir(out) and "left out" in capsys.readouterr().out


def test_the_sample_takes_equal_shares_of_the_files_and_only_items_of_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.setattr(reduction, "SAMPLE", 12)
    vectors = {FIRST_ID + i: np.full(2, i, np.float32) for i in range(90)}  # part p holds p, p + 3, ...
    source = as_lines(tmp_path, vectors)
    taken = np.concatenate(list(reduction.sample_vectors(source, lambda ids: ids % 2 == 0, width=2)))[:, 0]
    assert sorted(taken.tolist()) == sorted(i for i in range(24) if (FIRST_ID + i) % 2 == 0)
    short = dict(list(vectors.items())[:8])
    source = as_lines(tmp_path / "short", short)
    assert len(np.concatenate(list(reduction.sample_vectors(source, lambda ids: ids > 0, width=2)))) == 8


def test_a_projection_is_refused_when_it_is_not_of_the_width_that_the_schema_tells(tmp_path):
    np.save(tmp_path / "emb_81_pca.npy", np.zeros((5, 32), np.float32))
    assert reduction.load_projections(tmp_path, {"81": 4, "82": 4})["81"].components.shape == (4, 32)
    with pytest.raises(InputError, match="emb_81_pca.npy"):
        reduction.load_projections(tmp_path, {"81": 3})


def test_inference_reduces_the_raw_vectors_as_the_dataset_did(parts, tmp_path):
    """From training files to a checkpoint: the evaluation folder's wide vectors end as the dataset's rows."""
    config = load_config("tiny", None, [
        "preprocess.reduce_embeddings_to=3", "model.width=16", "model.layers=1", "model.experts=0",
        "model.feature_width=4", "model.embedding_width=4", "train.epochs=0.2", "train.checkpoints=1",
        "train.validation_users=0", "train.device=cpu"])
    dataset = load_dataset(preprocess(parts / "train", tmp_path / "dataset", config.preprocess))
    assert dataset.schema.embeddings == {"81": 3, "82": 3}
    checkpoint = load_checkpoint(train(dataset.path, tmp_path / "run", config), torch.device("cpu"))
    shutil.rmtree(tmp_path / "dataset")
    evaluation = read_evaluation(parts / "eval", checkpoint.model.schema, projections=checkpoint.projections).items
    known = evaluation.id_row > 0
    assert known.sum() > 20 and not evaluation.present["81"][0]
    for fid in ("81", "82"):
        row = evaluation.id_row[known]
        np.testing.assert_array_equal(evaluation.present[fid][known], dataset.items.present[fid][row])
        np.testing.assert_allclose(evaluation.embeddings[fid][known], dataset.items.embeddings[fid][row], atol=2e-3)
    assert np.abs(evaluation.embeddings["81"][known].astype(float)).max() > 1
    with pytest.raises(InputError, match="width 8, expected 3"):
        read_evaluation(parts / "eval", checkpoint.model.schema)
    narrow = {"81": reduction.Projection(np.zeros(9, np.float32), np.zeros((3, 9), np.float32))}
    with pytest.raises(InputError, match="emb_81_8: found embeddings of width 8, expected 9, as in training"):
        read_evaluation(parts / "eval", checkpoint.model.schema, projections=narrow)
