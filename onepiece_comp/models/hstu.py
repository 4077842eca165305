"""HSTU blocks: pointwise SiLU attention with position and time-gap bias, gated by the block's own input.

Source: Zhai et al., "Actions Speak Louder than Words" (arXiv 2402.17152), section 3; biases as in its research code.
Attention is divided by the constant maximum length, never by the batch's: a user's output must not depend on who
shares the batch. Legend: B users, T positions, S attended positions, D width, H heads, K head width.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.models.declared import BRANCH_END, HIDDEN, ZERO

TIME_BUCKETS = 64
_GAP_SCALE = 0.301  # log-gap per bucket: a factor of 1.35


def gap_bucket(gap_seconds: torch.Tensor) -> torch.Tensor:
    """floor(ln(max(1, |gap|)) / 0.301), at most TIME_BUCKETS - 1. One hour: 27. One day: 37."""
    return (gap_seconds.abs().clamp_min(1).double().log() / _GAP_SCALE).long().clamp_max(TIME_BUCKETS - 1)


class _GatherBias(torch.autograd.Function):
    """table_HC at index_BTS, as [B, H, T, S]; its gradient is one scatter a head, not one of nn.Embedding's."""

    @staticmethod
    def forward(ctx, table_HC, index_BTS):  # noqa: N803
        ctx.save_for_backward(index_BTS)
        ctx.shape = table_HC.shape
        flat = table_HC.index_select(1, index_BTS.flatten())
        return flat.view(len(table_HC), *index_BTS.shape).transpose(0, 1)

    @staticmethod
    def backward(ctx, grad_BHTS):  # noqa: N803
        (index,) = ctx.saved_tensors
        grad_HC = grad_BHTS.new_zeros(ctx.shape)
        flat = index.flatten()[None].expand(ctx.shape[0], -1)
        return grad_HC.scatter_add_(1, flat, grad_BHTS.transpose(0, 1).reshape(ctx.shape[0], -1)), None


class RelativeBias(nn.Module):
    """Learned bias per head: by distance in positions and by log-bucketed time gap."""

    DECLARES = {"position_HC": ZERO, "time_HC": ZERO}

    def __init__(self, heads: int, max_length: int, *, time: bool = True):
        super().__init__()
        self.position_HC = nn.Parameter(torch.zeros(heads, max_length))
        self.time_HC = nn.Parameter(torch.zeros(heads, TIME_BUCKETS)) if time else None

    def forward(self, gap_BTS: torch.Tensor) -> torch.Tensor:
        """Bias [B, H, T, S] for attended positions at or before the attending one; later ones get distance 0."""
        length = gap_BTS.shape[1]
        steps = torch.arange(length, device=gap_BTS.device)
        distance_1TS = (steps[:, None] - steps[None, :]).clamp_min(0)[None]
        by_position = _GatherBias.apply(self.position_HC, distance_1TS)
        return by_position if self.time_HC is None else by_position + _GatherBias.apply(self.time_HC, gap_BTS)


def silu_attention(query_BHTK: torch.Tensor, key_BHSK: torch.Tensor, value_BHSK: torch.Tensor, *,
                   bias_BHTS: torch.Tensor | None, allowed_BTS: torch.Tensor, max_length: int) -> torch.Tensor:
    """SiLU(Q K^T + bias) / max_length over the allowed positions, times V: [B, H, T, K]."""
    score = query_BHTK @ key_BHSK.transpose(-1, -2)
    if bias_BHTS is not None:
        score = score + bias_BHTS.to(score.dtype)
    weight = F.silu(score) * (allowed_BTS[:, None].to(score.dtype) / max_length)
    return weight @ value_BHSK


def split_heads(x_BTD: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, T, D] to [B, H, T, K]."""
    batch, length, width = x_BTD.shape
    return x_BTD.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(x_BHTK: torch.Tensor) -> torch.Tensor:
    """[B, H, T, K] to [B, T, D]."""
    return x_BHTK.transpose(1, 2).flatten(2)


def rotate(x_BHTK: torch.Tensor) -> torch.Tensor:
    """Pairs of entries turned by angles that grow with the position: dot products then know the distance.

    Rotary embedding, Su et al. 2021 (arXiv 2104.09864), entry i paired with entry i + K / 2.
    """
    length, half = x_BHTK.shape[2], x_BHTK.shape[3] // 2
    rate = 10_000.0 ** (-torch.arange(half, device=x_BHTK.device) / half)
    angle_TK = torch.arange(length, device=x_BHTK.device)[:, None] * rate
    cosine, sine = angle_TK.cos().to(x_BHTK.dtype), angle_TK.sin().to(x_BHTK.dtype)
    first, second = x_BHTK[..., :half], x_BHTK[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class HSTUBlock(nn.Module):
    """x + W2(U * LN(attention)), U V Q K = SiLU(W1 LN(x)); LayerNorms without affine parameters."""

    DECLARES = {"uvqk.weight": HIDDEN, "out.weight": BRANCH_END}

    def __init__(self, *, width: int, heads: int, max_length: int, dropout: float, time_bias: bool = True,
                 rotary: bool = False):
        super().__init__()
        self.heads, self.max_length, self.rotary = heads, max_length, rotary
        self.uvqk = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.bias = RelativeBias(heads, max_length, time=time_bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: torch.Tensor, gap_BTS: torch.Tensor) -> torch.Tensor:
        gate, value, query, key = self.parts(x_BTD)
        if self.rotary:
            query, key = rotate(query), rotate(key)
        length = x_BTD.shape[1]
        causal_1TS = torch.ones(1, length, length, dtype=torch.bool, device=x_BTD.device).tril()
        mixed = silu_attention(query, key, value, bias_BHTS=self.bias(gap_BTS), allowed_BTS=causal_1TS,
                               max_length=self.max_length)
        return self.close(x_BTD, gate, mixed)

    def parts(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gate [B, T, D]; value, query, key [B, H, T, K]."""
        gate, *parts = F.silu(self.uvqk(F.layer_norm(x_BTD, x_BTD.shape[-1:]))).chunk(4, dim=-1)
        return gate, *(split_heads(part, self.heads) for part in parts)

    def close(self, x_BTD: torch.Tensor, gate_BTD: torch.Tensor, mixed_BHTK: torch.Tensor) -> torch.Tensor:
        """The block's output, from what its attention found."""
        merged = merge_heads(mixed_BHTK)
        return x_BTD + self.dropout(self.out(gate_BTD * F.layer_norm(merged, merged.shape[-1:])))


class CrossBlock(nn.Module):
    """The same attention from a query stream into another's states, as the semantic-id decoder reads the encoder."""

    DECLARES = {"gate_query.weight": HIDDEN, "value_key.weight": HIDDEN, "out.weight": BRANCH_END}

    def __init__(self, *, width: int, heads: int, max_length: int, dropout: float):
        super().__init__()
        self.heads, self.max_length = heads, max_length
        self.gate_query = nn.Linear(width, 2 * width, bias=False)
        self.value_key = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def memory(self, state_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Value and key [B, H, S, K] of the states to be read: made once, however many queries follow."""
        value, key = F.silu(self.value_key(F.layer_norm(state_BSD, state_BSD.shape[-1:]))).chunk(2, dim=-1)
        return split_heads(value, self.heads), split_heads(key, self.heads)

    def forward(self, x_BTD: torch.Tensor, memory: tuple[torch.Tensor, torch.Tensor],
                allowed_BTS: torch.Tensor) -> torch.Tensor:
        """`allowed_BTS` says which states each query may read."""
        value, key = memory
        gate, query = F.silu(self.gate_query(F.layer_norm(x_BTD, x_BTD.shape[-1:]))).chunk(2, dim=-1)
        mixed = silu_attention(split_heads(query, self.heads), key, value, bias_BHTS=None, allowed_BTS=allowed_BTS,
                               max_length=self.max_length)
        merged = merge_heads(mixed)
        return x_BTD + self.dropout(self.out(gate * F.layer_norm(merged, merged.shape[-1:])))


def gaps(time_BT: torch.Tensor) -> torch.Tensor:
    """Bucketed time between every two positions, int64 [B, T, T]: once per batch, shared by all layers."""
    return gap_bucket(time_BT[:, :, None] - time_BT[:, None, :])


def residual_scale(layers: int) -> float:
    """Factor on the initial output weights of each residual branch, so that depth does not grow the stream."""
    return 1.0 / math.sqrt(2 * max(1, layers))
