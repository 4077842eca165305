"""The semantic-id head: first code from the encoder's output, each further code given those before it.

Source: OnePiece (arXiv 2512.07424), its layer-wise decoder: the query of a level is made of the codes so far and the
encoder's output, and a stack of cross-attention blocks reads the encoder's layers in turn. Deviation: the query uses
the last position's output, as the paper's text has it (its released code uses the first layer's). With `code_trend` the
popularity of each code, after the codes before it, is an additive logit as in the retrieval head; with
`code_similarity` so is, at the first level, how near the code is to those of the history's items.
Legend: B users, T positions, S states, D width, L levels, C codes per level, N queries of a user.
"""

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.config import ModelConfig
from onepiece_comp.dataset.popularity_counts import FEATURES as TREND_FEATURES
from onepiece_comp.models.declared import Declared, TABLE, ZERO
from onepiece_comp.models.hstu import CrossBlock
from onepiece_comp.models.popularity import CONDITIONS
from onepiece_comp.models.similarity import HistorySimilarity


class SemanticIdDecoder(nn.Module):
    """Queries whose dot products with `code_table(level)` are the logits of that level's codes."""

    DECLARES = {"prefix.*.weight": TABLE._replace(step="decayed"), "trend": ZERO,
                "code_LCD": Declared("codes", "decayed")}

    def __init__(self, config: ModelConfig, *, levels: int, codes: int, max_length: int):
        super().__init__()
        self.levels, self.codes = levels, codes
        self.first = nn.Linear(config.width, config.width)
        self.prefix = nn.ModuleList(nn.Embedding(codes, config.width) for _ in range(levels - 1))
        self.start = nn.ModuleList(nn.Linear(2 * config.width, config.width) for _ in range(levels - 1))
        self.blocks = nn.ModuleList(
            CrossBlock(width=config.width, heads=config.heads, max_length=max_length, dropout=config.dropout)
            for _ in range(config.decoder_layers))
        popularity = config.trend and config.code_trend
        self.trend = nn.Parameter(torch.zeros(levels, CONDITIONS, TREND_FEATURES + 1)) if popularity else None
        self.similarity, self.first_code_table = None, None
        if config.similarity_width and config.code_similarity:
            self.similarity = HistorySimilarity(width=config.width, metric_width=config.similarity_width)
            self.first_code_table = nn.Embedding(codes + 1, config.width)  # the last row is for items without an id
        self.dense = nn.Linear(config.width, config.width, bias=False) if config.conditioned and levels > 1 else None
        self.code_LCD = nn.Parameter(torch.empty(levels, codes, config.width))

    def code_metrics(self) -> torch.Tensor:
        """Unit metric vectors [C + 1, M] of the first codes; the last row, for items without an id, is zero."""
        metric_CM = self.similarity.metric(self.first_code_table.weight)
        return torch.cat([metric_CM[:-1], torch.zeros_like(metric_CM[-1:])])

    def memories(self, states: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of the encoder states [B, S, D] that the blocks read, one per block: made once a user."""
        step = len(states) / len(self.blocks) if len(self.blocks) else 0
        return [
            block.memory(states[min(len(states) - 1, max(0, int((i + 1) * step) - 1))]) for i,
            block in enumerate(self.blocks)
        ]

    def query(self, level: int, hidden_BND: torch.Tensor, prefix_BNL: torch.Tensor,
              memories: list[tuple[torch.Tensor, torch.Tensor]], allowed_BNS: torch.Tensor) -> torch.Tensor:
        """Query vectors [B, N, D] for `level` given the codes before it (`prefix_BNL`, of which `level` are read)."""
        if level == 0:
            return F.layer_norm(hidden_BND + self.first(hidden_BND), hidden_BND.shape[-1:])
        so_far = sum(self.prefix[depth](prefix_BNL[..., depth]) for depth in range(level))
        x = self.start[level - 1](torch.cat([so_far, hidden_BND], dim=-1))
        for block, memory in zip(self.blocks, memories):
            x = block(x, memory, allowed_BNS)
        return F.layer_norm(x, x.shape[-1:])
