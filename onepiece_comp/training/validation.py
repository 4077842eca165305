"""Validation during training: users whose last click is held out, ranked against the whole catalogue.

The users are chosen by seed; what follows the held-out click is dropped from training too. The score is the judge's
(0.31 HR@10 + 0.69 NDCG@10, seen items filtered). Other users' later events are in training, so it compares
checkpoints of one run; for a figure to report, split by time. The last checkpoint is kept unless an earlier one is
clearly better.
"""

from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.dataset.preprocess import Dataset
from onepiece_comp.evaluation import metrics
from onepiece_comp.logs.formats import CLICK, CONVERSION
from onepiece_comp.models.batch import item_batch, move
from onepiece_comp.models.histories import build_history, event_columns, last_position
from onepiece_comp.models.popularity import distinct_pairs, trend_rows
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.models.retrieval import EncodedItems, encode_item_table, target_rank

_USERS_PER_STEP, _LOGITS_PER_STEP = 64, 1 << 26  # over the whole catalogue


class HeldOut(NamedTuple):
    """Validation users and the events that they must predict."""

    user: np.ndarray  # int64 [users]
    event: np.ndarray  # int64 [users], index of the target in the event columns
    stop: np.ndarray  # int64 [all users], where training must stop reading each user


def hold_out(dataset: Dataset, *, users: int, seed: int, one_in: int = 10) -> HeldOut:
    """Draw at most `users` (and one in `one_in` of the) users with a click after at least two events;
    their last click is the target.
    """
    start = np.asarray(dataset.user_start[:-1])
    stop = np.array(dataset.user_start[1:])
    clicked = np.flatnonzero(np.isin(dataset.action, (CLICK, CONVERSION)))
    owner = np.searchsorted(dataset.user_start, clicked, side="right") - 1
    last = np.full(len(start), -1)
    last[owner] = clicked  # ascending: the last assignment stays
    eligible = np.flatnonzero(last - start >= 2)
    wanted = min(users, len(start) // one_in, len(eligible))
    chosen = (
        np.sort(np.random.default_rng([seed, 1]).choice(eligible, wanted, replace=False)) if wanted else eligible[:0]
    )
    stop[chosen] = last[chosen]
    return HeldOut(chosen, last[chosen], stop)


def repeated(dataset: Dataset, held_out: HeldOut) -> int:
    """Held-out clicks on items of the user's own history: the seen filter drops them, misses of every checkpoint."""
    start, item = np.asarray(dataset.user_start)[held_out.user], np.asarray(dataset.item_row)
    return sum(bool((item[a:b] == item[b]).any()) for a, b in zip(start, held_out.event))


class Validation(NamedTuple):
    """Judgement of a checkpoint, user by user."""

    hit: np.ndarray  # float64 [users], HR@10
    gain: np.ndarray  # float64 [users], NDCG@10

    @property
    def user_score(self) -> np.ndarray:
        return np.asarray(metrics.combined_score(self.hit, self.gain), np.float64)

    @property
    def score(self) -> float:
        return float(self.user_score.mean()) if len(self.hit) else 0.0


def as_good(later: np.ndarray, kept: np.ndarray) -> bool:
    """Whether a later checkpoint may take the place of the one kept, by their scores per user.

    It may unless the kept one is better by more than one standard error of their paired difference: the step size
    falls to zero, so a later checkpoint is the better guess, and some hundred users tell only large differences.
    """
    lead = kept - later
    return len(lead) < 2 or bool(lead.mean() <= lead.std(ddof=1) / len(lead) ** 0.5)


@torch.no_grad()
def validate(model: OnePiece, dataset: Dataset, held_out: HeldOut, device: torch.device) -> Validation:
    """HR@10 and NDCG@10 of exact retrieval over the catalogue for the held-out users."""
    was_training = model.training
    model.eval()
    catalogue = np.arange(1, dataset.schema.items + 1)
    candidates = encode_item_table(model, dataset.items, catalogue, device)
    at_once = max(1, min(_USERS_PER_STEP, _LOGITS_PER_STEP // len(catalogue)))
    ranks = [_ranks(model, dataset, held_out.user[part], held_out.event[part], candidates, device)
             for part in np.array_split(np.arange(len(held_out.user)), -(-len(held_out.user) // at_once))]
    model.train(was_training)
    rank = np.concatenate(ranks)
    rank[rank > 10] = 0
    return Validation(metrics.hit_rate(rank, 10), metrics.ndcg(rank, 10))


def _ranks(model: OnePiece, dataset: Dataset, users: np.ndarray, event: np.ndarray, candidates: EncodedItems,
           device: torch.device) -> np.ndarray:
    start = np.maximum(dataset.user_start[users], event - model.config.max_events)
    history, item = build_history(event_columns(dataset), users=users, start=start, stop=event,
                                  last_action=dataset.action[event].astype(np.int64))
    rows = np.unique(item)  # 0, the padding, stands first
    item_ND = model.encode_items(move(item_batch(dataset.items, rows, dataset.schema.item_features), device))
    history = move(history._replace(item_BT=torch.from_numpy(np.searchsorted(rows, item))), device)
    encoded = model.encode(history, item_ND)
    query_BD = model.retrieval_query(last_position(history, encoded.hidden_BTD))
    bias_BM = None
    if model.trend is not None:
        bucket, condition, row = distinct_pairs(dataset.trend.bucket_of(dataset.time_seconds[event - 1]),
                                                last_position(history, history.next_action_BT).cpu().numpy())
        found = dataset.trend.lookup(np.arange(1, dataset.schema.items + 1), bucket=bucket, click_bucket=bucket)
        bias_BM = model.trend_bias(move(trend_rows(found, ~found.seen_RK, condition), device))[torch.from_numpy(row)]
    if candidates.metric_NM is not None:
        metric_BSM = model.similarity.metric(item_ND)[history.item_BT]
        alike_BM = model.similarity.of_last(metric_BSM, candidates.metric_NM,
                                            model.weigh(history, encoded).last(history))
        bias_BM = alike_BM if bias_BM is None else bias_BM + alike_BM
    seen = [np.asarray(dataset.item_row[a:b], np.int64) - 1 for a, b in zip(dataset.user_start[users], event)]
    seen_by = np.repeat(np.arange(len(users)), [len(part) for part in seen])
    hidden = tuple(torch.from_numpy(part).to(device) for part in (seen_by, np.concatenate(seen)))
    target = torch.from_numpy(dataset.item_row[event].astype(np.int64) - 1).to(device)
    return target_rank(query_BD, candidates.unit_ND, target, bias_BM=bias_BM, hidden=hidden).cpu().numpy()
