"""The losses that published sequence recommenders differ in, of queries and the items that came next.

Sources: binary with one negative, SASRec (arXiv 1808.09781); gBCE, Petrov and Macdonald 2023 (arXiv 2308.07192);
softmax over a sample, as in HSTU's research code, without a correction for how it is drawn, which is uniform; softmax
over all items. The negatives of sampled softmax and gBCE are drawn at each step, for a user or for a position.
Legend: B users, T positions, D width, I items, N valid rows, M negatives of a user.
"""

import torch
from torch.nn import functional as F

from onepiece_comp.losses import Rows, softmax_loss

LOSSES = ("softmax", "sampled", "bce", "gbce")


def full_softmax(query_ND: torch.Tensor, key_ID: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Mean cross-entropy over all items; the logits exist a block of rows at a time."""
    weight_N = query_ND.new_full((len(target_N),), 1 / len(target_N))
    return softmax_loss(query_ND, key_ID, Rows(target_N, weight_N))


def sampled_logits(query_BTD: torch.Tensor, key_ID: torch.Tensor, target_BT: torch.Tensor,  # noqa: N803
                   negative_BM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N803
    """Logits [B, T] of the targets and [B, T, M] of the negatives, -inf where a negative is the target."""
    positive = (query_BTD * F.embedding(target_BT, key_ID)).sum(-1)
    negative = query_BTD @ F.embedding(negative_BM, key_ID).mT
    return positive, negative.masked_fill(negative_BM[:, None] == target_BT[..., None], -torch.inf)


def sampled_softmax(positive_N: torch.Tensor, negative_NM: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Mean of -log of the positive's share: log(1 + sum_m exp(n_m - p))."""
    return F.softplus(negative_NM.logsumexp(-1) - positive_N).mean()


def generalised_bce(positive_N: torch.Tensor, negative_NM: torch.Tensor, power: float) -> torch.Tensor:  # noqa: N803
    """Mean over rows of -log(sigmoid(p)^power) - sum_m log(1 - sigmoid(n_m)), per term; power 1 is the plain one."""
    loss_N = power * F.softplus(-positive_N) + F.softplus(negative_NM).sum(-1)
    return loss_N.mean() / (1 + negative_NM.shape[-1])


def calibrated_power(negatives: int, items: int, calibration: float) -> float:
    """Beta of gBCE: alpha (t (1 - 1 / alpha) + 1 / alpha), alpha the share of negatives that are drawn.

    t = 0 gives 1, plain BCE; t = 1 gives alpha, which undoes the sampling.
    """
    alpha = negatives / (items - 1)
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
