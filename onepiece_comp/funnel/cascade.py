"""Ranking: exact retrieval, beam search, or both in a cascade, with the filters and the promise of ten items.

`retrieval` ranks all candidates by the InfoNCE logit. `beam` ranks what the semantic-id head generates by its
log-probability. `cascade` unites both sets and ranks by (1 - w) logit + w log-probability: each is a log-probability
of the next item up to a constant of the user, so the sum is a product of experts; unlike the paper's re-ranking
(arXiv 2512.07424, w = 0, no union) the beam's own score is not thrown away.
Legend: B users, M candidates, D width, K items of the union.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from onepiece_comp.config import InferConfig
from onepiece_comp.dataset.evaluation_folder import Evaluation
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.beam import beam_search, item_log_prob
from onepiece_comp.funnel.candidates import Candidates, prepare
from onepiece_comp.funnel.conditioned import conditioned_log_prob
from onepiece_comp.funnel.filling import fill
from onepiece_comp.funnel.rerank import Reranker, ranker_input
from onepiece_comp.funnel.users import ScoredCandidates, Request, asked_actions, encode_request
from onepiece_comp.logs.formats import LIST
from onepiece_comp.models.histories import Columns
from onepiece_comp.models.ranker import RankerInput
from onepiece_comp.models.retrieval import Logits, recall, top_k
from onepiece_comp.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from onepiece_comp.funnel.index import FirstStage

BEFORE = "ten before the ranker"
DEPTHS = (100, 384, 1000)  # at which a funnel tells the recall, beside the ten
_LEAST_LOG_PROB = -40.0  # of the beam, as a ranker reads it


class Ranked(NamedTuple):
    """The answer for a batch of users."""

    index: np.ndarray  # int64 [B, 10], candidate numbers
    stages: dict[str, list[np.ndarray]]  # step name to each user's candidate numbers, for the funnel
    filled: Counter  # how many places were filled by what the filters had dropped


class Funnel:
    """Ranks candidates for batches of users of one evaluation folder."""

    def __init__(self, checkpoint: Checkpoint, evaluation: Evaluation, config: InferConfig, device: torch.device, *,
                 keep: Path | None = None, depth: int = LIST, reranker: Reranker | None = None,
                 candidates: Candidates | None = None):
        """`depth` is how far down the order is followed: beyond the ten for the funnel alone.

        `reranker` orders the survivors anew; `candidates` stand for those that would be prepared.
        """
        self.model, self.evaluation, self.config, self.device = checkpoint.model, evaluation, config, device
        self.reranker, self.depth = reranker, depth
        named = {"beam": config.survivors, "cascade": config.survivors + config.union}.get(config.mode, 1)
        if not named:
            raise InputError("infer.survivors", found=f"0 in mode {config.mode}",
                             expected="candidates from the beam, or in "
                             "mode cascade from infer.union", do="set one of them above 0")
        self.action = asked_actions(checkpoint, evaluation, config)
        self.candidates = candidates or prepare(checkpoint, evaluation, config, self.action, device, keep=keep)
        self._first = self._first_stage()
        self._columns = Columns(evaluation.item, evaluation.action, evaluation.time_seconds, evaluation.user_token,
                                evaluation.user_token_start)

    @torch.no_grad()
    def rank(self, users: np.ndarray) -> Ranked:
        """Ten candidates for each of `users` (numbers into the evaluation's users)."""
        seen = self._seen(users)
        request = self._request(users, seen if self.config.filter_seen else None)
        stages: dict[str, torch.Tensor] = {}
        depth = self.depth if self.reranker is None else max(self.depth, self.reranker.depth)
        found = self._survivors(request, depth, stages)
        if self.reranker is not None:
            found = self._reranked(request, found.best(found.score_BK.shape[1]), stages)
        order = found.score_BK.topk(min(self.depth, found.score_BK.shape[1]), dim=1)
        best = torch.where(order.values > -torch.inf, found.index_BK.gather(1, order.indices), -1)
        for depth in DEPTHS[::-1]:
            if depth <= best.shape[1]:
                stages[f"best {depth:,}"] = best[:, :depth]
        chosen, filled = fill(best[:, :LIST], self.candidates, request, seen, wanted=LIST)
        stages["ten"] = chosen
        return Ranked(chosen.cpu().numpy(), {name: [row[row >= 0].cpu().numpy() for row in kept]
                                             for name, kept in stages.items()}, filled)

    @torch.no_grad()
    def shortlist(self, users: np.ndarray, depth: int, target: np.ndarray | None = None) -> tuple[ScoredCandidates,
        torch.Tensor]:
        """The first stage's `depth` best of each user and their parts [B, K, F]; with `target` [B] that as one more."""
        request = self._request(users, self._seen(users) if self.config.filter_seen else None)
        found = self._survivors(request, depth, {}).best(depth)
        if target is not None:
            index = torch.from_numpy(target).to(self.device)[:, None]
            log_prob = self._log_prob(request, index)
            own = ScoredCandidates(self._logits(request, index) if log_prob is None or self.config.mode == "retrieval"
                                   else
                        log_prob if self.config.mode == "beam" else
                        self._fuse(request, index, log_prob, torch.ones_like(index, dtype=torch.bool)), index, log_prob)
            found = ScoredCandidates(*(None if part is None else torch.cat([part, more], 1) for part,
                                       more in zip(found, own)))
        return found, self._parts(request, found, depth)

    @torch.no_grad()
    def ranker_input(self, users: np.ndarray, index: torch.Tensor, part: torch.Tensor,
                     allowed: torch.Tensor) -> RankerInput:
        """What a ranker reads of `users` and their candidates, the parts [B, K, F] being known."""
        return ranker_input(self.model, self.candidates.vectors, self._request(users, None), index, part, allowed)

    @property
    def approximate(self) -> bool:
        """Whether retrieval goes through an approximate index."""
        return self._first is not None

    @torch.no_grad()
    def queries(self, users: np.ndarray) -> torch.Tensor:
        """Vectors [B, D] whose dot products with the candidates' are logits, without popularity and similarity."""
        return self._request(users, None).query_BD

    @property
    def query_scale(self) -> float:
        """The length of a query: one over the temperature where logits are cosines."""
        axis_D = torch.eye(1, self.candidates.vectors.unit_ND.shape[1], device=self.device)[0]
        return float(self.model.retrieval_query(axis_D[None]).detach().norm())

    @torch.no_grad()
    def index_recall(self, users: np.ndarray, k: int) -> float:
        """The share of exact retrieval's `k` best that retrieval through the approximate index finds, for `users`."""
        exact, found = [], []
        for batch in np.array_split(users, -(-len(users) // self.config.batch_users)):
            request = self._request(batch, self._seen(batch) if self.config.filter_seen else None)
            for kept, (score, index) in ((exact, self._exact(request, k)), (found, self._approximate(request, k))):
                kept += torch.where(score > -torch.inf, index, -1)
        return recall(exact, found)

    def _first_stage(self) -> "FirstStage | None":
        """The approximate index, where one is asked for and the mode has use for it."""
        config = self.config
        if config.index == "exact" or config.mode == "beam" or (config.mode == "cascade" and not config.union):
            return None
        from onepiece_comp.funnel.index import FirstStage  # exact retrieval needs no faiss

        return FirstStage(self.candidates, config, scale=self.query_scale)

    def _request(self, users: np.ndarray, seen: tuple[torch.Tensor, torch.Tensor] | None) -> Request:
        """Encode the users' histories."""
        return encode_request(self.model, self.candidates, self.evaluation, self._columns, self.config, users=users,
                              action=self.action[users], seen=seen)

    def _survivors(self, request: Request, depth: int, stages: dict) -> ScoredCandidates:
        """What the mode finds."""
        retrieval = self.config.mode == "retrieval"
        return ScoredCandidates(*self._retrieve(request, depth), None) if retrieval else self._generate(request, stages)

    def _reranked(self, request: Request, found: ScoredCandidates, stages: dict) -> ScoredCandidates:
        """The ranker's order of the first `depth`, the others below as they were; scores are places from here on."""
        stages[BEFORE] = torch.where(found.score_BK > -torch.inf, found.index_BK, -1)[:, :LIST]
        head = ScoredCandidates(*(None if part is None else part[:, :self.reranker.depth] for part in found))
        allowed = head.score_BK > -torch.inf
        given = ranker_input(self.model, self.candidates.vectors, request, head.index_BK,
                             self._parts(request, head, self.reranker.depth), allowed)
        order = self.reranker.net(given).logit_BM.argsort(dim=1, descending=True, stable=True)
        index = torch.cat([head.index_BK.gather(1, order), found.index_BK[:, order.shape[1]:]], 1)
        place = -torch.arange(index.shape[1], dtype=torch.float32, device=index.device).expand(index.shape)
        return ScoredCandidates(place.masked_fill(found.score_BK == -torch.inf, -torch.inf), index, None)

    def _log_prob(self, request: Request, index: torch.Tensor) -> torch.Tensor | None:
        if self.candidates.prefixes is None:
            return None
        if not len(self.candidates.prefixes.leaf_item):  # no candidate has an id
            return torch.full(index.shape, -torch.inf, device=index.device)
        return item_log_prob(self.model, self.candidates.prefixes, request.encoded, request.history.length_B, index,
                             request.prior)

    def _parts(self, request: Request, found: ScoredCandidates, depth: int) -> torch.Tensor:
        """The first stage's parts [B, K, F] of each candidate, as `target_ranker.PARTS` names them;
        0 where there is none.
        """
        allowed, index = found.score_BK > -torch.inf, found.index_BK
        total = found.score_BK[:, :depth].logsumexp(1, keepdim=True)
        plain = (self.candidates.vectors.unit_ND[index] @ request.query_BD[..., None])[..., 0]
        zero = torch.zeros_like(plain)
        place = torch.arange(index.shape[1], device=index.device).clamp_max(depth).float().log1p().expand_as(plain)
        parts = (found.score_BK - total, plain, zero if request.metric_BSM is None else self._alike(request, index),
                 zero if request.popularity is None else request.popularity.at(index),
                 zero if found.log_prob_BK is None else found.log_prob_BK.clamp_min(_LEAST_LOG_PROB), place)
        return torch.where(allowed[..., None], torch.stack(parts, -1), 0)

    def _seen(self, users: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(user within the batch, candidate number) of every candidate in a user's whole history."""
        starts, stops = self.evaluation.user_start[users], self.evaluation.user_start[users + 1]
        number = [self.candidates.number[self.evaluation.item[a:b]] for a, b in zip(starts, stops)]
        user = np.repeat(np.arange(len(users)), stops - starts)
        number = np.concatenate(number)
        inside = number >= 0
        return torch.from_numpy(user[inside]).to(self.device), torch.from_numpy(number[inside]).to(self.device)

    def _dropped(self, request: Request, index: torch.Tensor) -> torch.Tensor:
        """Which of the candidates `index` [B, K] the filters drop."""
        dropped = (
            ~self.candidates.warm_M[index] if self.config.filter_cold else torch.zeros_like(index, dtype=torch.bool)
        )
        if self.candidates.absent_RM is not None:
            dropped |= self.candidates.absent_RM[request.row_B[:, None], index]
        if request.seen is not None:
            dropped |= self._among(index, *request.seen)
        return dropped

    def _among(self, index: torch.Tensor, user: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """Which entries of `index` [B, K] are among the (user, candidate) pairs."""
        total = len(self.candidates.vectors.unit_ND)
        own = torch.arange(len(index), device=index.device)[:, None] * total + index
        return torch.isin(own, user * total + number)

    def _retrieve(self, request: Request, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Top-k by the whole logit among what the first stage names; what is dropped has -inf."""
        return self._exact(request, k) if self._first is None else self._approximate(request, k)

    def _approximate(self, request: Request, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `_exact`, among those that the index names; seen ones do not take the places of others."""
        hidden = 0 if request.seen is None else int(torch.bincount(request.seen[0], minlength=1).max())
        named = self._first.search(request.query_BD, request.row_B, self._wide(k, self.config.index_fetch) + hidden)
        index = named.clamp_min(0)
        score = self._logits(request, index).masked_fill((named < 0) | self._dropped(request, index), -torch.inf)
        score, place = score.topk(min(k, score.shape[1]), dim=1)
        return score, index.gather(1, place)

    def _exact(self, request: Request, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Top-k by the whole logit, exact among the `shortlist` best without similarity; what is dropped has -inf.

        Where k is more than these there are fewer.
        """
        unit_MD, wide = self.candidates.vectors.unit_ND, self._wide(k, self.config.shortlist)
        parts: list[Logits] = [] if request.popularity is None else [request.popularity.of]
        if self.config.filter_cold:
            parts.append(lambda part: torch.where(self.candidates.warm_M[part], 0.0, -torch.inf)[None])
        first_stage = request.metric_BSM is not None and wide < len(unit_MD)
        if request.metric_BSM is not None and not first_stage:
            alike_BM = self._alike(request, None)
            parts.append(lambda part: alike_BM[:, part])
        bias = (lambda part: sum(logits(part) for logits in parts)) if parts else None
        best = top_k(request.query_BD, unit_MD, k=wide if first_stage else k, bias=bias, hidden=request.seen)
        if not first_stage:
            return best.score_BK, best.index_BK
        score, place = (best.score_BK + self._alike(request, best.index_BK)).topk(min(k, wide), dim=1)
        return score, best.index_BK.gather(1, place)

    def _wide(self, k: int, named: int) -> int:
        """How many the whole logit ranks: the same whether a funnel of greater depth is asked for or not."""
        return max(named, min(k, max(LIST, self.config.union) if self.config.mode == "cascade" else LIST))

    def _alike(self, request: Request, index: torch.Tensor | None) -> torch.Tensor:
        """Similarity logits of the candidates `index` [B, K], None = of all."""
        return self.model.similarity.of_last(request.metric_BSM, self.candidates.vectors.metric_NM, request.weighing,
                                             index)

    def _logits(self, request: Request, index: torch.Tensor) -> torch.Tensor:
        """The retrieval head's logit of the candidates `index` [B, K]."""
        logit = (self.candidates.vectors.unit_ND[index] @ request.query_BD[..., None])[..., 0]
        if request.popularity is not None:
            logit = logit + request.popularity.at(index)
        return logit if request.metric_BSM is None else logit + self._alike(request, index)

    def _generate(self, request: Request, stages: dict) -> ScoredCandidates:
        """Beam survivors, for `cascade` with exact neighbours, and their scores; what the filters drop has -inf."""
        config, prefixes = self.config, self.candidates.prefixes
        length_B = request.history.length_B
        log_prob = request.query_BD.new_empty(len(length_B), 0)
        index = length_B.new_empty(len(length_B), 0)
        if config.survivors and len(prefixes.leaf_item):
            log_prob, index = beam_search(
                self.model, prefixes, request.encoded, length_B, beam=config.beam, survivors=config.survivors,
                prior=request.prior)
        legal = log_prob > -torch.inf
        stages["beam"] = torch.where(legal, index, -1)
        if config.mode == "cascade" and config.union:
            score, near = self._retrieve(request, config.union)
            user = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
            new = (score > -torch.inf) & ~self._among(near, user[legal], index[legal])
            index, log_prob = torch.cat([index, near], 1), torch.cat([log_prob, self._log_prob(request, near)], 1)
            legal = torch.cat([legal, new], 1)
            stages["union"] = torch.where(legal, index, -1)
        score = log_prob if config.mode == "beam" else self._fuse(request, index, log_prob, legal)
        legal = legal & ~self._dropped(request, index)
        return ScoredCandidates(score.masked_fill(~legal, -torch.inf), index, log_prob)

    def _fuse(self, request: Request, index: torch.Tensor, log_prob: torch.Tensor, legal: torch.Tensor) -> torch.Tensor:
        """(1 - w) logit + w log-probability; for an item without an id the mean of the user's others stands in.

        With `cold_ids` every candidate has one. Where not `legal` a candidate stands a second time, or for none.
        """
        logit, finite = self._logits(request, index), log_prob.isfinite() & legal
        if self.model.decoder.dense is not None and len(self.candidates.prefixes.leaf_item):
            conditioned = conditioned_log_prob(self.model, self.candidates, request, index, logit, legal)
            log_prob = torch.where(finite, (log_prob + conditioned) / 2, log_prob)
        usual = torch.where(finite, log_prob, 0).sum(1, keepdim=True) / finite.sum(1, keepdim=True).clamp_min(1)
        weight = self.config.semantic_weight
        return (1 - weight) * logit + weight * torch.where(finite, log_prob, usual)
