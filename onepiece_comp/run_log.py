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

from onepiece_comp.artefacts import atomic_file


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
