"""Forecasts of memory from the code's own tensors, against bytes counted on a real model and real optimisers."""

import pytest
import torch

from onepiece_comp.config_reading import load_config
from onepiece_comp.container.plan import Scale, hours, measured_rate, memory, model_of, read_size, schema_of
from onepiece_comp.errors import InputError
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.training.optimisers import Optimisers, prepare_tables

SETS = ["model.width=16", "model.id_width=4", "model.embedding_width=4", "model.feature_width=2",
        "model.expert_width=8"]


@pytest.mark.parametrize("tables", ["adamw", "adam_rows", "adagrad_rows"])
def test_weights_and_optimiser_state_are_those_of_a_real_model_after_a_step(tables):
    config, schema, scale = load_config("tiny", None,
                                        [*SETS, f"train.table_optimiser={tables}"]), schema_of(50), Scale(100, 50)
    planned = model_of(config, schema)
    assert all(parameter.is_meta for parameter in planned.parameters())
    held = memory(planned, config, scale, on_gpu=False)
    real = OnePiece(config.model, schema, planned.codes.clone())
    prepare_tables(real, optimiser=tables, precision="float32")
    optimisers = Optimisers(real, learning_rate=1e-3, muon_learning_rate=1e-3, weight_decay=0, warmup_steps=1,
                            total_steps=2,
                            tables=tables)
    for module in real.modules():
        sparse = isinstance(module, torch.nn.Embedding) and module.sparse
        for parameter in module.parameters(recurse=False):
            dense = torch.zeros_like(parameter)
            row = torch.zeros(1, 1, dtype=torch.int64)
            parameter.grad = torch.sparse_coo_tensor(row, dense[:1], parameter.shape) if sparse else dense
    assert held.weights == sum(parameter.numel() * parameter.element_size() for parameter in real.parameters())
    assert held.gradients == sum(p.grad.numel() * 4 for p in real.parameters() if not p.grad.is_sparse)
    optimisers.step(0)
    kept = [value for part in (optimisers.muon, optimisers.rows, optimisers.adam) if part
            for state in part.state.values() for name, value in state.items() if torch.is_tensor(value)
            and name != "step"]
    assert held.optimiser == sum(value.numel() * value.element_size() for value in kept)
    assert held.semantic_ids == real.codes.numel() * 4


def test_twice_the_users_take_twice_the_hours_of_training_and_no_more_memory():
    config, schema = load_config("tiny", None, SETS), schema_of(50)
    model = model_of(config, schema)
    one, two = (hours(model, config, Scale(users, 50), 1e12) for users in (1000, 2000))
    assert (two["train jointly"] == pytest.approx(2 * one["train jointly"])
            and two["build tokenizer"] == one["build tokenizer"])
    assert memory(model, config, Scale(1000, 50)) == memory(model, config, Scale(2000, 50))


def test_sizes_are_read_with_their_units():
    assert read_size("19GiB") == 19 * 2**30 and read_size("1.5GB") == 1_500_000_000
    with pytest.raises(InputError, match="19 parsecs"):
        read_size("19 parsecs")


def test_hours_are_the_work_over_the_rate_and_a_measured_rate_is_a_share_of_plain_products(monkeypatch):
    """A product that takes a known time: 2 x 768^3 operations in a tenth of a second,
    of which a step reaches a quarter.
    """
    config, schema, ticks = load_config("tiny", None, SETS), schema_of(50), iter(range(100))
    model = model_of(config, schema)
    slow, fast = (hours(model, config, Scale(1000, 50), rate) for rate in (1e10, 4e10))
    assert slow["train retrieval"] == pytest.approx(4 * fast["train retrieval"])
    monkeypatch.setattr("onepiece_comp.container.plan.time.perf_counter", lambda: next(ticks) / 10)
    assert measured_rate(torch.device("cpu")) == pytest.approx(0.25 * 2 * 768**3 / 0.1)
