"""What a checkpoint holds is held against its own description before it is used:
damaged and made-up ones end in a line.
"""

import json
import shutil
import time

import numpy as np
import pytest
import torch

from onepiece_comp.config import ModelConfig
from onepiece_comp.errors import InputError
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.training.checkpoint import CONFIG, MODEL, find_checkpoint, load_checkpoint, warm_start
from onepiece_comp.training.weights import load_tensors, save_tensors
from small_models import random_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    return find_checkpoint(random_checkpoint(dataset, tmp_path_factory.mktemp("whole")))


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / whole.name)


def _described(copy, change):
    stored = json.loads((copy / CONFIG).read_text())
    stored = change(stored) or stored
    (copy / CONFIG).write_text(json.dumps(stored))


def _spoilt(copy, change):
    state = load_tensors(copy / MODEL)
    change(state)
    save_tensors(state, copy / MODEL)


def _refused(copy, *words):
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        load_checkpoint(copy, CPU)
    assert time.monotonic() - started < 5 and all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_with_their_name(copy, dataset, value):
    _spoilt(copy, lambda state: state["layers.1.block.out.weight"][2].fill_(value))
    _refused(copy, MODEL, "layers.1.block.out.weight with 16 of 256 values that are not finite")
    with pytest.raises(InputError, match="not finite"):
        warm_start(OnePiece(load_like(copy), dataset.schema), copy)


def load_like(copy):
    return ModelConfig(**{name: tuple(value) if isinstance(value, list) else value
                          for name, value in json.loads((copy / CONFIG).read_text())["model"].items()})


_NUMBERS = ("width", "layers", "heads", "max_events", "feature_width", "id_width", "embedding_width", "latent_steps",
            "experts",
            "similarity_width", "hash_sizes", "hash_width")


@pytest.mark.parametrize("name", _NUMBERS)
@pytest.mark.parametrize("value", [10**6, 2**40, 2**70, -3, "many", None, 1.5])
def test_sizes_that_the_weights_do_not_have_end_before_anything_is_allocated(copy, name, value):
    if name == "hash_width" and value in (10**6, 2**40, 2**70):
        return  # there are no hashed tables that it could be the width of
    listed = [value] * 3 if name == "hash_sizes" else value
    _described(copy, lambda stored: stored["model"].__setitem__(name, listed))
    _refused(copy)


@pytest.mark.parametrize("change", [
    lambda state: state.pop("layers.0.block.out.weight"),
    lambda state: state.update(stranger=torch.zeros(2)),
    lambda state: state.update({"layers.0.block.out.weight": torch.zeros(3, 3)}),
    lambda state: state.update({"layers.0.block.out.weight": torch.zeros(16, 16, dtype=torch.int64)}),
    lambda state: state.update({"layers.0.block.out.weight": torch.zeros(16, 16, dtype=torch.complex64)}),
    lambda state: state.update({"layers.0.block.out.weight": torch.eye(16).to_sparse()}),
    lambda state: state.update({"layers.0.block.out.weight": "text"}),
    lambda state: state.pop("codes"),
    lambda state: state.update(codes=torch.zeros(5, 2, dtype=torch.int32)),
    lambda state: state.update(codes=torch.full((80, 2), 2**31 - 1, dtype=torch.int32)),
    lambda state: state.update(codes=torch.full((80, 2), -7, dtype=torch.int32)),
    lambda state: state.update(codes=torch.zeros(80, 2)),
    lambda state: state.clear(),
])
def test_tensors_that_the_description_does_not_have_are_refused(copy, change):
    _spoilt(copy, change)
    _refused(copy, MODEL)


@pytest.mark.parametrize("change", [
    *(lambda stored, name=name: stored.pop(name) and None for name in ("model", "infer", "schema", "dataset",
                                                                       "evaluation")),
    *(lambda stored, name=name: stored.__setitem__(name, 7) for name in ("model", "infer", "schema", "dataset",
                                                                         "evaluation", "actions")),
    lambda stored: stored.__setitem__("actions", [1, 2, -3, 4]),
    lambda stored: stored["infer"].__setitem__("beam", 0),
    lambda stored: stored["infer"].__setitem__("action", "purchase"),
    lambda stored: stored["model"].__setitem__("temperature", 0),
    lambda stored: stored["model"].__setitem__("stranger", 1),
    *(lambda stored, name=name: stored["schema"].pop(name) and None for name in ("items", "item_features", "embeddings",
        "item_space")),
    *(lambda stored, value=value: stored["schema"].__setitem__("items", value) for value in (-1, 2**70, "x", 1.5, 3)),
    *(lambda stored, value=value: stored["schema"].__setitem__("item_features", value) for value in (7, [[1]],
        [["1", 2**70, 0]],
                                                                                                     [["1", 3, 5]],
        ["ab"])),
    lambda stored: stored["schema"].__setitem__("embeddings", {"81": 2**70}),
    lambda stored: stored["schema"].__setitem__("embeddings", [81]),
    lambda stored: stored["schema"].__setitem__("trend_bucket_seconds", 0),
    lambda stored: [stored],
    lambda stored: "text",
])
def test_descriptions_that_cannot_be_are_refused_with_their_file(copy, change):
    _described(copy, change)
    _refused(copy, str(copy))


@pytest.mark.parametrize("counts", [np.zeros((3, 2, 2), np.int32), np.zeros(4, np.int32),
                                    np.full((80, 2, 2), -1, np.int32),
                                    np.zeros((80, 2, 2), np.float32), np.zeros((80, 0, 2), np.int32)])
def test_popularity_counts_of_another_catalogue_are_refused(copy, counts):
    np.save(copy / "trend_counts.npy", counts)
    _refused(copy, "trend_counts.npy")


def test_a_file_that_is_cut_anywhere_is_refused(copy):
    whole = (copy / MODEL).read_bytes()
    for share in np.linspace(0, 0.999, 12):
        (copy / MODEL).write_bytes(whole[:int(share * len(whole))])
        _refused(copy, "no readable weights")


def test_a_whole_checkpoint_is_read_as_it_was_written(whole, copy):
    _spoilt(copy, lambda state: None)
    first, second = (load_checkpoint(place, CPU).model.state_dict() for place in (whole, copy))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
