"""The arithmetic of a step: what PyTorch counts of it, and the peaks of cards by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from onepiece_comp.config import ModelConfig
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.training.arithmetic import bfloat16_peak, forward_work, shape_of
from onepiece_comp.training.batches import TrainingBatches

CONFIG = ModelConfig(width=32, layers=2, heads=2, expert_width=24, decoder_layers=2, similarity_width=16, dropout=0.0)


@pytest.fixture(scope="module")
def batch(dataset):
    batches = TrainingBatches(
        dataset, stop=np.array(dataset.user_start[1:]), batch_users=20, max_events=100, sampled_negatives=30,
        action_weights=(1.0,) * 4, moment_lag_seconds=0.0, click_lag_seconds=0.0, horizon_seconds=1e9, seed=0,
        popularity=False)
    return next(batches.epoch(0))


def _model(dataset, **changes):
    torch.manual_seed(0)
    items = dataset.schema.items
    codes = torch.cat([torch.full((1, 3), -1), torch.randint(0, 40, (items, 3))]).int()
    codes[1] = 39  # the largest code is there
    return OnePiece(replace(CONFIG, trend=False, **changes), dataset.schema, codes)


def _counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("changes", [
    {}, {"experts": 0}, {"similarity_width": 0}, {"block": "transformer", "experts": 0}, {"conditioned": True},
    {"action_fusion": "gate", "decoder_layers": 1}, {"latent_steps": 3}])
def test_a_training_step_has_the_operations_that_pytorch_counts(dataset, batch, changes):
    """Embeddings of items need no gradient, so that the step is a little short of three forward passes."""
    model = _model(dataset, **changes)
    for semantic, conditioned in ((True, changes.get("conditioned", False)), (False, False)):
        work = forward_work(model, shape_of(batch), semantic=semantic, conditioned=conditioned)
        counted = _counted(lambda: model.losses(
            batch, semantic_weight=0.1 * semantic, conditioned_weight=0.1 * conditioned).total.backward())
        assert counted == pytest.approx(work.training_flops, rel=0.02)


def test_the_encoder_has_the_multiply_adds_that_pytorch_counts(dataset, batch):
    model = _model(dataset, action_fusion="gate", time_inputs=("calendar",), latent_steps=2).eval()
    with torch.no_grad():
        counted = _counted(lambda: model.encode(batch.history, model.encode_items(batch.items)))
    work = forward_work(model, shape_of(batch))
    assert counted == 2 * (work.blocks + work.experts + work.towers)


def test_a_row_that_is_compared_with_few_keys_costs_few_products(dataset, batch):
    model, shape = _model(dataset), shape_of(batch)
    all_keys, two = forward_work(model, shape), forward_work(model, shape, compared=2)
    assert (all_keys.retrieval, two.retrieval) == (shape.rows * shape.keys * 32, shape.rows * 2 * 32)
    assert shape.cells > shape.rows == len(batch.target_N)


def test_a_card_is_known_by_the_words_of_its_name():
    assert bfloat16_peak("NVIDIA H200") == 989e12 and bfloat16_peak("NVIDIA H20") == 148e12
    assert bfloat16_peak("NVIDIA H100 PCIe") == 756e12 and bfloat16_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert bfloat16_peak("NVIDIA A100-SXM4-80GB") == 312e12 and bfloat16_peak("NVIDIA A10") == 125e12
    assert bfloat16_peak("Tesla T4") is None
