"""Approximate first stages: recall near one on easy data, ten legal items all the same, figures in the funnel."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from small_models import random_checkpoint

from onepiece_comp.config import InferConfig
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.cascade import Funnel
from onepiece_comp.funnel.index import MaximumIndex
from onepiece_comp.models.retrieval import recall
from onepiece_comp.stages.infer import infer
from onepiece_comp.training.checkpoint import load_checkpoint

CPU = torch.device("cpu")
KINDS = ("hnsw", "ivf")
INFER = InferConfig(mode="retrieval", threads=1, index_fetch=60, index_effort=20.0)


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    return random_checkpoint(dataset, tmp_path_factory.mktemp("run"))


def clusters(*, count, seed):
    """Points about twenty centres, of unequal length: the longest are the best for many a query."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(0).normal(size=(20, 16))
    point = centre[rng.integers(0, 20, count)] + 0.3 * rng.normal(size=(count, 16))
    return (point * rng.uniform(0.7, 1.3, (count, 1))).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_on_easy_data_nearly_all_of_the_highest_dot_products_are_found(kind):
    point, query = clusters(count=3000, seed=1), 5 * clusters(count=40, seed=2)
    exact = np.stack([np.argsort(-(point @ one), kind="stable")[:50] for one in query])
    found = MaximumIndex(point, kind=kind).search(query, 50, effort=3.0)
    assert recall(torch.from_numpy(exact), torch.from_numpy(found)) > 0.97
    assert all(len(set(row)) == len(row) for row in found.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_more_effort_misses_less(kind):
    draw = np.random.default_rng(1)
    point, query = (draw.normal(size=(size, 32)).astype(np.float32) for size in (4000, 50))
    exact = torch.from_numpy(np.argsort(-(query @ point.T), axis=1)[:, :20].copy())
    index = MaximumIndex(point, kind=kind)
    little, much = (recall(exact, torch.from_numpy(index.search(query, 20, effort=effort))) for effort in (0.5, 30.0))
    assert little < 0.9 and much > 0.97


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filters", [{}, {"filter_cold": True}, {"filter_seen": False}], ids=str)
def test_an_index_that_finds_all_gives_the_answers_of_exact_retrieval(checkpoint, parts, kind, filters):
    loaded = load_checkpoint(checkpoint, CPU)
    evaluation = read_evaluation(parts / "eval", loaded.model.schema)
    users, config = np.arange(len(evaluation.users)), dataclasses.replace(INFER, **filters)
    exact = Funnel(loaded, evaluation, config, CPU).rank(users)
    ranked = Funnel(loaded, evaluation, dataclasses.replace(config, index=kind), CPU).rank(users)
    np.testing.assert_array_equal(ranked.index, exact.index)


@pytest.mark.parametrize("fetch, effort", [(1, 0.01), (12, 1.0), (60, 0.01)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_finds_little_still_leads_to_ten_legal_candidates(checkpoint, parts, kind, fetch, effort):
    """Places left are filled as ever; none is a seen item while there are others."""
    loaded = load_checkpoint(checkpoint, CPU)
    evaluation = read_evaluation(parts / "eval", loaded.model.schema)
    config = dataclasses.replace(INFER, index=kind, index_fetch=fetch, index_effort=effort)
    chosen = Funnel(loaded, evaluation, config, CPU).rank(np.arange(len(evaluation.users))).index
    for user, ten in enumerate(evaluation.candidate[chosen]):
        events = slice(evaluation.user_start[user], evaluation.user_start[user + 1])
        assert len(set(ten.tolist())) == 10 and not set(evaluation.item[events].tolist()) & set(ten.tolist())


def test_seen_items_do_not_take_the_places_of_others(checkpoint, parts):
    """The index is asked for as many more as a user has seen: with all seen at the top, ten others are still named."""
    loaded = load_checkpoint(checkpoint, CPU)
    evaluation = read_evaluation(parts / "eval", loaded.model.schema)
    ranker = Funnel(loaded, evaluation, dataclasses.replace(INFER, index="hnsw", index_fetch=10), CPU)
    asked = []
    search = ranker._first.search
    ranker._first.search = lambda query, row, count: asked.append(count) or search(query, row, count)
    ranked = ranker.rank(np.arange(len(evaluation.users)))
    most = max(len(ranker._seen(np.array([user]))[1]) for user in range(len(evaluation.users)))
    assert asked == [10 + most] and sum(ranked.filled.values()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_filtered_cold_candidates_are_not_in_the_index(checkpoint, parts, kind):
    loaded = load_checkpoint(checkpoint, CPU)
    evaluation = read_evaluation(parts / "eval", loaded.model.schema)
    ranker = Funnel(loaded, evaluation, dataclasses.replace(INFER, index=kind, filter_cold=True), CPU)
    warm = set(torch.where(ranker.candidates.warm_M)[0].tolist())
    users = np.arange(5)
    named = ranker._first.search(ranker.queries(users), torch.from_numpy(ranker.candidates.bias_row[users]), 1000)
    assert 0 < len(warm) < len(ranker.candidates.warm_M) and all(set(row) - {-1} == warm for row in named.tolist())


def test_without_a_single_warm_candidate_places_are_filled(checkpoint, parts):
    loaded = load_checkpoint(checkpoint, CPU)
    evaluation = read_evaluation(parts / "eval", loaded.model.schema)
    cold = evaluation._replace(items=evaluation.items._replace(id_row=np.zeros_like(evaluation.items.id_row)))
    ranked = Funnel(loaded, cold, dataclasses.replace(INFER, index="ivf", filter_cold=True), CPU).rank(np.arange(3))
    assert all(len(set(ten)) == 10 for ten in ranked.index.tolist()) and ranked.filled["cold"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_funnel_tells_what_the_index_misses(checkpoint, parts, tmp_path, kind, capsys):
    infer(checkpoint, tmp_path / kind, dataclasses.replace(INFER, index=kind), data=parts / "eval")
    told = json.loads((tmp_path / kind / "funnel.json").read_text())["index"]
    assert told["kind"] == kind and told["recall_at_10"] == 1.0 and told["users"] > 10
    assert f"{kind} finds 100.0 % of the best 10" in capsys.readouterr().out
    poor = dataclasses.replace(INFER, index=kind, index_fetch=1, index_effort=0.01)
    infer(checkpoint, tmp_path / "poor", poor, data=parts / "eval")
    assert json.loads((tmp_path / "poor" / "funnel.json").read_text())["index"]["recall_at_10"] < 1.0


def test_exact_retrieval_has_no_figures_of_an_index_and_an_unknown_one_is_named(checkpoint, parts, tmp_path):
    infer(checkpoint, tmp_path / "out", INFER, data=parts / "eval")
    assert "index" not in json.loads((tmp_path / "out" / "funnel.json").read_text())
    with pytest.raises(InputError, match="'lsh', expected one of exact, hnsw, ivf"):
        infer(checkpoint, tmp_path / "out", dataclasses.replace(INFER, index="lsh"), data=parts / "eval")


def test_recall_counts_exact_ones_that_were_found_whatever_their_order():
    """Of 2 + 1 wanted ones, 1 + 1 are found; another user's do not count."""
    assert recall(torch.tensor([[4, 7], [5, -1]]), torch.tensor([[9, 7, 5], [5, -1, 4]])) == 2 / 3
