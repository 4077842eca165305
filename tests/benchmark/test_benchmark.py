"""Public benchmarks: what is held out, what the losses are, that a planted order is learned,
that done rows are kept.
"""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from converted import events as converted_events
from torch.nn import functional as F
from typer.testing import CliRunner

from onepiece_comp.artefacts import fingerprint
from onepiece_comp.benchmark.baselines import knn_scorer
from onepiece_comp.benchmark.full_ranking import judge
from onepiece_comp.benchmark.interactions import read_interactions, targets, train_counts, window
from onepiece_comp.benchmark.next_item_blocks import LiGRBlock
from onepiece_comp.benchmark.next_item_losses import (
    calibrated_power, full_softmax, generalised_bce, sampled_logits, sampled_softmax)
from onepiece_comp.benchmark.next_item_model import NextItemModel
from onepiece_comp.benchmark.next_item_training import (
    epoch_batches, fit, next_item_loss, scored, scorer, train_next_item, training_window, usual_rows)
from onepiece_comp.benchmark.rows import RowConfig, chosen, rows, told
from onepiece_comp.benchmark.run import benchmark
from onepiece_comp.benchmark.weight_average import WeightAverage
from onepiece_comp.cli import app
from onepiece_comp.config_reading import to_dict
from onepiece_comp.console import mean_and_spread
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation.metrics import hit_rate

TINY = RowConfig(width=16, layers=1, batch_users=16, epochs=40, patience=40, dropout=0.0, learning_rate=0.01)


def _circle(path, users=60, items=25):
    """Users who walk a circle of items from different starts: the next item is certain."""
    lengths = [6 + user % 7 for user in range(users)]
    lines = [" ".join(map(str, [user + 1, *((user * 3 + step) % items + 1 for step in range(length))]))
             for user, length in enumerate(lengths)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def circle(tmp_path):
    return _circle(tmp_path / "sequences.txt")


SECOND = 1_600_000_000


def _timed(path, rows_):
    path.write_text("user,item,time\n" + "".join(f"{user},{item},{time}\n" for user, item, time in rows_))
    return path


def test_the_last_event_tests_the_one_before_validates_and_training_reads_neither(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("7 10 20 30 40 50\n8 20 10 60\n9 10 20\n")
    log = read_interactions(path)
    assert log.left_out == 1 and log.item_id == ["10", "20", "30", "40", "50", "60"]
    assert targets(log, 1).tolist() == [5, 6] and targets(log, 2).tolist() == [4, 1]
    seen, target = training_window(log, np.array([0, 1]), 10)
    assert seen.item_BT.tolist() == [[1, 2], [0, 0]] and target.tolist() == [[2, 3], [0, 0]]
    assert window(log, np.array([0, 1]), held_out=1, longest=3).item_BT.tolist() == [[2, 3, 4], [2, 1, 0]]
    assert train_counts(log).tolist() == [0, 1, 2, 1, 0, 0, 0]


def test_events_are_in_order_of_time_and_ties_in_order_of_the_file_unless_shuffled(tmp_path):
    tied = [("a", f"i{place}", SECOND + 5) for place in range(12)]
    path = _timed(tmp_path / "t.csv", [("a", "last", SECOND + 9), *tied, ("a", "first", SECOND)])
    kept = read_interactions(path)
    assert [kept.item_id[row - 1] for row in kept.item] == ["first", *(f"i{place}" for place in range(12)), "last"]
    shuffled = read_interactions(path, ties="shuffled", seed=3)
    assert shuffled.item[[0, -1]].tolist() == kept.item[[0, -1]].tolist()
    assert sorted(shuffled.item) == sorted(kept.item) and shuffled.item.tolist() != kept.item.tolist()


def test_the_next_time_is_the_one_of_the_event_that_follows(tmp_path):
    log = read_interactions(_timed(tmp_path / "t.csv", [("a", f"i{step}", SECOND + 10 ** step) for step in range(5)]))
    seen = window(log, np.array([0]), held_out=1)
    assert (seen.time_BT - SECOND).tolist() == [[1, 10, 100, 1000]]
    assert (seen.next_time_BT - SECOND).tolist() == [[10, 100, 1000, 10000]]


@pytest.mark.parametrize("row", ["sasrec", "ligr", "hstu", "hstu-time"])
def test_a_query_depends_on_no_batch_mate_no_padding_and_no_later_event(tmp_path, row):
    rng = np.random.default_rng(0)
    log = read_interactions(_timed(tmp_path / "t.csv", [
        (f"u{user}", int(rng.integers(0, 30)), SECOND + int(t)) for user, length in enumerate((12, 4, 8))
        for t in np.cumsum(rng.integers(1, 10 ** 6, length))]))
    config = replace(TINY, block=row.split("-")[0], time="last" if "-" in row else "none", heads=2)
    torch.manual_seed(1)
    model = NextItemModel(config, items=log.items, max_length=10).eval()
    for block in model.blocks:  # biases start at zero, where nothing could be seen
        if config.block == "hstu":
            torch.nn.init.normal_(block.bias.position_HC)
            if block.bias.time_HC is not None:
                torch.nn.init.normal_(block.bias.time_HC)
    score = scorer(model, log, 10)
    together, alone = score(np.arange(3), 1), np.concatenate([score(np.array([user]), 1) for user in range(3)])
    assert together[:, 1:] == pytest.approx(alone[:, 1:], abs=1e-5)
    seen = window(log, np.array([0]), held_out=1, longest=10)
    with torch.no_grad():
        before, item = model(seen), seen.item_BT.copy()
        item[0, 6:] = 1 + item[0, 6:] % log.items
        after = model(seen._replace(item_BT=item))
    assert torch.allclose(before[:, :6], after[:, :6], atol=1e-6) and not torch.allclose(before[:, 6:], after[:, 6:])


def test_softmax_over_all_items_is_the_cross_entropy_and_so_is_a_sample_of_all_of_them():
    torch.manual_seed(0)
    query, key, target = torch.randn(2, 3, 8), torch.randn(11, 8), torch.randint(0, 11, (2, 3))
    expected = F.cross_entropy((query @ key.T).flatten(0, 1), target.flatten())
    assert full_softmax(query.flatten(0, 1), key, target.flatten()) == pytest.approx(expected.item(), rel=1e-5)
    everything = torch.arange(11).expand(2, 11)
    assert sampled_softmax(*sampled_logits(query, key, target, everything)) == pytest.approx(expected.item(), rel=1e-5)


class _Draws:
    """Numbers that are known beforehand: 0, 1, 2 ... around the items."""

    def integers(self, low, high, size):
        self.size = size
        return np.arange(np.prod(size)).reshape(size) % high


@pytest.mark.parametrize("drawn_for, rows_drawn", [("user", 2), ("position", 4)])
def test_negatives_are_of_a_user_or_of_a_position(drawn_for, rows_drawn):
    torch.manual_seed(0)
    query, key, target = torch.randn(2, 3, 8), torch.randn(11, 8), torch.tensor([[3, 5, 0], [2, 1, 0]])
    draws, losses, row = _Draws(), [], 0
    found = next_item_loss(query, key, replace(TINY, loss="sampled", negatives=4, drawn_for=drawn_for), target, draws)
    assert draws.size == (rows_drawn, 4)
    for user, step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        first = 4 * (row if drawn_for == "position" else user)
        negative, positive = [place % 11 for place in range(first, first + 4)], target[user, step] - 1
        others = sum(torch.exp(query[user, step] @ key[item]) for item in negative if item != positive)
        losses.append(torch.log1p(others / torch.exp(query[user, step] @ key[positive])))
        row += 1
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["sampled", "gbce"])
@pytest.mark.parametrize("drawn_for", ["user", "position"])
def test_negatives_in_blocks_have_the_loss_and_the_gradients_of_all_at_once(monkeypatch, loss, drawn_for):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(*shape, generator=generator).requires_grad_() for shape in ((9, 3, 8), (11, 8)))
    target = torch.randint(0, 12, (9, 3), generator=generator)
    target[4] = 0  # a user without any row, alone in a block
    config = replace(TINY, loss=loss, negatives=4, drawn_for=drawn_for)

    def found():
        loss = next_item_loss(query, key, config, target, np.random.default_rng(0))
        return loss, *torch.autograd.grad(3 * loss, (query, key))
    whole, shapes = found(), []
    monkeypatch.setattr("onepiece_comp.benchmark.next_item_losses._NUMBERS_PER_BLOCK", 4 * 11)  # one user or position
    monkeypatch.setattr("onepiece_comp.benchmark.next_item_losses.sampled_logits",
                        lambda query, *more: (shapes.append(len(query)), sampled_logits(query, *more))[1])
    torch.testing.assert_close(found(), whole)
    assert (max(shapes) == 1
            and len(shapes) == ((target > 0).any(1).sum() if drawn_for == "user" else (target > 0).sum()))
    valid, row = target > 0, (target - 1).clamp_min(0)
    drawn = np.random.default_rng(0).integers(0, 11, (9 if drawn_for == "user" else int(valid.sum()), 4))
    by_row = torch.from_numpy(drawn)[torch.where(valid)[0]] if drawn_for == "user" else torch.from_numpy(drawn)
    positive = (query[valid] * key[row[valid]]).sum(-1)
    negative = torch.stack([(one * key[items]).sum(-1) for one, items in zip(query[valid], by_row)])
    negative = negative.masked_fill(by_row == row[valid][:, None], -torch.inf)
    plain = (sampled_softmax(positive, negative) if loss == "sampled" else
             generalised_bce(positive, negative, calibrated_power(4, 11, config.calibration)))
    torch.testing.assert_close(whole, (plain, *torch.autograd.grad(3 * plain, (query, key))))


def test_binary_loss_by_hand_and_its_calibration_at_both_ends():
    positive, negative = torch.tensor([2.0]), torch.tensor([[0.0, -torch.inf]])
    by_hand = (0.5 * np.log1p(np.exp(-2)) + np.log(2)) / 3
    assert generalised_bce(positive, negative, 0.5) == pytest.approx(by_hand)
    assert calibrated_power(10, 101, 0.0) == pytest.approx(1) and calibrated_power(10, 101, 1.0) == pytest.approx(0.1)


def test_an_epoch_has_every_user_with_a_transition_once():
    length = np.array([1, 2, 5, 3, 9, 2, 1, 4])
    users = np.concatenate(list(epoch_batches(length, 3, np.random.default_rng(0))))
    assert sorted(users) == [1, 2, 3, 4, 5, 7]


def test_attributes_are_read_by_original_id_and_their_mean_is_added_to_the_items_vector(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("1 30 10 20\n2 20 10 30\n")
    (tmp_path / "item2attributes.json").write_text('{"10": [7, 9], "20": [9], "99": [3]}')
    log = read_interactions(path)
    config = replace(TINY, attributes=True)
    model = NextItemModel(config, items=log.items, max_length=5, attributes=log.attributes).eval()
    own, shared = model.source.item_table.weight, model.source.attribute_table.weight
    assert log.item_id == ["30", "10", "20"] and len(shared) == 2  # 3 is of no item here
    expected = torch.stack([own[1], own[2] + shared.mean(0), own[3] + shared[1]])
    torch.testing.assert_close(model.source.keys(), expected)
    torch.testing.assert_close(model.source(torch.tensor([[3, 0]]))[0], torch.stack([expected[2], torch.zeros(16)]))


def test_attributes_that_are_not_there_or_none_are_refused(circle, tmp_path):
    with pytest.raises(InputError, match="item2attributes"):
        train_next_item(read_interactions(circle), replace(TINY, attributes=True), max_length=5, seed=0)
    (tmp_path / "item2attributes.json").write_text('{"1": ["red"]}')
    with pytest.raises(InputError, match="no attributes"):
        read_interactions(circle)


def test_a_setting_that_is_added_leaves_the_keys_of_rows_without_it():
    of = lambda **settings: told(to_dict(RowConfig(**settings)))
    assert "attributes" not in of(width=32) and of(attributes=True)["attributes"]
    assert of() != of(width=32)
    for config in rows("beauty").values():  # as a result file has it
        assert fingerprint(told(json.loads(json.dumps(to_dict(config))))) == fingerprint(told(to_dict(config)))


def test_every_row_of_an_epoch_pulls_as_hard_whatever_its_batch(circle):
    log = read_interactions(circle)
    value = lambda seen: torch.from_numpy(seen.item_BT[seen.item_BT > 0]).double()
    rows_of = training_window(log, np.arange(log.users), 8)[0]
    for size in (7, 20):
        model = torch.nn.ParameterList([torch.zeros(1, dtype=torch.float64)])
        pull = lambda seen, target: (model[0] * value(seen).mean()).sum()
        fit(model, pull, lambda: 0.0, log, replace(TINY, batch_users=size, epochs=1), 8, np.random.default_rng(0),
            optimiser=torch.optim.SGD(model.parameters(), lr=1.0))
        assert -model[0].item() * usual_rows(log, replace(TINY, batch_users=size),
                                             8) == pytest.approx(value(rows_of).sum().item())


@pytest.mark.parametrize("loss", ["softmax", "sampled", "bce", "gbce"])
def test_every_loss_learns_the_order_of_a_circle(circle, loss):
    log = read_interactions(circle)
    config = replace(TINY, loss=loss, negatives=8, epochs=60 if loss == "bce" else 30, patience=60)
    trained = train_next_item(log, config, max_length=10, seed=0)
    judged = judge(scored(scorer(trained.model, log, 10), log, 1), items=log.items)["unseen"]
    assert hit_rate(judged.rank, 1).mean() > 0.6  # chance is 1 of 25; the first epoch that validates perfectly is kept


def test_neighbours_of_the_history_come_before_what_is_popular(circle):
    log = read_interactions(circle)
    judged = judge(scored(knn_scorer(log), log, 1), items=log.items)["unseen"]
    assert hit_rate(judged.rank, 5).mean() > 0.8  # what walks together is near


def _run(circle, out, **options):
    return json.loads(benchmark("leave-one-out", circle, out, **options).read_text())


def test_test_items_of_the_own_history_are_counted_and_said(circle, tmp_path, capsys):
    """The first user of four events sees 1 again, of whose list `unseen` would hide all else."""
    benchmark("leave-one-out", circle, tmp_path / "circle", models="popularity")
    assert "own history" not in capsys.readouterr().out
    again = tmp_path / "again.txt"
    again.write_text("1 1 2 3 1\n2 2 2 3\n3 3 1 2\n4 2 3 2 1\n")
    benchmark("leave-one-out", again, tmp_path / "again", models="popularity")
    assert "1 of 4 test items (25.0%) stand in their user's own history" in capsys.readouterr().out


def test_a_row_that_is_done_is_kept_and_a_changed_one_runs_again(circle, tmp_path, capsys):
    settings = {"models": "popularity,sasrec-softmax", "sets": ["width=8", "epochs=2"], "seeds": (0, 1)}
    first = _run(circle, tmp_path / "out", **settings)
    assert len(first["rows"]["sasrec-softmax"]) == 2 and "not run" in capsys.readouterr().out
    assert _run(circle, tmp_path / "out", **settings) == first
    assert "done before" in capsys.readouterr().out
    changed = _run(circle, tmp_path / "out", **{**settings, "sets": ["width=8", "epochs=1"]})
    assert len(changed["rows"]["sasrec-softmax"][0]["epochs"]) == 1
    with open(circle, "a", encoding="utf-8") as file:
        file.write("99 1 2 3 4\n")
    assert _run(circle, tmp_path / "out", **settings)["rows"]["popularity"][0]["about"]["users"] == 61


def test_the_same_seed_gives_the_same_figures(circle, tmp_path):
    runs = [_run(circle, tmp_path / name, models="sasrec-sampled", sets=["width=8", "epochs=3"]) for name in "ab"]
    assert runs[0]["rows"]["sasrec-sampled"][0]["figures"] == runs[1]["rows"]["sasrec-sampled"][0]["figures"]


def _rising(monkeypatch, module="next_item_training", *, after=0, ends=0):
    """Validation in the place of the real one: every epoch is better than the last, and one is ended by Ctrl-C."""
    asked = []

    def valid(*_):
        asked.append(None)
        if len(asked) == ends:
            raise KeyboardInterrupt
        return (after + len(asked)) / 100
    monkeypatch.setattr(f"onepiece_comp.benchmark.{module}.validate", valid)


@pytest.mark.parametrize("settings", [{"average": 0.9}, {"loss": "sampled", "negatives": 4}])
def test_a_training_that_was_ended_goes_on_as_if_it_had_not_been(circle, tmp_path, monkeypatch, settings):
    log, state = read_interactions(circle), tmp_path / "state.pt"
    train = lambda state: train_next_item(log, replace(TINY, epochs=6, dropout=0.3, **settings), max_length=8, seed=3,
                                          state=state)
    _rising(monkeypatch)
    whole = train(None)
    _rising(monkeypatch, ends=4)
    with pytest.raises(KeyboardInterrupt):
        train(state)
    torch.manual_seed(99)
    _rising(monkeypatch, after=3)
    again = train(state)
    assert again.earlier == 3 and again.best_epoch == whole.best_epoch == 6
    assert [epoch[:3] for epoch in again.epochs] == [epoch[:3] for epoch in whole.epochs]
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name
    done = train(state)  # ended behind its last epoch
    assert done.earlier == 6 and torch.equal(done.model.keys(), whole.model.keys())


@pytest.mark.parametrize("row, module, asked, more", [
    ("sasrec-softmax", "next_item_training", 2, []),
    ("onepiece-beam", "trained_rows", 3, ["codes=8", "first_epochs=2"])])  # its epochs are judged twice
def test_a_benchmark_that_was_ended_has_its_epochs_their_time_and_nothing_left_over(
        circle, tmp_path, monkeypatch, capsys, row, module, asked, more):
    settings = {"models": row, "sets": ["width=8", "epochs=3", "batch_users=16", *more], "seeds": (5,)}
    with monkeypatch.context() as ended, pytest.raises(KeyboardInterrupt):
        _rising(ended, module, ends=asked)
        _run(circle, tmp_path / "out", **settings)
    weights = tmp_path / "out" / "weights"
    [path] = weights.glob("*.state.pt")
    state = torch.load(path)
    state["reached"]["epochs"] = [(*epoch[:3], 1000.0, 2000.0) for epoch in state["reached"]["epochs"]]
    torch.save(state, path)
    capsys.readouterr()
    result = _run(circle, tmp_path / "out", **settings)["rows"][row][0]
    assert "goes on after epoch 1" in capsys.readouterr().out
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2, 3]
    assert result["train_seconds"] > 1000 and result["cpu_seconds"] > 2000
    assert not list(weights.glob("*.state.pt"))
    assert _run(circle, tmp_path / "whole", **settings)["rows"][row][0]["figures"] == result["figures"]


def test_rows_are_compared_with_the_baselines_by_user(circle, tmp_path, capsys):
    settings = {"models": "popularity,sasrec-softmax,sasrec-bce", "sets": ["width=8", "epochs=1"], "seeds": (0, 1)}
    result = _run(circle, tmp_path / "out", **settings)
    pairs, rows_ = result["against"]["sasrec-softmax"], result["rows"]
    assert {row: pair["seeds"] for row, pair in pairs.items()} == {"popularity": [0], "sasrec-bce": [0, 1]}
    figure = lambda row: np.mean([found["figures"]["all"]["ndcg@10"] for found in rows_[row]])
    assert pairs["sasrec-bce"]["all"]["mean"] == pytest.approx(figure("sasrec-bce") - figure("sasrec-softmax"))
    assert "row - baseline" in capsys.readouterr().out
    page = ElementTree.parse(tmp_path / "out" / "benchmark.html").getroot()
    tables = [["".join(cell.itertext()) for cell in row] for row in page.iter("{http://www.w3.org/1999/xhtml}tr")]
    rows_of = lambda name: [cells for cells in tables if cells[0] == name]
    figures, difference, cost = rows_of("sasrec-bce")[0], rows_of("sasrec-bce")[2], rows_of("sasrec-bce")[-1]
    metric = figures.index(mean_and_spread([found["figures"]["unseen"]["ndcg@10"] for found in rows_["sasrec-bce"]]))
    assert rows_of("row")[0][metric] == "ndcg@10" and figures[:3] == ["sasrec-bce", "unseen", "2"]
    assert difference[2].startswith(f"{pairs['sasrec-bce']['unseen']['mean']:+.4f} (") and cost[2] == "1"
    charts = [element.get("aria-label") for element in page.iter() if element.tag.endswith("svg")]
    assert charts == ["intervals", "intervals", "Validation NDCG@10, first seed"]


def test_a_mean_is_of_one_setting_and_a_quick_run_touches_nothing(circle, tmp_path, capsys):
    settings = {"models": "sasrec-softmax", "sets": ["width=8", "epochs=2"], "seeds": (0, 1)}
    first = _run(circle, tmp_path / "out", **settings)["rows"]["sasrec-softmax"]
    quick = _run(circle, tmp_path / "out", **settings, quick=True)
    assert (quick["rows"]["sasrec-softmax"][0]["about"]["quick"]
            and (tmp_path / "out" / "quick" / "result.json").is_file())
    assert _run(circle, tmp_path / "out", **settings)["rows"]["sasrec-softmax"] == first
    other = _run(circle, tmp_path / "out", **{**settings, "sets": ["width=8", "epochs=1"], "seeds": (0,)})
    assert [(found["seed"], len(found["epochs"])) for found in other["rows"]["sasrec-softmax"]] == [(0, 1)]
    assert "1 of 2 seeds are of other settings" in capsys.readouterr().out
    beside = _run(circle, tmp_path / "out", models="popularity")["rows"]  # as many of both: those that stand first
    assert {found["config"]["epochs"] for found in beside["sasrec-softmax"]} == {1}


def test_without_times_and_attributes_the_rows_that_read_them_are_left_out_unless_named(tmp_path, capsys):
    data = _circle(tmp_path / "sequences.txt", users=12)
    found = _run(data, tmp_path / "out", sets=["width=8", "epochs=1", "heads=2"], quick=True)["rows"]
    assert "onepiece-cascade" in found and not any("time" in row for row in found)
    assert "the data has no times: hstu-time, hstu-time-next, hstu-large-time" in capsys.readouterr().out
    with pytest.raises(InputError, match="times"):
        _run(data, tmp_path / "named", models="sasrec-softmax,hstu-time", sets=["width=8", "epochs=1"])
    assert not (tmp_path / "named").exists()  # before anything is trained
    with pytest.raises(InputError, match="attributes"):
        benchmark("beauty", data, tmp_path / "named", models="onepiece-attributes")
    assert not (tmp_path / "named").exists()


@pytest.mark.parametrize("wrong", ["epochs=0", "patience=0", "batch_users=0", "negatives=0", "heads=3", "dropout=1",
                                   "width=0",
                                   "learning_rate=nan", "block=foo", "loss=foo", "temperature=0"])
def test_a_setting_that_no_training_could_have_is_an_error_before_any(circle, tmp_path, wrong):
    for row in ("sasrec-softmax", "onepiece-beam"):
        with pytest.raises(InputError, match=wrong.split("=")[0]):
            _run(circle, tmp_path / "out", models=row, sets=[wrong])
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="first_epochs"):
        _run(circle, tmp_path / "out", models="onepiece-beam", sets=["first_epochs=0"])


@pytest.mark.parametrize("batch_users, place", [(16, "loss"), (128, "scores")])  # in the second step, or in none
def test_a_training_that_comes_apart_ends_with_an_error(circle, tmp_path, batch_users, place):
    with pytest.raises(InputError, match=f"{place}: .*lower learning_rate"):
        _run(circle, tmp_path / "out", models="sasrec-softmax",
             sets=["width=8", "learning_rate=1e30", f"batch_users={batch_users}"])


@pytest.mark.parametrize("lines, said", [("1 2 3\n2 3 4\n", "none with more than 3 events"),
                                         ("1 2\n2 3\n", "none with 3 events")])
def test_a_log_that_is_too_short_is_an_error(tmp_path, lines, said):
    (tmp_path / "short.txt").write_text("".join(f"{user} {line}\n" for user, line in enumerate(lines.split("\n"))
                                                if line))
    with pytest.raises(InputError, match=said):
        _run(tmp_path / "short.txt", tmp_path / "out", models="popularity,sasrec-softmax")


@pytest.mark.parametrize("time", ["1600000000", "1600000000000", "2020-09-13", "2020-09-13 12:26:40 UTC"])
def test_times_are_read_as_a_conversion_reads_them(tmp_path, time):
    assert read_interactions(_timed(tmp_path / "events.csv", [("a", item, time) for item in "xyzw"])).items == 4


@pytest.mark.parametrize("time", ["20200913", "inf", "9", "soon"])
def test_times_that_are_none_are_an_error(tmp_path, time):
    with pytest.raises(InputError, match=f"events.csv:2: found time '?{time}"):
        read_interactions(_timed(tmp_path / "events.csv", [("a", item, time) for item in "xyzw"]))


@pytest.mark.parametrize("written", ["1600000000.{:03d}", "1600000000{:03d}", "2020-09-13T12:26:40.{:03d}Z"])
def test_the_same_rows_in_reverse_have_the_same_last_events_and_the_same_converted_log(tmp_path, written):
    """All within one second, which whole seconds would leave in the order of the file:
    12 of 42 users end on what is popular.
    """
    common = [f"c{number}" for number in range(6)]
    of = lambda user: [common[(user + place) % 6] for place in range(3)]
    histories = [[*of(user), "hot"] for user in range(12)] + [["hot", *of(user), f"rare{user}"] for user in range(30)]
    events = [(f"u{user}", item, written.format(place)) for user, own in enumerate(histories)
              for place, item in enumerate(own)]
    for name, rows_ in (("a", events), ("b", events[::-1])):
        source, out = _timed(tmp_path / f"{name}.csv", rows_), tmp_path / name
        for command in (f"benchmark leave-one-out --data {source} --out {out} --models popularity --threads 1",
                        f"convert table {source} {out}-raw --user user --item item --time time"):
            assert CliRunner().invoke(app, command.split()).exit_code == 0
        (row,) = json.loads((out / "result.json").read_text())["rows"]["popularity"]
        assert row["figures"]["all"]["hr@5"] == pytest.approx(12 / 42)
        held = converted_events(Path(f"{out}-raw"))
        assert [[item for item, _, _ in held[f"u{user}"]] for user in range(42)] == histories


def test_what_cannot_be_run_is_an_error(circle, tmp_path):
    for refused in (lambda: rows("nonsense"), lambda: chosen("beauty", "sasrec"),
                    lambda: _run(circle, tmp_path / "o", models="hstu-time"),
                    lambda: _run(circle, tmp_path / "o", models="popularity", sets=["widht=3"]),
                    lambda: benchmark("beauty-shuffled", circle, tmp_path / "o")):
        with pytest.raises(InputError):
            refused()


def test_a_moving_average_is_that_of_a_slow_loop_and_leaves_the_weights_alone():
    model = torch.nn.Linear(1, 1, bias=False)
    average, mean, values = WeightAverage(model, 0.5), model.weight.item(), [1.0, -2.0, 4.0, 0.5]
    for step, value in enumerate(values, 1):
        model.weight.data.fill_(value)
        average.step()
        decay = min(0.5, step / (step + 9))
        mean = decay * mean + (1 - decay) * value
    with pytest.raises(KeyboardInterrupt), average.inside():
        assert model.weight.item() == pytest.approx(mean)
        raise KeyboardInterrupt
    assert model.weight.item() == values[-1]


def test_the_average_is_what_is_judged_and_kept_and_training_goes_on_without_it(circle):
    log = read_interactions(circle)
    plain, other = (train_next_item(log, replace(TINY, epochs=2, average=decay), max_length=8,
                                    seed=0) for decay in (0.0, 0.9))
    assert [epoch.loss for epoch in plain.epochs] == [epoch.loss for epoch in other.epochs]
    assert not torch.equal(plain.model.keys(), other.model.keys())
    with pytest.raises(InputError, match="average"):
        train_next_item(log, replace(TINY, average=1.0), max_length=8, seed=0)
    with pytest.raises(InputError, match="drawn_for"):
        train_next_item(log, replace(TINY, drawn_for="batch"), max_length=8, seed=0)


@pytest.mark.parametrize("gate, branch", [("attention_gate", "attention"), ("feed_gate", "down")])
def test_each_gate_of_ligr_closes_its_own_branch_and_is_read_off_the_stream_that_enters_it(gate, branch):
    torch.manual_seed(0)
    block, x_BTD = LiGRBlock(width=8, heads=2, hidden=12, dropout=0.0).eval(), torch.randn(2, 5, 8)
    whole = block(x_BTD)
    with torch.no_grad():
        getattr(block, gate).weight.zero_()
        getattr(block, gate).bias.fill_(-60.0)  # closed
        closed = block(x_BTD)
        part = block.attention.query if branch == "attention" else block.down
        part.weight.add_(1.0)
        assert torch.equal(block(x_BTD), closed) and not torch.allclose(closed, whole)
        getattr(block, gate).bias.fill_(60.0)  # open: the branch joins as it is
        middle = x_BTD + block.attention_gate(x_BTD).sigmoid() * block.attention(*2 * (block.attention_norm(x_BTD),))
        gated, up = block.gate_up(block.feed_norm(middle)).chunk(2, dim=-1)
        ended = middle + block.feed_gate(middle).sigmoid() * block.down(F.silu(gated) * up)
    torch.testing.assert_close(block(x_BTD), ended)
