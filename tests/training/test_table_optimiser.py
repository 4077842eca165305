"""Row optimisers: dense references, rows that are not touched, rounding at random, and the whole run."""

import numpy as np
import pytest
import torch
from torch import nn

from onepiece_comp.config_reading import load_config
from onepiece_comp.errors import InputError
from onepiece_comp.models.item_tower import look_up
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.stages.train import train
from onepiece_comp.training.checkpoint import MODEL, find_checkpoint
from onepiece_comp.training.loop import Loop
from onepiece_comp.training.optimisers import Optimisers, bytes_per_id, parameter_groups, prepare_tables
from onepiece_comp.training.table_optimiser import RowOptimiser, clip_gradients, round_at_random

torch.manual_seed(0)


def _tables(rows=6, width=3, **settings):
    """A dense and a sparse table with the same weights, and the row optimiser of the second."""
    dense, sparse = nn.Embedding(rows, width), nn.Embedding(rows, width, sparse=True)
    sparse.weight.data.copy_(dense.weight.data)
    return dense, sparse, RowOptimiser([sparse.weight], lr=0.1, **settings)


def _backward(table, index, seed=0):
    table.weight.grad = None
    target = torch.randn(len(index), 3, generator=torch.Generator().manual_seed(seed))
    (table(index) * target).sum().backward()


def test_where_every_row_is_touched_it_is_adam():
    dense, sparse, ours = _tables(kind="adam", betas=(0.9, 0.98), eps=1e-9)
    adam = torch.optim.Adam(dense.parameters(), lr=0.1, betas=(0.9, 0.98), eps=1e-9)
    for step in range(5):
        for table, optimiser in ((dense, adam), (sparse, ours)):
            _backward(table, torch.tensor([0, 1, 2, 3, 4, 5, 2, 2]), step)  # row 2 three times
            optimiser.step()
    torch.testing.assert_close(sparse.weight, dense.weight)


@pytest.mark.parametrize("kind", ["adam", "adagrad"])
def test_untouched_rows_do_not_move_and_touched_ones_do(kind):
    _, sparse, ours = _tables(kind=kind)
    _backward(sparse, torch.tensor([0, 3, 5]))
    ours.step()
    before = sparse.weight.detach().clone()
    _backward(sparse, torch.tensor([1, 3]), 1)  # rows 0 and 5 have moments, but no gradient now
    ours.step()
    assert (before != sparse.weight).any(1).tolist() == [False, True, False, True, False, False]


def test_row_wise_adagrad_equals_a_loop():
    _, sparse, ours = _tables(kind="adagrad", eps=1e-9)
    weight, square = sparse.weight.detach().double().clone(), np.zeros(6)
    for step in range(4):
        _backward(sparse, torch.tensor([0, step, 4, 4]), step)
        grad = sparse.weight.grad.to_dense().double()
        for row in {0, step, 4}:
            square[row] += float((grad[row] ** 2).mean())
            weight[row] -= 0.1 * grad[row] / (square[row] ** 0.5 + 1e-9)
        ours.step()
    torch.testing.assert_close(sparse.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)
    assert ours.state[sparse.weight]["square"].shape == (6,)


def test_the_norm_of_sparse_gradients_is_that_of_dense_ones_and_both_are_clipped():
    dense, sparse, _ = _tables(kind="adam")
    other = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))]
    for table, beside in zip((dense, sparse), other):
        _backward(table, torch.tensor([0, 2, 2, 5]))
        (beside * 3).sum().backward()
    expected = float(nn.utils.clip_grad_norm_([dense.weight, other[0]], 0.5))
    assert clip_gradients([sparse.weight, other[1]], 0.5) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other[1].grad, other[0].grad, rtol=1e-5, atol=1e-6)


def test_shares_of_a_parameter_are_clipped_by_the_norm_of_all_of_it():
    """This rank's share has norm 3, the other's 4, what both have 12: 13 together."""
    common, share = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))
    common.grad, share.grad = torch.tensor([12.0]), torch.tensor([3.0, 0.0])
    assert clip_gradients([common], 1.3, shares=[share], total=lambda squares: squares + 16) == pytest.approx(13)
    assert common.grad.item() == pytest.approx(1.2) and share.grad.tolist() == pytest.approx([0.3, 0.0])


def test_rounding_at_random_keeps_the_mean_and_goes_to_a_neighbour():
    draw, value = torch.Generator().manual_seed(0), torch.tensor([1.001, -1.001, 3.14159, 0.0, 1e-20])
    rounded = torch.stack([round_at_random(value, draw).float() for _ in range(20_000)])
    torch.testing.assert_close(rounded.mean(0), value, rtol=2e-4, atol=1e-22)
    assert all(len(column.unique()) <= 2 for column in rounded.T)
    assert torch.equal(round_at_random(torch.tensor([1.5, -2.0]), draw).float(), torch.tensor([1.5, -2.0]))


@pytest.mark.parametrize("kind", ["adam", "adagrad"])
def test_the_number_of_threads_changes_no_bit_of_a_step(kind):
    """Rows that repeat a hundred times and more, enough of them that torch shares the work out."""
    index, start = torch.randint(0, 400, (50_000,), generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            _, sparse, ours = _tables(rows=400, kind=kind)
            for step in range(2):
                _backward(sparse, index, step)
                found.append(clip_gradients([sparse.weight], 0.5))
                ours.step()
            found.append(sparse.weight.detach())
    finally:
        torch.set_num_threads(start)
    assert found[:2] == found[3:5] and torch.equal(found[2], found[5])


def test_small_steps_are_not_lost_in_bfloat16():
    """A thousand steps of a tenth of the last place: rounding to nearest would stand still."""
    table = nn.Embedding(200, 3, sparse=True)
    table.weight.data.fill_(1.0)
    table.weight.data = table.weight.data.bfloat16()
    ours = RowOptimiser([table.weight], kind="adam", lr=0.0004)
    for _ in range(1000):
        table.weight.grad = None
        table(torch.arange(200)).float().sum().backward()
        ours.step()
    assert abs(float(table.weight.detach().float().mean()) - 0.6) < 0.02


def test_repeated_rows_of_a_narrow_table_are_summed_in_float32():
    """Five thousand parts of one row: a sum in bfloat16 ends at 256 of them."""
    exact, narrow = nn.Embedding(4, 3, sparse=True), nn.Embedding(4, 3, sparse=True)
    narrow.weight.data = exact.weight.data.bfloat16()
    index = torch.tensor([[0] * 5000, [1, 3] * 2500])
    part = torch.rand(*index.shape, 3)
    for table in (exact, narrow):
        (look_up(table, index) * part).sum().backward()
    narrow_grad, exact_grad = narrow.weight.grad.to_dense().float(), exact.weight.grad.to_dense()
    torch.testing.assert_close(narrow_grad, exact_grad, rtol=2 ** -8, atol=0)
    assert torch.equal(look_up(narrow, index), narrow(index).float())


@pytest.fixture
def model(dataset):
    return OnePiece(load_config("tiny", None, [*SETS]).model, dataset.schema)


def _optimisers(model, tables, *, trained_rate=1.0):
    return Optimisers(model, learning_rate=0.01, muon_learning_rate=0.02, weight_decay=0.1, warmup_steps=2,
                      total_steps=4, tables=tables, trained_rate=trained_rate)


def test_the_item_tables_alone_are_stepped_by_rows_and_every_parameter_has_one_group(model):
    prepare_tables(model, optimiser="adam_rows", precision="float32")
    groups = parameter_groups(model)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [named[id(table)] for table in groups["rows"]] == [
        f"item_tower.{name}.weight" for name in ("id_table", "hash_tables.0", "feature_table")]
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(named)
    prepare_tables(model, optimiser="adamw", precision="float32")
    groups = parameter_groups(model)
    assert not groups["rows"] and any(model.item_tower.id_table.weight is parameter for parameter in groups["plain"])


def test_the_schedule_and_the_rate_of_trained_weights_hold_for_tables_too(model):
    """Adam's first step has the size of its rate: half the peak in a warm-up of two, a tenth of that if trained."""
    prepare_tables(model, optimiser="adam_rows", precision="float32")
    table = model.item_tower.id_table
    before = table.weight.detach().clone()
    table(torch.tensor([1, 2])).sum().backward()
    _optimisers(model, "adam_rows", trained_rate=0.1).step(0)
    moved = (before - table.weight).detach()
    torch.testing.assert_close(moved[1:3], torch.full((2, table.embedding_dim), 0.0005))
    assert not moved[0].any() and not moved[3:].any()


@pytest.mark.parametrize("optimiser, precision", [("adamw", "float32"), ("adam_rows", "float32"),
                                                  ("adagrad_rows", "bfloat16")])
def test_the_bytes_of_an_id_are_those_that_are_held(model, optimiser, precision):
    prepare_tables(model, optimiser=optimiser, precision=precision)
    table = model.item_tower.id_table
    optimisers = _optimisers(model, optimiser)
    table(torch.tensor([1])).float().sum().backward()
    optimisers.step(0)
    held = (optimisers.rows or optimisers.adam).state[table.weight].values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in held if tensor.dim())
    row = table.weight[0]
    assert bytes_per_id(model, optimiser) == (row.numel() * row.element_size(), size / len(table.weight))


SETS = ("model.width=16", "model.feature_width=4", "model.id_width=4", "model.embedding_width=4",
        "model.expert_width=8",
        "model.hash_sizes=[17]", "model.hash_width=4", "train.epochs=2", "train.batch_users=8",
        "train.sampled_negatives=30",
        "train.validation_users=5", "train.threads=1", "train.device=cpu", "train.checkpoints=1",
        "train.save_minutes=0")


@pytest.mark.parametrize("changes", [["train.table_optimiser=adam_rows"],
                                     ["train.table_optimiser=adagrad_rows", "train.table_precision=bfloat16"]])
def test_a_run_with_row_tables_learns_and_resumes_to_the_bit(dataset, tmp_path, monkeypatch, changes):
    config, whole = load_config("tiny", None, [*SETS, *changes]), Loop._step
    weights = lambda run: torch.load(find_checkpoint(run) / MODEL, weights_only=True)
    unbroken = weights(train(dataset.path, tmp_path / "unbroken", config))

    def dying(self, batch):
        if self.progress.step == 7:
            raise RuntimeError("power cut")
        return whole(self, batch)

    monkeypatch.setattr(Loop, "_step", dying)
    with pytest.raises(RuntimeError, match="power cut"):
        train(dataset.path, tmp_path / "broken", config)
    monkeypatch.setattr(Loop, "_step", whole)
    resumed = weights(train(dataset.path, tmp_path / "broken", config, resume=True))
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert float(unbroken["item_tower.id_table.weight"].abs().sum()) > 0  # it started at zero
    assert not unbroken["item_tower.id_table.weight"][0].any()  # and padding stays there
    assert unbroken["item_tower.id_table.weight"].dtype == (torch.bfloat16 if len(changes) == 2 else torch.float32)


@pytest.mark.parametrize("changes", [["train.table_optimiser=adam_rows"],
                                     ["train.table_optimiser=adagrad_rows", "train.table_precision=bfloat16"]])
def test_two_threads_give_the_same_row_tables_twice(dataset, tmp_path, changes):
    config = load_config("tiny", None, [*SETS, "train.threads=2", "train.batch_users=64", "train.epochs=6", *changes])
    runs = [train(dataset.path, tmp_path / name, config) for name in ("first", "second")]
    first, second = (torch.load(find_checkpoint(run) / MODEL, weights_only=True) for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_go_together_is_refused(dataset, tmp_path):
    with pytest.raises(InputError, match="adam_rows"):
        train(dataset.path, tmp_path / "run", load_config("tiny", None, [*SETS, "train.table_precision=bfloat16"]))
    narrow = ["train.table_precision=bfloat16", "train.table_optimiser=adam_rows"]
    with pytest.raises(InputError, match="average"):
        train(dataset.path, tmp_path / "run1", load_config("tiny", None, [*SETS, *narrow, "train.average=0.9"]))
    with pytest.raises(InputError, match="table_optimiser"):
        train(dataset.path, tmp_path / "run2", load_config("tiny", None, [*SETS, "train.table_optimiser=sgd"]))


def test_no_limit_leaves_gradients_as_they_are():
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([3.0, 4.0, 0.0])
    assert clip_gradients([weight], 0.0) == pytest.approx(5) and weight.grad.tolist() == [3.0, 4.0, 0.0]
