"""Constrained beam search over the semantic ids that exist among the candidates.

A beam is a prefix of codes; its score is the sum of log-probabilities, each renormalised over the prefix's children
that lead to a candidate, so no generated id is without an item and a beam wide enough is exhaustive search.
Source: OnePiece (arXiv 2512.07424), whose beams are not constrained.
Legend: B users, W beams, L levels, C codes, D width, M candidates, P prefixes, R flat rows of (user, prefix).
"""

from typing import NamedTuple

import torch

from onepiece_comp.models.prefix_table import PrefixTable
from onepiece_comp.models.recommender import Encoded, OnePiece

_LOGITS_PER_BLOCK = 1 << 24  # bound on rows x codes at a time


class Generated(NamedTuple):
    """Candidates found by the beam, best first; -inf where there are fewer."""

    log_prob_BK: torch.Tensor
    index_BK: torch.Tensor  # int64, candidate number


class Prior(NamedTuple):
    """Additive logits that do not come from the decoder's query."""

    bias_RP: list[torch.Tensor] | None  # popularity of prefixes per level, [R moments, P_l]
    row_B: torch.Tensor  # int64, the moment of each user
    first_BC: torch.Tensor | None = None  # of first codes: how near they are to the history's

    def first_level(self, table: PrefixTable) -> torch.Tensor:
        """Logits [B or 1, P_0] of the first prefixes."""
        total = torch.zeros((), device=self.row_B.device)
        if self.bias_RP is not None:
            total = total + self.bias_RP[0][self.row_B]
        return total if self.first_BC is None else total + self.first_BC[:, table.code[0]]

    def children(self, level: int, child_BWX: torch.Tensor) -> torch.Tensor:
        """Logits of prefixes of a further level."""
        if self.bias_RP is None:
            return torch.zeros((), device=self.row_B.device)
        return self.bias_RP[level][self.row_B[:, None, None], child_BWX]


class _Decoding:
    """Log-probabilities of the children of prefixes, for users whose histories are encoded once."""

    def __init__(self, model: OnePiece, table: PrefixTable, encoded: Encoded, length_B: torch.Tensor,
                 prior: Prior | None):
        self.decoder, self.table, self.prior = model.decoder, table, prior
        users = torch.arange(len(length_B), device=length_B.device)
        self.hidden_BD = encoded.hidden_BTD[users, length_B - 1]
        self.memories = self.decoder.memories(encoded.states)
        steps = torch.arange(encoded.hidden_BTD.shape[1], device=length_B.device)
        self.allowed_B1S = (steps[None] < length_B[:, None])[:, None]

    def logits(self, level: int, prefix_BWL: torch.Tensor) -> torch.Tensor:
        """Logits [B, W, C] of `level` after each prefix of codes."""
        users, beams = prefix_BWL.shape[:2]
        hidden_BWD = self.hidden_BD[:, None].expand(-1, beams, -1)
        query_BWD = self.decoder.query(
            level, hidden_BWD, prefix_BWL, self.memories, self.allowed_B1S.expand(-1, beams, -1)
        )
        return (query_BWD @ self.decoder.code_LCD[level].T).float()

    def first_level(self) -> torch.Tensor:
        """Log-probabilities [B, P_0] of the first codes in use."""
        empty = self.hidden_BD.new_zeros(len(self.hidden_BD), 1, 0, dtype=torch.long)
        logit = self.logits(0, empty)[:, 0, self.table.code[0]]
        if self.prior is not None:
            logit = logit + self.prior.first_level(self.table)
        return torch.log_softmax(logit, dim=1)

    def children(self, level: int, prefix_BW: torch.Tensor, code_BWL: torch.Tensor,
                 ) -> tuple[torch.Tensor, torch.Tensor]:
        """Children (prefix numbers of `level`, -1 = padding) and log-probabilities [B, W, widest] of each prefix."""
        start = self.table.first_child[level - 1][prefix_BW]
        count = self.table.first_child[level - 1][prefix_BW + 1] - start
        offset = torch.arange(int(count.max()), device=start.device)
        inside = offset < count[..., None]
        child = torch.where(inside, start[..., None] + offset, 0)
        logit = self.logits(level, code_BWL).gather(2, self.table.code[level][child])
        if self.prior is not None:
            logit = logit + self.prior.children(level, child)
        logit = logit.masked_fill(~inside, -torch.inf)
        return torch.where(inside, child, -1), torch.log_softmax(logit, dim=2)


def beam_search(model: OnePiece, table: PrefixTable, encoded: Encoded, length_B: torch.Tensor, *, beam: int,
                survivors: int, prior: Prior | None = None) -> Generated:
    """The `survivors` most probable candidates of each user among those that `beam` prefixes a level reach."""
    decoding = _Decoding(model, table, encoded, length_B, prior)
    levels = len(table.code)
    log_prob = decoding.first_level()
    keep = survivors if levels == 1 else beam
    best = log_prob.topk(min(keep, log_prob.shape[1]), dim=1)
    prefix, score = best.indices, best.values
    codes = table.code[0][prefix][..., None]
    for level in range(1, levels):
        prefix, score, parent = _best_children(decoding, level, prefix, codes, score,
                                               survivors if level == levels - 1 else beam)
        parents = codes.gather(1, parent[..., None].expand(-1, -1, codes.shape[2]))
        codes = torch.cat([parents, table.code[level][prefix][..., None]], dim=2)
    return Generated(score, table.leaf_item[prefix])


def _best_children(decoding: _Decoding, level: int, prefix_BW: torch.Tensor, code_BWL: torch.Tensor,
                   score_BW: torch.Tensor,
                   keep: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `keep` best children of all beams, their scores, and their parents' places [B, K]; some beams at a time.

    A beam wider than its prefix's children holds padding: prefix 0 with score -inf stands for it.
    """
    width = max(1, _LOGITS_PER_BLOCK // (len(prefix_BW) * decoding.decoder.codes))
    found: list[tuple[torch.Tensor, ...]] = []
    for start in range(0, prefix_BW.shape[1], width):
        part = slice(start, start + width)
        child, step = decoding.children(level, prefix_BW[:, part], code_BWL[:, part])
        total = (score_BW[:, part, None] + step).flatten(1)
        best = total.topk(min(keep, total.shape[1]), dim=1)
        parent = start + torch.div(best.indices, child.shape[2], rounding_mode="floor")
        found.append((child.flatten(1).gather(1, best.indices).clamp_min(0), best.values, parent))
    if len(found) == 1:
        return found[0]
    child, score, parent = (torch.cat(parts, 1) for parts in zip(*found))
    best = score.topk(min(keep, score.shape[1]), dim=1)
    return child.gather(1, best.indices), best.values, parent.gather(1, best.indices)


def item_log_prob(model: OnePiece, table: PrefixTable, encoded: Encoded, length_B: torch.Tensor,
                  index_BK: torch.Tensor, prior: Prior | None = None) -> torch.Tensor:
    """Log-probability [B, K] of given candidates, as the beam would score them; -inf for one without an id."""
    decoding = _Decoding(model, table, encoded, length_B, prior)
    leaf = table.item_leaf[index_BK]
    path_BKL = table.leaf_path[leaf.clamp_min(0)]
    total = decoding.first_level().gather(1, path_BKL[..., 0])
    codes = torch.stack([table.code[level][path_BKL[..., level]] for level in range(len(table.code))], dim=2)
    width = max(1, _LOGITS_PER_BLOCK // (len(leaf) * model.decoder.codes))
    for level in range(1, len(table.code)):
        for start in range(0, leaf.shape[1], width):
            part = slice(start, start + width)
            child, step = decoding.children(level, path_BKL[:, part, level - 1], codes[:, part, :level])
            own = child == path_BKL[:, part, level, None]
            total[:, part] += torch.where(own, step, 0).sum(2)
    return total.masked_fill(leaf < 0, -torch.inf)


def first_log_prob(model: OnePiece, table: PrefixTable, encoded: Encoded, length_B: torch.Tensor,
                   prior: Prior | None = None) -> torch.Tensor:
    """Log-probability [B, P_0] of each first code in use."""
    return _Decoding(model, table, encoded, length_B, prior).first_level()
