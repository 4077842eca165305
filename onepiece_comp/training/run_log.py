"""The log of a run: JSON lines, and TensorBoard scalars where tensorboard is installed.

`log.jsonl` in the run has a record for each interval and validation; `train.log`, where the platform wants it, a line
for each step as the organisers' baseline writes it: {"global_step", "loss", "epoch", "time"}. A resumed
run writes again what came after its last saved state, so those records are dropped first.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from onepiece_comp.artefacts import atomic_file, peak_memory_mib
from onepiece_comp.models.batch import TrainBatch
from onepiece_comp.models.losses import entropy, load_gini
from onepiece_comp.models.recommender import Losses, OnePiece


class RunLog:
    """Appends records as JSON lines, and as TensorBoard scalars where tensorboard is installed."""

    def __init__(self, places: tuple[Path, Path | None, Path | None] | tuple[()], step: int):
        """`places`: the run, and where the platform wants events and log; without any nothing is written."""
        self._file = self._steps = self._board = None
        if not places:
            return
        run, events, log = places
        self._file = _reopened(run / "log.jsonl", step)
        self._steps = None if log is None else _reopened(log / "train.log", step)
        try:
            from torch.utils.tensorboard import SummaryWriter
            self._board = SummaryWriter(str(events or run / "events"), purge_step=step or None)
        except ImportError:  # tensorboard is optional
            self._board = None

    def write(self, record: dict) -> None:
        """A record of an interval or a validation."""
        _append(self._file, record)
        for name, value in record.items():
            if self._board and isinstance(value, (int, float)) and name != "global_step":
                self._board.add_scalar(name, value, record["global_step"])

    def write_step(self, step: int, *, loss: float, epoch: float) -> None:
        """A step, under the baseline's names."""
        _append(self._steps, {"global_step": step, "loss": loss, "epoch": epoch, "time": time.time()})
        if self._board:
            self._board.add_scalar("Loss/train", loss, step)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exc: object) -> None:
        for closable in (self._file, self._steps, self._board):
            if closable:
                closable.close()


def _append(file: TextIO | None, record: dict) -> None:
    if file:
        file.write(json.dumps(record) + "\n")
        file.flush()


def _reopened(path: Path, step: int) -> TextIO:
    _keep_until(path, step)
    return open(path, "a", encoding="utf-8")


def _keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, which a resumed run writes again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for line in path.read_text("utf-8").splitlines() if step and path.is_file() else []:
        with contextlib.suppress(ValueError):  # the line that a kill cut short
            if json.loads(line)["global_step"] <= step:
                kept.append(line + "\n")
    with atomic_file(path) as temporary:
        temporary.write_text("".join(kept), "utf-8")


class LogInterval:
    """What has happened since the last log line; `peak` is the FLOP/s of this rank's cards where it is known."""

    def __init__(self, peak: float | None) -> None:
        self.started, self.users, self.rows, self.parts, self.load = time.monotonic(), 0, 0, [], None
        self.flops, self.peak = 0.0, peak

    def add(self, batch: TrainBatch, losses: Losses, norm: float, *, flops: float) -> None:
        self.users += len(batch.history.length_B)
        self.flops += flops
        self.rows += len(batch.target_N)
        self.parts.append([float(losses.retrieval), float(losses.semantic), float(losses.conditioned),
                           float(losses.balance), norm])
        if losses.expert_load is not None:
            load = losses.expert_load.cpu()  # replicas have theirs on cards of their own
            self.load = load if self.load is None else self.load + load

    def record(self) -> dict[str, float]:
        seconds = max(time.monotonic() - self.started, 1e-9)
        names = ("Loss/retrieval", "Loss/semantic", "Loss/conditioned", "Loss/balance", "gradient_norm")
        found = {**dict(zip(names, np.mean(self.parts, 0).tolist())), "users_per_second": self.users / seconds,
                 "events_per_second": self.rows / seconds, "flops_per_second": self.flops / seconds,
                 "peak_memory_mib": peak_memory_mib()}
        if self.peak is not None:
            found["share_of_peak"] = found["flops_per_second"] / self.peak
        if self.load is not None:
            found |= {"expert_gini": load_gini(self.load), "expert_entropy": entropy(self.load),
                      "experts_unused": int((self.load == 0).sum())}
        return found


class CodesMet:
    """Which codes were a target's, since the run began or was resumed: the others get no gradient of their own."""

    def __init__(self, model: OnePiece):
        self.code_IL, levels = model.codes.cpu().long(), model.decoder.levels if model.decoder is not None else 0
        self.left_LC = torch.zeros(levels, model.decoder.codes if levels else 0, dtype=torch.bool)
        if levels:  # what no item has is not waited for
            self.left_LC.scatter_(1, self.code_IL[(self.code_IL >= 0).all(1)].T, True)

    def add(self, batch: TrainBatch) -> None:
        if len(self.left_LC):
            code_NL = self.code_IL[batch.items.id_row_N[1:][batch.target_N]]
            self.left_LC.scatter_(1, code_NL[(code_NL >= 0).all(1)].T, False)

    def record(self) -> dict[str, int]:
        return {f"dead_codes/level_{level}": int(left_C.sum()) for level, left_C in enumerate(self.left_LC)}
