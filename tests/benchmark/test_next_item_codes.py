"""Public benchmarks' rows with semantic ids: scores against slow loops, no look ahead, a planted order,
one training for many.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onepiece_comp.benchmark.full_ranking import judge
from onepiece_comp.benchmark.interactions import Interactions, train_counts, window
from onepiece_comp.benchmark.next_item_codes import CodeModel, codes_of
from onepiece_comp.benchmark.next_item_model import NextItemModel
from onepiece_comp.benchmark.next_item_ranking import code_scorer, ranking_of
from onepiece_comp.benchmark.next_item_training import scored, train_next_item, training_window
from onepiece_comp.benchmark.rows import rows
from onepiece_comp.benchmark.run import benchmark
from onepiece_comp.benchmark.trained_rows import Task, train_codes
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation.metrics import hit_rate

ITEMS, LONGEST = 24, 9
ROWS = ("tiger", "liger", "cobra", "onepiece-retrieval", "onepiece-beam", "onepiece-cascade")
SMALL = {"width": 16, "layers": 1, "heads": 1, "hidden": 1.0, "dropout": 0.0, "codes": 4, "decoder_layers": 1,
         "learning_rate": 0.01, "batch_users": 16, "epochs": 12}


def _row(name, **changed):
    return replace(rows("leave-one-out")[name], **{**SMALL, **({"levels": 3} if name.startswith("one") else {}),
                                                   **changed})


def _log(users=40, seed=0):
    """Users who walk a circle of items from different starts;
    the last item of the catalogue is in no training event.
    """
    rng, lengths = np.random.default_rng(seed), [4 + user % 8 for user in range(users)]
    item = np.concatenate([(rng.integers(ITEMS - 1) + np.arange(length)) % (ITEMS - 1) + 1 for length in lengths])
    start = np.concatenate([[0], np.cumsum(lengths)])
    return Interactions(start, item.astype(np.int32), None, ITEMS, [str(i) for i in range(ITEMS)], 0)


def _model(config, seed=0):
    """An untrained model with heads that say something."""
    torch.manual_seed(seed)
    vector = np.random.default_rng(seed).normal(size=(ITEMS, 6)).astype(np.float32)
    model = CodeModel(config, code_IL=torch.from_numpy(codes_of(vector, config, seed)),
                      vector_IV=torch.from_numpy(vector),
                      max_length=LONGEST)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def _step(model, encoded, length, level, codes):
    """The decoder's query of one user for one level after given codes."""
    allowed = (torch.arange(encoded.hidden_BTD.shape[1]) < length)[None, None]
    return model.decoder.query(level, encoded.hidden_BTD[:, length - 1:length], torch.tensor([[codes]]),
                               model.decoder.memories(encoded.states), allowed)[0, 0]


def _by_hand(model, log, user, item, share):
    """The score of one item: its codes among those that exist, one after another, and its dense logit."""
    seen = window(log, np.array([user]), held_out=1, longest=LONGEST)
    encoded, length = model.encode(seen), int(seen.length_B[0])
    code, log_prob = model.code_IL[item - 1].tolist(), 0.0
    for level in range(len(code)):
        exist = sorted({tuple(row[:level + 1]) for row in model.code_IL.tolist() if row[:level] == code[:level]})
        logit = model.decoder.code_LCD[level] @ _step(model, encoded, length, level, code)
        log_prob += torch.log_softmax(logit[[row[-1] for row in exist]], 0)[exist.index(tuple(code[:level + 1]))].item()
    if share == 1:
        return log_prob
    hidden = (encoded.states[-1][0, length - 1] if model.config.dense == "last" else
              _step(model, encoded, length, len(code), code))
    logit = F.normalize(hidden, dim=0) @ model.keys()[item - 1] / model.config.temperature
    return share * log_prob + (1 - share) * logit.item()


@pytest.mark.parametrize("row", ["tiger", "cobra", "onepiece-cascade"])
@torch.no_grad()
def test_a_beam_as_wide_as_the_ids_scores_every_item_by_its_codes_and_its_dense_logit(row):
    config, log = _row(row, union=0, survivors=1000), _log(4)
    model = _model(config)
    assert (len(model.ids.code_GL) < ITEMS) == (row == "cobra")  # there some items share an id
    score = code_scorer(model, log, LONGEST, ranking_of(config))(np.arange(4), 1)[:, 1:]
    expected = [[_by_hand(model, log, user, item, config.share) for item in range(1, ITEMS + 1)] for user in range(4)]
    assert score == pytest.approx(np.array(expected), abs=2e-4)


def test_what_joins_a_narrow_beam_is_scored_as_a_wide_one_would():
    config, log = _row("onepiece-cascade", union=ITEMS), _log(6)
    model = _model(config)
    wide, narrow = (code_scorer(model, log, LONGEST, ranking_of(replace(config, **beam)))(np.arange(6), 1)[:, 1:]
                    for beam in ({"union": 0}, {"beam": 1, "survivors": 1}))
    assert narrow == pytest.approx(wide, abs=2e-4)


def test_liger_gives_the_beam_and_the_cold_items_their_dense_score_and_others_none():
    config, log = _row("liger", beam=3, survivors=5), _log()
    model = _model(config)
    cold = np.flatnonzero(train_counts(log)[1:] == 0)
    assert ITEMS - 1 in cold
    score, dense, beam = (code_scorer(model, log, LONGEST, ranking_of(replace(config, **changed)))(np.arange(20), 1)[:,
        1:]
                          for changed in ({}, {"beam": 0, "cold": False}, {"share": 1.0, "cold": False}))
    found = np.isfinite(beam)
    assert (found.sum(1) == 5).all()
    found[:, cold] = True
    assert (np.isfinite(score) == found).all() and score[found] == pytest.approx(dense[found], abs=1e-5)


@pytest.mark.parametrize("row", ["tiger", "cobra", "onepiece-cascade"])
@torch.no_grad()
def test_the_loss_is_that_of_each_history_cut_at_its_position(row):
    config, log = _row(row), _log(3)
    model = _model(config)
    model.encoder.position_table.weight.zero_()  # counts from a history's end, which the cut moves
    seen, target = training_window(log, np.arange(3), LONGEST)
    losses, dense = [], []
    for user, position in zip(*np.nonzero(target)):
        item = torch.from_numpy(seen.item_BT[user:user + 1, :position + 1]).numpy()
        encoded = model.encode(seen._replace(item_BT=item, length_B=np.array([position + 1])))
        code, place = model.code_IL[target[user, position] - 1], torch.tensor(target[user, position] - 1)
        for level in range(len(code)):
            logit = model.decoder.code_LCD[level] @ _step(model, encoded, position + 1, level, code.tolist())
            losses.append(F.cross_entropy(logit, code[level]))
        if config.dense != "none":
            hidden = (encoded.states[-1][0, -1] if config.dense == "last" else
                      _step(model, encoded, position + 1, len(code), code.tolist()))
            dense.append(F.cross_entropy(model.keys() @ F.normalize(hidden, dim=0) / config.temperature, place))
    expected = config.code_weight * torch.stack(losses).mean() + (torch.stack(dense).mean() if dense else 0)
    found = model.loss(seen, torch.from_numpy(target), np.random.default_rng(0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("row", ["tiger", "cobra", "onepiece-cascade"])
def test_a_score_depends_on_no_batch_mate_and_no_padding(row):
    config, log = _row(row, beam=3, survivors=6), _log(5)
    score = code_scorer(_model(config), log, LONGEST, ranking_of(config))
    alone = np.concatenate([score(np.array([user]), 1) for user in range(5)])
    assert score(np.arange(5), 1)[:, 1:] == pytest.approx(alone[:, 1:], abs=1e-4)


@pytest.fixture(scope="module")
def circle():
    return _log(80)


@pytest.fixture(scope="module")
def first(circle):
    return train_next_item(circle, replace(rows("leave-one-out")["sasrec-softmax"], width=16, layers=1, dropout=0.0,
                                           batch_users=16, learning_rate=0.01, epochs=12), max_length=LONGEST,
                                           seed=0).model


@pytest.mark.parametrize("row", ["tiger", "liger", "cobra", "onepiece"])
def test_every_kind_learns_the_order_of_a_circle(circle, first, row):
    ranked = ("onepiece-retrieval", "onepiece-beam", "onepiece-cascade") if row == "onepiece" else (row,)
    task = Task(Path(), {"protocol": "leave-one-out"}, circle, LONGEST)
    model = train_codes(task, _row(ranked[0], valid_beam=4), first, seed=0).model
    for name in ranked:
        score = code_scorer(model, circle, LONGEST, ranking_of(_row(name)))
        assert hit_rate(judge(scored(score, circle, 1), items=ITEMS)["all"].rank, 1).mean() > 0.7, name


def _run(out, **options):
    sets = ["width=8", "layers=1", "heads=1", "codes=8", "first_epochs=2", "decoder_layers=1", "epochs=3"]
    data = out.parent / "sequences.txt"
    if not data.exists():
        log = _log(30)
        data.write_text("".join(f"{user} {' '.join(map(str, log.item[log.start[user]:log.start[user + 1]]))}\n"
                                for user in range(log.users)))
    found = benchmark("leave-one-out", data, out,
                      **{"quick": True, **options, "sets": [*sets, *options.get("sets", ())]})
    return json.loads(found.read_text())["rows"]


def test_each_row_runs_and_rows_that_differ_in_ranking_alone_share_one_training(tmp_path):
    found = _run(tmp_path / "out", models=",".join(ROWS))
    assert set(found) == set(ROWS) and all(len(result[0]["epochs"]) == 2 for result in found.values())
    assert all(np.isfinite(list(result[0]["figures"]["unseen"].values())).all() for result in found.values())
    assert len({json.dumps(found[name][0]["epochs"]) for name in ROWS[3:]}) == 1
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/quick/weights").iterdir()}
    assert len(kept) == 2 + 4  # two first stages; TIGER, LIGER, COBRA and one for the three of OnePiece
    again = _run(tmp_path / "out", models="tiger", sets=["beam=2", "survivors=2"])["tiger"][0]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/quick/weights").iterdir()} == kept
    assert again["figures"]["all"]["coverage@200"] < found["tiger"][0]["figures"]["all"]["coverage@200"]
    assert again["train_seconds"] == found["tiger"][0]["train_seconds"] and again["first"]["best_epoch"] in (1, 2)


def test_weights_that_were_kept_rank_as_those_that_were_trained(tmp_path):
    trained = _run(tmp_path / "a", models="cobra")["cobra"][0]
    (tmp_path / "a/quick/rows/cobra/seed-0.json").unlink()
    assert _run(tmp_path / "a", models="cobra")["cobra"][0]["figures"] == trained["figures"]


def test_an_untrained_first_stage_still_gives_every_item_an_id_of_its_own():
    config = _row("tiger")
    first = NextItemModel(rows("leave-one-out")["sasrec-softmax"], items=ITEMS, max_length=LONGEST)
    codes = codes_of(first.keys().detach().numpy(), config, 0)
    assert codes.shape == (ITEMS, 3) and len(np.unique(codes, axis=0)) == ITEMS


@pytest.mark.parametrize("row, changed", [
    ("tiger", {"share": 0.5}), ("tiger", {"union": 5}), ("tiger", {"valid_shares": "[0.0]"}),
    ("tiger", {"valid_shares": "[]"}),
    ("tiger", {"valid_beam": 0}), ("cobra", {"union": 5}),
    ("cobra", {"beam": 0}), ("liger", {"share": 0.5}), ("liger", {"inputs": "codes"}), ("tiger", {"first": "tiger"}),
    ("tiger", {"dense": "sometimes"}), ("tiger", {"resolve": "nobody"}), ("tiger", {"codes": 2, "levels": 2}),
    ("liger", {"loss": "none"}), ("onepiece-beam", {"time": "last"})])
def test_settings_that_do_not_fit_are_an_error_before_anything_is_trained(tmp_path, row, changed):
    with pytest.raises(InputError):
        _run(tmp_path / "out", models=row, sets=[f"{key}={value}" for key, value in changed.items()])
    assert not (tmp_path / "out/quick/weights").exists()
