"""What a training step costs in an id table: dense AdamW against the row optimisers, by the number of rows.

    python benchmarks/table_step.py --rows 100000 1000000 10000000 --results benchmarks/results

A step looks up 5,000 rows of 32, some of them twice, takes the gradient, clips it and steps the table. One thread.
Forms take turns; the time is the median, memory is weights, gradient and optimiser state of the table.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from onepiece_comp.console import table as show
from onepiece_comp.row_optim import RowOptimiser, clip_gradients

WIDTH, TOUCHED = 32, 5000
FORMS = ("adamw", "adam_rows", "adagrad_rows", "adagrad_rows, bfloat16")


class Form:
    """A table with its optimiser."""

    def __init__(self, name: str, rows: int):
        self.table = nn.Embedding(rows, WIDTH, sparse=name != "adamw")
        if name.endswith("bfloat16"):
            self.table.weight.data = self.table.weight.data.bfloat16()
        kind = name.split("_")[0]
        self.optimiser = (torch.optim.AdamW(self.table.parameters(), lr=0.002, weight_decay=0.0) if name == "adamw"
                          else RowOptimiser([self.table.weight], kind=kind, lr=0.002))

    def step(self, index: torch.Tensor) -> float:
        """Seconds of one step."""
        started = time.perf_counter()
        self.table(index).float().square().sum().backward()
        clip_gradients([self.table.weight], 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    def bytes_per_row(self) -> float:
        """Weights and state; a dense gradient is as large as the weights, a sparse one is the batch's."""
        weight = self.table.weight
        held = sum(value.numel() * value.element_size() for value in self.optimiser.state[weight].values()
                   if torch.is_tensor(value) and value.dim())
        dense = 0 if self.table.sparse else weight.numel() * 4
        return (weight.numel() * weight.element_size() + held + dense) / len(weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for rows in options.rows:
        forms, seconds = {name: Form(name, rows) for name in FORMS}, {name: [] for name in FORMS}
        draw = torch.Generator().manual_seed(0)
        for _ in range(options.steps + 2):
            index = torch.randint(0, rows, (TOUCHED,), generator=draw)
            for name, form in forms.items():
                seconds[name].append(form.step(torch.cat([index, index[:500]])))
        median = {name: float(np.median(times[2:])) for name, times in seconds.items()}
        for name, form in forms.items():
            lines.append((f"{rows:,}", name, f"{1000 * median[name]:.1f}", f"{median['adamw'] / median[name]:.1f}",
                          f"{form.bytes_per_row():.0f}"))
    columns = ("rows", "optimiser", "ms a step", "times adamw's speed", "bytes a row")
    show("a step of an id table", columns, lines)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "table_step.md").write_text("\n".join([
        f"`python benchmarks/table_step.py --rows {' '.join(map(str, options.rows))} --steps {options.steps}`", "",
        f"{TOUCHED:,} rows of {WIDTH} touched, 500 of them twice; one thread.", "",
        "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *("| " + " | ".join(line) + " |" for line in lines)]) + "\n")


if __name__ == "__main__":
    main()
