"""Scores of a public benchmark's items by semantic ids: a constrained beam, a dense logit, or a fusion of both.

Stands between `next_item_codes.py` and `run.py`, with the beam of `beam.py` over the ids that exist. An item that
the beam does not reach, and no other rule brings in, has no score: it is in no list, and as a target it takes the last
place. Both parts are log-probabilities up to a constant of the user, fused as in `cascade.py`; COBRA's (arXiv
2503.02453, section 3.3) are cosines of queries that know their ids, which it fuses in the same way.
Legend: B users, D width, L levels, I items, G distinct ids, K ids of the beam or items that join, N pairs.
"""

from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.benchmark.full_ranking import Scorer, batches_of
from onepiece_comp.benchmark.interactions import Interactions, train_counts, window
from onepiece_comp.benchmark.next_item_codes import CodeModel
from onepiece_comp.benchmark.rows import CodeRowConfig
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.beam import Generated, beam_search, item_log_prob
from onepiece_comp.models.recommender import Encoded

_USERS_AT_ONCE = 64  # whose beams are held


class Ranking(NamedTuple):
    """How a model's heads make one score; see CodeRowConfig."""

    beam: int
    survivors: int = 1000
    union: int = 0
    cold: bool = False
    share: float = 1.0


class Histories(NamedTuple):
    """Users' histories as the model reads them."""

    encoded: Encoded
    length_B: torch.Tensor  # int64


def ranking_of(config: CodeRowConfig) -> Ranking:
    """The ranking of a row; InputError for settings that do not fit each other or the model."""
    share = config.share if config.beam else 0.0
    return _checked(Ranking(config.beam, config.survivors, config.union, config.cold, share), config)


def valid_rankings(config: CodeRowConfig) -> list[Ranking]:
    """How epochs are compared: the same for all rows that share a training."""
    if not config.valid_shares:
        raise InputError("valid_shares", found="none", expected="at least one score to compare epochs by",
                         do="give one")
    return [_checked(Ranking(config.valid_beam if share else 0, 10 * config.valid_beam, share=share), config)
            for share in config.valid_shares]


def _checked(ranking: Ranking, config: CodeRowConfig) -> Ranking:
    place, found = "ranking", f"{ranking} of a model with dense={config.dense}"
    if not 0 <= ranking.share <= 1 or min(ranking.beam, ranking.union) < 0 or ranking.survivors < 1 or (
            ranking.share and not ranking.beam):
        raise InputError(place, found=found,
                         expected="a share from 0 to 1 and, above 0, a beam; at least one survivor; no "
                         "negative counts", do="correct the one that is outside")
    if config.dense == "none" and (ranking.share < 1 or ranking.union or ranking.cold):
        raise InputError(place, found=found, expected="a beam, share=1, union=0, cold=false",
                         do="set these (valid_shares too), or choose a row with a dense head")
    if config.dense == "conditioned" and (not ranking.beam or ranking.union or ranking.cold):
        raise InputError(place, found=found, expected="a beam, union=0, cold=false: the query needs an id",
                         do="set these")
    if ranking.cold and ranking.share:
        raise InputError(place, found=found, do="set one of them",
                         expected="cold=false, or share=0: items without training "
                         "events are ranked by their dense score alone")
    return ranking


def code_scorer(model: CodeModel, log: Interactions, max_length: int, ranking: Ranking) -> Scorer:
    """Scores of all items from each user's last position, -inf for those that are not found."""
    cold_I = torch.from_numpy(train_counts(log)[1:] == 0) if ranking.cold else None

    @torch.inference_mode()
    def score(users: np.ndarray, held_out: int) -> np.ndarray:
        model.eval()
        out_BI = np.full((len(users), log.items + 1), -np.inf, np.float32)
        key_ID = None if model.config.dense == "none" else model.keys()
        for rows in batches_of(np.arange(len(users)), _USERS_AT_ONCE):
            seen = window(log, users[rows], held_out=held_out, longest=max_length)
            histories = Histories(model.encode(seen), torch.from_numpy(seen.length_B))
            out_BI[rows, 1:] = _score(model, histories, key_ID, ranking, cold_I).numpy()
        return out_BI

    return score


def _score(model: CodeModel, histories: Histories, key_ID: torch.Tensor | None, ranking: Ranking,  # noqa: N803
           cold_I: torch.Tensor | None) -> torch.Tensor:  # noqa: N803
    """Scores [B, I]."""
    (encoded, length_B), table, id_I = histories, model.ids.table, model.ids.id_I
    logit_BI = None
    if model.config.dense == "last" and (ranking.share < 1 or ranking.union):
        logit_BI = model.dense_query(encoded)[torch.arange(len(length_B)), length_B - 1] @ key_ID.T
    if not ranking.beam:
        return logit_BI
    found = beam_search(model, table, encoded, length_B, beam=ranking.beam, survivors=ranking.survivors)
    slot_BI = _slots(found, len(model.ids.code_GL))[:, id_I]
    log_prob_BI = found.log_prob_BK.gather(1, slot_BI.clamp_min(0)).masked_fill(slot_BI < 0, -torch.inf)
    if ranking.union:
        index_BK = logit_BI.topk(min(ranking.union, logit_BI.shape[1]), dim=1).indices
        log_prob_BI.scatter_(1, index_BK, item_log_prob(model, table, encoded, length_B, id_I[index_BK]))
    if ranking.share == 1:
        return log_prob_BI
    if model.config.dense == "conditioned":
        logit_BI = _conditioned_logits(model, histories, key_ID, found.index_BK, slot_BI)
    fused_BI = torch.where(log_prob_BI > -torch.inf, (1 - ranking.share) * logit_BI, -torch.inf)
    if ranking.share:
        fused_BI += ranking.share * log_prob_BI
    return fused_BI if cold_I is None else torch.where(cold_I, logit_BI, fused_BI)


def _slots(found: Generated, ids: int) -> torch.Tensor:
    """Place [B, G] of each id in the beam, -1 where it is not in it."""
    place_BK = torch.arange(found.index_BK.shape[1]).expand_as(found.index_BK)
    place_BK = torch.where(found.log_prob_BK > -torch.inf, place_BK, -1)
    none_BG = torch.full((len(place_BK), ids), -1)
    # padding names an id that may be in the beam too
    return none_BG.scatter_reduce_(1, found.index_BK, place_BK, "amax")


def _conditioned_logits(model: CodeModel, histories: Histories, key_ID: torch.Tensor, id_BK: torch.Tensor,  # noqa: N803
                        slot_BI: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Dense logits [B, I] of the items of the beam's ids, each by the query that knows its id; -inf for the others."""
    (encoded, length_B), (users, ids) = histories, id_BK.shape
    hidden_BD = encoded.hidden_BTD[torch.arange(users), length_B - 1]
    allowed_B1S = (torch.arange(encoded.hidden_BTD.shape[1]) < length_B[:, None])[:, None]
    query_BKD = model.conditioned_query(hidden_BD[:, None].expand(-1, ids, -1), model.ids.code_GL[id_BK],
                                        model.decoder.memories(encoded.states), allowed_B1S.expand(-1, ids, -1))
    user_N, item_N = torch.where(slot_BI >= 0)
    logit_BI = torch.full(slot_BI.shape, -torch.inf)
    logit_BI[user_N, item_N] = (query_BKD[user_N, slot_BI[user_N, item_N]] * key_ID[item_N]).sum(-1)
    return logit_BI
