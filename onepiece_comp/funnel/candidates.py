"""What is made of the candidates once for all users: vectors, prefix table, popularity at the users' moments.

Stands between `dataset/evaluation_folder.py` and `cascade.py`. A user's moment is their last event, or the training
log's end if that is later; users whose moments fall into one bucket share a row of popularity logits.
Legend: R rows (a moment and an action), M candidates, P prefixes, F folded dimensions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from onepiece_comp.config import InferConfig
from onepiece_comp.dataset.evaluation_folder import Evaluation
from onepiece_comp.dataset.popularity_counts import Trend, extended
from onepiece_comp.funnel.vector_cache import vector_cache
from onepiece_comp.logs.formats import CLICK, CONVERSION
from onepiece_comp.models.batch import move
from onepiece_comp.models.popularity import TrendRows, code_trend, distinct_pairs, trend_rows
from onepiece_comp.models.prefix_table import PrefixTable, build_prefix_table
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.models.retrieval import EncodedItems, encode_item_table
from onepiece_comp.training.checkpoint import Checkpoint

_KEYS_PER_BLOCK = 1 << 16
_ROWS_PER_BLOCK = 1 << 12
_CELLS_AT_ONCE = 1 << 24  # pairs of vectors compared at once
_SKETCHES = 3  # rounds of the sketch of popularity


class Candidates(NamedTuple):
    """What is made once for all users."""

    vectors: EncodedItems
    bias_RM: torch.Tensor | None  # popularity logit at each distinct moment and action of the users
    bias_row: np.ndarray  # int64 [users], each user's row of it
    code_bias: list[torch.Tensor] | None  # per level [R, P], the same for the prefixes
    warm_M: torch.Tensor  # bool, seen in training
    prefixes: PrefixTable | None
    number: np.ndarray  # int64 [local items], candidate number of a local item, -1 where it is none
    absent_RM: torch.Tensor | None = None  # bool, no candidate yet at the moment; None: all are


class Counts(NamedTuple):
    """Of what popularity is read: the candidates' counts, and those of their prefixes by level."""

    items: Trend
    codes: list[Trend]


class Moments(NamedTuple):
    """The distinct moments and actions of users."""

    bucket: np.ndarray  # int64 [R]
    click_bucket: np.ndarray  # int64 [R], up to when clicks are known
    condition: np.ndarray  # int64 [R]
    row: np.ndarray  # int64 [users]


def prepare(checkpoint: Checkpoint, evaluation: Evaluation, config: InferConfig, action: np.ndarray,
            device: torch.device, *, keep: Path | None = None) -> Candidates:
    """Vectors, popularity logits and prefix table of the candidates; `action` [users] is what each is asked for.

    With a folder `keep`, and `config.cache`, vectors are kept in the checkpoint's folder or there.
    """
    candidates = without_popularity(checkpoint, evaluation, config, device, keep=keep)
    if checkpoint.model.trend is None:
        return candidates
    trend = _going_on(checkpoint.trend, evaluation, candidates.number, config)
    counts = count_prefixes(checkpoint.model, trend, candidates.prefixes)
    return with_popularity(candidates, checkpoint.model, counts,
                           _moments(trend, evaluation, checkpoint.trend.buckets, action), device)


def without_popularity(checkpoint: Checkpoint, evaluation: Evaluation, config: InferConfig, device: torch.device, *,
                       keep: Path | None = None) -> Candidates:
    """What does not depend on the users' moments."""
    model, items, rows = checkpoint.model, evaluation.items, evaluation.candidate
    id_row, prefixes = torch.from_numpy(items.id_row[rows]), None
    encode = lambda: encode_item_table(model, items, rows, device)
    if keep is not None and config.cache:
        vectors = vector_cache(checkpoint, evaluation, device, beside=keep).get(encode, device)
    else:
        vectors = encode()
    if model.decoder is not None and config.mode != "retrieval":
        codes = torch.where((id_row > 0)[:, None], model.codes.cpu()[id_row].long(), -1)
        if config.cold_ids:
            codes = with_cold_ids(codes, torch.cat([part for part in vectors if part is not None], 1).cpu())
        prefixes = build_prefix_table(codes)
    number = np.full(len(items.creative_id), -1, np.int64)
    number[rows] = np.arange(len(rows))
    return Candidates(vectors, None, np.zeros(len(evaluation.users), np.int64), None, (id_row > 0).to(device),
                      None if prefixes is None else move(prefixes, device), number)


def count_prefixes(model: OnePiece, trend: Trend, prefixes: PrefixTable | None) -> Counts:
    """The counts of `trend`, whose rows are the candidates, with those of the prefixes where the model reads them."""
    if prefixes is None or model.decoder.trend is None:
        return Counts(trend, [])
    return Counts(trend, code_trend(move(prefixes, torch.device("cpu")), trend, np.arange(len(trend.counts))).trends)


def with_popularity(candidates: Candidates, model: OnePiece, counts: Counts, asked: Moments, device: torch.device, *,
                    horizon: float | None = None) -> Candidates:
    """The candidates with popularity as of the users' moments.

    With a `horizon` (in buckets) those first shown later than that after a moment are no candidates there.
    """
    bias, absent = None, None
    if model.trend is not None:
        bias = _logits(model.trend_bias, counts.items, asked, device)
    code_bias = [_logits(lambda rows, level=level: model.code_bias(level, rows), trend, asked, device)
                 for level, trend in enumerate(counts.codes)] or None
    if horizon is not None:
        first = counts.items.first_bucket(np.arange(len(counts.items.counts)))
        latest = np.minimum(asked.bucket + horizon, counts.items.buckets)
        absent = torch.from_numpy(first > latest[:, None]).to(device)
    return candidates._replace(bias_RM=bias, bias_row=asked.row, code_bias=code_bias, absent_RM=absent)


def with_cold_ids(code_ML: torch.Tensor, vector_MD: torch.Tensor) -> torch.Tensor:
    """Candidates without an id (-1) take that of a near one, so that the beam reaches them too.

    The near one is the nearest by dot product among those under the first code whose members' mean is nearest: two
    small searches instead of one over all. Candidates may share an id: each is a leaf with a popularity of its own.
    """
    bare = torch.where((code_ML < 0).any(1))[0]
    with_id = torch.where((code_ML >= 0).all(1))[0]
    if not len(bare) or not len(with_id):
        return code_ML
    code_ML = code_ML.clone()
    first, member = code_ML[with_id, 0].unique(return_inverse=True)
    mean_CD = torch.zeros(len(first), vector_MD.shape[1]).index_add_(0, member, vector_MD[with_id])
    mean_CD = F.normalize(mean_CD, dim=1)
    cell = torch.cat([(vector_MD[part] @ mean_CD.T).argmax(1) for part in bare.split(_ROWS_PER_BLOCK)])
    by_cell = with_id[member.argsort(stable=True)].split(torch.bincount(member).tolist())
    for number in cell.unique().tolist():
        asked, near = bare[cell == number], by_cell[number]
        for part in asked.split(max(1, _CELLS_AT_ONCE // len(near))):
            code_ML[part] = code_ML[near[(vector_MD[part] @ vector_MD[near].T).argmax(1)]]
    return code_ML


def _going_on(tail: Trend, evaluation: Evaluation, number: np.ndarray, config: InferConfig) -> Trend:
    """The candidates' counts to the training log's end and, with `live`, on to the users' last events.

    The histories of all users tell what was shown after the log's end; a user's moment never sees what came after it.
    """
    counted = number[evaluation.item] >= 0
    if not config.live:
        counted[:] = False
    return extended(
        tail,
        evaluation.items.id_row[evaluation.candidate],
        item=number[evaluation.item[counted]],
        clicked=np.isin(evaluation.action[counted], (CLICK, CONVERSION)),
        time_seconds=evaluation.time_seconds[counted],
    )


def _moments(trend: Trend, evaluation: Evaluation, log_end: int, action: np.ndarray) -> Moments:
    """Each user's moment; clicks are known to the training log's end only."""
    last = np.zeros(len(evaluation.users), np.int64)
    with_history = np.diff(evaluation.user_start) > 0
    last[with_history] = evaluation.time_seconds[evaluation.user_start[1:][with_history] - 1]
    bucket, condition, row = distinct_pairs(np.maximum(trend.bucket_of(last), log_end), action)
    return Moments(bucket, np.full_like(bucket, log_end), condition, row)


@torch.no_grad()
def _logits(weigh: Callable[[TrendRows], torch.Tensor], trend: Trend, asked: Moments,
            device: torch.device) -> torch.Tensor:
    """Popularity logits [R, K] of all K keys that `trend` counts."""
    keys = len(trend.counts)
    bias = torch.empty(len(asked.bucket), keys, device=device)
    for start in range(0, keys, _KEYS_PER_BLOCK):
        block = np.arange(start, min(start + _KEYS_PER_BLOCK, keys))
        found = trend.lookup(block, bucket=asked.bucket, click_bucket=asked.click_bucket)
        rows = trend_rows(found, np.zeros_like(found.seen_RK), asked.condition)
        bias[:, start:start + len(block)] = weigh(move(rows, device))
    return bias


class FoldedBias(NamedTuple):
    """Popularity logits as dot products, row_RF @ item_MF.T."""

    row_RF: torch.Tensor
    item_MF: torch.Tensor
    error: float  # root mean square of what that leaves out of the logits; 0 = nothing


def fold_bias(bias_RM: torch.Tensor, *, width: int, scale: float) -> FoldedBias:
    """`bias_RM` in at most `width` dimensions, the rows' part `scale` times longer than the plain one.

    Exact for up to `width` rows, a dimension each: a user's row picks its own. More are cut to the directions that
    matter most, found by a random sketch (Halko, Martinsson and Tropp 2011, arXiv 0909.4061).
    """
    rows = len(bias_RM)
    if rows <= width:
        return FoldedBias(torch.eye(rows, device=bias_RM.device) * scale, bias_RM.T / scale, 0.0)
    sketch_RF = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).to(bias_RM.device)
    for _ in range(_SKETCHES):
        sketch_RF = torch.linalg.qr(bias_RM @ (bias_RM.T @ sketch_RF)).Q
    item_MF = bias_RM.T @ sketch_RF
    left = float(bias_RM.square().sum() - item_MF.square().sum())
    return FoldedBias(sketch_RF * scale, item_MF / scale, (max(0.0, left) / bias_RM.numel()) ** 0.5)
