"""Lists to learn from: what the first stage would have found before events of the training log, as of their moments.

An event of a user is asked for as inference would have asked then: the history ends before it, popularity is read at a
moment before it, items first shown much later are no candidates. What the checkpoint itself learned from later events
stays in it, as in its own validation. Stands between `cascade.py` and the training of the ranker.
Legend: N lists, M candidates of a list, F parts.
"""

from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.config import InferConfig, TrainConfig
from onepiece_comp.console import progress
from onepiece_comp.dataset.evaluation_folder import Evaluation
from onepiece_comp.dataset.preprocess import Dataset
from onepiece_comp.funnel.candidates import (
    Candidates, Counts, Moments, count_prefixes, with_popularity, without_popularity)
from onepiece_comp.funnel.cascade import Funnel
from onepiece_comp.logs.formats import CLICK, CONVERSION
from onepiece_comp.models.histories import NO_ACTION, spans
from onepiece_comp.models.ranker import RankerInput
from onepiece_comp.training.checkpoint import Checkpoint, asked_action

_CELLS = 1 << 25  # users x candidates whose popularity is held at once


class PastLists(NamedTuple):
    """Lists of candidates, best first, and what was shown."""

    # int32, candidate number (item row - 1); the last column is the target where it did not survive
    index_NM: np.ndarray
    part_NMF: np.ndarray  # float32
    allowed_NM: np.ndarray  # bool
    place_N: np.ndarray  # int64, column of the target
    survived_N: np.ndarray  # bool, whether the target is among what the first stage found
    action_N: np.ndarray  # int64, what the user did with the target


class PastUsers:
    """Users before events of theirs, as an evaluation folder would have them, and the first stage at those moments."""

    def __init__(self, checkpoint: Checkpoint, data: Dataset, config: InferConfig, *, user: np.ndarray,
                 event: np.ndarray,
                 trained: TrainConfig, seed: int, device: torch.device):
        """`event` [N] are events of `user` [N]; `trained` tells how the checkpoint read popularity."""
        self.data, self.event, self.device, self.model = data, event, device, checkpoint.model
        self.evaluation = past_evaluation(data, user, event)
        self._asked = _moments(data, user, event, trained, seed,
                               asked_action(checkpoint, config.action) if checkpoint.model.config.next_action
                               else NO_ACTION)
        self._horizon = trained.horizon_days * 86400 / data.trend.bucket_seconds
        self._still: Candidates = without_popularity(checkpoint, self.evaluation, config, device)
        trend = data.trend._replace(counts=data.trend.counts[1:])
        self._counts: Counts = count_prefixes(checkpoint.model, trend, self._still.prefixes)
        self.ranker = Funnel(checkpoint, self.evaluation, config, device, candidates=self._still)

    def lists(self, depth: int, what: str) -> PastLists:
        """The first stage's `depth` best of each; users are taken in the order of their moments."""
        order = np.lexsort((self._asked[1], self._asked[0]))
        some = max(1, min(self.ranker.config.batch_users, _CELLS // len(self.evaluation.candidate)))
        batches = [order[i:i + some] for i in range(0, len(order), some)]
        made = [self._part(users, depth) for users in progress(batches, total=len(batches), what=what)]
        back = np.argsort(order, kind="stable")
        return PastLists(*(np.concatenate(parts)[back] for parts in zip(*made)))

    def _part(self, users: np.ndarray, depth: int) -> PastLists:
        """Lists of the users of one batch."""
        self._at_moments(users)
        target = self.data.item_row[self.event[users]].astype(np.int64) - 1
        found, part = self.ranker.shortlist(users, depth, target)
        width = depth + 1
        index, allowed, part = found.index_BK.cpu().numpy(), (found.score_BK >
                                                              -torch.inf).cpu().numpy(), part.cpu().numpy()
        hit = (index[:, :-1] == target[:, None]) & allowed[:, :-1]
        survived = hit.any(1)
        allowed[:, -1] = ~survived
        short = width - index.shape[1]  # fewer candidates than the depth: empty columns before the target's
        index, allowed = (np.insert(x, [x.shape[1] - 1] * short, 0, axis=1) for x in (index, allowed))
        part = np.insert(part, [part.shape[1] - 1] * short, 0, axis=1)
        return PastLists(index.astype(np.int32), part, allowed, np.where(survived, hit.argmax(1), width - 1), survived,
                         self.data.action[self.event[users]].astype(np.int64))

    def _at_moments(self, users: np.ndarray) -> None:
        """Give the first stage the popularity of these users' moments."""
        pair, place = np.unique(np.stack([part[users] for part in self._asked]), axis=1, return_inverse=True)
        row = np.zeros(len(self.event), np.int64)
        row[users] = place.reshape(-1)
        self.ranker.candidates = with_popularity(self._still, self.model, self._counts, Moments(*pair, row),
                                                 self.device,
                                                 horizon=self._horizon)

    def given(self, lists: PastLists, users: np.ndarray) -> RankerInput:
        """What a ranker reads of some lists."""
        self.ranker.candidates = self._still  # popularity stands in the parts already
        tensor = lambda values: torch.from_numpy(values[users]).to(self.device)
        return self.ranker.ranker_input(users, tensor(lists.index_NM).long(), tensor(lists.part_NMF),
                                        tensor(lists.allowed_NM))


def past_evaluation(data: Dataset, user: np.ndarray, event: np.ndarray) -> Evaluation:
    """Users whose histories end before their events; candidates are all items of the catalogue."""
    start = np.asarray(data.user_start)[user]
    past, count = spans(start, event), event - start
    token_start, token_stop = (np.asarray(data.user_token_start)[user + i] for i in (0, 1))
    starts = lambda counts: np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Evaluation(
        [str(number) for number in range(len(user))], np.asarray(data.item_row)[past].astype(np.int64),
        np.asarray(data.action)[past], np.asarray(data.time_seconds)[past], starts(count),
        np.asarray(data.user_token)[spans(token_start, token_stop)], starts(token_stop - token_start),
        np.full(len(user), -1, np.int8), np.arange(1, data.schema.items + 1), data.items)


def _moments(data: Dataset, user: np.ndarray, event: np.ndarray, trained: TrainConfig, seed: int,
             action: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bucket, bucket up to which clicks are known, action asked for) of each event,
    drawn as in the checkpoint's training.
    """
    rng, time = np.random.default_rng([seed, 2]), np.asarray(data.time_seconds)
    earliest = time[event] - rng.uniform(0, trained.moment_lag_hours * 3600, len(event)).astype(np.int64)
    last = np.where(event > np.asarray(data.user_start)[user], time[np.maximum(event - 1, 0)], 0)
    bucket = data.trend.bucket_of(np.minimum(np.maximum(last, earliest), time[event]))
    lag = trained.click_lag_hours * 3600 / data.trend.bucket_seconds
    click = bucket - (rng.random(len(event)) ** 2 * (lag + 1)).astype(np.int64)
    return bucket, click, np.full(len(event), action)


def late_events(data: Dataset, stop: np.ndarray, users: np.ndarray, *, late: int,
                clicked: bool | None = None) -> np.ndarray:
    """The last `late` events of each of `users` (ascending) before their `stop`, in order of the log.

    `clicked`: only clicks and conversions, or only others.
    """
    start = np.asarray(data.user_start[:-1])[users]
    event = spans(start, stop[users])
    if clicked is not None:
        event = event[np.isin(np.asarray(data.action)[event], (CLICK, CONVERSION)) == clicked]
    owner = np.searchsorted(np.asarray(data.user_start), event, side="right") - 1
    from_last = np.searchsorted(owner, owner, side="right") - np.arange(len(owner))
    return event[from_last <= late]
