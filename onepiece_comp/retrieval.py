"""Exact retrieval: the best K of M candidates for each user, tile by tile, and the rank of a known target.

Scores are dot products plus a bias per candidate. Memory is one tile of B x TILE scores, whatever M is.
Legend: B users, M candidates, D width, K best.
"""

from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.batches import item_batch, move
from onepiece_comp.model import OnePiece
from onepiece_comp.preprocess import ItemTable

TILE = 16384
_GROUP = 32  # scores of a tile that are judged by their highest


class Best(NamedTuple):
    """The best candidates of each user, highest score first; -inf and index 0 where fewer are allowed."""

    score_BK: torch.Tensor
    index_BK: torch.Tensor  # int64, candidate number


class ItemVectors(NamedTuple):
    """What the towers make of some items."""

    unit_ND: torch.Tensor  # for the encoder's query; unit vectors where the logit is a cosine
    metric_NM: torch.Tensor | None  # metric vectors, for the similarity to history items


@torch.no_grad()
def encode_item_table(model: OnePiece, table: ItemTable, rows: np.ndarray, device: torch.device) -> ItemVectors:
    """The vectors of a table's rows, computed a block at a time."""
    unit, metric = [], []
    for part in np.array_split(rows, max(1, -(-len(rows) // TILE))):
        item_ND = model.encode_items(move(item_batch(table, part, model.schema.item_features), device))
        unit.append(model.keys(item_ND).float())
        if model.similarity is not None:
            metric.append(model.similarity.metric(item_ND))
    return ItemVectors(torch.cat(unit), torch.cat(metric) if metric else None)


def top_k(query_BD: torch.Tensor, candidate_MD: torch.Tensor, *, k: int, bias_BM: torch.Tensor | None = None,
          hidden: tuple[torch.Tensor, torch.Tensor] | None = None) -> Best:
    """Exact top-k of query . candidate + bias. `hidden` = (user, candidate) index pairs to leave out.

    `bias_BM` may be [1, M]. Of equal scores the one in the earlier tile comes first, within a tile any.
    """
    users, candidates = len(query_BD), len(candidate_MD)
    k = min(k, candidates)
    best = Best(
        query_BD.new_full((users, k), -torch.inf), torch.zeros(users, k, dtype=torch.long, device=query_BD.device)
    )
    for start in range(0, candidates, TILE):
        tile = slice(start, min(start + TILE, candidates))
        score = query_BD @ candidate_MD[tile].T
        if bias_BM is not None:
            score = score + bias_BM[:, tile]
        if hidden is not None:
            inside = (hidden[1] >= tile.start) & (hidden[1] < tile.stop)
            score[hidden[0][inside], hidden[1][inside] - start] = -torch.inf
        found = _ahead(score, best.score_BK[:, -1], k)
        if found is None:
            continue
        both = torch.cat([best.score_BK, found.score_BK], 1)
        index = torch.cat([best.index_BK, found.index_BK + start], 1)
        kept = both.sort(dim=1, descending=True, stable=True)
        best = Best(kept.values[:, :k], index.gather(1, kept.indices[:, :k]))
    return best


def _ahead(score_BT: torch.Tensor, least_B: torch.Tensor, k: int) -> Best | None:
    """What may enter lists whose last scores are `least_B`: at most the `k` best of a tile, None where nothing does.

    Only groups whose highest score is ahead of the list's last are looked through: in late tiles these are few.
    """
    users, width = score_BT.shape
    if width % _GROUP or not least_B.isfinite().all():
        return Best(*score_BT.topk(min(k, width), dim=1))
    group_BGX = score_BT.view(users, -1, _GROUP)
    highest_BG = group_BGX.amax(2)
    groups = int((highest_BG > least_B[:, None]).sum(1).max())
    if not groups:
        return None
    if groups * 2 > highest_BG.shape[1]:
        return Best(*score_BT.topk(min(k, width), dim=1))
    chosen_BG = highest_BG.topk(groups, dim=1).indices
    inside = group_BGX.gather(1, chosen_BG[..., None].expand(-1, -1, _GROUP)).flatten(1)
    wanted = int((inside > least_B[:, None]).sum(1).max())
    found = inside.topk(min(k, wanted), dim=1)
    group_BK = chosen_BG.gather(1, torch.div(found.indices, _GROUP, rounding_mode="floor"))
    return Best(found.values, group_BK * _GROUP + found.indices % _GROUP)


def target_rank(
    query_BD: torch.Tensor,
    candidate_MD: torch.Tensor,
    target_B: torch.Tensor,
    *,
    bias_BM: torch.Tensor | None = None,
    hidden: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """1-based rank of each user's target among all candidates; a hidden target has rank M + 1."""
    users = torch.arange(len(query_BD), device=query_BD.device)
    score = query_BD @ candidate_MD.T
    if bias_BM is not None:
        score = score + bias_BM
    if hidden is not None:
        score[hidden] = -torch.inf
    target = score[users, target_B][:, None]
    ahead = (score > target) | (
        (score == target) & (torch.arange(len(candidate_MD), device=score.device) < target_B[:, None])
    )
    return torch.where(target[:, 0] == -torch.inf, len(candidate_MD) + 1, ahead.sum(1) + 1)


def recall(exact: torch.Tensor, found: torch.Tensor) -> float:
    """The share of `exact` [B, K] that is in the same user's row of `found` [B, K']; negative ones do not count."""
    hit = wanted = 0
    for own, ours in zip(exact, found):
        own = own[own >= 0]
        hit, wanted = hit + int(torch.isin(own, ours).sum()), wanted + len(own)
    return hit / max(1, wanted)
