"""Sparse mixture of experts: top-k of E SwiGLU experts plus a shared one, as a feed-forward sublayer.

Source: DeepSeekMoE (arXiv 2401.06066) as used by OnePiece (arXiv 2512.07424, section on the backbone); there it
replaces a Transformer's feed-forward, here it follows each HSTU block. Tokens are sorted by expert once and each
expert runs on its own stretch. Legend: N tokens, D width, E experts, A active experts, F hidden width.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.models.declared import BRANCH_END, HIDDEN
from onepiece_comp.models.losses import load_balance


class Routing(NamedTuple):
    """What the router did: the balance loss (1 = balanced) and tokens per expert."""

    balance: torch.Tensor
    load_E: torch.Tensor


def swiglu(x_ND: torch.Tensor, gate_up_DF: torch.Tensor, down_FD: torch.Tensor) -> torch.Tensor:
    """(SiLU(x Wg) * x Wu) Wd, with Wg and Wu side by side in `gate_up_DF`."""
    gate, up = (x_ND @ gate_up_DF).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down_FD


class SparseMoE(nn.Module):
    """y = shared(x) + sum over the top A experts of gate * expert(x), gates renormalised over the chosen."""

    DECLARES = {"*gate_up_*": HIDDEN._replace(inputs_first=True), "*down_*": BRANCH_END._replace(inputs_first=True)}

    def __init__(self, *, width: int, experts: int, active: int, hidden: int):
        super().__init__()
        self.active = active
        self.router = nn.Linear(width, experts, bias=False)
        self.gate_up_EDF = nn.Parameter(torch.empty(experts, width, 2 * hidden))
        self.down_EFD = nn.Parameter(torch.empty(experts, hidden, width))
        self.shared_gate_up_DF = nn.Parameter(torch.empty(width, 2 * hidden))
        self.shared_down_FD = nn.Parameter(torch.empty(hidden, width))

    def forward(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        gate_NE = torch.softmax(self.router(x_ND).float(), dim=-1)
        weight_NA, chosen_NA = gate_NE.topk(self.active, dim=-1)
        weight_NA = (weight_NA / weight_NA.sum(-1, keepdim=True)).to(x_ND.dtype)
        order = chosen_NA.flatten().argsort(stable=True)
        token = order // self.active
        load_E = torch.bincount(chosen_NA.flatten(), minlength=gate_NE.shape[1])
        outputs = [swiglu(x_ND[part], self.gate_up_EDF[expert], self.down_EFD[expert])
                   for expert, part in enumerate(token.split(load_E.tolist())) if len(part)]
        weighted = torch.cat(outputs) * weight_NA.flatten()[order, None]
        mixed = swiglu(x_ND, self.shared_gate_up_DF, self.shared_down_FD)
        mixed = mixed.index_add(0, token, weighted.to(mixed.dtype))
        return mixed, Routing(load_balance(gate_NE, chosen_NA), load_E)
