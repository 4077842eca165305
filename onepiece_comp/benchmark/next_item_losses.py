"""The losses that published sequence recommenders differ in, of queries and the items that came next.

Sources: binary with one negative, SASRec (arXiv 1808.09781); gBCE, Petrov and Macdonald 2023 (arXiv 2308.07192);
softmax over a sample, as in HSTU's research code, without a correction for how it is drawn, which is uniform; softmax
over all items. The negatives of sampled softmax and gBCE are drawn at each step, for a user or for a position.
Legend: B users, T positions, D width, I items, N valid rows, M negatives of a user.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from onepiece_comp.models.losses import LossRows, softmax_loss

LOSSES = ("softmax", "sampled", "bce", "gbce")
_NUMBERS_PER_BLOCK = 1 << 24  # of the vectors and logits of negatives that are there at once


def full_softmax(query_ND: torch.Tensor, key_ID: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Mean cross-entropy over all items; the logits exist a block of rows at a time."""
    weight_N = query_ND.new_full((len(target_N),), 1 / len(target_N))
    return softmax_loss(query_ND, key_ID, LossRows(target_N, weight_N))


def sampled_logits(query_BTD: torch.Tensor, key_ID: torch.Tensor, target_BT: torch.Tensor,  # noqa: N803
                   negative_BM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N803
    """Logits [B, T] of the targets and [B, T, M] of the negatives, -inf where a negative is the target."""
    positive = (query_BTD * F.embedding(target_BT, key_ID)).sum(-1)
    negative = query_BTD @ F.embedding(negative_BM, key_ID).mT
    return positive, negative.masked_fill(negative_BM[:, None] == target_BT[..., None], -torch.inf)


class _InBlocks(torch.autograd.Function):
    """sum over blocks of B of loss(query_BTD[block], key_ID, block), whose graph exists for one block at a time."""

    @staticmethod
    def forward(ctx, query_BTD, key_ID, loss, size):  # noqa: N803
        grad_query, grad_key, total = torch.empty_like(query_BTD), torch.zeros_like(key_ID), query_BTD.new_zeros(())
        for start in range(0, len(query_BTD), size):
            block = slice(start, start + size)
            with torch.enable_grad():
                query, key = query_BTD[block].detach().requires_grad_(), key_ID.detach().requires_grad_()
                part = loss(query, key, block)
                grad_query[block], grad = torch.autograd.grad(part, (query, key))
            grad_key += grad
            total += part.detach()
        ctx.save_for_backward(grad_query, grad_key)
        return total

    @staticmethod
    def backward(ctx, grad_loss):
        query, key = ctx.saved_tensors
        return query * grad_loss, key * grad_loss, None, None


def mean_over_sample(of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], query_BTD: torch.Tensor,  # noqa: N803
                     key_ID: torch.Tensor, target_BT: torch.Tensor, negative_BM: torch.Tensor,  # noqa: N803
                     valid_BT: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """`of`, a mean over rows of logits [N] of targets and [N, M] of negatives, over the valid rows of all blocks."""
    rows, (_, steps, width), drawn = int(valid_BT.sum()), query_BTD.shape, negative_BM.shape[1]

    def share(query: torch.Tensor, key: torch.Tensor, block: slice) -> torch.Tensor:
        valid = valid_BT[block]
        if not valid.any():
            return 0 * (query.sum() + key.sum())
        positive, negative = sampled_logits(query, key, target_BT[block], negative_BM[block])
        return of(positive[valid], negative[valid]) * (valid.sum() / rows)
    return _InBlocks.apply(query_BTD, key_ID, share, max(1, _NUMBERS_PER_BLOCK // (drawn * (steps + width))))


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
