"""What a public benchmark's training has come to after its last whole epoch:
a training that was ended goes on from there.

Stands between `weight_average.py` and `next_item_training.py`. The file holds all that an epoch reads, both random
states too, so that a training that goes on has the weights of one that nobody ended.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from onepiece_comp.artefacts import atomic_file
from onepiece_comp.benchmark.weight_average import WeightAverage
from onepiece_comp.training.weights import load_tensors, save_tensors


class Epoch(NamedTuple):
    """A line of the training's log."""

    epoch: int
    loss: float
    valid_ndcg: float  # @10, seen items filtered
    seconds: float  # training and validation
    cpu_seconds: float  # of this process, all threads: what a busy machine does not stretch


@dataclass
class Reached:
    """The epochs so far, and the weights of the best of them."""

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_valid: float = -1.0
    best_weights: dict | None = None

    def take(self, epoch: Epoch, model: nn.Module) -> None:
        """One more epoch; the model's weights are kept where none was better."""
        self.epochs.append(epoch)
        if epoch.valid_ndcg > self.best_valid:
            self.best_epoch, self.best_valid = epoch.epoch, epoch.valid_ndcg
            self.best_weights = copy.deepcopy(model.state_dict())


class EpochState(NamedTuple):
    """What changes from epoch to epoch, and the file in which it is kept; without a path nothing is."""

    path: Path | None
    model: nn.Module
    optimiser: torch.optim.Optimizer
    average: WeightAverage
    rng: np.random.Generator

    def save(self, reached: Reached) -> None:
        """Write the state after an epoch, whole or not at all."""
        if self.path is None:
            return
        with atomic_file(self.path) as temporary:
            save_tensors({
                "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
                "average": {"mean": self.average.mean, "steps": self.average.steps},
                "random": {"numpy": json.dumps(self.rng.bit_generator.state), "torch": torch.get_rng_state()},
                "reached": {**vars(reached), "epochs": [tuple(epoch) for epoch in reached.epochs]}}, temporary)

    def restore(self) -> Reached:
        """Set everything as the file has it; nothing where there is none."""
        if self.path is None or not self.path.is_file():
            return Reached()
        state = load_tensors(self.path)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.mean, self.average.steps = state["average"]["mean"], state["average"]["steps"]
        self.rng.bit_generator.state = json.loads(state["random"]["numpy"])
        torch.set_rng_state(state["random"]["torch"])
        reached = Reached(**state["reached"])
        reached.epochs = [Epoch(*epoch) for epoch in reached.epochs]
        return reached
