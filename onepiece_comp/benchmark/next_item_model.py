"""A next-item model of ids alone, as the public benchmarks have it: table, positions, blocks, the table again as keys.

Stands between the blocks and `next_item_training.py`. No item features, actions or popularity: what the competition's
model adds (`models/recommender.py`) the published figures do not have. Legend: B users, T positions, S attended
positions, D width, I items in the catalogue.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.benchmark.interactions import Attributes, Window
from onepiece_comp.benchmark.next_item_blocks import LiGRBlock, SASRecBlock
from onepiece_comp.benchmark.rows import RowConfig, check_row_ranges
from onepiece_comp.errors import InputError
from onepiece_comp.models.hstu import HSTUBlock, gap_bucket

BLOCKS, TIMES = ("sasrec", "ligr", "hstu"), ("none", "last", "next")


class IdTable(nn.Module):
    """A free vector for each item, which the encoder reads and its states are compared with."""

    def __init__(self, items: int, width: int):
        super().__init__()
        self.item_table = nn.Embedding(items + 1, width, padding_idx=0)

    def forward(self, item_BT: torch.Tensor) -> torch.Tensor:
        """Vectors [B, T, D] of items in a history."""
        return self.item_table(item_BT)

    def keys(self) -> torch.Tensor:
        """Vectors [I, D] of all items; item row i is at i - 1."""
        return self.item_table.weight[1:]


class AttributeTable(IdTable):
    """As IdTable, with the mean of the vectors of an item's attributes added to its own."""

    def __init__(self, attributes: Attributes, items: int, width: int):
        super().__init__(items, width)
        self.attribute_table = nn.EmbeddingBag(attributes.count, width, mode="mean")
        self.register_buffer("value", torch.from_numpy(attributes.value), persistent=False)
        self.register_buffer("start", torch.from_numpy(attributes.start[:-1]), persistent=False)

    def forward(self, item_BT: torch.Tensor) -> torch.Tensor:
        return F.embedding(item_BT, self._all())

    def keys(self) -> torch.Tensor:
        return self._all()[1:]

    def _all(self) -> torch.Tensor:
        return self.item_table.weight + self.attribute_table(self.value, self.start)


def id_table(config: RowConfig, items: int, attributes: Attributes | None) -> IdTable:
    """What a model without codes reads of an item; that a log has attributes `check_row` knows."""
    if not config.attributes:
        return IdTable(items, config.width)
    return AttributeTable(attributes, items, config.width)


def check_model(config: RowConfig) -> None:
    """InputError for settings of which no model can be made."""
    check_row_ranges(config)
    for place, value, valid in (("block", config.block, BLOCKS), ("time", config.time, TIMES)):
        if value not in valid:
            raise InputError(place, found=repr(value), expected=f"one of {', '.join(valid)}", do="choose one of these")
    if config.time != "none" and config.block != "hstu":
        raise InputError("time", found=f"{config.time!r} with block {config.block}", expected="block hstu, whose "
                         "attention has a bias by time", do="set block=hstu or time=none")


class NextItemModel(nn.Module):
    """States of every position, whose products with `keys()` are the logits of the next item."""

    def __init__(self, config: RowConfig, *, items: int, max_length: int, attributes: Attributes | None = None,
                 source: nn.Module | None = None):
        """`source` says what is read of an item and compared, as `id_table` does, which stands where it is None."""
        super().__init__()
        check_model(config)
        self.config, self.max_length = config, max_length
        self.source = source or id_table(config, items, attributes)
        self.position_table = nn.Embedding(max_length, config.width)
        self.blocks = nn.ModuleList(_block(config, max_length) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width) if config.block != "hstu" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        _initialise(self)

    def forward(self, window: Window) -> torch.Tensor:
        """Queries [B, T, D] of each position, unit vectors over the temperature where logits are cosines."""
        return self.query(self.states(window)[-1])

    def query(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vectors [..., D] as queries."""
        return F.normalize(hidden, dim=-1) / self.config.temperature if self.config.cosine else hidden

    def states(self, window: Window) -> list[torch.Tensor]:
        """States [B, T, D] after each block, the last one normed as the block asks."""
        item, length = torch.from_numpy(window.item_BT), torch.from_numpy(window.length_B)
        steps = torch.arange(item.shape[1])
        # counted from the last event back: the latest has one position, however long the history
        position = (length[:, None] - 1 - steps).clamp_min(0)
        x = self.dropout(self.source(item) * math.sqrt(self.config.width) + self.position_table(position))
        gap, states = self._gaps(window), []
        for block in self.blocks:
            x = block(x) if gap is None else block(x, gap)
            states.append(x)
        return [*states[:-1], self.norm(x)]

    def keys(self) -> torch.Tensor:
        """Keys [I, D] of the items; item row i is at i - 1."""
        key_ID = self.source.keys()
        return F.normalize(key_ID, dim=-1) if self.config.cosine else key_ID

    def _gaps(self, window: Window) -> torch.Tensor | None:
        """Buckets [B, T, S] of the time from each attended event to the moment asked; None for blocks without bias."""
        if self.config.block != "hstu":
            return None
        if self.config.time == "none":
            return torch.zeros((1, window.item_BT.shape[1], window.item_BT.shape[1]), dtype=torch.long)
        asked = torch.from_numpy(window.next_time_BT if self.config.time == "next" else window.time_BT)
        return gap_bucket(asked[:, :, None] - torch.from_numpy(window.time_BT)[:, None, :])


def _block(config: RowConfig, max_length: int) -> nn.Module:
    if config.block == "hstu":
        return HSTUBlock(width=config.width, heads=config.heads, max_length=max_length, dropout=config.dropout,
                         time_bias=config.time != "none")
    kind = SASRecBlock if config.block == "sasrec" else LiGRBlock
    return kind(width=config.width, heads=config.heads, hidden=round(config.hidden * config.width),
                dropout=config.dropout)


def _initialise(model: NextItemModel) -> None:
    """Tables and HSTU's inner map normal with deviation .02, other matrices Xavier uniform, biases 0."""
    for name, parameter in model.named_parameters():
        if "table" in name or name.endswith("uvqk.weight"):
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("weight") and parameter.dim() == 2:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
