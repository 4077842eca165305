"""The promise of ten: places that the filters left empty are filled by what they dropped, the least doubtful first.

Stands between the requests and `cascade.py`, whose last step it is. Legend: B users, M candidates.
"""

from collections import Counter

import torch

from onepiece_comp.funnel.candidates import Candidates
from onepiece_comp.funnel.users import Request


def fill(best: torch.Tensor, candidates: Candidates, request: Request, seen: tuple[torch.Tensor, torch.Tensor], *,
         wanted: int) -> tuple[torch.Tensor, Counter]:
    """`wanted` distinct candidates each: places left (-1) are filled by unseen warm ones, then cold ones,
    then seen ones.

    `seen` has the (user, candidate) pairs of whole histories. Also counts what filled the places.
    """
    filled: Counter = Counter()
    if best.shape[1] < wanted:
        best = torch.cat([best, best.new_full((len(best), wanted - best.shape[1]), -1)], 1)
    for user in torch.where((best < 0).any(1))[0].tolist():
        score = candidates.vectors.unit_ND @ request.query_BD[user]
        score = score if request.popularity is None else score + request.popularity.all_of(user)
        tier = (~candidates.warm_M).long()
        tier[seen[1][seen[0] == user]] = 2
        have = best[user][best[user] >= 0]
        tier[have] = 3
        order = score.argsort(descending=True, stable=True)
        order = order[tier[order].argsort(stable=True)]
        more = order[:wanted - len(have)]
        for name, value in (("unseen warm", 0), ("cold", 1), ("seen", 2)):
            filled[name] += int((tier[more] == value).sum())
        best[user] = torch.cat([have, more])
    return best, filled
