"""Embedding tables in shares, one a rank: where they outgrow a card, each card holds, steps and clips its rows alone.

Stands between the model's item tables and the training loop. What is sent goes through PyTorch's DTensor, which knows
how a gradient travels back: row numbers to all ranks, the rows that each one holds back to those who asked. A table is
put together on the first rank, in main memory, where it validates or writes; files hold whole tables, so that a run
goes on with any number of ranks and inference knows nothing of shares.
Legend: N rows looked up, D width.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import functional as F

from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.training.devices import Ranks


class ShardedTable(nn.Embedding):
    """An embedding of `num_embeddings` rows of which `weight` holds this rank's; ranks look rows up together."""

    def __init__(self, whole: nn.Embedding, ranks: Ranks):
        self.rows = -(-whole.num_embeddings // ranks.ranks)
        super().__init__(self.rows, whole.embedding_dim, _weight=self._share(whole.weight.detach(), ranks.rank))
        self.num_embeddings, self.sparse, self.ranks = whole.num_embeddings, whole.sparse, ranks
        self.whole: torch.Tensor | None = None  # in main memory, while this rank works alone

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        """The rows `index` asks for, [*index, D]; all ranks must call it, each with an index of its own."""
        if self.whole is not None:
            return F.embedding(index.cpu(), self.whole).to(index.device)
        flat, mesh = index.flatten(), self.ranks.mesh
        padded = F.pad(flat, (0, self.ranks.highest(len(flat)) - len(flat)))
        asked_N = DTensor.from_local(padded, mesh, [Shard(0)]).redistribute(placements=[Replicate()]).to_local()
        place_N = asked_N - self.ranks.rank * self.rows
        own_N = (place_N >= 0) & (place_N < self.rows)
        own_ND = F.embedding(place_N[own_N], self.weight, sparse=self.sparse)
        part_ND = own_ND.new_zeros(len(place_N), self.embedding_dim).index_put((own_N,), own_ND)
        found_ND = DTensor.from_local(part_ND, mesh, [Partial()]).redistribute(placements=[Shard(0)]).to_local()
        return found_ND[:len(flat)].view(*index.shape, self.embedding_dim)

    def _share(self, whole: torch.Tensor, rank: int) -> torch.Tensor:
        """The rows of a rank; beyond the table's end there are zeros, so that all shares are of one size."""
        share = whole[rank * self.rows:(rank + 1) * self.rows]
        return torch.cat([share, share.new_zeros(self.rows - len(share), *share.shape[1:])])

    def share(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's rows of a whole table, or of what an optimiser keeps by row."""
        return self._share(whole, self.ranks.rank)

    def gather(self, share: torch.Tensor) -> torch.Tensor | None:
        """All ranks' rows in main memory, on the first rank; None on the others."""
        parts = self.ranks.gather(share.detach().cpu())
        return None if parts is None else torch.cat(parts)[:self.num_embeddings]

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.whole is not None:
            destination[f"{prefix}weight"] = self.whole

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """From a whole table."""
        taken = {**state_dict, f"{prefix}weight": self.share(state_dict[f"{prefix}weight"])}
        super()._load_from_state_dict(taken, prefix, *args)


def shard_tables(model: OnePiece, ranks: Ranks) -> None:
    """Each item table of the model becomes this rank's share of it; on one rank they stay whole."""
    if ranks.ranks == 1:
        return
    tower = model.item_tower
    tower.feature_table = ShardedTable(tower.feature_table, ranks)
    tower.id_table = ShardedTable(tower.id_table, ranks) if tower.id_table is not None else None
    for number, table in enumerate(tower.hash_tables):
        tower.hash_tables[number] = ShardedTable(table, ranks)


def shards_of(model: nn.Module) -> list[ShardedTable]:
    """The sharded tables of a model, in a fixed order."""
    return [module for module in model.modules() if isinstance(module, ShardedTable)]


@contextlib.contextmanager
def whole_tables(model: nn.Module) -> Iterator[None]:
    """Within the block the first rank has whole tables and needs no other; all ranks must enter it."""
    tables = shards_of(model)
    for table in tables:
        table.whole = table.gather(table.weight)
    try:
        yield
    finally:
        for table in tables:
            table.whole = None


def whole_state(state: dict, parameters: Sequence[nn.Parameter], tables: Sequence[ShardedTable]) -> dict:
    """An optimiser's `state_dict` with what it keeps by row put together; whole on the first rank only."""
    return _by_row(state, parameters, tables, lambda table, value: table.gather(value), of=lambda table: table.rows)


def share_of_state(state: dict, parameters: Sequence[nn.Parameter], tables: Sequence[ShardedTable]) -> dict:
    """The reverse: this rank's part of a whole `state_dict`."""
    return _by_row(state, parameters, tables, lambda table, value: table.share(value),
                   of=lambda table: table.num_embeddings)


def _by_row(state: dict, parameters: Sequence[nn.Parameter], tables: Sequence[ShardedTable],
            change: Callable[[ShardedTable, torch.Tensor], torch.Tensor | None], *,
            of: Callable[[ShardedTable], int]) -> dict:
    """`change` what the optimiser keeps for each of the table's `of` rows; counters stay."""
    table_of = {id(table.weight): table for table in tables}
    changed = dict(state["state"])
    for number, parameter in enumerate(parameters):
        table = table_of.get(id(parameter))
        if table is not None and number in changed:
            changed[number] = {name: change(table, value) if value.dim() and len(value) == of(table) else value
                               for name, value in changed[number].items()}
    return {**state, "state": changed}
