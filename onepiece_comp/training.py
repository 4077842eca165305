"""Training: a dataset in, a run folder out; the only place where model, losses, data and optimiser meet.

Batches, negatives and dropout follow from the seed, so a run that is killed and resumed ends with the weights of the
unbroken one (on CPU, bit for bit). The run folder holds config, environment, log (JSONL and, where installed,
TensorBoard), checkpoints, the best one's item vectors for the tokenizer, and `resume.pt`.
"""

import contextlib
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp import __version__
from onepiece_comp.artefacts import MARKERS, atomic_file, peak_memory_mib, read_json, write_json
from onepiece_comp.batches import TrainBatch, TrainingBatches, ahead
from onepiece_comp.checkpoint import find_checkpoint, load_checkpoint, load_tensors, save_checkpoint, warm_start
from onepiece_comp.config import Config, to_dict
from onepiece_comp.console import say, table
from onepiece_comp.errors import InputError
from onepiece_comp.losses import gini
from onepiece_comp.model import OnePiece, size
from onepiece_comp.optim import Optimisers
from onepiece_comp.paths import available_cores
from onepiece_comp.preprocess import Dataset, load_dataset
from onepiece_comp.retrieval import encode_item_table
from onepiece_comp.run_log import RunLog
from onepiece_comp.semantic_ids import load_tokenizer
from onepiece_comp.validation import HeldOut, as_good, hold_out, validate


class Progress(NamedTuple):
    """Where a run stands."""

    step: int  # steps done
    best_score: float
    best_checkpoint: str


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; asking for a GPU that is not there is an InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device", found="no CUDA device", expected="one, as device=cuda asks", do="use device=cpu or auto"
        )
    return torch.device(name)


def set_threads(threads: int) -> int:
    """Use `threads` CPU threads, or as many as this process may."""
    threads = threads or available_cores()
    torch.set_num_threads(threads)
    return threads


@contextlib.contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """On CPU: sums into shared rows in one order, however many threads there are. The settings are put back."""
    before, fill = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # ours is never read before it is written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def train(dataset: Path, run: Path, config: Config, *, tokenizer: Path | None = None, warm: Path | None = None,
          resume: bool = False, events: Path | None = None, log: Path | None = None) -> Path:
    """Train on a dataset folder and fill the run folder; returns it.

    With `tokenizer` the semantic-id head is trained too. `warm` is a run whose fitting weights are copied first.
    `events` and `log` are further places for TensorBoard events and the JSONL log, as the platform wants them.
    """
    data, run = load_dataset(dataset), Path(run)
    settings = {"version": __version__, "model": to_dict(config.model), "train": to_dict(config.train),
                "dataset": data.fingerprint, "tokenizer": _fingerprint_of(tokenizer)}
    _claim(run, settings, resume)
    going_on = resume and (run / "resume.pt").is_file()
    settings["warm_start"] = warm is not None or going_on and read_json(run / "config.json").get("warm_start", False)
    device, threads = choose_device(config.train.device), set_threads(config.train.threads)
    torch.manual_seed(config.train.seed)
    model = _build(data, config, tokenizer)
    if warm is not None and not going_on:
        say("warm start: %d of %d tensors copied" % warm_start(model, warm))
    model.to(device)
    write_json(run / "config.json", settings)
    write_json(
        run / "environment.json",
        {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": threads,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        },
    )
    loop = _Loop(model, data, run, config, device, warm=settings["warm_start"])
    _announce(loop, data)
    with RunLog(run, events, log, loop.progress.step if resume else 0) as records, _repeatable(device):
        loop.run_steps(records)
    return _finish(loop, settings, started=loop.started)


def _fingerprint_of(tokenizer: Path | None) -> str | None:
    return None if tokenizer is None else read_json(Path(tokenizer) / MARKERS["tokenizer"])["checksum"]


def _claim(run: Path, settings: dict, resume: bool) -> None:
    """A new run needs a free folder; a resumed one the same settings."""
    if resume:
        if not (run / "resume.pt").is_file():
            raise InputError(run, found="no resume.pt", expected="a run to resume", do="start it without --resume")
        stored = read_json(run / "config.json")
        changed = [f"{part}.{key}" for part in ("model", "train") for key in settings[part]
                   if stored[part].get(key) != settings[part][key]]
        changed += [key for key in ("dataset", "tokenizer") if stored.get(key) != settings[key]]
        if changed:
            raise InputError(
                run,
                found=f"a run with other settings ({', '.join(changed)})",
                expected="the same settings",
                do="resume with the run's own config, data and tokenizer",
            )
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(run, found="a folder that is not empty", expected="a new run folder",
                         do="go on with --resume, or choose another folder")
    run.mkdir(parents=True, exist_ok=True)


def _build(data: Dataset, config: Config, tokenizer: Path | None) -> OnePiece:
    codes = None
    if tokenizer is not None:
        codes = torch.from_numpy(np.array(load_tokenizer(tokenizer, data.schema.item_space).codes))
    return OnePiece(config.model, data.schema, codes)


class _Loop:
    """The state of a run: model, optimisers, data order, progress; saved and restored as one."""

    def __init__(self, model: OnePiece, data: Dataset, run: Path, config: Config, device: torch.device, *, warm: bool):
        self.model, self.data, self.run, self.device, self.started = model, data, run, device, time.monotonic()
        self.config, settings = config, config.train
        epochs, trained_rate = (settings.warm_start_epochs, settings.warm_start_rate) if warm else (settings.epochs, 1.0)
        self.held_out: HeldOut = hold_out(data, users=settings.validation_users, seed=settings.seed)
        self.batches = TrainingBatches(
            data, stop=self.held_out.stop, batch_users=settings.batch_users, max_events=config.model.max_events,
            sampled_negatives=settings.sampled_negatives, action_weights=settings.action_weights,
            moment_lag_seconds=settings.moment_lag_hours * 3600, click_lag_seconds=settings.click_lag_hours * 3600,
            horizon_seconds=settings.horizon_days * 86400, seed=settings.seed, popularity=config.model.trend,
            codes=model.codes.numpy() if model.decoder is not None and model.decoder.trend is not None else None)
        self.total_steps = max(1, round(epochs * self.batches.steps_per_epoch))
        self.optimisers = Optimisers(
            model, learning_rate=settings.learning_rate, muon_learning_rate=settings.muon_learning_rate,
            weight_decay=settings.weight_decay, warmup_steps=round(settings.warmup * self.total_steps),
            total_steps=self.total_steps, trained_rate=trained_rate)
        self.save_at = {round((i + 1) * self.total_steps / settings.checkpoints) for i in range(settings.checkpoints)}
        self.kept_score = np.zeros(0)  # per validation user, of the checkpoint that is kept
        self.progress = self._restore() if (run / "resume.pt").is_file() else Progress(0, -1.0, "")
        use_bfloat16 = settings.precision == "bfloat16" or settings.precision == "auto" and device.type == "cuda"
        self.precision = torch.autocast("cuda", torch.bfloat16) if use_bfloat16 else contextlib.nullcontext()

    def run_steps(self, log: RunLog) -> None:
        """From where the run stands to its end."""
        settings, window, load = self.config.train, [], None
        clock, users = time.monotonic(), 0
        for batch in self._remaining():
            losses, norm, rate = self._step(batch.to(self.device))
            window.append([float(losses.retrieval), float(losses.semantic), float(losses.balance), norm])
            load = losses.expert_load if load is None else load + losses.expert_load
            users += len(batch.history.length_B)
            step = self.progress.step
            if step % settings.log_every == 0 or step == self.total_steps:
                seconds = time.monotonic() - clock
                self._log_line(log, np.mean(window, 0), rate=rate, users_per_second=users / seconds, load=load)
                window, load, clock, users = [], None, time.monotonic(), 0
            if step in self.save_at or step == self.total_steps:
                self._checkpoint(log)
                clock = time.monotonic()

    def _remaining(self) -> Iterator[TrainBatch]:
        per_epoch = self.batches.steps_per_epoch
        while self.progress.step < self.total_steps:
            epoch, first = divmod(self.progress.step, per_epoch)
            batches = self.batches.epoch(epoch, first)
            for batch in ahead(batches) if self.device.type == "cuda" else batches:  # a CPU has no core to spare
                yield batch
                if self.progress.step >= self.total_steps:
                    return

    def _step(self, batch: TrainBatch) -> tuple:
        self.model.train()
        with self.precision:
            losses = self.model.losses(batch, semantic_weight=self.config.train.semantic_weight,
                                       positive_logq=self.config.train.positive_logq)
        if not torch.isfinite(losses.total):
            raise InputError(f"step {self.progress.step + 1}", found="a loss that is not finite", expected="a number",
                             do="lower train.learning_rate or train.muon_learning_rate; earlier checkpoints are kept")
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip)
        rate = self.optimisers.step(self.progress.step)
        self.progress = self.progress._replace(step=self.progress.step + 1)
        return losses, float(norm), rate

    def _log_line(
        self, log: RunLog, means: np.ndarray, *, rate: float, users_per_second: float, load: torch.Tensor | None
    ) -> None:
        step = self.progress.step
        left = (self.total_steps - step) * self.config.train.batch_users / max(users_per_second, 1e-9)
        record = {
            "global_step": step,
            "epoch": round(step / self.batches.steps_per_epoch, 3),
            "Loss/retrieval": means[0],
            "Loss/semantic": means[1],
            "Loss/balance": means[2],
            "gradient_norm": means[3],
            "learning_rate": rate,
            "users_per_second": users_per_second,
            "time": time.time(),
        }
        if load is not None:
            record["expert_gini"] = gini(load)
        log.write(record)
        say(f"step {step:6d}/{self.total_steps}  epoch {record['epoch']:6.2f}  retrieval {means[0]:7.4f}  "
            f"semantic {means[1]:7.4f}  norm {means[3]:6.2f}  gini {record.get('expert_gini', 0):.2f}  "
            f"{users_per_second:7.0f} users/s  left {left:5.0f} s")

    def _checkpoint(self, log: RunLog) -> None:
        """Validate, keep this checkpoint unless the one kept is clearly better, write the state to resume from."""
        score, user_score = 0.0, np.zeros(0)
        if len(self.held_out.user):
            found = validate(self.model, self.data, self.held_out, self.device)
            score, user_score = found.score, found.user_score
            log.write({"global_step": self.progress.step, "valid/HR@10": float(found.hit.mean()),
                       "valid/NDCG@10": float(found.gain.mean()), "valid/score": score})
            say(f"step {self.progress.step:6d}  valid HR@10 {found.hit.mean():.4f}  NDCG@10 {found.gain.mean():.4f}  "
                f"score {score:.4f}")
        if not self.progress.best_checkpoint or as_good(user_score, self.kept_score):
            self.kept_score = user_score
            folder = save_checkpoint(
                self.run,
                self.model,
                self.data.trend,
                step=self.progress.step,
                score=score,
                infer=self.config.infer,
                dataset=self.data.fingerprint,
                evaluation=_evaluation_of(self.data),
                columns=self.data.path,
            )
            for older in self.run.glob("global_step*"):
                if older != folder:
                    shutil.rmtree(older)
            self.progress = self.progress._replace(best_score=score, best_checkpoint=folder.name)
        with atomic_file(self.run / "resume.pt") as temporary:
            torch.save({"model": self.model.state_dict(), "optimisers": self.optimisers.state_dict(),
                        "progress": list(self.progress), "kept_score": torch.from_numpy(self.kept_score),
                        "random": torch.get_rng_state(),
                        "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else []}, temporary)

    def _restore(self) -> Progress:
        state = load_tensors(self.run / "resume.pt")
        self.kept_score = state["kept_score"].numpy()
        self.model.load_state_dict(state["model"])
        self.optimisers.load_state_dict(state["optimisers"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["random_cuda"])
        return Progress(*state["progress"])


def _evaluation_of(data: Dataset) -> str | None:
    """The evaluation folder that a split wrote beside the training files of this dataset."""
    beside = Path(read_json(data.path / MARKERS["dataset"])["source"]["path"]).parent / "eval"
    return str(beside) if (beside / "predict_seq.jsonl").is_file() else None


def _announce(loop: _Loop, data: Dataset) -> None:
    count, config = size(loop.model), loop.config
    events = int(loop.batches.events.sum())
    say(f"{len(loop.batches.users):,} users, {events:,} events, {data.schema.items:,} items; "
        f"{loop.total_steps:,} steps of {config.train.batch_users} users, {loop.total_steps / loop.batches.steps_per_epoch:.3g} epochs; "
        f"{count.dense:,} dense parameters, {count.tables:,} in tables; {len(loop.held_out.user)} validation users; "
        f"{loop.device}, {torch.get_num_threads()} threads")
    if loop.progress.step:
        say(f"resuming after step {loop.progress.step}")


def _finish(loop: _Loop, settings: dict, *, started: float) -> Path:
    """Item vectors of the best checkpoint, the run's marker, and a table."""
    run = loop.run
    best = load_checkpoint(find_checkpoint(run / loop.progress.best_checkpoint), loop.device).model
    rows = np.arange(1, loop.data.schema.items + 1)
    made = encode_item_table(best, loop.data.items, rows, loop.device)
    made = [part.cpu().numpy() for part in made if part is not None]
    vectors = np.concatenate(made, axis=1) / len(made) ** 0.5  # unit vectors again
    with atomic_file(run / "item_vectors.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors]))
    with atomic_file(run / "item_ids.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, np.asarray(loop.data.items.creative_id))
    seconds, count = time.monotonic() - started, size(best)
    figures = {
        "steps": loop.progress.step,
        "valid_score": loop.progress.best_score,
        "seconds": round(seconds, 1),
        "dense_parameters": count.dense,
        "table_parameters": count.tables,
        "peak_memory_mib": round(peak_memory_mib()),
    }
    write_json(run / MARKERS["run"], {**settings, "checkpoint": loop.progress.best_checkpoint, "figures": figures})
    table("train", ("what", "value"), [(what.replace("_", " "), f"{value:,}") for what, value in figures.items()])
    say(f"wrote {run / loop.progress.best_checkpoint}")
    return run
