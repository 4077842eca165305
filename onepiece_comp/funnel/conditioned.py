"""What the conditioned query says of a cascade's candidates: first the code, then the item by the query that knows it.

Source: COBRA (arXiv 2503.02453), the dense vector given the sparse id. Legend: B users, K candidates, D width, P first
codes.
"""

import torch

from onepiece_comp.funnel.beam import first_log_prob
from onepiece_comp.funnel.candidates import Candidates
from onepiece_comp.funnel.users import Request
from onepiece_comp.models.recommender import OnePiece

_USERS_AT_ONCE = 32  # whose candidates have queries of their own at once


def conditioned_log_prob(model: OnePiece, candidates: Candidates, request: Request, index_BK: torch.Tensor,
                         logit_BK: torch.Tensor, legal_BK: torch.Tensor) -> torch.Tensor:
    """log p(first code) + log p(candidate | first code) [B, K] of `index_BK`;
    -inf without an id and where not `legal_BK`.

    `logit_BK` is their logit by the plain query, whose part in it gives way to the conditioned one's. Under its own
    first code's query a candidate is compared with those of that code among the legal ones of `index_BK` only: queries
    of different codes have different scales.
    """
    prefixes = candidates.prefixes
    leaf_BK = prefixes.item_leaf[index_BK]
    first_BK = prefixes.leaf_path[leaf_BK.clamp_min(0), 0]
    unit_BKD = candidates.vectors.unit_ND[index_BK]
    plain_BK = (unit_BKD @ request.query_BD[..., None])[..., 0]
    own_BK = torch.cat([(unit_BKD[part] * _queries(model, request, prefixes.code[0][first_BK[part]], part)).sum(2)
                        for part in torch.arange(len(index_BK)).split(_USERS_AT_ONCE)])
    logit_BK = (logit_BK - plain_BK + own_BK).masked_fill((leaf_BK < 0) | ~legal_BK, -torch.inf)
    highest_B1 = logit_BK.amax(1, keepdim=True).clamp_min(-1e30)  # a user may have none
    log_first_BP = first_log_prob(model, prefixes, request.encoded, request.history.length_B, request.prior)
    total_BP = torch.zeros_like(log_first_BP).scatter_add(1, first_BK, (logit_BK - highest_B1).exp())
    return (log_first_BP.gather(1, first_BK) + logit_BK - highest_B1
            - total_BP.clamp_min(1e-30).log().gather(1, first_BK))


def _queries(model: OnePiece, request: Request, code_BK: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
    """Some users' queries [B, K, D] given first codes."""
    length_B = request.history.length_B[users]
    steps_T = torch.arange(request.encoded.hidden_BTD.shape[1], device=code_BK.device)
    return model.conditioned_query(
        request.encoded.hidden_BTD[users, length_B - 1], code_BK,
        model.decoder.memories([state[users] for state in request.encoded.states]),
        (steps_T < length_B[:, None])[:, None]).float()
