"""How each parameter begins, which optimiser steps it and on which side of its input it stands, declared by its layer.

A module's `DECLARES` maps patterns of its parameters' names, as it sees them, to what they are; the innermost module
that knows a name decides. Weights of nn.Linear and nn.Embedding are usual ones unless somebody says otherwise; a bare
parameter that nobody declared is an error.
"""

from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn


class Declared(NamedTuple):
    """What a parameter is."""

    start: str  # zero | fan_in = normal by the inputs | table = normal, .3 | codes = normal, .02
    step: str  # muon | decayed = AdamW with weight decay | plain = AdamW without
    inputs_first: bool = False  # W of x @ W, or a stack of them; an nn.Linear has outputs first
    branch_end: bool = False  # the last matrix of a residual branch: begins smaller in a deeper model


ZERO = Declared("zero", "plain")
TABLE = Declared("table", "plain")
MATRIX = Declared("fan_in", "decayed")
HIDDEN = Declared("fan_in", "muon")
BRANCH_END = HIDDEN._replace(branch_end=True)
_USUAL = ((nn.Linear, "weight", MATRIX), (nn.Linear, "bias", ZERO), (nn.Embedding, "weight", TABLE),
          (nn.EmbeddingBag, "weight", TABLE))


def declarations(model: nn.Module) -> dict[str, Declared]:
    """What each of the model's parameters is, by name; TypeError for one that nobody declared."""
    modules = dict(model.named_modules())
    return {name: _declared(modules, name) for name, _ in model.named_parameters()}


def _declared(modules: dict[str, nn.Module], name: str) -> Declared:
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        known = getattr(modules[".".join(parts[:depth])], "DECLARES", {})
        for pattern, declared in known.items():
            if fnmatchcase(".".join(parts[depth:]), pattern):
                return declared
    owner = modules[".".join(parts[:-1])]
    for kind, leaf, declared in _USUAL:
        if isinstance(owner, kind) and parts[-1] == leaf:
            return declared
    raise TypeError(f"the parameter {name} is declared by no layer: add it to DECLARES of {type(owner).__name__}")


@torch.no_grad()
def initialise(model: nn.Module, *, branch_scale: float) -> None:
    """Give all parameters their initial values, in the order of their names' appearance."""
    what = declarations(model)
    for name, parameter in model.named_parameters():
        declared = what[name]
        if declared.start == "zero":
            parameter.zero_()
        elif declared.start == "fan_in":
            inputs = parameter.shape[-2] if declared.inputs_first else parameter.shape[-1]
            parameter.normal_(0, (branch_scale if declared.branch_end else 1.0) * inputs ** -0.5)
        else:
            parameter.normal_(0, {"table": 0.3, "codes": 0.02}[declared.start])
