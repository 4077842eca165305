"""The loop of a run: steps, log lines, validation, checkpoints, and the state from which it goes on after any end.

Stands between the parts (batches, model, optimisers) and the stage, `train.py`. Batches, negatives and dropout
follow from the seed and the step, so a run that ends at any step and is resumed has the unbroken run's weights (on
CPU, bit for bit). The state is written by the clock, at every validation and when the process is asked to end.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from onepiece_comp.artefacts import MARKERS, atomic_file, read_json
from onepiece_comp.config import Config
from onepiece_comp.console import say
from onepiece_comp.dataset.preprocess import Dataset
from onepiece_comp.errors import Diverged, InputError, StaleRun
from onepiece_comp.models.batch import TrainBatch
from onepiece_comp.models.losses import LossOptions
from onepiece_comp.models.recommender import Losses, OnePiece
from onepiece_comp.training.arithmetic import bfloat16_peak, forward_work, shape_of
from onepiece_comp.training.batches import TrainingBatches, ahead
from onepiece_comp.training.checkpoint import save_checkpoint
from onepiece_comp.training.devices import Ranks, Replicas, count_replicas, seed_share
from onepiece_comp.training.optimisers import Optimisers, prepare_tables
from onepiece_comp.training.process import EndAsked
from onepiece_comp.training.run_log import CodesMet, RunLog, LogInterval
from onepiece_comp.training.table_optimiser import clip_gradients
from onepiece_comp.training.table_shards import shards_of, share_of_state, whole_state, whole_tables
from onepiece_comp.training.validation import HeldOut, as_good, hold_out, validate
from onepiece_comp.training.weights import load_tensors, require_finite, save_tensors

_DIVERGED, _LINES = 2.0, 5  # times the first log line's loss, and how many lines in a row


class Progress(NamedTuple):
    """Where a run stands."""

    step: int = 0  # steps done
    best_score: float = -1.0
    best_checkpoint: str = ""
    first_loss: float = 0.0  # of the first log line; 0 = before it
    worse: int = 0  # validations since the best score
    seconds: float = 0.0  # that it took to come to its last saved state, over all calls


class Loop:
    """The state of a run: model, optimisers, data order, progress; saved and restored as one."""

    def __init__(self, model: OnePiece, data: Dataset, run: Path, config: Config, device: torch.device, *, warm: bool,
                 ranks: Ranks, fresh: Sequence[str] | None = None):
        """`warm` says that the run started from another one's weights, all but those named in `fresh` (None:
        not known).
        """
        self.ranks, self.model, self.data, self.run = ranks, model, data, run
        self.device, self.started = device, time.monotonic()
        self.config, settings = config, config.train
        epochs, trained_rate = ((settings.warm_start_epochs, settings.warm_start_rate) if warm
                                else (settings.epochs, 1.0))
        self.held_out: HeldOut = hold_out(data, users=settings.validation_users, seed=settings.seed)
        self.shares = count_replicas(settings.replicas, device) * settings.accumulate  # of a step, on this rank
        reads_codes = model.decoder is not None and model.decoder.trend is not None
        self.batches = TrainingBatches(
            data, stop=self.held_out.stop, batch_users=settings.batch_users, max_events=config.model.max_events,
            sampled_negatives=settings.sampled_negatives, negative_power=settings.negative_power,
            bank_batches=settings.bank_batches, shared_negatives=settings.shared_negatives,
            stochastic_alpha=settings.stochastic_alpha, action_weights=settings.action_weights,
            moment_lag_seconds=settings.moment_lag_hours * 3600, click_lag_seconds=settings.click_lag_hours * 3600,
            horizon_seconds=settings.horizon_days * 86400, seed=settings.seed, popularity=config.model.trend,
            codes=model.codes.cpu().numpy() if reads_codes else None, rank=ranks.rank * self.shares,
            ranks=ranks.ranks * self.shares)
        self.total_steps = max(1, round(epochs * self.batches.steps_per_epoch))
        prepare_tables(model, optimiser=settings.table_optimiser, precision=settings.table_precision,
                       average=settings.average)
        self.codes_met = CodesMet(model)
        self.optimisers = Optimisers(
            model, learning_rate=settings.learning_rate, muon_learning_rate=settings.muon_learning_rate,
            weight_decay=settings.weight_decay, warmup_steps=round(settings.warmup * self.total_steps),
            total_steps=self.total_steps, trained_rate=trained_rate, muon=settings.muon,
            schedule=settings.schedule, tables=settings.table_optimiser, seed=settings.seed, fresh=fresh)
        self.shards = shards_of(model)
        self.average = (AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average)) if settings.average
                        else None)
        self.validate_at = {round((i + 1) * self.total_steps / settings.checkpoints)
                            for i in range(settings.checkpoints)}
        self.kept_score = np.zeros(0)  # per validation user, of the checkpoint that is kept
        self.progress = self._restore() if (run / "resume.pt").is_file() else Progress()
        self._seconds_before = self.progress.seconds
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()
        self._high_lines = 0  # log lines in a row with a loss far above the first one's
        self.use_bfloat16 = settings.precision == "bfloat16" or settings.precision == "auto" and device.type == "cuda"
        self.replicas = Replicas(model, device, self.shares // settings.accumulate)
        on_cards = self.use_bfloat16 and device.type == "cuda"
        peak = bfloat16_peak(torch.cuda.get_device_name(device)) if on_cards else None
        self.peak = peak * len(self.replicas.models) if peak else None  # of this rank's cards together

    @property
    def judged(self) -> OnePiece:
        """The weights that are validated and kept: the trained ones or, with `average`, their average over steps."""
        return self.model if self.average is None else self.average.module

    @property
    def seconds(self) -> float:
        """What the run has taken, calls before this one counted up to the state that they saved."""
        return self._seconds_before + time.monotonic() - self.started

    def run_steps(self, log: RunLog) -> None:
        """From where the run stands to its end, or to the end of the step in which the process is asked to stop."""
        settings, window = self.config.train, LogInterval(self.peak)
        with EndAsked() as end:
            for batches in self._remaining() if not self._lost_patience() else ():
                losses, norm, rate = self._step(batches)
                for batch, found in zip(batches, losses):
                    window.add(batch, found, norm, flops=self._flops(batch))
                    self.codes_met.add(batch)
                due = time.monotonic() - self._saved_at > 60 * settings.save_minutes
                asked, due = divmod(self.ranks.highest(2 * (end.signal or 0) + due), 2)  # one message for both
                end.signal = asked or end.signal  # all end as one was asked to; asked since then: in the next step
                step = self.progress.step
                log.write_step(step, loss=float(np.mean([found.total.item() for found in losses])),
                               epoch=step / self.batches.steps_per_epoch)
                if step % settings.log_every == 0 or step == self.total_steps:
                    self._log_line(log, {**window.record(), **self.codes_met.record()}, rate)
                    window = LogInterval(self.peak)
                if step in self.validate_at or step == self.total_steps:
                    self._checkpoint(log)
                    window = LogInterval(self.peak)
                elif asked or due:
                    self._save_state()
                if asked:
                    say(f"asked to end: the state after step {step} is saved; go on with --resume")
                    return
                if self._lost_patience():
                    say(f"step {step}: {self.progress.worse} validations without a better score, so training ends")
                    return

    def _lost_patience(self) -> bool:
        return 0 < self.config.train.patience <= self.progress.worse

    def _remaining(self) -> Iterator[tuple[TrainBatch, ...]]:
        """The shares of each step that is left."""
        per_epoch = self.batches.steps_per_epoch
        while self.progress.step < self.total_steps:
            epoch, first = divmod(self.progress.step, per_epoch)
            batches = self.batches.epoch(epoch, first, count=self.shares)
            batches = ahead(batches) if self.device.type == "cuda" else batches  # a CPU has no core to spare
            for shares in zip(*[iter(batches)] * self.shares):
                yield shares
                if self.progress.step >= self.total_steps:
                    return

    def _step(self, shares: Sequence[TrainBatch]) -> tuple[list[Losses], float, float]:
        """(losses, gradient norm, learning rate); the weights do not move where one of these is not finite."""
        losses = self.replicas.run(self._backward, shares)
        self.replicas.gather()
        divided = [table.weight for table in self.shards]  # whose gradients are sums over the ranks already
        common = [p for p in self.model.parameters() if not any(p is own for own in divided)]
        self.ranks.sum_gradients(common)
        norm = clip_gradients(common, self.config.train.clip, shares=divided,
                              total=self.ranks.total if divided else None)
        parts = {f"the {name} loss": sum(float(getattr(part, name)) for part in losses)
                 for name in ("retrieval", "semantic", "conditioned", "balance")}
        for name, value in {**parts, "the gradient's norm": norm}.items():
            if not np.isfinite(value):
                self._refuse(f"{name} is {value}", self.progress.step + 1)
        rate = self.optimisers.step(self.progress.step)
        self.replicas.spread()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.progress = self.progress._replace(step=self.progress.step + 1)
        return losses, norm, rate

    def _backward(self, model: OnePiece, place: int, batch: TrainBatch) -> Losses:
        """The gradient of a share's part of the step, on the device of `model`."""
        device, every = next(model.parameters()).device, self.batches.ranks
        model.train()
        seed_share(self.config.train.seed, self.progress.step * every + self.batches.rank + place, device)
        with torch.autocast("cuda", torch.bfloat16) if self.use_bfloat16 else contextlib.nullcontext():
            losses = model.losses(batch.to(device), semantic_weight=self.config.train.semantic_weight,
                                  conditioned_weight=self.config.train.conditioned_weight,
                                  retrieval_weight=self.config.train.retrieval_weight, options=self._options())
        (losses.total / every).backward()
        return losses

    def _flops(self, batch: TrainBatch) -> float:
        settings = self.config.train
        work = forward_work(self.model, shape_of(batch), semantic=settings.semantic_weight > 0,
                            conditioned=settings.conditioned_weight > 0, compared=2 if settings.loss == "bce" else None)
        return (work if settings.retrieval_weight else work._replace(retrieval=0, similarity=0)).training_flops

    def _options(self) -> LossOptions:
        settings = self.config.train
        late = self.progress.step >= settings.hard_after * self.total_steps
        return LossOptions(settings.loss, settings.logq, settings.positive_logq, settings.hard_negatives if late else 0,
                           settings.duplicate_cosine)

    def _refuse(self, found: str, step: int) -> None:
        saved = (f"the state after step {self._saved_step}" if (self.run / "resume.pt").is_file() else "nothing") + (
            f" and checkpoint {self.progress.best_checkpoint}" if self.progress.best_checkpoint else "")
        raise Diverged(
            f"{self.run}: step {step}", found=found, expected="a loss that falls", do="lower train.learning_rate and "
            f"train.muon_learning_rate and start a new run; kept from this one: {saved}")

    def _log_line(self, log: RunLog, found: dict[str, float], rate: float) -> None:
        found = self.ranks.tell(found)  # the first rank's, so that all end alike
        step, loss = self.progress.step, found["Loss/retrieval"] + found["Loss/semantic"]
        epoch_seconds = len(self.batches.users) / (found["users_per_second"] * self.ranks.ranks)
        left = (self.total_steps - step) / self.batches.steps_per_epoch * epoch_seconds
        epoch = step / self.batches.steps_per_epoch
        log.write({"global_step": step, "epoch": round(epoch, 3), **found, "learning_rate": rate,
                   "muon_learning_rate": rate * self.config.train.muon_learning_rate / self.config.train.learning_rate,
                   "seconds_per_epoch": epoch_seconds, "seconds_left": left, "time": time.time()})
        say(f"step {step:6d}/{self.total_steps}  epoch {epoch:6.2f}  retrieval {found['Loss/retrieval']:7.4f}  "
            f"semantic {found['Loss/semantic']:7.4f}  norm {found['gradient_norm']:6.2f}  "
            f"gini {found.get('expert_gini', 0):.2f}  {found['users_per_second']:7.0f} users/s  "
            f"epoch {epoch_seconds:5.0f} s  left {left:5.0f} s")
        if not self.progress.first_loss:
            self.progress = self.progress._replace(first_loss=loss)
        self._high_lines = self._high_lines + 1 if loss > _DIVERGED * self.progress.first_loss else 0
        if self._high_lines == _LINES:
            self._refuse(f"a loss of {loss:.3g} after one of {self.progress.first_loss:.3g} at the start", step)

    def _checkpoint(self, log: RunLog) -> None:
        """On the first rank: validate, keep this checkpoint unless the one kept is clearly better, write the state."""
        with whole_tables(self.model):
            if self.ranks.first:
                self._judge(log)
            self.progress = Progress(*self.ranks.tell(list(self.progress)))
        self._save_state()

    def _judge(self, log: RunLog) -> None:
        score, user_score = 0.0, np.zeros(0)
        if len(self.held_out.user):
            found = validate(self.judged, self.data, self.held_out, self.device)
            score, user_score = found.score, found.user_score
            log.write({"global_step": self.progress.step, "valid/HR@10": float(found.hit.mean()),
                       "valid/NDCG@10": float(found.gain.mean()), "valid/score": score})
            say(f"step {self.progress.step:6d}  valid HR@10 {found.hit.mean():.4f}  NDCG@10 {found.gain.mean():.4f}  "
                f"score {score:.4f}")
        # without anybody to judge by there is no worse
        better = score > self.progress.best_score or not len(self.held_out.user)
        self.progress = self.progress._replace(worse=0 if better else self.progress.worse + 1,
                                               best_score=max(score, self.progress.best_score))
        if not self.progress.best_checkpoint or as_good(user_score, self.kept_score):
            self.kept_score = user_score
            folder = save_checkpoint(
                self.run,
                self.judged,
                self.data.trend,
                step=self.progress.step,
                score=score,
                infer=self.config.infer,
                dataset=self.data.fingerprint,
                evaluation=_evaluation_of(self.data),
                columns=self.data.path,
                actions=self.batches.trained_actions(),
            )
            for older in self.run.glob("global_step*"):
                if older != folder:
                    shutil.rmtree(older)
            self.progress = self.progress._replace(best_checkpoint=folder.name)

    def _save_state(self) -> None:
        """What `_restore` reads; dropout needs no state, it follows from the step."""
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()
        self.progress = self.progress._replace(seconds=self.seconds)
        optimisers = {name: whole_state(state, self.optimisers.parameters(name), self.shards)
                      for name, state in self.optimisers.state_dict().items()}
        with whole_tables(self.model):
            if self.ranks.first:
                with atomic_file(self.run / "resume.pt") as temporary:
                    save_tensors({"model": self.model.state_dict(), "optimisers": optimisers,
                                  "progress": list(self.progress), "kept_score": torch.from_numpy(self.kept_score),
                                  "average": None if self.average is None else self.average.state_dict()}, temporary)
        self.ranks.wait()  # with more patience than for gradients: a large state takes its time

    def _restore(self) -> Progress:
        try:
            state = load_tensors(self.run / "resume.pt")
            self.model.load_state_dict(state["model"])
            require_finite(state["model"], self.run / "resume.pt")
        except (InputError, RuntimeError, KeyError) as error:
            if isinstance(error.__cause__,
                          OSError) or not (isinstance(error, InputError) or "state_dict" in str(error)):
                raise  # the disk or the card, not the state
            raise StaleRun(self.run / "resume.pt", found=f"a state that does not fit ({str(error).splitlines()[0]})",
                           expected="that of this model and data", do="start a new run") from error
        self.kept_score = state["kept_score"].numpy()
        self.optimisers.load_state_dict({name: share_of_state(part, self.optimisers.parameters(name), self.shards)
                                         for name, part in state["optimisers"].items()})
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        return Progress(*state["progress"])


def _evaluation_of(data: Dataset) -> str | None:
    """The evaluation folder that a split wrote beside the training files of this dataset."""
    beside = Path(read_json(data.path / MARKERS["dataset"])["source"]["path"]).parent / "eval"
    return str(beside) if (beside / "predict_seq.jsonl").is_file() else None
