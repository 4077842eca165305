"""How alike a candidate is to the items of a history: an additive logit beside the encoder's query.

One query vector must point to all interests of a user at once; here each event of the history speaks for itself. The
logit is scale log(floor + sum_s w_ts exp(sharpness (cos(m_s, m_k) - 1))), w_ts a normalised weight learned by time gap
and action, m a metric vector made of the item tower's: the log of a mixture, as interests add up to what is shown. Kin
to item-similarity models (FISM, Kabbur et al. 2013; NAIS, He et al. 2018), here jointly trained with the rest.
Legend: B users, T positions, S attended positions, D width, K keys, M metric width.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.models.declared import ZERO
from onepiece_comp.models.histories import NO_ACTION, History, last_position
from onepiece_comp.models.hstu import TIME_BUCKETS

_STEP = 8.0  # tables and scalars move this much faster than the optimiser's step
_CELLS_AT_ONCE = 1 << 24  # users x events x keys compared at once without a gradient
_SHARPNESS, _FLOOR = 8.0, 0.02  # where training starts
_LARGEST = 12.0  # of the log weights, so that their exponentials stay finite


class _LogMixture(torch.autograd.Function):
    """scale_BT log(floor + weight_BTS @ exp(sharpness (metric_BSM . key_KM - 1))), [B, T, K]."""

    @staticmethod
    def forward(ctx, metric_BSM, key_KM, weight_BTS, sharpness, floor, scale_BT):  # noqa: N803
        kernel_BSK = (metric_BSM @ key_KM.T).sub_(1).mul_(sharpness).exp_()
        mixed_BTK = (weight_BTS @ kernel_BSK).add_(floor)
        logit_BTK = mixed_BTK.log().mul_(scale_BT[..., None])
        ctx.save_for_backward(metric_BSM, key_KM, weight_BTS, sharpness, scale_BT, kernel_BSK, mixed_BTK, logit_BTK)
        return logit_BTK

    @staticmethod
    def backward(ctx, grad_BTK):  # noqa: N803
        metric_BSM, key_KM, weight_BTS, sharpness, scale_BT, kernel_BSK, mixed_BTK, logit_BTK = ctx.saved_tensors
        grad_scale = torch.linalg.vecdot(grad_BTK, logit_BTK) / scale_BT
        grad_BTK = (grad_BTK / mixed_BTK).mul_(scale_BT[..., None])
        grad_floor = grad_BTK.sum()
        grad_weight = grad_BTK @ kernel_BSK.mT
        grad_BSK = (weight_BTS.mT @ grad_BTK).mul_(kernel_BSK)
        grad_metric, grad_key = grad_BSK @ key_KM, torch.einsum("bsk,bsm->km", grad_BSK, metric_BSM)
        grad_cosine = (grad_metric * metric_BSM).sum() - grad_BSK.sum()  # sum of grad x (cosine - 1)
        return grad_metric * sharpness, grad_key * sharpness, grad_weight, grad_cosine, grad_floor, grad_scale


class Weighing(NamedTuple):
    """What each position makes of the events up to it."""

    weight_BTS: torch.Tensor  # of each event; they sum to at most 1, to 0 where there is no event
    scale_BT: torch.Tensor  # of the logit

    def last(self, history: History) -> "Weighing":
        """That of each user's last position: [B, 1, S] and [B, 1]."""
        return Weighing(*(last_position(history, part)[:, None] for part in self))

    def of(self, users: torch.Tensor | slice) -> "Weighing":
        """That of some users."""
        return Weighing(self.weight_BTS[users], self.scale_BT[users])


class HistorySimilarity(nn.Module):
    """The logit of each key from each position of a history; `metric` makes the vectors that are compared.

    The action that a position is to predict decides how much each action of the history counts, and the scale.
    """

    DECLARES = {"*_HC": ZERO, "scale": ZERO, "sharpness": ZERO, "floor": ZERO}

    def __init__(self, *, width: int, metric_width: int):
        super().__init__()
        self.project = nn.Linear(width, metric_width, bias=False)
        self.time_HC = nn.Parameter(torch.zeros(1, TIME_BUCKETS))
        self.action_HC = nn.Parameter(torch.zeros(NO_ACTION + 1, NO_ACTION + 1))  # [next action, action]
        self.scale = nn.Parameter(torch.zeros(NO_ACTION + 1))  # these three: log of the ratio to the start
        self.sharpness = nn.Parameter(torch.zeros(()))
        self.floor = nn.Parameter(torch.zeros(()))

    def metric(self, item_ND: torch.Tensor) -> torch.Tensor:
        """Unit metric vectors, float32 [N, M], of candidate-side item vectors."""
        return F.normalize(self.project(item_ND).float(), dim=-1)

    def weigh(self, history: History, gap_BTS: torch.Tensor, *, next_action: bool) -> Weighing:
        """The weights of each position; `next_action` False: none is told."""
        length = history.item_BT.shape[1]
        causal_TS = torch.ones(length, length, dtype=torch.bool, device=gap_BTS.device).tril()
        allowed_BTS = causal_TS[None] & (history.item_BT > 0)[:, None]
        told_BT = history.next_action_BT if next_action else torch.full_like(history.next_action_BT, NO_ACTION)
        by_action_BTS = self.action_HC[told_BT].gather(2, history.action_BT[:, None].expand(-1, length, -1))
        by_time_BTS = self.time_HC[0].index_select(0, gap_BTS.flatten()).view(gap_BTS.shape)
        log_weight = (by_time_BTS + by_action_BTS) * _STEP
        weight = torch.where(allowed_BTS, log_weight.clamp(-_LARGEST, _LARGEST).exp(), 0.0)
        return Weighing(weight / (weight.sum(-1, keepdim=True) + 1e-3), (self.scale[told_BT] * _STEP).exp())

    def forward(self, metric_BSM: torch.Tensor, key_KM: torch.Tensor, weighing: Weighing) -> torch.Tensor:
        """Logits [B, T, K] of keys that all users share, or of each user's own where `key_KM` is [B, K, M]."""
        sharpness, floor = _SHARPNESS * (self.sharpness * _STEP).exp(), _FLOOR * (self.floor * _STEP).exp()
        weight_BTS, scale_BT = weighing
        if torch.is_grad_enabled():
            with torch.autocast(metric_BSM.device.type, enabled=False):  # exp(8 x) of bfloat16 would be 3 % off
                return _LogMixture.apply(metric_BSM, key_KM, weight_BTS.float(), sharpness, floor, scale_BT.float())
        kernel_BSK = (metric_BSM @ key_KM.mT).sub_(1).mul_(sharpness).exp_()
        return (weight_BTS @ kernel_BSK).add_(floor).log_().mul_(scale_BT[..., None])

    def of_last(self, metric_BSM: torch.Tensor, key_KM: torch.Tensor, weighing: Weighing,  # noqa: N803
                index_BK: torch.Tensor | None = None) -> torch.Tensor:  # noqa: N803
        """Logits [B, K] of each user's last position, of all keys or of those of `index_BK`; no gradient.

        Some users and keys at a time: what compares every event with every key is never there as a whole.
        """
        keys, events = len(key_KM) if index_BK is None else index_BK.shape[1], metric_BSM.shape[1]
        width = min(keys, max(1, _CELLS_AT_ONCE // events))
        users = max(1, _CELLS_AT_ONCE // (events * max(1, width)))
        out_BK = metric_BSM.new_empty(len(metric_BSM), keys)
        for part in torch.arange(len(metric_BSM), device=metric_BSM.device).split(users):
            for start in range(0, keys, width):
                some = slice(start, start + width)
                key = key_KM[some] if index_BK is None else key_KM[index_BK[part, some]]
                out_BK[part, some] = self(metric_BSM[part], key, weighing.of(part))[:, 0]
        return out_BK
