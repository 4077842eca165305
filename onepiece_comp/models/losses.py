"""Losses: softmax over many keys, computed a block of rows at a time with the gradient taken in the forward pass.

The logits [N, K] never exist as a whole: memory is one block, not rows times keys. InfoNCE with LogQ and the
semantic-id cross-entropies are the same function with other biases. Legend: N rows, K keys, D width, R bias rows.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from onepiece_comp.models.batch import TrainBatch

_LOG2_E = 1 / math.log(2)
_LOGITS_PER_BLOCK, _ROWS_PER_BLOCK = 1 << 20, (64, 256)  # a block's logits should stay in the processor's cache


class RowBias(NamedTuple):
    """Additive logits of the keys, and the one that each row takes."""

    bias_RK: torch.Tensor
    row_N: torch.Tensor  # int64

    def of(self, rows: slice) -> "RowBias":
        """For some of the rows."""
        return RowBias(self.bias_RK, self.row_N[rows])


class PairBias(NamedTuple):
    """Additive logits of some pairs of row and key alone, no pair twice."""

    bias_P: torch.Tensor
    row_P: torch.Tensor  # int64, ascending
    key_P: torch.Tensor  # int64


class LossRows(NamedTuple):
    """What belongs to each row of a softmax loss; none of it receives a gradient."""

    target_N: torch.Tensor  # int64, the positive key
    weight_N: torch.Tensor  # float32
    target_shift_N: torch.Tensor | None = None  # float32, added to the positive's logit
    hidden_BK: torch.Tensor | None = None  # bool, keys to leave out (never the row's own target) ...
    hidden_row_N: torch.Tensor | None = None  # int64, ... by this row of hidden_BK
    hardest: int = 0  # negatives that count in a row, those of the highest logits; 0 = all
    duplicate_cosine: float = 0.0  # above 0: keys (unit vectors) with at least this cosine to the target are left out


class LossOptions(NamedTuple):
    """What of `train` the retrieval loss reads; see `TrainConfig`."""

    kind: str = "info_nce"  # a name of LOSSES
    logq: bool = True
    positive_logq: bool = False
    hardest: int = 0  # negatives of a row that count, highest logits first; 0 = all
    duplicate_cosine: float = 0.0  # keys at least so like the target are no negatives; 0 = all are


class _ByRow(NamedTuple):
    """Where the values of a RowBias stand among the logits of a block of rows."""

    row_N: torch.Tensor

    def add(self, logit: torch.Tensor, bias_RK: torch.Tensor, block: slice, room: torch.Tensor) -> None:  # noqa: N803
        logit += torch.index_select(bias_RK, 0, self.row_N[block], out=room)

    def collect(self, grad_RK: torch.Tensor, grad: torch.Tensor, block: slice) -> None:  # noqa: N803
        grad_RK.index_add_(0, self.row_N[block], grad)


class _ByPair(NamedTuple):
    """The same for a PairBias."""

    row_P: torch.Tensor
    key_P: torch.Tensor
    edges: list[int]  # where the pairs of each block begin, and where the last ones end
    rows: int  # of a block

    def _of(self, block: slice) -> tuple[slice, tuple[torch.Tensor, torch.Tensor]]:
        number = block.start // self.rows
        some = slice(*self.edges[number:number + 2])
        return some, (self.row_P[some] - block.start, self.key_P[some])

    def add(self, logit: torch.Tensor, bias_P: torch.Tensor, block: slice, room: torch.Tensor) -> None:  # noqa: N803
        some, at = self._of(block)
        logit[at] += bias_P[some]

    def collect(self, grad_P: torch.Tensor, grad: torch.Tensor, block: slice) -> None:  # noqa: N803
        some, at = self._of(block)
        grad_P[some] = grad[at]


def _placed(bias: RowBias | PairBias, rows: int, size: int) -> _ByRow | _ByPair:
    if isinstance(bias, RowBias):
        return _ByRow(bias.row_N)
    starts = torch.arange(0, rows + size, size, device=bias.row_P.device)
    return _ByPair(bias.row_P, bias.key_P, torch.searchsorted(bias.row_P, starts).tolist(), size)


def rows_per_block(key_KD: torch.Tensor) -> int:  # noqa: N803
    """Rows whose logits are taken at once: on CPU a power of two that leaves them in the cache."""
    least, most = _ROWS_PER_BLOCK
    fitting = 1 << max(1, _LOGITS_PER_BLOCK // max(1, len(key_KD))).bit_length() - 1
    return most if key_KD.is_cuda else min(max(least, fitting), most)


def _add_product(into: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """into += left @ right, in one pass where the types agree."""
    if into.dtype == left.dtype:
        torch.addmm(into, left, right, out=into)
    else:
        into += left @ right


class _BlockedSoftmaxLoss(torch.autograd.Function):
    """sum_n weight_n * (logsumexp_k logit_nk - logit_n,target); see `softmax_loss`."""

    @staticmethod
    def forward(ctx, query_ND, key_KD, rows, size, places, *biases):  # noqa: N803
        # the keys' gradient as [D, K], into which a product is faster
        grad_query, grad_key = torch.zeros_like(query_ND), torch.zeros_like(key_KD.T, dtype=torch.float32)
        grad_biases = [torch.zeros_like(bias) for bias in biases]
        loss = query_ND.new_zeros((), dtype=torch.float32)
        every = torch.arange(min(size, len(query_ND)), device=query_ND.device)
        # two blocks' logits, used again and again
        rooms = query_ND.new_empty((2, len(every), len(key_KD)), dtype=torch.float32)
        for start in range(0, len(query_ND), size):
            block = slice(start, start + size)
            query, target, weight = query_ND[block], rows.target_N[block], rows.weight_N[block]
            at = (every[:len(target)], target)
            logit, room = rooms[:, :len(target)]
            logit.zero_()
            for bias, place in zip(biases, places):
                place.add(logit, bias, block, room)
            _add_product(logit, query, key_KD.T)
            if rows.target_shift_N is not None:
                logit[at] += rows.target_shift_N[block]
            if rows.hidden_BK is not None:
                _hide(logit, rows.hidden_BK[rows.hidden_row_N[block]], at)
            if rows.duplicate_cosine:
                _hide(logit, key_KD[target] @ key_KD.T >= rows.duplicate_cosine, at)
            if 0 < rows.hardest < len(key_KD) - 1:
                _hide(logit, _easy(logit, at, rows.hardest), at)
            highest = logit.amax(1)
            positive = logit[at] - highest
            # exp2: exp takes a slow path on CPU where hidden or absent keys make it underflow
            grad = logit.sub_(highest[:, None]).mul_(_LOG2_E).exp2_()
            total = grad.sum(1)
            loss += (weight * (total.log() - positive)).sum()
            grad.mul_((weight / total)[:, None])  # softmax, in place
            grad[at] -= weight
            for grad_bias, place in zip(grad_biases, places):
                place.collect(grad_bias, grad, block)
            grad = grad.to(query.dtype)
            grad_query[block] = grad @ key_KD
            _add_product(grad_key, query.T, grad)
        ctx.save_for_backward(grad_query, grad_key.T.to(key_KD.dtype), *grad_biases)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        query, key, *biases = ctx.saved_tensors
        return query * grad_loss, key * grad_loss, None, None, None, *(bias * grad_loss for bias in biases)


def _hide(logit_NK: torch.Tensor, hidden_NK: torch.Tensor, at: tuple[torch.Tensor, torch.Tensor]) -> None:  # noqa: N803
    """No logit where `hidden_NK`, but for the positives `at`."""
    hidden_NK[at] = False
    logit_NK.masked_fill_(hidden_NK, -torch.inf)


def _easy(logit_NK: torch.Tensor, at: tuple[torch.Tensor, torch.Tensor], hardest: int) -> torch.Tensor:  # noqa: N803
    """Which keys are not among a row's `hardest` negatives; keys that tie with the last of these are."""
    positive_N = logit_NK[at]
    logit_NK[at] = -torch.inf
    least_N1 = logit_NK.topk(hardest, dim=1).values[:, -1:]
    logit_NK[at] = positive_N
    return logit_NK < least_N1


def softmax_loss(query_ND: torch.Tensor, key_KD: torch.Tensor, rows: LossRows,  # noqa: N803
                 *biases: RowBias | PairBias) -> torch.Tensor:
    """Weighted sum over rows of the softmax cross-entropy of logits query . key + the row's biases.

    Gradients flow to queries, keys and biases. Returns a float32 scalar.
    """
    size = rows_per_block(key_KD)
    places = [_placed(bias, len(query_ND), size) for bias in biases]
    return _BlockedSoftmaxLoss.apply(query_ND, key_KD, rows, size, places, *(bias[0] for bias in biases))


def info_nce(query_ND: torch.Tensor, key_KD: torch.Tensor, batch: TrainBatch,  # noqa: N803
             *biases: RowBias, options: LossOptions = LossOptions(), rows: slice = slice(None)) -> torch.Tensor:
    """Weighted sum over rows of InfoNCE with LogQ; `query_ND` is already divided by the temperature.

    A key that was drawn m times where E draws were to be expected stands for m / E items: log m - log E joins its
    logit, which makes the sum over distinct keys equal to the sum over draws (the sampling-bias correction of Yi et
    al. 2019, with the expectation of the mixed proposal in the place of Q). Keys of the user's own log are no
    negatives of that user. The positive is no draw but known, so it stands for itself (Khrylchenko et al. 2025, arXiv
    2507.09331); with `positive_logq` it is corrected by its own -log E, as in OnePiece (arXiv 2512.07424, eq. 2).
    Without `logq` every draw counts as drawn, so that popular items are pushed away. `rows` tells which of the
    batch's rows `query_ND` and `biases` hold.
    """
    correction_K = batch.log_repeats_K - batch.log_expected_K if options.logq else batch.log_repeats_K
    shift_K = -batch.log_repeats_K if options.positive_logq else -correction_K
    target_N = batch.target_N[rows]
    correction = RowBias(correction_K[None], torch.zeros_like(target_N))
    return softmax_loss(query_ND, key_KD, LossRows(
        target_N, batch.weight_N[rows], target_shift_N=shift_K[target_N], hidden_BK=batch.own_BK,
        hidden_row_N=batch.user_N[rows], hardest=options.hardest, duplicate_cosine=options.duplicate_cosine),
        *_with(correction, biases))


def binary_loss(query_ND: torch.Tensor, key_KD: torch.Tensor, batch: TrainBatch,  # noqa: N803
                *biases: RowBias, options: LossOptions, rows: slice = slice(None)) -> torch.Tensor:
    """Weighted sum over rows of two binary cross-entropies: the target as 1, one sampled item as 0.

    Source: SASRec (Kang and McAuley 2018, arXiv 1808.09781, eq. 6). A sampled item of the user's own log does not
    count.
    """
    target_N, negative_N, user_N = batch.target_N[rows], batch.negative_N[rows], batch.user_N[rows]

    def logit(key_N: torch.Tensor) -> torch.Tensor:
        own = (query_ND * key_KD[key_N]).sum(1).float()
        return own + sum(bias.bias_RK[bias.row_N, key_N] for bias in biases)

    counts_N = ~batch.own_BK[user_N, negative_N]
    loss_N = F.softplus(-logit(target_N)) + F.softplus(logit(negative_N)) * counts_N
    return (batch.weight_N[rows] * loss_N).sum()


LOSSES: dict[str, Callable[..., torch.Tensor]] = {"info_nce": info_nce, "bce": binary_loss}


def retrieval_loss(query_ND: torch.Tensor, key_KD: torch.Tensor, batch: TrainBatch,  # noqa: N803
                   *biases: RowBias, options: LossOptions, rows: slice = slice(None)) -> torch.Tensor:
    """Weighted sum over rows of the loss that `options` name; `rows` tells which of the batch's rows are given."""
    return LOSSES[options.kind](query_ND, key_KD, batch, *biases, options=options, rows=rows)


def _with(correction: RowBias, biases: tuple[RowBias, ...]) -> tuple[RowBias, ...]:
    """The biases with the keys' correction added to the smallest of them: one look-up less for every row."""
    if not biases:
        return (correction,)
    smallest = min(range(len(biases)), key=lambda place: biases[place].bias_RK.numel())
    return tuple(RowBias(bias.bias_RK + correction.bias_RK, bias.row_N) if place == smallest else bias
                 for place, bias in enumerate(biases))


def load_balance(gate_NE: torch.Tensor, chosen_NA: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """E * sum_e share of tokens sent to e * mean gate of e: 1 at balance (Fedus et al. 2021, eq. 4)."""
    experts = gate_NE.shape[1]
    share_E = torch.bincount(chosen_NA.flatten(), minlength=experts).float() / max(1, chosen_NA.numel())
    return experts * (share_E * gate_NE.float().mean(0)).sum()


def entropy(load_E: torch.Tensor) -> float:  # noqa: N803
    """Entropy of non-negative loads over its largest value, log E: 1 = equal, 0 = one has all."""
    share = load_E.double() / load_E.sum().clamp_min(1e-12)
    return float(torch.special.entr(share).sum() / math.log(max(2, len(load_E))))


def load_gini(load_E: torch.Tensor) -> float:  # noqa: N803
    """Gini coefficient of non-negative loads: 0 = equal, 1 - 1/E = one has all."""
    load = load_E.double().sort().values
    count = len(load)
    if not load.sum() > 0:
        return 0.0
    rank = torch.arange(1, count + 1, dtype=torch.float64, device=load.device)
    return float((2 * (rank * load).sum() / (count * load.sum())) - (count + 1) / count)
