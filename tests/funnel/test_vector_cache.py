"""Kept candidate vectors: a second inference does not encode, other candidates or spoiled files do."""

import json

import pytest
import torch
from small_models import CONFIG

from onepiece_comp.config import InferConfig
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.funnel import candidates
from onepiece_comp.funnel.infer import recommend
from onepiece_comp.funnel.vector_cache import FOLDER, vector_cache
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.stages.infer import infer
from onepiece_comp.training.checkpoint import load_checkpoint, save_checkpoint

INFER = InferConfig(threads=1)


@pytest.fixture()
def checkpoint(dataset, tmp_path):
    torch.manual_seed(0)
    return save_checkpoint(tmp_path / "run", OnePiece(CONFIG, dataset.schema), dataset.trend, step=1, score=0.0,
                           infer=INFER, dataset="", evaluation=None, columns=dataset.path)


@pytest.fixture()
def encoded(monkeypatch):
    """One entry for each time that the candidates are encoded."""
    calls, encode = [], candidates.encode_item_table
    monkeypatch.setattr(candidates, "encode_item_table", lambda *words: calls.append(1) or encode(*words))
    return calls


def tens(path):
    return json.loads(path.read_text())["top10s"]


def test_a_second_inference_reads_the_vectors_and_answers_the_same(checkpoint, parts, tmp_path, encoded, capsys):
    first = infer(checkpoint, tmp_path / "first", INFER, data=parts / "eval")
    assert len(encoded) == 1 and (checkpoint / FOLDER / "unit.npy").is_file()
    assert not (tmp_path / "first" / FOLDER).exists()
    second = infer(checkpoint, tmp_path / "second", INFER, data=parts / "eval")
    assert len(encoded) == 1 and tens(first) == tens(second) and "read from" in capsys.readouterr().out
    off = infer(checkpoint, tmp_path / "off", InferConfig(threads=1, cache=False), data=parts / "eval")
    assert len(encoded) == 2 and tens(off) == tens(first)


def test_without_cache_nothing_is_kept(checkpoint, parts, tmp_path):
    infer(checkpoint, tmp_path / "out", InferConfig(threads=1, cache=False), data=parts / "eval")
    assert not (checkpoint / FOLDER).exists() and not (tmp_path / "out" / FOLDER).exists()


def _other_features(evaluation):
    features = evaluation.items.features.copy()
    features[evaluation.candidate[3], 0] += 1
    return evaluation._replace(items=evaluation.items._replace(features=features))


def _other_embedding(evaluation):
    column = evaluation.items.embeddings["81"].copy()
    column[evaluation.candidate[3]] += 1
    embeddings = {**evaluation.items.embeddings, "81": column}
    return evaluation._replace(items=evaluation.items._replace(embeddings=embeddings))


@pytest.mark.parametrize("change", [
    lambda evaluation: evaluation._replace(candidate=evaluation.candidate[:-1]),
    lambda evaluation: evaluation._replace(candidate=evaluation.candidate[::-1].copy()),
    _other_features, _other_embedding,
], ids=["one less", "another order", "other features", "another embedding"])
def test_other_candidates_are_encoded(checkpoint, parts, tmp_path, encoded, change):
    loaded = load_checkpoint(checkpoint, torch.device("cpu"))
    evaluation = read_evaluation(parts / "eval", loaded.model.schema)
    recommend(loaded, evaluation, INFER, keep=tmp_path / "out")
    recommend(loaded, change(evaluation), INFER, keep=tmp_path / "out")
    assert len(encoded) == 2
    recommend(loaded, change(evaluation), INFER, keep=tmp_path / "out")
    assert len(encoded) == 2


def test_other_weights_make_other_vectors(checkpoint, dataset, parts, tmp_path, encoded):
    infer(checkpoint, tmp_path / "out", INFER, data=parts / "eval")
    state = torch.load(checkpoint / "model.pt", weights_only=True)
    name = next(name for name, value in state.items() if value.is_floating_point() and value.ndim == 2)
    state[name] += 1
    torch.save(state, checkpoint / "model.pt")
    infer(checkpoint, tmp_path / "out", INFER, data=parts / "eval")
    assert len(encoded) == 2


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("spoil", [
    lambda folder: (folder / "unit.npy").write_bytes((folder / "unit.npy").read_bytes()[:-40]),
    lambda folder: _flip(folder / "unit.npy"), lambda folder: (folder / "metric.npy").unlink(),
    lambda folder: (folder / "vectors.json").write_text("{"), lambda folder: (folder / "vectors.json").write_text("{}"),
], ids=["cut", "a bit", "missing", "marker cut", "marker empty"])
def test_spoiled_vectors_are_made_anew_and_it_is_said(checkpoint, parts, tmp_path, encoded, capsys, spoil):
    first = infer(checkpoint, tmp_path / "first", INFER, data=parts / "eval")
    spoil(checkpoint / FOLDER)
    capsys.readouterr()
    again = infer(checkpoint, tmp_path / "again", INFER, data=parts / "eval")
    assert len(encoded) == 2 and tens(again) == tens(first) and "made anew" in capsys.readouterr().out
    infer(checkpoint, tmp_path / "again", INFER, data=parts / "eval")
    assert len(encoded) == 2


def test_where_the_checkpoint_cannot_be_written_the_output_keeps_them_else_none(checkpoint, parts, tmp_path, encoded):
    (checkpoint / FOLDER).write_text("in the way")
    for _ in range(2):
        infer(checkpoint, tmp_path / "out", INFER, data=parts / "eval")
    assert len(encoded) == 1 and (tmp_path / "out" / FOLDER / "unit.npy").is_file()
    (tmp_path / "other" / FOLDER).mkdir(parents=True)
    (tmp_path / "other" / FOLDER / "mine.txt").write_text("mine")
    infer(checkpoint, tmp_path / "other", INFER, data=parts / "eval")
    assert len(encoded) == 2 and [path.name for path in (tmp_path / "other" / FOLDER).iterdir()] == ["mine.txt"]


def test_kept_vectors_are_those_that_were_made(checkpoint, parts, tmp_path):
    loaded, device = load_checkpoint(checkpoint, torch.device("cpu")), torch.device("cpu")
    evaluation = read_evaluation(parts / "eval", loaded.model.schema)
    encode = lambda: candidates.encode_item_table(loaded.model, evaluation.items, evaluation.candidate, device)
    cache = vector_cache(loaded, evaluation, device, beside=tmp_path)
    made, kept = cache.get(encode, device), cache.get(lambda: 1 / 0, device)
    for one, other in zip(made, kept):
        assert torch.equal(one, other) and other.dtype == torch.float32
