"""Item and user towers: ids, hashed ids, sparse features, embeddings and codes to one vector.

Source: OnePiece (arXiv 2512.07424) and its technical report: one tower serves both sides, with a ReLU on the history
side and the identity on the candidate side (asymmetric activation), so that cosines of candidates span [-1, 1].
Deviation: a two-layer network beside the linear map, and missing embeddings have a learned stand-in.
Legend: B users, N items, D width, F features, L code levels.
"""

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.config import ModelConfig
from onepiece_comp.logs.features import Schema, vocabulary_size
from onepiece_comp.models.batch import ItemBatch
from onepiece_comp.models.declared import HIDDEN, TABLE, ZERO


class ItemTower(nn.Module):
    """ItemDNN. `codes` [items + 1, L] are the semantic ids when they are an input, by catalogue row; row 0 is -1."""

    DECLARES = {"id_table.weight": ZERO, "hash_tables.*.weight": ZERO, "feature_table.weight": TABLE,
                "code_tables.*.weight": TABLE, "absent.*": ZERO, "hidden.weight": HIDDEN, "out.weight": HIDDEN}

    def __init__(self, config: ModelConfig, schema: Schema, codes: torch.Tensor | None = None):
        super().__init__()
        self.config = config
        self.id_table = nn.Embedding(schema.items + 1, config.id_width) if config.id_width else None
        self.hash_tables = nn.ModuleList(nn.Embedding(size, config.hash_width) for size in config.hash_sizes)
        self.feature_table = nn.Embedding(max(1, vocabulary_size(schema.item_features)), config.feature_width)
        self.project = nn.ModuleDict(
            {fid: nn.Linear(width, config.embedding_width) for fid, width in schema.embeddings.items()}
        )
        self.absent = nn.ParameterDict(
            {fid: nn.Parameter(torch.zeros(config.embedding_width)) for fid in schema.embeddings}
        )
        width = config.id_width + config.hash_width * len(config.hash_sizes)
        width += config.feature_width * len(schema.item_features) + config.embedding_width * len(schema.embeddings)
        self.code_tables = nn.ModuleList()
        if config.codes_as_input and codes is not None:
            self.register_buffer("codes", codes, persistent=False)
            self.code_tables.extend(
                nn.Embedding(int(codes.max()) + 2, config.id_width or config.width) for _ in codes[0]
            )
            width += sum(table.embedding_dim for table in self.code_tables)
        self.linear = nn.Linear(width, config.width)
        self.hidden = nn.Linear(width, 2 * config.width)
        self.out = nn.Linear(2 * config.width, config.width, bias=False)

    def forward(self, items: ItemBatch) -> torch.Tensor:
        """Item vectors [N, D] without activation: the candidate side. The history side is their ReLU."""
        row = items.id_row_N
        if self.training and self.config.id_dropout:
            row = row * (torch.rand(len(row), device=row.device) >= self.config.id_dropout)
        known = (row > 0).unsqueeze(1)
        parts = [look_up(self.feature_table, items.feature_NF).flatten(1)]
        if self.id_table is not None:
            parts.append(look_up(self.id_table, row) * known)
        parts += [look_up(table, items.creative_id_N % table.num_embeddings) * known for table in self.hash_tables]
        for fid, project in self.project.items():
            present = items.present[fid]
            vector = (
                F.normalize(items.embeddings[fid], dim=-1) * items.embeddings[fid].shape[1] ** 0.5
            )  # entries of size 1
            parts.append(project(vector) * present + self.absent[fid] * (1 - present))
        parts += self._codes(row)
        x = torch.cat(parts, dim=1)
        return self.linear(x) + self.out(F.relu(self.hidden(x)))

    def tables(self) -> list[nn.Embedding]:
        """Those whose rows grow with the data: ids, hashed ids, feature values."""
        return [table for table in (self.id_table, *self.hash_tables, self.feature_table) if table is not None]

    def _codes(self, row_N: torch.Tensor) -> list[torch.Tensor]:
        """Vectors of the codes of each level; in training some items lose those from a drawn level on (never the
        first).
        """
        if not len(self.code_tables):
            return []
        code_NL, levels = self.codes[row_N] + 1, len(self.code_tables)
        if self.training and self.config.code_truncation:
            hit_N1 = torch.rand(len(row_N), 1, device=row_N.device) < self.config.code_truncation
            kept_N1 = torch.randint(1, max(2, levels), (len(row_N), 1), device=row_N.device)
            code_NL = code_NL.masked_fill(hit_N1 & (torch.arange(levels, device=row_N.device) >= kept_N1), 0)
        return [table(code_NL[:, level]) for level, table in enumerate(self.code_tables)]


def look_up(table: nn.Embedding, index: torch.Tensor) -> torch.Tensor:
    """table(index) in float32, [*index, width]; a narrow table has its repeated rows' gradients summed in float32.

    In bfloat16 a sum of many equal parts stands still: 5,000 ones are 256.
    """
    if table.weight.dtype == torch.float32:
        return table(index)
    row_R, place = index.unique(return_inverse=True)
    return F.embedding(place, table(row_R).float())


class UserTower(nn.Module):
    """UserDNN: the sum of a profile's token vectors, then ReLU."""

    DECLARES = {"start": ZERO}

    def __init__(self, config: ModelConfig, schema: Schema):
        super().__init__()
        self.table = nn.EmbeddingBag(max(1, vocabulary_size(schema.user_features)), config.width, mode="sum")
        self.start = nn.Parameter(torch.zeros(config.width))

    def forward(self, token: torch.Tensor, token_start_B: torch.Tensor) -> torch.Tensor:
        """User vectors [B, D] from flat bags of tokens; an empty bag is a user without profile."""
        return F.relu(self.start + self.table(token, token_start_B))
