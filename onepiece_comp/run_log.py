"""The log of a run: JSON lines, and TensorBoard scalars where tensorboard is installed.

A resumed run writes again what came after its last saved state, so those records are dropped first.
"""

import contextlib
import json
from pathlib import Path

from onepiece_comp.artefacts import atomic_file


class RunLog:
    """Appends records as JSON lines, and as TensorBoard scalars where tensorboard is installed."""

    def __init__(self, places: tuple[Path, Path | None, Path | None] | tuple[()], step: int):
        """`places`: the run, and where the platform wants events and log; without any nothing is written."""
        self._files, self._board = [], None
        if not places:
            return
        run, events, log = places
        paths = [folder / name for folder, name in ((run, "log.jsonl"), (log, "train.log")) if folder is not None]
        for path in paths:
            _keep_until(path, step)
        self._files = [open(path, "a", encoding="utf-8") for path in paths]
        try:
            from torch.utils.tensorboard import SummaryWriter
            self._board = SummaryWriter(str(events or run / "events"), purge_step=step or None)
        except ImportError:  # tensorboard is optional
            self._board = None

    def write(self, record: dict) -> None:
        for file in self._files:
            file.write(json.dumps(record) + "\n")
            file.flush()
        for name, value in record.items():
            if self._board and isinstance(value, (int, float)) and name != "global_step":
                self._board.add_scalar(name, value, record["global_step"])

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exc: object) -> None:
        for closable in (*self._files, *([self._board] if self._board else [])):
            closable.close()


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
