"""A history that attends to candidates: in HSTU blocks with M-FALCON's mask, or as DIN's sum over events.

Each candidate sees the history and itself, never another candidate, so its output is what it would be alone, and the
history is passed once for all. Sources: M-FALCON in Zhai et al. (arXiv 2402.17152), section 3.4, where a candidate
stands as the event after the history's last; DIN, Zhou et al. 2018 (arXiv 1706.06978), whose weights are not normalised
over the history either; ours divides by the constant maximum length.
Legend: B users, S history positions, M candidates, D width, H heads, K head width, U hidden units.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.models.hstu import HSTUBlock, silu_attention


class Past(NamedTuple):
    """The histories that candidates look at."""

    x_BSD: torch.Tensor
    gap_BSS: torch.Tensor  # int64, bucketed time between every two positions
    length_B: torch.Tensor  # int64

    @property
    def allowed_BS(self) -> torch.Tensor:
        """Which positions are no padding."""
        return torch.arange(self.x_BSD.shape[1], device=self.length_B.device) < self.length_B[:, None]

    @property
    def last_gap_BS(self) -> torch.Tensor:
        """Bucketed time from every position to the last one, at whose time the candidates stand."""
        return self.gap_BSS[torch.arange(len(self.gap_BSS), device=self.length_B.device), self.length_B - 1]


class TargetBlock(HSTUBlock):
    """An HSTU block that candidates pass through too, each as if it alone came after the history."""

    def forward_with(self, x_BMD: torch.Tensor, past: Past) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs of the candidates [B, M, D] and of the history [B, S, D]."""
        gate, value, query, key = self.parts(past.x_BSD)
        steps_S = torch.arange(query.shape[2], device=query.device)
        mixed = silu_attention(query, key, value, bias_BHTS=self.bias(past.gap_BSS),
                               allowed_BTS=(steps_S[:, None] >= steps_S)[None], max_length=self.max_length)
        return self._candidates(x_BMD, past, value, key), self.close(past.x_BSD, gate, mixed)

    def _candidates(self, x_BMD: torch.Tensor, past: Past, value_BHSK: torch.Tensor,
                    key_BHSK: torch.Tensor) -> torch.Tensor:
        gate, own_value, query, own_key = self.parts(x_BMD)
        mixed = silu_attention(query, key_BHSK, value_BHSK, bias_BHTS=self._bias(past)[:, :, None],
                               allowed_BTS=past.allowed_BS[:, None], max_length=self.max_length)
        own_BHM = (query * own_key).sum(-1) + self._own_bias()[:, None]
        return self.close(x_BMD, gate, mixed + (F.silu(own_BHM) / self.max_length)[..., None] * own_value)

    def _bias(self, past: Past) -> torch.Tensor:
        """Bias [B, H, S] of a candidate after the last position to each position."""
        steps_S = torch.arange(past.x_BSD.shape[1], device=past.length_B.device)
        distance_BS = (past.length_B[:, None] - steps_S).clamp_min(0)
        bias_HBS = self.bias.position_HC[:, distance_BS]
        if self.bias.time_HC is not None:
            bias_HBS = bias_HBS + self.bias.time_HC[:, past.last_gap_BS]
        return bias_HBS.transpose(0, 1)

    def _own_bias(self) -> torch.Tensor:
        own_H = self.bias.position_HC[:, 0]
        return own_H if self.bias.time_HC is None else own_H + self.bias.time_HC[:, 0]


class TargetAttention(nn.Module):
    """Layers of `TargetBlock`: candidates [B, M, D] and their past in, candidates out."""

    def __init__(self, *, width: int, heads: int, layers: int, max_length: int, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(
            TargetBlock(width=width, heads=heads, max_length=max_length + 1, dropout=dropout) for _ in range(layers))

    def forward(self, x_BMD: torch.Tensor, past: Past) -> torch.Tensor:
        for block in self.blocks:
            x_BMD, x_BSD = block.forward_with(x_BMD, past)
            past = past._replace(x_BSD=x_BSD)
        return x_BMD


class DinAttention(nn.Module):
    """x + a sum over events, each weighed by a small network of event, candidate and their product.

    DIN feeds [h, v, h - v, h v]; the difference is in the span of the first two. SiLU stands for its Dice.
    """

    def __init__(self, *, width: int, hidden: int, max_length: int, time_buckets: int):
        super().__init__()
        self.max_length = max_length
        self.event, self.candidate = nn.Linear(width, hidden), nn.Linear(width, hidden, bias=False)
        self.product_UD = nn.Parameter(torch.randn(hidden, width) / width ** 0.5)
        self.time_table = nn.Embedding(time_buckets, hidden)
        self.weight = nn.Linear(hidden, 1)
        self.out = nn.Linear(width, width)

    def forward(self, x_BMD: torch.Tensor, past: Past) -> torch.Tensor:
        event_BSD, v_BMD = (F.layer_norm(x, x.shape[-1:]) for x in (past.x_BSD, x_BMD))
        side_BSU = self.event(event_BSD) + self.time_table(past.last_gap_BS)
        pair_BMUS = ((v_BMD[:, :, None] * self.product_UD).flatten(1, 2) @ event_BSD.mT).unflatten(1,
            (-1, side_BSU.shape[2]))
        hidden_BMUS = F.silu(pair_BMUS + side_BSU.mT[:, None] + self.candidate(v_BMD)[..., None])
        weight_BMS = (self.weight.weight @ hidden_BMUS)[:, :, 0] + self.weight.bias
        weight_BMS = weight_BMS * past.allowed_BS[:, None] / self.max_length
        return x_BMD + self.out(weight_BMS @ event_BSD)
