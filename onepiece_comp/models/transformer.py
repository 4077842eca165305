"""A softmax Transformer block under the interface of the HSTU block: the same biases, RMSNorm, SwiGLU.

Source: Vaswani et al. 2017 (arXiv 1706.03762), pre-norm; RMSNorm, Zhang and Sennrich 2019 (arXiv 1910.07467); SwiGLU,
Shazeer 2020 (arXiv 2002.05202). Legend: B users, T positions, S attended positions, D width, H heads, K head width.
"""

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.models.declared import BRANCH_END, HIDDEN
from onepiece_comp.models.hstu import RelativeBias, merge_heads, rotate, split_heads


class TransformerBlock(nn.Module):
    """x + W2 attention(RMSNorm(x)), then, with `hidden` above 0, x + SwiGLU(RMSNorm(x))."""

    DECLARES = {"uvqk.weight": HIDDEN, "out.weight": BRANCH_END, "gate_up_DF": HIDDEN._replace(inputs_first=True),
                "down_FD": BRANCH_END._replace(inputs_first=True)}

    def __init__(self, *, width: int, heads: int, max_length: int, dropout: float, hidden: int, time_bias: bool = True,
                 rotary: bool = False):
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.uvqk = nn.Linear(width, 3 * width, bias=False)  # value, query, key
        self.out = nn.Linear(width, width)
        self.bias = RelativeBias(heads, max_length, time=time_bias)
        self.dropout = nn.Dropout(dropout)
        self.gate_up_DF = nn.Parameter(torch.empty(width, 2 * hidden)) if hidden else None
        self.down_FD = nn.Parameter(torch.empty(hidden, width)) if hidden else None

    def forward(self, x_BTD: torch.Tensor, gap_BTS: torch.Tensor) -> torch.Tensor:
        length = x_BTD.shape[1]
        value, query, key = (split_heads(part, self.heads) for part in self.uvqk(rms_norm(x_BTD)).chunk(3, dim=-1))
        if self.rotary:
            query, key = rotate(query), rotate(key)
        later_TS = torch.ones(length, length, dtype=torch.bool, device=x_BTD.device).triu(1)
        bias_BHTS = self.bias(gap_BTS).to(query.dtype).masked_fill(later_TS, -torch.inf)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias_BHTS)
        x_BTD = x_BTD + self.dropout(self.out(merge_heads(mixed)))
        if self.gate_up_DF is None:
            return x_BTD
        gate, up = (rms_norm(x_BTD) @ self.gate_up_DF).chunk(2, dim=-1)
        return x_BTD + self.dropout((F.silu(gate) * up) @ self.down_FD)


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """x over its root mean square in the last dimension, without a learned scale: the next matrix has one."""
    return F.rms_norm(x, x.shape[-1:])
