"""The ranker as a stage: lists as of their moments, an order that only a kept ranker changes,
checkpoints that belong.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from onepiece_comp.config import TokenizerConfig, TrainConfig
from onepiece_comp.config_reading import load_config
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.cascade import BEFORE, Funnel
from onepiece_comp.funnel.rerank import Reranker, build_ranker
from onepiece_comp.logs.formats import CLICK
from onepiece_comp.ranking.past_lists import PastUsers, late_events
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.stages.infer import infer
from onepiece_comp.stages.train import train
from onepiece_comp.stages.train_ranker import train_ranker
from onepiece_comp.training.checkpoint import MODEL, find_checkpoint, load_checkpoint
from onepiece_comp.training.weights import load_tensors, save_tensors

SETS = ("model.width=16", "model.feature_width=4", "model.id_width=4", "model.embedding_width=4",
        "model.expert_width=8",
        "train.epochs=1", "train.batch_users=8", "train.sampled_negatives=30", "train.validation_users=6",
        "train.threads=1",
        "train.device=cpu", "infer.threads=1", "infer.device=cpu", "infer.survivors=30", "infer.union=10",
        "ranker.width=8",
        "ranker.examples=40", "ranker.depth=20", "ranker.epochs=2", "ranker.threads=1", "ranker.device=cpu",
        "ranker.learning_rate=0.01", "infer.cache=false")
CONFIG, CPU = load_config("tiny", None, SETS), torch.device("cpu")


@pytest.fixture(scope="module")
def joint(dataset, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    train(dataset.path, place / "retrieval", CONFIG)
    build_tokenizer(dataset.path, place / "tokenizer", TokenizerConfig(), checkpoint=place / "retrieval")
    return train(dataset.path, place / "joint", CONFIG, tokenizer=place / "tokenizer", warm=place / "retrieval")


@pytest.fixture(scope="module")
def ranker(joint, dataset):
    """One that is kept whatever it is worth."""
    return train_ranker(joint, dataset.path, joint.parent / "ranker", dataclasses.replace(CONFIG.ranker, keep="always"),
                        CONFIG.infer)


def _long(dataset):
    """Users with six events and more."""
    return np.flatnonzero(np.diff(dataset.user_start) >= 6)


def _past(joint, dataset, event):
    owner = np.searchsorted(np.asarray(dataset.user_start), event, side="right") - 1
    return PastUsers(load_checkpoint(joint, CPU), dataset, dataclasses.replace(CONFIG.infer, mode="cascade"),
                     user=owner,
                     event=event, trained=TrainConfig(horizon_days=1), seed=0, device=CPU)


def test_a_list_tells_nothing_of_what_comes_after_its_moment(joint, dataset):
    """Later events of the user and later counts of items known by then change nothing."""
    users = _long(dataset)[:12]
    event = np.asarray(dataset.user_start)[users] + 4
    lists = _past(joint, dataset, event).lists(20, "lists")
    trend, moment = dataset.trend, int(dataset.trend.bucket_of(dataset.time_seconds[event]).max())
    first = np.full(len(trend.counts), 99_999)
    first[1:] = trend.first_bucket(np.arange(1, len(trend.counts)))
    counts, item = np.array(trend.counts), np.array(dataset.item_row)
    counts[first <= moment, moment + 1:] += 7
    for start, stop in zip(event, np.asarray(dataset.user_start)[users + 1]):
        item[start + 1:stop] = 1
    later = dataset._replace(trend=trend._replace(counts=counts), item_row=item)
    for ours, own in zip(_past(joint, later, event).lists(20, "lists"), lists):
        np.testing.assert_array_equal(ours, own)
    counts[:, 1:] += np.arange(len(counts))[:, None, None] % 5  # what came before does
    changed = _past(joint, dataset._replace(trend=trend._replace(counts=counts)), event).lists(20, "lists")
    assert (changed.index_NM != lists.index_NM).any()


def test_a_list_holds_its_target_and_no_item_of_the_users_past_or_of_days_to_come(joint, dataset):
    users = _long(dataset)[:30]
    event = np.asarray(dataset.user_start)[users] + 3
    lists = _past(joint, dataset, event).lists(15, "lists")
    target = np.asarray(dataset.item_row)[event] - 1
    assert (lists.index_NM[np.arange(30), lists.place_N] == target).all() and 0 < lists.survived_N.sum() < 30
    assert (lists.place_N[~lists.survived_N] == 15).all() and lists.allowed_NM[np.arange(30), lists.place_N].all()
    first = dataset.trend.first_bucket(np.arange(1, dataset.schema.items + 1))
    latest = dataset.trend.bucket_of(np.asarray(dataset.time_seconds)[event]) + 86400 / dataset.trend.bucket_seconds
    for user in range(30):
        found = lists.index_NM[user, :15][lists.allowed_NM[user, :15]]
        past = np.asarray(dataset.item_row)[dataset.user_start[users[user]]:event[user]] - 1
        assert not np.isin(found, past).any() and (first[found] <= latest[user]).all()
        score = lists.part_NMF[user, :15, 0][lists.allowed_NM[user, :15]]
        assert (np.diff(score) <= 0).all()


def test_late_events_are_each_users_last_before_the_stop(dataset):
    stop = np.asarray(dataset.user_start[1:]) - 1
    event = late_events(dataset, stop, np.array([0, 2]), late=2, clicked=True)
    action, start = np.asarray(dataset.action), np.asarray(dataset.user_start)
    by_hand = [np.flatnonzero(action[start[user]:stop[user]] == CLICK)[-2:] + start[user] for user in (0, 2)]
    np.testing.assert_array_equal(event, np.concatenate(by_hand))


def test_a_new_ranker_changes_no_answer_and_another_orders_the_survivors_anew(joint, parts):
    loaded = load_checkpoint(joint, CPU)
    evaluation = read_evaluation(parts / "eval", loaded.model.schema)
    users = np.arange(len(evaluation.users))
    for mode in ("cascade", "retrieval", "beam"):
        config = dataclasses.replace(CONFIG.infer, mode=mode)
        net = build_ranker(loaded.model, CONFIG.ranker).eval()
        plain = Funnel(loaded, evaluation, config, CPU).rank(users)
        same = Funnel(loaded, evaluation, config, CPU, reranker=Reranker(net, 20, True, "")).rank(users)
        np.testing.assert_array_equal(same.index, plain.index)
        torch.nn.init.normal_(net.head[-1].weight, std=3)
        other = Funnel(loaded, evaluation, config, CPU, reranker=Reranker(net, 10, True, "")).rank(users)
        assert (other.index != plain.index).any()
        np.testing.assert_array_equal(np.stack(other.stages[BEFORE]), plain.index)
        np.testing.assert_array_equal(np.sort(other.index), np.sort(plain.index))  # ten of ten, in another order


def test_the_same_seed_gives_the_same_ranker_and_its_folder_tells_all(joint, dataset, ranker, tmp_path):
    config = dataclasses.replace(CONFIG.ranker, keep="always")
    again = train_ranker(joint, dataset.path, tmp_path / "again", config, CONFIG.infer)
    first, second = (load_tensors(folder / "ranker.pt") for folder in (ranker, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    told = json.loads((ranker / "ranker.json").read_text())
    assert told["mode"] == "cascade" and told["config"]["width"] == 8 and told["validation"]["users"] == 5
    assert len(told["calibration"]["click"]["log_loss"]) == len(told["calibration"]["list"]["calibration_error"]) == 2


def test_the_funnel_tells_the_targets_before_and_after_the_ranker(joint, ranker, parts, tmp_path):
    config = dataclasses.replace(CONFIG.infer, ranker=str(ranker))
    infer(joint, tmp_path / "out", config, data=parts / "eval", truth=parts / "truth.jsonl")
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    steps = {step["step"]: step for step in funnel["steps"]}
    infer(joint, tmp_path / "plain", CONFIG.infer, data=parts / "eval", truth=parts / "truth.jsonl")
    plain = json.loads((tmp_path / "plain" / "funnel.json").read_text())
    assert steps[BEFORE]["targets"] == {step["step"]: step for step in plain["steps"]}["ten"]["targets"]
    assert funnel["ranker"] == {"path": str(ranker), "kept": True, "depth": 20} and "ranker" not in plain
    first, second = (json.loads((tmp_path / name).read_text())["top10s"]
                     for name in ("out/without_ranker.json", "plain/result.json"))
    assert first == second != json.loads((tmp_path / "out" / "result.json").read_text())["top10s"]


def test_a_ranker_that_is_not_better_is_left_out_and_this_is_said(joint, ranker, parts, tmp_path, capsys):
    shutil.copytree(ranker, tmp_path / "ranker")
    told = json.loads((ranker / "ranker.json").read_text())
    (tmp_path / "ranker" / "ranker.json").write_text(json.dumps({**told, "kept": False}))
    for name, path in (("out", str(tmp_path / "ranker")), ("plain", "")):
        infer(joint, tmp_path / name, dataclasses.replace(CONFIG.infer, ranker=path), data=parts / "eval")
    assert "was not better than no ranker" in capsys.readouterr().out
    first, second = (json.loads((tmp_path / name / "result.json").read_text())["top10s"] for name in ("out", "plain"))
    assert first == second


def test_a_ranker_of_another_checkpoint_or_mode_is_refused(joint, ranker, dataset, parts, tmp_path):
    config = dataclasses.replace(CONFIG.infer, ranker=str(ranker))
    with pytest.raises(InputError, match="trained for mode cascade"):
        infer(joint, tmp_path / "out", dataclasses.replace(config, mode="retrieval"), data=parts / "eval")
    other = tmp_path / "other" / find_checkpoint(joint).name
    shutil.copytree(find_checkpoint(joint), other)
    weights = load_tensors(other / MODEL)
    save_tensors({**weights, "trend": weights["trend"] + 1e-3}, other / MODEL)
    with pytest.raises(InputError, match="another checkpoint"):
        infer(other, tmp_path / "out", config, data=parts / "eval")
    with pytest.raises(InputError, match="config.json"):
        train_ranker(other, dataset.path, tmp_path / "new", CONFIG.ranker, CONFIG.infer)
