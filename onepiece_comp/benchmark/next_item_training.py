"""Epochs over the users with early stopping on validation: every position of a window predicts the next item.

Stands between `next_item_model.py` and `run.py`. Batches are of users of like length, in random order; all
randomness comes from the row's seed. Legend: B users, T positions, N valid rows, I items, M negatives of a user.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from onepiece_comp.benchmark.epoch_state import Epoch, EpochState
from onepiece_comp.benchmark.full_ranking import Scored, Scorer, batches_of, judge
from onepiece_comp.benchmark.interactions import LEAST_EVENTS, Interactions, Window, lengths, targets, window
from onepiece_comp.benchmark.next_item_losses import (
    LOSSES, calibrated_power, full_softmax, generalised_bce, mean_over_sample, sampled_softmax)
from onepiece_comp.benchmark.next_item_model import NextItemModel, check_model
from onepiece_comp.benchmark.rows import RowConfig
from onepiece_comp.benchmark.weight_average import WeightAverage
from onepiece_comp.console import say
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation.metrics import ndcg
from onepiece_comp.training.process import kept_heap, repeatable

_SCORES_AT_ONCE, _USERS_AT_ONCE = 1 << 25, 256  # in memory while users are judged
DRAWN_FOR = ("user", "position")  # whose own the negatives of sampled losses are
_POOL = 32  # batches whose users are sorted by length together
Loss = Callable[[Window, torch.Tensor], torch.Tensor]  # of inputs and the items that followed, 0 = none


class Trained(NamedTuple):
    """The model of the best epoch, and what all of them reached."""

    model: nn.Module
    best_epoch: int
    epochs: list[Epoch]
    earlier: int = 0  # of the epochs, those of a call that was ended


def train_next_item(log: Interactions, config: RowConfig, *, max_length: int, seed: int,
                    state: Path | None = None) -> Trained:
    """Train until `patience` epochs bring nothing better on validation, or `epochs` are done; `state` as in `fit`."""
    check_row(log, config)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = NextItemModel(config, items=log.items, max_length=max_length, attributes=log.attributes)
    loss = lambda seen, target_BT: next_item_loss(model(seen), model.keys(), config, target_BT, rng)
    valid = lambda: validate(scorer(model, log, max_length), log)
    return fit(model, loss, valid, log, config, max_length, rng, state=state)


def lacks(log: Interactions, config: RowConfig) -> str:
    """What a row reads and the data does not have: times, attributes, or nothing."""
    if config.time != "none" and log.time_seconds is None:
        return "times"
    return "attributes" if config.attributes and log.attributes is None else ""


def check_row(log: Interactions, config: RowConfig) -> None:
    """InputError for settings of which no training can be made, and for what the data does not have."""
    check_model(config)
    if config.loss not in LOSSES:
        raise InputError("loss", found=repr(config.loss), expected=f"one of {', '.join(LOSSES)}",
                         do="choose one of these")
    if config.drawn_for not in DRAWN_FOR:
        raise InputError("drawn_for", found=repr(config.drawn_for), expected=f"one of {', '.join(DRAWN_FOR)}",
                         do="choose one of these")
    if missing := lacks(log, config):
        file = {"times": "interactions.parquet", "attributes": "item2attributes.json"}[missing]
        raise InputError(missing, found="none in the data",
                         expected=f"those that this row reads; beside sequences they are in {file}",
                         do="put it there, or leave these rows out with --models")
    if not (lengths(log, 2) >= 2).any():
        raise InputError("users", found=f"{log.users}, none with more than {LEAST_EVENTS} events",
                         expected="a user with two "
                         "events to train on beside those of validation and test", do="give a longer log")


@kept_heap()
def fit(model: nn.Module, loss: Loss, valid: Callable[[], float], log: Interactions, config: RowConfig, max_length: int,
        rng: np.random.Generator, *, optimiser: torch.optim.Optimizer | None = None,
        state: Path | None = None) -> Trained:
    """The epochs of any model of next items; `valid` gives the figure by which the best one is told.

    `state` is a file that is written after every epoch and read at the start: a training that was ended goes on.
    """
    optimiser = (optimiser
                 or torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), fused=True))
    average = WeightAverage(model, config.average)
    optimiser.register_step_post_hook(lambda *_: average.step())
    kept = EpochState(state, model, optimiser, average, rng)
    reached = kept.restore()
    earlier = len(reached.epochs)
    if earlier:
        say(f"goes on after epoch {earlier} ({state})")
    while len(reached.epochs) < config.epochs and len(reached.epochs) - reached.best_epoch < config.patience:
        started, worked = time.monotonic(), time.process_time()
        with repeatable(torch.device("cpu")):
            mean_loss = _one_epoch(model, optimiser, loss, log, config, max_length, rng)
        with average.inside():
            reached.take(Epoch(len(reached.epochs) + 1, mean_loss, valid(), time.monotonic() - started,
                               time.process_time() - worked), model)
        kept.save(reached)
        _tell(reached.epochs[-1], config)
    model.load_state_dict(reached.best_weights)
    return Trained(model, reached.best_epoch, reached.epochs, earlier)


def _tell(epoch: Epoch, config: RowConfig) -> None:
    if epoch.epoch == 1:
        say(f"{config.epochs} epochs at most, {config.epochs * epoch.seconds / 60:.0f} min; {config.patience} without "
            f"a better one end it")
    say(f"epoch {epoch.epoch:3d}  loss {epoch.loss:8.4f}  valid NDCG@10 {epoch.valid_ndcg:.4f}  {epoch.seconds:7.1f} "
        f"s  "
        f"{epoch.cpu_seconds:7.1f} CPU s")


def _one_epoch(model: nn.Module, optimiser: torch.optim.Optimizer, loss_of: Loss, log: Interactions, config: RowConfig,
               max_length: int, rng: np.random.Generator) -> float:
    """The mean loss over rows.

    Batches are of like lengths, so their numbers of rows differ twentyfold. A step weighs as its rows do: with the mean
    of each batch alone a row of short histories would count as much as many of long ones.
    """
    model.train()
    total, rows, usual = 0.0, 0, usual_rows(log, config, max_length)
    for users in epoch_batches(lengths(log, 2), config.batch_users, rng):
        seen, target_BT = training_window(log, users, max_length)
        loss, count = loss_of(seen, torch.from_numpy(target_BT)), int(seen.length_B.sum())
        if not torch.isfinite(loss):
            raise InputError("loss", found=loss.item(), expected="a number", do="lower learning_rate")
        (loss * (count / usual)).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        total, rows = total + float(loss.detach()) * count, rows + count
    return total / max(1, rows)


def usual_rows(log: Interactions, config: RowConfig, max_length: int) -> float:
    """Mean number of rows of a batch."""
    length_U = lengths(log, 2)
    return config.batch_users * float(np.minimum(length_U[length_U >= 2] - 1, max_length).mean())


def epoch_batches(length_U: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:  # noqa: N803
    """Users with at least one transition, each once: random pools, sorted by length within, batches in random order."""
    users = rng.permutation(np.flatnonzero(length_U >= 2))
    batches = []
    for pool in batches_of(users, size * _POOL):
        batches.extend(batches_of(pool[np.argsort(length_U[pool], kind="stable")], size))
    return (batches[place] for place in rng.permutation(len(batches)))


def training_window(log: Interactions, users: np.ndarray, max_length: int) -> tuple[Window, np.ndarray]:
    """Inputs of each user's latest training events, and the item that followed each, 0 behind the last."""
    whole = window(log, users, held_out=2, longest=max_length + 1)
    inside = np.arange(whole.item_BT.shape[1] - 1) < whole.length_B[:, None] - 1
    cut = Window(*(None if part is None else part[:, :-1] for part in whole[:3]), whole.length_B - 1)
    return cut._replace(item_BT=cut.item_BT * inside), whole.item_BT[:, 1:]


def next_item_loss(query_BTD: torch.Tensor, key_ID: torch.Tensor, config: RowConfig,
                   target_BT: torch.Tensor,  # noqa: N803
                   rng: np.random.Generator) -> torch.Tensor:
    """Mean over the rows that have a target (above 0) of the loss that `config` names."""
    if config.drawn_for == "position":  # every position a user of its own
        query_BTD, target_BT = query_BTD[target_BT > 0][:, None], target_BT[target_BT > 0][:, None]
    valid_BT, row_BT = target_BT > 0, (target_BT - 1).clamp_min(0)
    if config.loss == "softmax":
        return full_softmax(query_BTD[valid_BT], key_ID, row_BT[valid_BT])
    draws = (*target_BT.shape,) if config.loss == "bce" else (len(target_BT), config.negatives)
    negative = torch.from_numpy(rng.integers(0, len(key_ID), draws))
    if config.loss == "bce":  # one of its own for every position
        query, target, drawn = query_BTD[valid_BT], row_BT[valid_BT], negative[valid_BT]
        positive, own = ((query * key_ID[item]).sum(-1) for item in (target, drawn))
        return generalised_bce(positive, own.masked_fill(target == drawn, -torch.inf)[:, None], 1.0)
    power = calibrated_power(config.negatives, len(key_ID), config.calibration)
    mean = sampled_softmax if config.loss == "sampled" else lambda *logits: generalised_bce(*logits, power)
    return mean_over_sample(mean, query_BTD, key_ID, row_BT, negative, valid_BT)


def scorer(model: NextItemModel, log: Interactions, max_length: int) -> Scorer:
    """Scores of all items from each user's last position, as the judge wants them."""

    @torch.inference_mode()
    def score(users: np.ndarray, held_out: int) -> np.ndarray:
        model.eval()
        seen = window(log, users, held_out=held_out, longest=max_length)
        last_BD = model(seen)[torch.arange(len(users)), torch.from_numpy(seen.length_B) - 1]
        out_BI = np.empty((len(users), log.items + 1), np.float32)
        out_BI[:, 0] = -np.inf
        out_BI[:, 1:] = (last_BD @ model.keys().T).numpy()
        return out_BI

    return score


def scored(score: Scorer, log: Interactions, held_out: int) -> Iterator[Scored]:
    """All users' scores, targets and histories, batch by batch of like length; in the order of `by_length`."""
    target = targets(log, held_out)
    for users in batches_of(by_length(log), max(1, min(_USERS_AT_ONCE, _SCORES_AT_ONCE // (log.items + 1)))):
        yield Scored(score(users, held_out), target[users], window(log, users, held_out=held_out).item_BT)


def by_length(log: Interactions) -> np.ndarray:
    """The users, shortest history first: batches with little padding."""
    return np.argsort(lengths(log, 0), kind="stable")


def validate(score: Scorer, log: Interactions) -> float:
    """NDCG@10 of the validation events with the seen filter."""
    return float(ndcg(judge(scored(score, log, 2), items=log.items, lists=False)["unseen"].rank, 10).mean())
