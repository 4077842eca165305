"""The attention blocks of published sequence recommenders: SASRec's and LiGR's, under the interface of the HSTU block.

Sources: Kang and McAuley 2018 (arXiv 1808.09781), the residual as in the authors' code, from the normed query; LiGR
as in eSASRec (Tikhonovich et al. 2025), gates of the stream that is not normed. Deviation in both: dropout on what
attention returns, not on its weights. Legend: B users, T positions, D width.
"""

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.models.hstu import merge_heads, split_heads


class CausalAttention(nn.Module):
    """Softmax attention of queries to keys at or before them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, query_BTD: torch.Tensor, read_BTD: torch.Tensor) -> torch.Tensor:
        key, value = self.key_value(read_BTD).chunk(2, dim=-1)
        query, key, value = (split_heads(part, self.heads) for part in (self.query(query_BTD), key, value))
        return self.out(merge_heads(F.scaled_dot_product_attention(query, key, value, is_causal=True)))


class SASRecBlock(nn.Module):
    """q = LN(x); y = q + attention(q, x, x); LN(y) + W2 ReLU(W1 LN(y))."""

    def __init__(self, *, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attention = CausalAttention(width, heads)
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        query = self.attention_norm(x_BTD)
        normed = self.feed_norm(query + self.dropout(self.attention(query, x_BTD)))
        return normed + self.dropout(self.down(self.dropout(F.relu(self.up(normed)))))


class LiGRBlock(nn.Module):
    """x + sigmoid(G1 x) attention(LN(x)), then x + sigmoid(G2 x) SwiGLU(LN(x))."""

    def __init__(self, *, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attention = CausalAttention(width, heads)
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_gate, self.feed_gate = nn.Linear(width, width), nn.Linear(width, width)
        self.gate_up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        normed = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.attention_gate(x_BTD).sigmoid() * self.dropout(self.attention(normed, normed))
        gate, up = self.gate_up(self.feed_norm(x_BTD)).chunk(2, dim=-1)
        return x_BTD + self.feed_gate(x_BTD).sigmoid() * self.dropout(self.down(F.silu(gate) * up))
