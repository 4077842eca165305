"""Training the ranker of a cascade's survivors as a stage: a checkpoint and its dataset in, a ranker folder out.

The checkpoint is frozen: its states, vectors and scores are inputs. The ranker learns from lists before late events of
training users (`past_lists.py`), is chosen by the users that the checkpoint's training held out, and calibrated on
their lists. It is kept only where it is better than the first stage alone. Legend: N lists, M candidates.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.artefacts import read_json
from onepiece_comp.config import InferConfig, RankerConfig, TrainConfig
from onepiece_comp.config_reading import from_dict
from onepiece_comp.console import say, table
from onepiece_comp.dataset.preprocess import Dataset
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation import metrics
from onepiece_comp.evaluation.calibration import (
    calibration_error, first_place_error, fit_platt, fit_temperature, list_loss, log_loss, sigmoid)
from onepiece_comp.logs.formats import CLICK, CONVERSION
from onepiece_comp.models.ranker import RankerOutput, TargetRanker, list_losses
from onepiece_comp.ranking.past_lists import PastLists, PastUsers, late_events
from onepiece_comp.training.checkpoint import Checkpoint
from onepiece_comp.training.validation import Validation, hold_out

_LISTS_AT_ONCE = 64


class Held(NamedTuple):
    """Lists of one kind and their users."""

    users: PastUsers
    lists: PastLists
    owner: np.ndarray  # int64 [N], number of the user in the dataset


def past_lists_of(loaded: Checkpoint, data: Dataset, config: RankerConfig, infer: InferConfig,
                  device: torch.device) -> tuple[Held, Held, Held]:
    """Lists to learn from, lists before the held-out clicks, lists before late events of validation users."""
    trained = _trained(loaded)
    held_out = hold_out(data, users=trained.validation_users, seed=trained.seed)
    if not len(held_out.user):
        raise InputError(data.path, found="no validation users", expected="some, to choose by",
                         do="train with train.validation_users above 0")
    others = np.setdiff1d(np.arange(len(data.user_start) - 1), held_out.user)
    rng = np.random.default_rng([config.seed, 3])
    event = [_draw(late_events(data, held_out.stop, others, late=config.late, clicked=clicked), number, rng)
             for clicked, number in ((True, config.examples), (False, config.examples // 2))]
    late = late_events(data, held_out.stop, held_out.user, late=config.late)
    say(f"frozen: {loaded.path}; lists of {config.depth} of mode {infer.mode} before {len(event[0]):,} clicks and "
        f"{len(event[1]):,} other events of training users, {len(held_out.event):,} clicks to choose by, {len(late):,} "
        f"events of validation users to calibrate by")
    made = []
    for name, events in (("to learn from", np.sort(np.concatenate(event))), ("to choose by", held_out.event),
                         ("to calibrate by", late)):
        owner = np.searchsorted(np.asarray(data.user_start), events, side="right") - 1
        users = PastUsers(loaded, data, infer, user=owner, event=events, trained=trained, seed=config.seed,
                          device=device)
        made.append(Held(users, users.lists(config.depth, f"lists {name}"), owner))
    return made[0], made[1], made[2]


def _draw(event: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(event, number, replace=False) if len(event) > number else event


def _trained(loaded: Checkpoint) -> TrainConfig:
    """How the checkpoint was trained, by the config.json of its run; InputError where that is not beside it."""
    path = loaded.path.parent / "config.json"
    if not path.is_file():
        raise InputError(path, found="no such file", expected="the run's settings, which tell its validation users",
                         do="give a checkpoint inside its run folder")
    return from_dict(TrainConfig, read_json(path).get("train", {}), path)


def fit_ranker(net: TargetRanker, learn: Held, chosen: Held, config: RankerConfig) -> dict:
    """Train, leave the best weights in `net`, and return the figures of the choice."""
    lists = learn.lists
    net.fit_parts(torch.from_numpy(lists.part_NMF[lists.allowed_NM]))
    optimiser = torch.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    per_epoch = -(-len(lists.place_N) // config.batch_lists)
    total = max(1, round(config.epochs * per_epoch))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, total))
    validate_at = {round((i + 1) * total / config.checkpoints) for i in range(config.checkpoints)}
    before, best, step, recent = _judge(None, chosen), None, 0, []
    say(f"{sum(p.numel() for p in net.parameters()):,} parameters, {total:,} steps; targets among the first "
        f"{config.depth}: "
        f"{lists.survived_N.mean():.3f} to learn from, {chosen.lists.survived_N.mean():.3f} to choose by; first stage "
        f"alone: HR@10 {before.hit.mean():.4f}  NDCG@10 {before.gain.mean():.4f}  score {before.score:.4f}")
    for users in _order(learn, total, config):
        recent.append(_step(net.train(), learn, users, optimiser, config))
        schedule.step()
        step += 1
        if step in validate_at:
            found = _judge(net, chosen)
            listwise, click = np.mean(recent, 0)
            say(f"step {step:6d}/{total}  list {listwise:.4f}  click {click:.4f}  valid HR@10 {found.hit.mean():.4f}  "
                f"NDCG@10 {found.gain.mean():.4f}  score {found.score:.4f}")
            recent = []
            if best is None or found.score > best[0].score:
                best = found, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(best[1])
    return _choice(before, best[0], config)


def _rate(step: int, total: int) -> float:
    warm = max(1, total // 20)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def _order(learn: Held, total: int, config: RankerConfig) -> Iterator[np.ndarray]:
    """`total` batches of lists: shuffled, users of like history length together."""
    length, step = np.diff(learn.users.evaluation.user_start), 0
    for epoch in range(math.ceil(config.epochs) + 1):
        rng = np.random.default_rng([config.seed, 4, epoch])
        lists = rng.permutation(len(length))
        stretch = 16 * config.batch_lists
        lists = np.concatenate([part[np.argsort(length[part], kind="stable")]
                                for part in np.split(lists, range(stretch, len(lists), stretch))])
        batches = np.split(lists, range(config.batch_lists, len(lists), config.batch_lists))
        for number in rng.permutation(len(batches)):
            if step == total:
                return
            step += 1
            yield batches[number]


def _step(net: TargetRanker, learn: Held, users: np.ndarray, optimiser: torch.optim.Optimizer,
          config: RankerConfig) -> tuple[float, float]:
    """One step; returns the losses of the lists and of the clicks."""
    lists, device = learn.lists, learn.users.device
    counted = lists.survived_N[users] | config.add_missed
    weight = np.array(config.action_weights, np.float32)[lists.action_N[users]] * counted
    given = learn.users.given(lists, users)
    losses = list_losses(net(given), *(torch.from_numpy(part).to(device)
                                       for part in (lists.place_N[users], lists.action_N[users], weight)))
    total = losses.listwise + config.binary_weight * (losses.click + losses.conversion)
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimiser.step()
    return float(losses.listwise.detach()), float(losses.click.detach())


@torch.no_grad()
def judge_lists(net: TargetRanker, held: Held) -> RankerOutput:
    """What the ranker says of all lists."""
    net.eval()
    parts = [net(held.users.given(held.lists, users))
             for users in np.array_split(np.arange(len(held.lists.place_N)),
                                         -(-len(held.lists.place_N) // _LISTS_AT_ONCE))]
    return RankerOutput(*(torch.cat(values).cpu() for values in zip(*parts)))


def _judge(net: TargetRanker | None, held: Held) -> Validation:
    """HR@10 and NDCG@10 of the lists as the ranker orders them, without one as the first stage did."""
    lists = held.lists
    rank = lists.place_N + 1
    if net is not None:
        order = judge_lists(net, held).logit_BM.argsort(dim=1, descending=True, stable=True).numpy()
        rank = (order == lists.place_N[:, None]).argmax(1) + 1
    rank = np.where(lists.survived_N & (rank <= 10), rank, 0)
    return Validation(metrics.hit_rate(rank, 10), metrics.ndcg(rank, 10))


def _choice(before: Validation, after: Validation, config: RankerConfig) -> dict:
    """Figures of the first stage and of the ranker on the users to choose by, and whether the ranker is kept."""
    lead = after.user_score - before.user_score
    error = float(lead.std(ddof=1) / len(lead) ** 0.5) if len(lead) > 1 else 0.0
    better = bool(lead.mean() > error)
    figures = lambda found: {"hr": float(found.hit.mean()), "ndcg": float(found.gain.mean()), "score": found.score}
    return {"kept": better or config.keep == "always", "better": better,
            "validation": {"users": len(lead), "without": figures(before), "with": figures(after),
                           "lead": float(lead.mean()), "lead_error": error}}


def calibrate_ranker(net: TargetRanker, chosen: Held, shown: Held) -> dict:
    """Corrections fitted on all validation users, and losses before and after one fitted on the other half of them."""
    lists = chosen.lists
    half, survived = np.arange(len(lists.place_N)) % 2, lists.survived_N
    logit = judge_lists(net, chosen).logit_BM.numpy().astype(np.float64)[survived][:, :-1]
    place, half = lists.place_N[survived], half[survived]
    after = _crossed(half, lambda fit, on: logit[on] / fit_temperature(logit[fit], place[fit]), logit)
    first = _first_score(lists)[survived][:, :-1]
    figures = {"list": {
        "lists": len(place), "temperature": fit_temperature(logit, place),
        "log_loss_of_first_stage": list_loss(first, place),
        "log_loss": [list_loss(part, place) for part in (logit, after)],
        "calibration_error": [first_place_error(part, place) for part in (logit, after)]}}
    judged, action = judge_lists(net, shown), shown.lists.action_N
    rows, user_half = np.arange(len(action)), np.unique(shown.owner, return_inverse=True)[1] % 2
    clicked = np.isin(action, (CLICK, CONVERSION))
    for name, logits, label, known in (("click", judged.click_BM, clicked, action <= CONVERSION),
                                       ("conversion", judged.conversion_BM, action == CONVERSION, clicked)):
        own = logits.numpy().astype(np.float64)[rows, shown.lists.place_N]
        if label[known].any() and not label[known].all():
            figures[name] = _binary(own[known], label[known], user_half[known])
    return figures


def _first_score(lists: PastLists) -> np.ndarray:
    """The first stage's own scores of the lists."""
    return np.where(lists.allowed_NM, lists.part_NMF[..., 0], -np.inf).astype(np.float64)


def _binary(logit: np.ndarray, label: np.ndarray, half: np.ndarray) -> dict:
    def corrected(fit: np.ndarray, on: np.ndarray) -> np.ndarray:
        slope, shift = fit_platt(logit[fit], label[fit])
        return slope * logit[on] + shift

    slope, shift = fit_platt(logit, label)
    both = [sigmoid(part) for part in (logit, _crossed(half, corrected, logit))]
    return {"events": len(label), "share": float(label.mean()), "slope": slope, "shift": shift,
            "log_loss_of_share": log_loss(np.full(len(label), label.mean()), label),
            "log_loss": [log_loss(part, label) for part in both],
            "calibration_error": [calibration_error(part, label) for part in both]}


def _crossed(half: np.ndarray, corrected: Callable[[np.ndarray, np.ndarray], np.ndarray],
             logit: np.ndarray) -> np.ndarray:
    """Each half corrected by what was fitted on the other."""
    after = logit.copy()
    for own in (0, 1):
        on, fit = np.flatnonzero(half == own), np.flatnonzero(half != own)
        if len(on):
            after[on] = corrected(fit, on)
    return after


def report_ranker(figures: dict, out: Path) -> None:
    valid = figures["validation"]
    rows = [(f"valid {name}", f"{valid['without'][name]:.4f}", f"{valid['with'][name]:.4f}")
            for name in ("hr", "ndcg", "score")]
    table(f"train-ranker: {valid['users']:,} validation users", ("figure", "first stage", "ranker"), rows)
    rows = [(f"{name}: {what.replace('_', ' ')}", *(f"{value:.4f}" for value in found[what]))
            for name, found in figures["calibration"].items() for what in ("log_loss", "calibration_error")]
    table("calibration, fitted on one half of the users and judged on the other", ("figure", "before", "after"), rows)
    say(f"lead of the ranker {valid['lead']:+.4f}, standard error {valid['lead_error']:.4f}: "
        + ("better than the first stage alone" if figures["better"] else "not better than the first stage alone")
        + (", kept" if figures["kept"] else ", so infer will leave it out"))
    say(f"wrote {out}")
