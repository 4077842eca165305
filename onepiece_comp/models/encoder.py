"""A layer of the encoder: HSTU or Transformer block, then, where there are experts, a mixture of them.

Stands between the blocks, which do not know each other, and the model. Legend: B users, T positions, S attended
positions, N valid positions, D width.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.config import ModelConfig
from onepiece_comp.errors import InputError
from onepiece_comp.models.hstu import CrossBlock, HSTUBlock
from onepiece_comp.models.moe import Routing, SparseMoE
from onepiece_comp.models.transformer import TransformerBlock

_HIDDEN = 8 / 3  # SwiGLU's hidden width over the model's, so that it has the parameters of a 4-fold plain one


def _common(config: ModelConfig, max_length: int) -> dict:
    return {"width": config.width, "heads": config.heads, "max_length": max_length, "dropout": config.dropout,
            "time_bias": config.time_bias, "rotary": config.rotary}


def _transformer(config: ModelConfig, max_length: int) -> nn.Module:
    hidden = 0 if config.experts else round(_HIDDEN * config.width)
    return TransformerBlock(**_common(config, max_length), hidden=hidden)


BLOCKS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "hstu": lambda config, max_length: HSTUBlock(**_common(config, max_length)), "transformer": _transformer}


class EncoderLayer(nn.Module):
    """One block and, with experts, a mixture over the valid positions; InputError for an unknown block."""

    def __init__(self, config: ModelConfig, max_length: int):
        super().__init__()
        if config.block not in BLOCKS:
            raise InputError("model.block", found=repr(config.block), expected=f"one of {', '.join(BLOCKS)}",
                             do="choose one of these")
        self.block = BLOCKS[config.block](config, max_length)
        self.moe = SparseMoE(width=config.width, experts=config.experts, active=config.active_experts,
                             hidden=config.expert_width) if config.experts else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: torch.Tensor, gap_BTS: torch.Tensor, valid_BT: torch.Tensor,
                ) -> tuple[torch.Tensor, Routing | None]:
        x_BTD = self.block(x_BTD, gap_BTS)
        if self.moe is None:
            return x_BTD, None
        x_ND = x_BTD[valid_BT]
        mixed_ND, routing = self.moe(F.layer_norm(x_ND, x_ND.shape[-1:]))
        return x_BTD.index_put((valid_BT,), x_ND + self.dropout(mixed_ND)), routing


class LatentSteps(nn.Module):
    """`steps` times: the step's vector is added, then what attention to the history so far finds."""

    def __init__(self, steps: int, *, width: int, heads: int, max_length: int, dropout: float):
        super().__init__()
        self.step_table = nn.Embedding(steps, width)
        self.block = CrossBlock(width=width, heads=heads, max_length=max_length, dropout=dropout)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """States [B, T, D] after the last step; a position reads itself and those before it."""
        length = x_BTD.shape[1]
        causal_1TT = torch.ones(1, length, length, dtype=torch.bool, device=x_BTD.device).tril()
        memory = self.block.memory(x_BTD)
        for step_D in self.step_table.weight:
            x_BTD = self.block(x_BTD + step_D, memory, causal_1TT)
        return x_BTD
