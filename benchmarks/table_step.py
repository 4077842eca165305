"""What a training step costs in an id table: dense AdamW against the row optimisers, by the number of rows.

    python benchmarks/table_step.py --rows 100000 1000000 10000000 --results benchmarks/results

A step looks up 5,000 rows of 32, 500 of them twice, takes the gradient, clips it and steps the table. Each form has a
process of its own, one thread, and its tables in memory before the first step that counts. The time is the median in
CPU seconds of the process, so that a busy machine tells the same; memory is the peak over the steps, beyond what the
libraries hold (Linux).
"""

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from onepiece_comp.console import say, table as show
from onepiece_comp.models.item_tower import look_up
from onepiece_comp.training.table_optimiser import RowOptimiser, clip_gradients

WIDTH, TOUCHED, TWICE = 32, 5000, 500
FORMS = ("adamw", "adamw, fused", "adam_rows", "adagrad_rows", "adam_rows, bfloat16", "adagrad_rows, bfloat16")


class Figures(NamedTuple):
    """Of one form at one number of rows."""

    seconds: float  # of CPU, a step
    peak_mib: float
    bytes_per_row: float  # weights and optimiser state


class Form:
    """A table with its optimiser."""

    def __init__(self, name: str, rows: int):
        dense = name.startswith("adamw")
        self.table = nn.Embedding(rows, WIDTH, sparse=not dense)
        if name.endswith("bfloat16"):
            self.table.weight.data = self.table.weight.data.bfloat16()
        self.optimiser = (torch.optim.AdamW(self.table.parameters(), lr=0.002, weight_decay=0.0,
                                            fused=name.endswith("fused"))
                          if dense else RowOptimiser([self.table.weight], kind=name.split("_")[0], lr=0.002))

    def step(self, index: torch.Tensor) -> float:
        """CPU seconds of one step."""
        started = time.process_time()
        look_up(self.table, index).square().sum().backward()
        clip_gradients([self.table.weight], 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return time.process_time() - started

    def held(self) -> list[torch.Tensor]:
        """Weights and optimiser state; numbers that are not by row are left out."""
        return [self.table.weight.data,
                *(value for value in self.optimiser.state[self.table.weight].values() if value.dim())]


def measure(name: str, rows: int, steps: int) -> Figures:
    """In this process, which should be fresh."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    small = Form(name, TOUCHED)
    small.step(torch.arange(TOUCHED))  # loads the libraries
    before = _resident_mib("VmRSS")
    form = Form(name, rows)

    def step() -> float:
        index = torch.randint(0, rows, (TOUCHED,), generator=draw)
        return form.step(torch.cat([index, index[:TWICE]]))

    step()
    for value in form.held():
        value.add_(0)  # a page of zeros is given when it is first written: in a run, within the first steps
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    seconds = float(np.median([step() for _ in range(steps)]))
    size = sum(value.numel() * value.element_size() for value in form.held())
    return Figures(seconds, _resident_mib("VmHWM") - before, size / rows)


def _resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process alone."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def measure_apart(name: str, rows: int, steps: int) -> Figures:
    """`measure` in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as process:  # torch is loaded, but nothing has run in this one
        return process.apply(measure, (name, rows, steps))


def lines_of(rows: int, steps: int) -> list[tuple[str, ...]]:
    """The table's lines for one number of rows."""
    found = {}
    for name in FORMS:
        found[name] = measure_apart(name, rows, steps)
        say(f"{rows:,} rows, {name}: {1000 * found[name].seconds:.2f} ms of CPU a step")
    dense = min(found[name].seconds for name in FORMS if name.startswith("adamw"))
    return [(f"{rows:,}", name, f"{1000 * figures.seconds:.2f}", f"{dense / figures.seconds:.1f}",
             f"{figures.peak_mib:,.0f}",
             f"{figures.bytes_per_row:.0f}") for name, figures in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    lines = [line for rows in options.rows for line in lines_of(rows, options.steps)]
    columns = ("rows", "optimiser", "CPU ms a step", "times dense AdamW's best speed", "peak MiB", "bytes a row")
    show("a step of an id table", columns, lines)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "table_step.md").write_text("\n".join([
        f"`python benchmarks/table_step.py --rows {' '.join(map(str, options.rows))} --steps {options.steps}`", "",
        f"{TOUCHED:,} rows of {WIDTH} touched, {TWICE} of them twice; one thread; torch {torch.__version__}.",
        "Peak: weights, gradient, state and what a step makes in passing; bytes a row: weights and state.", "",
        "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|",
        *("| " + " | ".join(line) + " |" for line in lines)]) + "\n")


if __name__ == "__main__":
    main()
