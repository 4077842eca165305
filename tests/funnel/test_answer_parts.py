"""Answers in parts: an inference that is broken off goes on, shares join to the whole,
and nothing else is taken for ours.
"""

import json

import pytest
import torch
from small_models import CONFIG

from onepiece_comp.config import InferConfig
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.errors import InputError
from onepiece_comp.funnel import answer_parts
from onepiece_comp.funnel.answer_parts import read_shard
from onepiece_comp.funnel.cascade import Funnel
from onepiece_comp.funnel.infer import recommend
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.stages.infer import infer
from onepiece_comp.training.checkpoint import load_checkpoint, save_checkpoint

INFER = InferConfig(batch_users=4, threads=1)


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    """A model as it was initialised."""
    torch.manual_seed(0)
    return save_checkpoint(tmp_path_factory.mktemp("run"), OnePiece(CONFIG, dataset.schema), dataset.trend, step=1,
                           score=0.0,
                           infer=INFER, dataset="", evaluation=None, columns=dataset.path)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(answer_parts, "BATCHES_PER_PART", 2)


def answer(path):
    found = json.loads(path.read_text())
    return found["top10s"], found["user"]


def counted(monkeypatch):
    """How many batches are ranked."""
    calls, rank = [], Funnel.rank
    monkeypatch.setattr(Funnel, "rank", lambda self, users: calls.append(len(users)) or rank(self, users))
    return calls


def test_an_inference_that_is_broken_off_goes_on_where_it_stopped(checkpoint, parts, tmp_path, monkeypatch):
    truth = parts / "truth.jsonl"
    whole = infer(checkpoint, tmp_path / "whole", INFER, data=parts / "eval", truth=truth)
    calls = counted(monkeypatch)
    infer(checkpoint, tmp_path / "again", INFER, data=parts / "eval", truth=truth)
    batches, out = len(calls), tmp_path / "broken"
    assert batches > 4
    with monkeypatch.context() as patch:
        rank = Funnel.rank
        patch.setattr(Funnel, "rank", lambda self, users: rank(self, users) if len(calls) < batches + 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            infer(checkpoint, out, INFER, data=parts / "eval", truth=truth)
    assert len(list((out / "parts").glob("*/*.npz"))) == 1 and not (out / "result.json").exists()
    calls.clear()
    result = infer(checkpoint, out, INFER, data=parts / "eval", truth=truth)
    assert len(calls) == batches - 2 and answer(result) == answer(whole) and not (out / "parts").exists()
    first, second = (json.loads((folder / "funnel.json").read_text()) for folder in (tmp_path / "whole", out))
    assert first["steps"] == second["steps"] and first["filled"] == second["filled"]


def test_shards_join_to_the_whole(checkpoint, parts, tmp_path, capsys):
    whole = infer(checkpoint, tmp_path / "whole", INFER, data=parts / "eval")
    out = tmp_path / "shards"
    assert infer(checkpoint, out, INFER, data=parts / "eval", shard=(1, 3)) is None
    assert "shard 2 of 3 is done" in capsys.readouterr().out and not (out / "result.json").exists()
    assert infer(checkpoint, out, INFER, data=parts / "eval", shard=(0, 3)) is None
    joined = infer(checkpoint, out, INFER, data=parts / "eval", shard=(2, 3))
    assert answer(joined) == answer(whole)


def test_answers_under_other_settings_are_not_taken(checkpoint, parts, tmp_path, monkeypatch):
    out, other = tmp_path / "out", InferConfig(batch_users=4, threads=1, filter_seen=False)
    infer(checkpoint, out, INFER, data=parts / "eval", shard=(0, 2))
    calls = counted(monkeypatch)
    kept = infer(checkpoint, out, other, data=parts / "eval")
    ranked = len(calls)
    assert answer(kept) == answer(infer(checkpoint, tmp_path / "new", other, data=parts / "eval"))
    assert ranked == len(calls) - ranked  # all of it, both times


def _changed(evaluation, name):
    """The evaluation with one column of what is read of it changed."""
    if name == "features":
        return evaluation._replace(items=evaluation.items._replace(features=evaluation.items.features[::-1].copy()))
    return evaluation._replace(**{name: getattr(evaluation, name)[::-1].copy()})


@pytest.mark.parametrize("name", ["features", "action", "user_token"])
def test_answers_of_other_data_are_not_taken(checkpoint, parts, tmp_path, monkeypatch, name):
    loaded = load_checkpoint(checkpoint, torch.device("cpu"))
    evaluation = read_evaluation(parts / "eval", loaded.model.schema)
    assert recommend(loaded, evaluation, INFER, keep=tmp_path, shard=(0, 2)) is None
    calls = counted(monkeypatch)
    recommend(loaded, evaluation, INFER, keep=tmp_path, shard=(1, 2))
    half = len(calls)
    recommend(loaded, _changed(evaluation, name), INFER, keep=tmp_path)
    assert len(calls) - half > half


def test_a_part_cut_short_is_named(checkpoint, parts, tmp_path):
    out = tmp_path / "out"
    infer(checkpoint, out, INFER, data=parts / "eval", shard=(0, 2))
    part = sorted((out / "parts").glob("*/*.npz"))[0]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{part.name}: found no readable answers.*remove it"):
        infer(checkpoint, out, INFER, data=parts / "eval")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/", "-1/2", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="--shard"):
        read_shard(text)
    assert read_shard("2/8") == (1, 8)
