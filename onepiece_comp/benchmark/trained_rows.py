"""The trained models of a public benchmark, each once:
rows that differ in how they rank share one, and so do first stages.

Stands between the trainings and `run.py`. OUT/weights/KEY.pt holds weights, epochs and cost, KEY being made of
the data and of all settings that training reads; KEY.state.pt is of a training that has not ended.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.artefacts import atomic_file, fingerprint
from onepiece_comp.benchmark.epoch_state import Epoch
from onepiece_comp.benchmark.interactions import Interactions
from onepiece_comp.benchmark.next_item_codes import CodeModel, check_codes, codes_of
from onepiece_comp.benchmark.next_item_model import NextItemModel
from onepiece_comp.benchmark.next_item_ranking import code_scorer, ranking_of, valid_rankings
from onepiece_comp.benchmark.next_item_training import Trained, check_row, fit, train_next_item, validate
from onepiece_comp.benchmark.rows import CodeRowConfig, RowConfig, rows, training_part
from onepiece_comp.console import say
from onepiece_comp.errors import InputError
from onepiece_comp.training.weights import load_tensors, save_tensors


class Task(NamedTuple):
    """What a benchmark asks to be learned, and where its models are kept."""

    out: Path
    about: dict  # protocol and data
    log: Interactions
    max_length: int


class Learned(NamedTuple):
    """A row's model and what it took when it was trained, be it in an earlier call."""

    trained: Trained
    seconds: float
    cpu_seconds: float
    first: "Learned | None" = None  # the row trained before, for a row with codes

    def cost(self) -> tuple[float, float]:
        """Seconds and CPU seconds of both stages."""
        earlier = self.first.cost() if self.first else (0.0, 0.0)
        return self.seconds + earlier[0], self.cpu_seconds + earlier[1]


def learned_row(task: Task, config: RowConfig, seed: int) -> Learned:
    """The model of a row, trained here or before."""
    if not isinstance(config, CodeRowConfig):
        train = lambda state: train_next_item(task.log, config, max_length=task.max_length, seed=seed, state=state)
        return _once(task, config, seed, train, None)
    before = first_stage(task.about["protocol"], config)
    say(f"first {config.first}")
    first = learned_row(task, before, seed)
    say("then with its codes")
    train = lambda state: train_codes(task, config, first.trained.model, seed, state)
    learned = _once(task, config, seed, train, before)
    return learned._replace(first=first)


def check(config: RowConfig, log: Interactions, protocol: str) -> None:
    """InputError for what would end a row, in whatever stage: before hours of training, not after."""
    if config.model in ("popularity", "item_knn"):
        return
    check_row(log, config)
    if isinstance(config, CodeRowConfig):
        check_codes(config, log.items)
        ranking_of(config), valid_rankings(config)
        check_row(log, first_stage(protocol, config))


def first_stage(protocol: str, config: CodeRowConfig) -> RowConfig:
    """The row whose item vectors become codes, as the protocol has it; InputError if there is none of that name."""
    known = {name: row for name, row in rows(protocol).items() if row.model == "sequence"}
    if config.first not in known:
        raise InputError("first", found=repr(config.first), expected=f"of {', '.join(known)}", do="choose among these")
    return dataclasses.replace(known[config.first], epochs=min(known[config.first].epochs, config.first_epochs))


def train_codes(task: Task, config: CodeRowConfig, first: NextItemModel, seed: int,
                state: Path | None = None) -> Trained:
    """Codes from the item vectors of `first`, then the epochs of a model with them; `state` as in `fit`."""
    log, max_length = task.log, task.max_length
    vector_IV = first.keys().detach().numpy()
    code_IL = torch.from_numpy(codes_of(vector_IV, config, seed))
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = CodeModel(config, code_IL=code_IL, vector_IV=torch.from_numpy(vector_IV), max_length=max_length,
                      attributes=log.attributes)
    scores = [code_scorer(model, log, max_length, ranking) for ranking in valid_rankings(config)]
    valid = lambda: float(np.mean([validate(score, log) for score in scores]))
    loss = lambda seen, target_BT: model.loss(seen, target_BT, rng)
    return fit(model, loss, valid, log, config, max_length, rng, state=state)


def _once(task: Task, config: RowConfig, seed: int, train: Callable[[Path], Trained],
          before: RowConfig | None) -> Learned:
    """The model kept under these settings, or a new one, which is kept then; a training that was ended goes on."""
    key = fingerprint(task.about, training_part(config), before and training_part(before), seed)
    path = task.out / "weights" / f"{key}.pt"
    if path.is_file():
        say(f"trained before ({path})")
        return _load(path, config, task)
    started, worked, state = time.monotonic(), time.process_time(), path.with_suffix(".state.pt")
    trained = train(state)
    earlier = trained.epochs[:trained.earlier]
    learned = Learned(trained, time.monotonic() - started + sum(epoch.seconds for epoch in earlier),
                      time.process_time() - worked + sum(epoch.cpu_seconds for epoch in earlier))
    with atomic_file(path) as temporary:
        save_tensors({
            "weights": trained.model.state_dict(), "best_epoch": trained.best_epoch, "seconds": learned.seconds,
            "cpu_seconds": learned.cpu_seconds, "epochs": [epoch._asdict() for epoch in trained.epochs]}, temporary)
    state.unlink(missing_ok=True)
    return learned


def _load(path: Path, config: RowConfig, task: Task) -> Learned:
    stored = load_tensors(path)
    weights = stored["weights"]
    if isinstance(config, CodeRowConfig):
        model = CodeModel(config, code_IL=weights["code_IL"], vector_IV=weights["vector_IV"],
                          max_length=task.max_length,
                          attributes=task.log.attributes)
    else:
        model = NextItemModel(config, items=task.log.items, max_length=task.max_length, attributes=task.log.attributes)
    model.load_state_dict(weights)
    trained = Trained(model, stored["best_epoch"], [Epoch(**epoch) for epoch in stored["epochs"]])
    return Learned(trained, stored["seconds"], stored["cpu_seconds"])
