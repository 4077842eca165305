"""Exact retrieval: the best K of M candidates for each user, tile by tile, and the rank of a known target.

Scores are dot products plus a bias per candidate. Memory is one tile of B x TILE scores and somewhat more than B x K
that are kept, whatever M is.
Legend: B users, M candidates, D width, K best.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.dataset.preprocess import ItemTable
from onepiece_comp.models.batch import item_batch, move
from onepiece_comp.models.recommender import OnePiece

TILE = 16384
_SAMPLE = 16384  # candidates of whom a list's end is foretold
_GROUP = 32  # scores of a tile that are judged by their highest
Logits = Callable[[slice], torch.Tensor]  # of some candidates, to add to the scores: [B, K] or [1, K]


class Best(NamedTuple):
    """The best candidates of each user, highest score first; -inf and index 0 where fewer are allowed."""

    score_BK: torch.Tensor
    index_BK: torch.Tensor  # int64, candidate number


class EncodedItems(NamedTuple):
    """What the towers make of some items."""

    unit_ND: torch.Tensor  # for the encoder's query; unit vectors where the logit is a cosine
    metric_NM: torch.Tensor | None  # metric vectors, for the similarity to history items


@torch.no_grad()
def encode_item_table(model: OnePiece, table: ItemTable, rows: np.ndarray, device: torch.device) -> EncodedItems:
    """The vectors of a table's rows, computed a block at a time."""
    unit, metric = [], []
    for part in np.array_split(rows, max(1, -(-len(rows) // TILE))):
        item_ND = model.encode_items(move(item_batch(table, part, model.schema.item_features), device))
        unit.append(model.keys(item_ND).float())
        if model.similarity is not None:
            metric.append(model.similarity.metric(item_ND))
    return EncodedItems(torch.cat(unit), torch.cat(metric) if metric else None)


def top_k(query_BD: torch.Tensor, candidate_MD: torch.Tensor, *, k: int, bias: Logits | None = None,
          hidden: tuple[torch.Tensor, torch.Tensor] | None = None) -> Best:
    """Exact top-k of query . candidate + bias. `hidden` = (user, candidate) index pairs to leave out.

    A sample of the candidates foretells a score that somewhat more than k of all will pass, so that one look at each
    tile keeps little; a user for whom it foretold too much is looked at again, the plain way. Of equal scores the one
    in the earlier tile comes first, within a tile any.
    """
    look = _Look(query_BD, candidate_MD, bias, hidden)
    k, step = min(k, len(candidate_MD)), max(4, len(candidate_MD) // _SAMPLE)
    sampled = -(-len(candidate_MD) // step)
    mean = k * sampled / len(candidate_MD)
    rank = int(mean + 4 * mean ** 0.5 + 4)  # four standard deviations below what k candidates would have in the sample
    if len(candidate_MD) <= TILE or 4 * rank > sampled:
        return _by_tiles(look, k)
    least_B1 = look.scores(slice(None, None, step)).topk(rank, dim=1).values[:, -1:]
    best, count_B = _above(look, least_B1.masked_fill(least_B1 == -torch.inf, torch.inf), k)
    again = (count_B < k).nonzero()[:, 0]
    if len(again):
        found = _by_tiles(look.of(again), k)
        best.score_BK[again], best.index_BK[again] = found
    return best


class _Look(NamedTuple):
    """What is asked of whom."""

    query_BD: torch.Tensor
    candidate_MD: torch.Tensor
    bias: Logits | None
    hidden: tuple[torch.Tensor, torch.Tensor] | None

    def scores(self, part: slice) -> torch.Tensor:
        """Scores [B, K] of some candidates, -inf for hidden ones."""
        start, stop, step = part.indices(len(self.candidate_MD))
        score_BK = self.query_BD @ self.candidate_MD[part].T
        if self.bias is not None:
            score_BK = score_BK + self.bias(part)
        if self.hidden is not None:
            user, number = self.hidden
            inside = (number >= start) & (number < stop) & ((number - start) % step == 0)
            score_BK[user[inside], torch.div(number[inside] - start, step, rounding_mode="floor")] = -torch.inf
        return score_BK

    def tiles(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(first candidate, scores) of each tile."""
        for start in range(0, len(self.candidate_MD), TILE):
            yield start, self.scores(slice(start, min(start + TILE, len(self.candidate_MD))))

    def of(self, users: torch.Tensor) -> "_Look":
        """The same for some of the users."""
        bias = self.bias and (lambda part: logits if len(logits := self.bias(part)) == 1 else logits[users])
        place = torch.full((len(self.query_BD),), -1, device=users.device)
        place[users] = torch.arange(len(users), device=users.device)
        hidden = self.hidden
        if hidden is not None:
            kept = place[hidden[0]] >= 0
            hidden = place[hidden[0][kept]], hidden[1][kept]
        return _Look(self.query_BD[users], self.candidate_MD, bias, hidden)


def _by_tiles(look: _Look, k: int) -> Best:
    """The plain way: lists of the best so far, joined with those of each tile."""
    best = None
    for start, score in look.tiles():
        found = score.topk(min(k, score.shape[1]), dim=1)
        found = Best(found.values, found.indices + start)
        best = found if best is None else _first(*(torch.cat(parts, 1) for parts in zip(best, found)), k)
    return best


def _above(look: _Look, least_B1: torch.Tensor, k: int) -> tuple[Best, torch.Tensor]:  # noqa: N803
    """(the best k of what scores more than `least_B1`, how many do so for each user)."""
    found = [_passing(score, least_B1, start) for start, score in look.tiles()]
    user, index, score = (torch.cat(parts) for parts in zip(*found))
    order = user.argsort(stable=True)
    user, index, score = user[order], index[order], score[order]
    count_B = torch.bincount(user, minlength=len(least_B1))
    place = torch.arange(len(user), device=user.device) - (count_B.cumsum(0) - count_B)[user]
    shape = len(least_B1), max(k, int(count_B.max()))
    score_BK, index_BK = score.new_full(shape, -torch.inf), torch.zeros(shape, dtype=torch.long, device=user.device)
    score_BK[user, place], index_BK[user, place] = score, index
    return _first(score_BK, index_BK, k), count_B


def _passing(score_BT: torch.Tensor, least_B1: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor,
    torch.Tensor]:  # noqa: N803
    """(user, candidate, score) of a tile's scores above each user's; groups whose highest is not are passed over."""
    group = _GROUP if score_BT.shape[1] % _GROUP == 0 else 1
    score_BGX = score_BT.view(len(score_BT), -1, group)
    user, place = (score_BGX.amax(2) > least_B1).nonzero(as_tuple=True)
    inside = score_BGX[user, place]
    row, column = (inside > least_B1[user]).nonzero(as_tuple=True)
    return user[row], start + place[row] * group + column, inside[row, column]


def _first(score_BK: torch.Tensor, index_BK: torch.Tensor, k: int) -> Best:  # noqa: N803
    """The best k, of equal ones the earlier."""
    kept = score_BK.sort(dim=1, descending=True, stable=True)
    return Best(kept.values[:, :k].clone(), index_BK.gather(1, kept.indices[:, :k]))


def target_rank(
    query_BD: torch.Tensor,
    candidate_MD: torch.Tensor,
    target_B: torch.Tensor,
    *,
    bias_BM: torch.Tensor | None = None,
    hidden: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """1-based rank of each user's target among all candidates;
    a hidden one, or one whose score is no number, has M + 1.
    """
    users = torch.arange(len(query_BD), device=query_BD.device)
    score = query_BD @ candidate_MD.T
    if bias_BM is not None:
        score = score + bias_BM
    if hidden is not None:
        score[hidden] = -torch.inf
    target = score[users, target_B][:, None]
    ahead = ~(score <= target) | (  # so that all are ahead of a nan, and it of all
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
