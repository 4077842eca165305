"""The export for the platform's search: its dot products are our logits, its answers our candidates."""

import dataclasses
import json
import struct

import numpy as np
import pytest
import torch

from onepiece_comp.container.ann_export import ANSWERS, CREATIVES, IDS, QUERIES, VECTORS, export_ann, read_ann
from onepiece_comp.container.ann_files import read_ids, read_vectors
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.candidates import fold_bias
from onepiece_comp.funnel.cascade import Funnel
from onepiece_comp.training.checkpoint import load_checkpoint
from small_models import INFER, random_checkpoint

CPU = torch.device("cpu")
@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    return random_checkpoint(dataset, tmp_path_factory.mktemp("run"), similarity_width=0)


def searched(folder, k):
    """What the tool should answer, one query after the other, as it writes it."""
    vectors, number = np.array(read_vectors(folder / VECTORS)), np.array(read_ids(folder / IDS))
    rows = [number[np.argsort(-(vectors @ query), kind="stable")[:k]] for query in read_vectors(folder / QUERIES)]
    (folder / ANSWERS).write_bytes(struct.pack("<Ii", len(rows), k) + np.array(rows, "<i8").tobytes())


def test_the_searchs_answers_are_those_of_exact_retrieval(checkpoint, parts, tmp_path):
    out = export_ann(checkpoint, tmp_path / "ann", INFER, data=parts / "eval")
    searched(out, 10)
    loaded = load_checkpoint(checkpoint, CPU)
    evaluation = read_evaluation(parts / "eval", loaded.model.schema)
    ranker = Funnel(loaded, evaluation, INFER, CPU)
    assert len(ranker.candidates.bias_RM) > 3 and float(ranker.candidates.bias_RM.std()) > 0.3
    ten = evaluation.items.creative_id[evaluation.candidate[ranker.rank(np.arange(len(evaluation.users))).index]]
    answers = read_ann(out)
    assert answers.users == evaluation.users
    np.testing.assert_array_equal(answers.creative_id, ten)
    marker = json.loads((out / "ann.json").read_text())
    assert marker["left_out"] == [] and marker["popularity_error"] == 0


def test_cold_candidates_are_left_out_on_request_and_what_is_missing_is_told(dataset, parts, tmp_path, capsys):
    whole = random_checkpoint(dataset, tmp_path / "run")
    config = dataclasses.replace(INFER, filter_cold=True, filter_seen=True)
    out = export_ann(whole, tmp_path / "ann", config, data=parts / "eval")
    evaluation = read_evaluation(parts / "eval", dataset.schema)
    warm = evaluation.items.creative_id[evaluation.candidate[evaluation.items.id_row[evaluation.candidate] > 0]]
    assert len(warm) < len(evaluation.candidate)
    assert json.loads((out / CREATIVES).read_text()) == {str(place): one for place, one in enumerate(warm.tolist())}
    told = json.loads((out / "ann.json").read_text())["left_out"]
    assert told == ["similarity to the history", "filter of seen items"]
    assert "not in the vectors: similarity to the history" in capsys.readouterr().out


def test_an_answer_twice_or_none_at_all_is_no_candidate(checkpoint, parts, tmp_path):
    out = export_ann(checkpoint, tmp_path / "ann", INFER, data=parts / "eval")
    creative, users = json.loads((out / CREATIVES).read_text()), json.loads((out / "users.json").read_text())
    (out / ANSWERS).write_bytes(struct.pack("<Ii", len(users), 3) + struct.pack("<3q", 2, -1, 2) * len(users))
    assert read_ann(out).creative_id[0].tolist() == [creative["2"], 0, 0]
    (out / ANSWERS).write_bytes(struct.pack("<Ii3q", 1, 3, 0, 1, 2))
    with pytest.raises(InputError, match="1 answers"):
        read_ann(out)


def test_popularity_folds_exactly_into_a_dimension_for_each_row_and_nearly_into_fewer():
    draw = torch.Generator().manual_seed(0)
    bias = torch.randn(12, 3, generator=draw) @ torch.randn(3, 200, generator=draw)
    for width in (12, 50, 3):
        folded = fold_bias(bias, width=width, scale=5.0)
        torch.testing.assert_close(folded.row_RF @ folded.item_MF.T, bias, rtol=1e-4, atol=1e-4)
        assert folded.item_MF.shape == (200, min(width, 12)) and folded.error < 2e-3
    noisy = bias + 0.1 * torch.randn(12, 200, generator=draw)
    folded = fold_bias(noisy, width=3, scale=5.0)
    missing = float((folded.row_RF @ folded.item_MF.T - noisy).square().mean().sqrt())
    best = float(torch.linalg.svdvals(noisy)[3:].square().sum() / noisy.numel()) ** 0.5
    assert abs(folded.error - missing) < 1e-3 and missing < 1.05 * best
    assert abs(float(folded.row_RF[:, 0].norm()) - 5.0) < 1e-3
