"""Optimisers: Muon for hidden matrices, AdamW for tables, vectors and heads; warm-up and cosine for both.

Source of Muon: Jordan et al. 2024 (Newton-Schulz orthogonalised momentum); used as in OnePiece (arXiv 2512.07424):
momentum .95 with Nesterov, five steps, scale sqrt(max(1, outputs / inputs)). Ours also takes stacks of matrices
(experts), matrices that stand on either side of their input, and runs where torch has no Muon of its own.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import nn

from onepiece_comp.errors import InputError
from onepiece_comp.models.declared import declarations
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.training.table_optimiser import RowOptimiser

SCHEDULES = ("cosine", "constant")
_BETAS, _EPS = (0.9, 0.98), 1e-9
TABLE_OPTIMISERS = ("adamw", "adam_rows", "adagrad_rows")


def orthogonalise(gradient: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Push the singular values of the last two dimensions towards 1 by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.to(torch.bfloat16) if gradient.is_cuda else gradient.float()
    transposed = x.shape[-2] > x.shape[-1]
    x = x.mT if transposed else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if transposed else x).to(gradient.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised; matrices and stacks of them only.

    A group with `inputs_first` holds matrices W of x @ W: its step is that of the same map as an nn.Linear, transposed.
    A matrix of a stack without a gradient, as of an expert without tokens, rests like a parameter without one.
    """

    def __init__(self, parameters: list, *, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "rate": 1.0,
                                      "inputs_first": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                moved = parameter.grad.ne(0).any(-1, keepdim=True).any(-2, keepdim=True).to(parameter.dtype)
                state["momentum"].lerp_(parameter.grad, (1 - group["momentum"]) * moved)
                direction = orthogonalise(parameter.grad.lerp(state["momentum"], group["momentum"]))
                outputs, inputs = parameter.shape[:-3:-1] if group["inputs_first"] else parameter.shape[-2:]
                parameter.mul_(1 - group["lr"] * group["weight_decay"] * moved)
                parameter.addcmul_(direction, moved, value=-group["lr"] * math.sqrt(max(1.0, outputs / inputs)))


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Every parameter in one of `rows`, `muon`, `decayed` and `plain`, as its layer declares.

    `rows` are tables with sparse gradients, whatever is declared; there may be none.
    """
    groups: dict[str, list[nn.Parameter]] = {"rows": [], "muon": [], "decayed": [], "plain": []}
    sparse = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding) and module.sparse}
    declared = declarations(model)
    for name, parameter in model.named_parameters():
        groups["rows" if id(parameter) in sparse else declared[name].step].append(parameter)
    return groups


def _by_rate(model: nn.Module, parameters: list[nn.Parameter], trained_rate: float,
             fresh: Collection[str] | None) -> list[dict]:
    """The parameters as groups of one rate and one side of the input each."""
    is_fresh = (fresh.__contains__ if fresh is not None
                else lambda name: name.startswith("decoder.") or "code_table" in name)
    declared = declarations(model)
    name_of = {id(p): name for name, p in model.named_parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in parameters:
        name = name_of[id(parameter)]
        groups.setdefault((is_fresh(name), declared[name].inputs_first), []).append(parameter)
    return [{"params": groups[new, first], "rate": 1.0 if new else trained_rate, "inputs_first": first}
            for new, first in sorted(groups)]


class Optimisers:
    """Both optimisers as one, with their schedule."""

    def __init__(self, model: nn.Module, *, learning_rate: float, muon_learning_rate: float, weight_decay: float,
                 warmup_steps: int, total_steps: int, trained_rate: float = 1.0, muon: bool = True,
                 schedule: str = "cosine", tables: str = "adamw", seed: int = 0, fresh: Collection[str] | None = None):
        """`trained_rate` scales the steps of all weights but those named in `fresh`,
        None for those that know semantic ids.

        Without `muon` AdamW steps the hidden matrices too. `tables` steps those with sparse gradients.
        """
        if schedule not in SCHEDULES:
            raise InputError("train.schedule", found=repr(schedule), expected=f"one of {', '.join(SCHEDULES)}",
                             do="choose one of these")
        groups = parameter_groups(model)
        if not muon:
            groups = {**groups, "muon": [], "decayed": groups["muon"] + groups["decayed"]}
        parts = {name: _by_rate(model, held, trained_rate, fresh) for name, held in groups.items()}
        self.muon = Muon(parts["muon"], lr=muon_learning_rate, weight_decay=weight_decay) if muon else None
        self.adam = torch.optim.AdamW(
            [{**part, "weight_decay": weight_decay} for part in parts["decayed"]]
            + [{**part, "weight_decay": 0.0} for part in parts["plain"]],
            lr=learning_rate, betas=_BETAS, eps=_EPS, fused=True)  # one pass over a table
        self.rows = RowOptimiser(parts["rows"], kind=tables.removesuffix("_rows"), lr=learning_rate, betas=_BETAS,
                                 eps=_EPS,
                                 seed=seed) if parts["rows"] else None
        self._peaks = [(part, peak) for part, peak in (
            (self.muon, muon_learning_rate), (self.rows, learning_rate), (self.adam, learning_rate)) if part]
        self._warmup, self._total, self._schedule = max(1, warmup_steps), total_steps, schedule

    def factor(self, step: int) -> float:
        """Linear from 0 over the warm-up, then half a cosine to 0 at the last step, or 1."""
        if step < self._warmup:
            return (step + 1) / self._warmup
        if self._schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - self._warmup) / max(1, self._total - self._warmup)))

    def step(self, step: int) -> float:
        """Update the weights with the learning rates of `step`, clear the gradients; returns AdamW's rate."""
        for optimiser, peak in self._peaks:
            for group in optimiser.param_groups:
                group["lr"] = peak * self.factor(step) * group["rate"]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return self.adam.param_groups[-1]["lr"]

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def parameters(self, name: str) -> list[nn.Parameter]:
        """Those of a part of the `state_dict`, in the order of its numbers."""
        return [parameter for group in self._parts()[name].param_groups for parameter in group["params"]]

    def _parts(self) -> dict[str, torch.optim.Optimizer]:
        return {name: part for name, part in (("muon", self.muon), ("rows", self.rows), ("adam", self.adam)) if part}


class TableBytes(NamedTuple):
    """What the id of an item costs, in bytes."""

    weights: int
    state: int


def prepare_tables(model: OnePiece, *, optimiser: str, precision: str, average: float = 0.0) -> None:
    """Sparse gradients for the item tables, where the optimiser steps rows, and their weights' type.

    InputError for names that are none, and for bfloat16 with what would round to nearest: AdamW, or an average.
    """
    for place, value, valid in (("train.table_optimiser", optimiser, TABLE_OPTIMISERS),
                                ("train.table_precision", precision, ("float32", "bfloat16"))):
        if value not in valid:
            raise InputError(place, found=repr(value), expected=f"one of {', '.join(valid)}", do="choose one of these")
    if precision == "bfloat16" and optimiser == "adamw":
        raise InputError("train.table_precision", found="bfloat16 with table_optimiser adamw",
                         expected="a row optimiser, "
                         "which rounds at random", do="set train.table_optimiser=adam_rows or adagrad_rows")
    if precision == "bfloat16" and average:
        raise InputError("train.table_precision", found=f"bfloat16 with average {average}",
                         expected="float32, in which small moves of an average are not lost",
                         do="set train.average=0 or train.table_precision=float32")
    for table in model.item_tower.tables():
        table.sparse = optimiser != "adamw"
        table.weight.data = table.weight.data.to(getattr(torch, precision))


def bytes_per_id(model: OnePiece, optimiser: str) -> TableBytes:
    """Of the id table's row and its share of optimiser state."""
    table = model.item_tower.id_table
    if table is None:
        return TableBytes(0, 0)
    return TableBytes(table.embedding_dim * table.weight.element_size(),
                      row_state_bytes(optimiser, table.embedding_dim))


def row_state_bytes(optimiser: str, width: int) -> int:
    """Of optimiser state for a row of a table: two moments of each number, or one number."""
    return {"adamw": 8 * width, "adam_rows": 8 * width, "adagrad_rows": 4}[optimiser]
