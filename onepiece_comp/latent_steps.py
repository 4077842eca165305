"""Latent steps: each position looks at its history some times more before it is read out.

Stands between the encoder's last layer and the heads. Source: latent reasoning as in ReaRec (arXiv 2503.22675,
section 3) and in Shopee's OnePiece (arXiv 2509.18091, section 3.3): a step's input is the state before it plus a learned
vector of the step, its weights are the same in all steps. Deviations: one block that attends to the encoder's output,
not the whole encoder run again; later steps do not see earlier ones but through the state; one loss, on the last.
Legend: B users, T positions, D width.
"""

import torch
from torch import nn

from onepiece_comp.hstu import CrossBlock


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
