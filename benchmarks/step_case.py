"""A preset with made data, and the two forms of its training step: what `train_step.py` times."""

import argparse
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch
from made_dataset import made_codes, made_dataset
from plain_step import plain_losses, plain_model

from onepiece_comp.config import Config, TokenizerConfig
from onepiece_comp.config_reading import load_config
from onepiece_comp.dataset.preprocess import Dataset
from onepiece_comp.models.batch import TrainBatch
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.tokenizer.build import choose_codes
from onepiece_comp.training.batches import TrainingBatches
from onepiece_comp.training.optimisers import Optimisers
from onepiece_comp.training.table_optimiser import clip_gradients

FORMS = ("ours", "plain")
_CHECKED_USERS = 16
Milliseconds = dict[str, list[float]]  # by part


class Form:
    """One way of stepping a model: its loss, its optimisers."""

    def __init__(self, name: str, model: OnePiece, config: Config, device: torch.device):
        self.name, self.device, self.plain, self.config = name, device, name == "plain", config
        self.model = (plain_model(model) if self.plain else model).to(device).train()
        settings = config.train
        self.optimisers = Optimisers(
            self.model, learning_rate=settings.learning_rate, muon_learning_rate=settings.muon_learning_rate,
            weight_decay=settings.weight_decay, warmup_steps=1, total_steps=1000)
        for group in self.optimisers.adam.param_groups if self.plain else ():
            group["fused"] = None  # one tensor and operation after the other

    def loss(self, batch: TrainBatch) -> torch.Tensor:
        weight = self.config.train.semantic_weight
        if self.plain:
            return plain_losses(self.model, batch, semantic_weight=weight)
        return self.model.losses(batch, semantic_weight=weight).total

    def precision(self) -> contextlib.AbstractContextManager:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else contextlib.nullcontext()

    def step(self, batch: TrainBatch, number: int, clock: "Clock", kept: Milliseconds) -> None:
        """One step of training, timed in three parts."""
        start = clock.now()
        with self.precision():
            loss = self.loss(batch)
        forward = clock.now()
        loss.backward()
        backward = clock.now()
        clip_gradients(self.model.parameters(), self.config.train.clip)
        self.optimisers.step(number)
        end = clock.now()
        for part, seconds in (("forward", forward - start), ("backward", backward - forward),
                              ("optimiser", end - backward), ("whole step", end - start)):
            kept.setdefault(part, []).append(1000 * seconds)


class Clock:
    """Processor seconds of one thread, else those of the wall; a card is waited for."""

    def __init__(self, device: torch.device, threads: int):
        alone = device.type == "cpu" and threads == 1
        self.device, self.read = device, time.process_time if alone else time.perf_counter

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.read()


class Case:
    """A preset with its data and both forms."""

    def __init__(self, preset: str, users: int | None, negatives: int | None, options: argparse.Namespace, *,
                 forms: tuple[str, ...] = FORMS):
        self.device, config = torch.device(options.device), load_config(preset)
        train = {"batch_users": users, "sampled_negatives": negatives}
        model = {"max_events": options.events, "dropout": 0.0, "id_dropout": 0.0}
        self.config = config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, **{k: v for k, v in train.items() if v}),
            model=dataclasses.replace(config.model, **{k: v for k, v in model.items() if v is not None}))
        self.name = f"{preset}, {config.train.sampled_negatives:,} sampled negatives"
        self.items = options.items or (2_000_000 if self.device.type == "cuda" else 100_000)
        self.data = made_dataset(17 * config.train.batch_users, items=self.items, events=config.model.max_events)
        self.codes = choose_codes(self.items, TokenizerConfig())
        ids = made_codes(self.items, codes=self.codes)
        self.batches = training_batches(self.data, config, ids.numpy())
        self.forms = [Form(name, self._model(ids), config, self.device) for name in forms]

    def _model(self, ids: torch.Tensor) -> OnePiece:
        """The same weights each time; those that start at zero are drawn, so that nothing is hidden by zeros."""
        torch.manual_seed(0)
        model = OnePiece(self.config.model, self.data.schema, ids)
        for name, parameter in model.named_parameters():
            if name.endswith(("_HC", "trend", "id_table.weight")):
                torch.nn.init.normal_(parameter, std=0.1)
        return model

    def paired(self) -> Iterator[tuple[TrainBatch, TrainBatch]]:
        """Batches of users of like length, and of as many users as shuffled."""
        bucketed, shuffled = (self.batches._order(0, bucketed=bucketed) for bucketed in (True, False))
        size = self.config.train.batch_users
        whole = (part for part in zip(bucketed, shuffled) if len(part[0]) == len(part[1]) == size)
        for number, users in enumerate(itertools.cycle(whole)):
            yield tuple(self.batches.batch(some, np.random.default_rng(number)).to(self.device) for some in users)

    def check(self) -> float:
        """Both forms give the same loss and gradient in float32; the relative difference of the losses."""
        rng = np.random.default_rng(0)
        batch = self.batches.batch(rng.choice(self.batches.users, _CHECKED_USERS, replace=False), rng).to(self.device)
        found = []
        for form in self.forms:
            loss = form.loss(batch)
            weight = form.model.item_tower.linear.weight
            found.append((loss.item(), torch.autograd.grad(loss, weight)[0]))
        (ours, gradient), (plain, reference) = found
        assert abs(ours - plain) < 1e-4 * abs(plain), f"losses differ: {ours} and {plain}"
        assert (gradient - reference).norm() < 1e-3 * reference.norm(), "gradients differ"
        return abs(ours - plain) / abs(plain)


def training_batches(data: Dataset, config: Config, codes: np.ndarray) -> TrainingBatches:
    """What `train` reads."""
    settings = config.train
    return TrainingBatches(
        data, stop=np.array(data.user_start[1:]), batch_users=settings.batch_users, max_events=config.model.max_events,
        sampled_negatives=settings.sampled_negatives, action_weights=settings.action_weights,
        moment_lag_seconds=settings.moment_lag_hours * 3600, click_lag_seconds=settings.click_lag_hours * 3600,
        horizon_seconds=settings.horizon_days * 86400, seed=0, codes=codes)
