"""The ranker of a cascade's survivors: what a first stage found, judged again with the history's eye on each candidate.

Its inputs are frozen: the encoder's states, item vectors, and the first stage's own parts (`PARTS`). Its output is a
correction of the first stage's score that starts at zero, and logits of a click and of a conversion. The click heads
follow the multi-task heads of HSTU's ranking form (arXiv 2402.17152); the loss over a list is a softmax.
Legend: B users, S history positions, M candidates, D width, V width of item vectors, F parts.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.config import RankerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import CLICK, CONVERSION, UNKNOWN_ACTION
from onepiece_comp.models.histories import NO_ACTION
from onepiece_comp.models.hstu import TIME_BUCKETS
from onepiece_comp.models.target_attention import DinAttention, Past, TargetAttention

PARTS = ("score", "retrieval", "similarity", "popularity", "beam", "place")
_HIDDEN = 2  # of the head, times the width


class RankerInput(NamedTuple):
    """Some users' histories and candidates; all of it frozen."""

    state_BSV: torch.Tensor  # the encoder's states
    item_BSV: torch.Tensor  # vectors of the history's items, 0 at the user token
    action_BS: torch.Tensor  # int64
    gap_BSS: torch.Tensor  # int64, bucketed time between every two positions
    length_B: torch.Tensor  # int64
    key_BMV: torch.Tensor  # vectors of the candidates
    part_BMF: torch.Tensor  # the first stage's parts, as `PARTS` names them
    allowed_BM: torch.Tensor  # bool, False where there is no candidate


class RankerOutput(NamedTuple):
    """What the ranker says of each candidate."""

    logit_BM: torch.Tensor  # the first stage's score, corrected; -inf where there is no candidate
    click_BM: torch.Tensor  # logit of a click, were it shown
    conversion_BM: torch.Tensor  # logit of a conversion, were it clicked


def _attention(config: RankerConfig, max_length: int) -> nn.Module:
    return TargetAttention(width=config.width, heads=config.heads, layers=config.layers, max_length=max_length,
                           dropout=config.dropout)


def _din(config: RankerConfig, max_length: int) -> nn.Module:
    return DinAttention(width=config.width, hidden=config.din_hidden, max_length=max_length, time_buckets=TIME_BUCKETS)


ATTENTIONS: dict[str, Callable[[RankerConfig, int], nn.Module]] = {"attention": _attention, "din": _din}


class TargetRanker(nn.Module):
    """Attention between candidates and history, and a head over it and the parts; InputError for an unknown kind."""

    def __init__(self, config: RankerConfig, *, state_width: int, item_width: int, max_length: int):
        super().__init__()
        if config.kind not in ATTENTIONS:
            raise InputError("ranker.kind", found=repr(config.kind), expected=f"one of {', '.join(ATTENTIONS)}",
                             do="choose one of these")
        width = config.width
        self.state, self.item = nn.Linear(state_width, width), nn.Linear(item_width, width, bias=False)
        self.user, self.part = nn.Linear(state_width, width), nn.Linear(len(PARTS), width)
        self.action_table = nn.Embedding(NO_ACTION + 1, width)
        self.attention = ATTENTIONS[config.kind](config, max_length)
        self.head = nn.Sequential(nn.Linear(width + len(PARTS), _HIDDEN * width), nn.SiLU(),
                                  nn.Dropout(config.dropout), nn.Linear(_HIDDEN * width, 3))
        self.register_buffer("part_mean_F", torch.zeros(len(PARTS)))
        self.register_buffer("part_scale_F", torch.ones(len(PARTS)))
        nn.init.zeros_(self.head[-1].weight)  # so that training starts from the first stage's order
        nn.init.zeros_(self.head[-1].bias)

    def fit_parts(self, part_NF: torch.Tensor) -> None:
        """Learn the parts' mean and spread, so that each enters with size 1."""
        self.part_mean_F.copy_(part_NF.mean(0))
        self.part_scale_F.copy_(part_NF.std(0).clamp_min(1e-3))

    def forward(self, given: RankerInput) -> RankerOutput:
        part_BMF = (given.part_BMF - self.part_mean_F) / self.part_scale_F
        users = torch.arange(len(given.length_B), device=part_BMF.device)
        event_BSD = self.state(given.state_BSV) + self.item(sized(given.item_BSV)) + self.action_table(given.action_BS)
        user_BD = self.user(given.state_BSV[users, given.length_B - 1]) + self.action_table.weight[NO_ACTION]
        x_BMD = self.item(sized(given.key_BMV)) + self.part(part_BMF) + user_BD[:, None]
        x_BMD = self.attention(x_BMD, Past(event_BSD, given.gap_BSS, given.length_B))
        x_BMD = F.layer_norm(x_BMD, x_BMD.shape[-1:])
        change_BM, click_BM, conversion_BM = self.head(torch.cat([x_BMD, part_BMF], -1)).unbind(-1)
        logit_BM = given.part_BMF[..., PARTS.index("score")] + change_BM
        return RankerOutput(logit_BM.masked_fill(~given.allowed_BM, -torch.inf), click_BM, conversion_BM)


def sized(vector: torch.Tensor) -> torch.Tensor:
    """Vectors with entries of size 1."""
    return F.normalize(vector, dim=-1) * vector.shape[-1] ** 0.5


class ListLosses(NamedTuple):
    """Means over the lists that count; zero where none does."""

    listwise: torch.Tensor
    click: torch.Tensor
    conversion: torch.Tensor


def list_losses(judged: RankerOutput, place_B: torch.Tensor, action_B: torch.Tensor,
                weight_B: torch.Tensor) -> ListLosses:
    """Softmax loss over each list, and log losses of what was done with the candidate shown, at `place_B` of its list.

    `weight_B` is each list's in the softmax. A click is told by every known action, a conversion by those that clicked.
    """
    lists = torch.arange(len(place_B), device=place_B.device)
    log_prob_BM = torch.log_softmax(torch.where(weight_B[:, None] > 0, judged.logit_BM, 0), dim=1)
    listwise = -(log_prob_BM[lists, place_B] * weight_B).sum() / weight_B.sum().clamp_min(1e-6)
    clicked_B = (action_B == CLICK) | (action_B == CONVERSION)
    return ListLosses(listwise, _log_loss(judged.click_BM[lists, place_B], clicked_B, action_B != UNKNOWN_ACTION),
                      _log_loss(judged.conversion_BM[lists, place_B], action_B == CONVERSION, clicked_B))


def _log_loss(logit_B: torch.Tensor, label_B: torch.Tensor, known_B: torch.Tensor) -> torch.Tensor:
    loss_B = F.binary_cross_entropy_with_logits(logit_B, label_B.to(logit_B.dtype), reduction="none")
    return (loss_B * known_B).sum() / known_B.sum().clamp_min(1)
