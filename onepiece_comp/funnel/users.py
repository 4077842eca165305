"""A batch of users on its way through the cascade: histories encoded, queries and additive logits made.

Stands between the candidates, made once for all users, and `cascade.py`. Users are conditioned on the action asked for.
Legend: B users, S history positions, M candidates, D width, C codes.
"""

from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.config import InferConfig
from onepiece_comp.console import say
from onepiece_comp.dataset.evaluation_folder import Evaluation
from onepiece_comp.funnel.beam import Prior
from onepiece_comp.funnel.candidates import Candidates
from onepiece_comp.logs.formats import ACTION_NAMES
from onepiece_comp.models.batch import item_batch, move
from onepiece_comp.models.histories import NO_ACTION, Columns, History, build_history, last_position
from onepiece_comp.models.recommender import Encoded, OnePiece
from onepiece_comp.models.similarity import Weighing
from onepiece_comp.training.checkpoint import Checkpoint, asked_action


class Popularity(NamedTuple):
    """Additive logits of the candidates at each user's moment, read as they are needed:
    users of one moment share a row.
    """

    bias_RM: torch.Tensor | None
    absent_RM: torch.Tensor | None  # what is no candidate yet: -inf
    row_B: torch.Tensor  # int64

    def of(self, part: slice) -> torch.Tensor:
        """[B, K] of some candidates."""
        if self.absent_RM is None:
            return self.bias_RM[:, part][self.row_B]
        absent_BK = self.absent_RM[:, part][self.row_B]
        bias = (torch.zeros(absent_BK.shape, device=absent_BK.device) if self.bias_RM is None
                else self.bias_RM[:, part][self.row_B])
        return bias.masked_fill(absent_BK, -torch.inf)

    def all_of(self, user: int) -> torch.Tensor:
        """[M] of one user."""
        return self._replace(row_B=self.row_B[user:user + 1]).of(slice(None))[0]

    def at(self, index_BK: torch.Tensor) -> torch.Tensor:
        """[B, K] of each user's own candidates."""
        row_B1 = self.row_B[:, None]
        bias = (torch.zeros(index_BK.shape, device=index_BK.device) if self.bias_RM is None
                else self.bias_RM[row_B1, index_BK])
        return bias if self.absent_RM is None else bias.masked_fill(self.absent_RM[row_B1, index_BK], -torch.inf)


class Request(NamedTuple):
    """A batch of users and what the model makes of them."""

    history: History  # its items are rows of `item_ND`
    item_ND: torch.Tensor  # what the tower makes of the histories' items
    encoded: Encoded
    query_BD: torch.Tensor
    row_B: torch.Tensor  # int64, the moment of each user
    popularity: Popularity | None
    prior: Prior | None  # the same for the beam's prefixes
    metric_BSM: torch.Tensor | None  # metric vectors of the history's items
    weighing: Weighing | None  # of the events at the last position
    seen: tuple[torch.Tensor, torch.Tensor] | None  # (user, candidate) pairs to drop, None = keep them


class ScoredCandidates(NamedTuple):
    """Candidates of each user with scores of the first stage; -inf for what is dropped."""

    score_BK: torch.Tensor
    index_BK: torch.Tensor  # int64
    log_prob_BK: torch.Tensor | None  # the beam's, where there is one; -inf for an item without an id

    def best(self, k: int) -> "ScoredCandidates":
        """The `k` best, best first, of equal ones the earlier."""
        order = self.score_BK.argsort(dim=1, descending=True, stable=True)[:, :k]
        return ScoredCandidates(*(None if part is None else part.gather(1, order) for part in self))


def asked_actions(checkpoint: Checkpoint, evaluation: Evaluation, config: InferConfig) -> np.ndarray:
    """The action that each user [users] is asked for: what the folder tells, else `infer.action`.

    One that the folder tells and training never saw gives way to the latter, with a line that counts them.
    """
    told = evaluation.target_action.astype(np.int64)
    if not checkpoint.model.config.next_action:
        return np.full_like(told, NO_ACTION)
    asked = asked_action(checkpoint, config.action)
    strange = ([] if checkpoint.actions is None
               else np.flatnonzero((told >= 0) & (np.array(checkpoint.actions)[told] == 0)))
    if len(strange):
        say(f"{len(strange):,} users are asked for an action that no event of the training has, for example "
            f"{ACTION_NAMES[told[strange[0]]]} of user {evaluation.users[strange[0]]}: answered as "
            f"{ACTION_NAMES[asked]}")
        told[strange] = -1
    return np.where(told >= 0, told, asked)


@torch.no_grad()
def encode_request(model: OnePiece, candidates: Candidates, evaluation: Evaluation, columns: Columns,
                   config: InferConfig,
                   *, users: np.ndarray, action: np.ndarray, seen: tuple[torch.Tensor, torch.Tensor] | None) -> Request:
    """Encode the histories of `users` (numbers into the evaluation's users), asked for `action` [B]."""
    device, stop = candidates.warm_M.device, evaluation.user_start[users + 1]
    if config.drop_last:
        stop = np.maximum(evaluation.user_start[users], stop - 1)
    start = np.maximum(evaluation.user_start[users], stop - model.config.max_events)
    history, item = build_history(columns, users=users, start=start, stop=stop, last_action=action)
    rows = np.unique(np.append(item, 0))
    history = history._replace(item_BT=torch.from_numpy(np.searchsorted(rows, item)))
    batch = item_batch(evaluation.items, rows, model.schema.item_features)
    history, item_ND = move(history, device), model.encode_items(move(batch, device))
    encoded = model.encode(history, item_ND)
    query_BD = model.retrieval_query(last_position(history, encoded.hidden_BTD)).float()
    prior = metric_BSM = weighing = None
    row_B = torch.from_numpy(candidates.bias_row[users]).to(device)
    if candidates.prefixes is not None:
        first_BC = None
        if model.decoder.similarity is not None:
            id_row_BS = batch.id_row_N.to(device)[history.item_BT]
            first_BC = model.first_code_logits(id_row_BS, model.weigh_codes(history, encoded).last(history))[:, 0]
        prior = Prior(candidates.code_bias, row_B, first_BC)
    if model.similarity is not None:
        metric_BSM = model.similarity.metric(item_ND)[history.item_BT]
        weighing = model.weigh(history, encoded).last(history)
    known = candidates.bias_RM is not None or candidates.absent_RM is not None
    popularity = Popularity(candidates.bias_RM, candidates.absent_RM, row_B) if known else None
    return Request(history, item_ND, encoded, query_BD, row_B, popularity, prior, metric_BSM, weighing, seen)
