"""From memory-mapped columns to a training step's tensors: each item of a batch encoded once, negatives, popularity.

Stands between the histories and the model. The order of users is drawn by seed and epoch, users of like length
sharing a batch; a run goes on from any step, and ranks take turns with the batches.
Legend: B users, T positions, N items of the batch, F features.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.dataset.preprocess import Dataset
from onepiece_comp.errors import InputError
from onepiece_comp.models.batch import TrainBatch, item_batch
from onepiece_comp.models.histories import (
    PackedHistory, cells, event_columns, packed_events, padding_share, spans, unpack_history)
from onepiece_comp.models.popularity import (
    TrendPairs, TrendRows, catalogue_trend, code_rows, distinct_pairs, no_trend_rows, trend_rows)

_USERS_AT_ONCE = 1 << 16  # whose events are looked at together when draws are counted


class Picked(NamedTuple):
    """What chance gives to a batch."""

    event: np.ndarray  # targets, user by user
    count: np.ndarray  # of them, per user
    sampled: np.ndarray  # item rows, each as often as it was drawn


class TrainingBatches:
    """Batches of one dataset, the same for the same seed, epoch and step, so that a resumed run sees what it missed.

    `stop` [users] ends each user's events for training (validation users end before their held-out target). Of
    `ranks`, rank r takes the batches r, r + ranks, ... of the one order, all ranks equally many. Where the batches do
    not divide, those of the last rounds are shared out anew: they may be smaller, but no rank goes without.
    `popularity` is for models that read it, `codes` [items + 1, L] for those that read that of semantic ids too.
    Beside the batch's own items its keys are `sampled_negatives` drawn by popularity^`negative_power` (0: uniformly)
    and the items of the `bank_batches` batches before it in the epoch, encoded anew and so never stale.
    With `shared_negatives` the ranks' batches of a step have the keys of all; each has the rows of its own users, and
    the mean of their losses is that of one batch with all the users.
    """

    def __init__(self, dataset: Dataset, *, stop: np.ndarray, batch_users: int, max_events: int, sampled_negatives: int,
                 action_weights: tuple[float, ...], moment_lag_seconds: float, click_lag_seconds: float,
                 horizon_seconds: float, seed: int, negative_power: float = 0.0, bank_batches: int = 0,
                 shared_negatives: bool = False, stochastic_alpha: float = 2.0, popularity: bool = True,
                 codes: np.ndarray | None = None, rank: int = 0, ranks: int = 1):
        self.dataset, self.stop, self.batch_users, self.max_events = dataset, stop, batch_users, max_events
        self.sampled = min(sampled_negatives, dataset.schema.items)
        self.action_weights = np.array(action_weights, np.float32)
        self.moment_lag, self.seed, self.popularity = moment_lag_seconds, seed, popularity
        self.click_lag = click_lag_seconds / dataset.schema.trend_bucket_seconds
        self.horizon = horizon_seconds / dataset.schema.trend_bucket_seconds
        self.code_trend = catalogue_trend(codes, dataset.trend) if popularity and codes is not None else None
        self.codes = 0 if codes is None else 1 + int(codes.max())
        self.columns = event_columns(dataset)
        self.user_start, self.item_count = np.asarray(dataset.user_start), np.asarray(dataset.item_count)
        self.events = np.asarray(stop - self.user_start[:-1])
        self.users = np.flatnonzero(self.events > 0)
        self.bank_batches, self.stochastic_alpha = bank_batches, stochastic_alpha
        self.target_share = self._share_of_draws(self._kept_share)
        self.bank_share = (self._share_of_draws(np.ones_like) if bank_batches and stochastic_alpha < 2
                           else self.target_share)
        self.shared_negatives = shared_negatives
        self.drawn = None  # how likely each item is drawn; None = all the same
        if negative_power:
            weight = np.where(self.item_count > 0, np.maximum(self.item_count, 1.0) ** negative_power, 0.0)
            self.drawn_below = np.cumsum(weight)
            self.drawn = weight / self.drawn_below[-1]
        self.rank, self.ranks = rank, ranks
        if not 0 <= rank < ranks or ranks > 1 and ranks > len(self.users):
            raise InputError("ranks", found=f"rank {rank} of {ranks} for {len(self.users):,} users with events",
                             expected="ranks from 0 up, a user with events for each", do="start fewer ranks")

    @property
    def steps_per_epoch(self) -> int:
        """Steps of each rank."""
        batches = -(-len(self.users) // self.batch_users)
        return min(-(-batches // self.ranks), len(self.users) // self.ranks)

    def _order(self, epoch: int, *, bucketed: bool = True) -> list[np.ndarray]:
        """Users in batches: shuffled, sorted by length within stretches of 16 batches, batches shuffled again."""
        rng = np.random.default_rng([self.seed, epoch])
        users = rng.permutation(self.users)
        stretch = 16 * self.batch_users
        if bucketed:
            stretches = np.split(users, range(stretch, len(users), stretch))
            users = np.concatenate([self._by_length(part) for part in stretches])
        batches = np.split(users, range(self.batch_users, len(users), self.batch_users))
        return self._even([batches[i] for i in rng.permutation(len(batches))])

    def _by_length(self, users: np.ndarray) -> np.ndarray:
        return users[np.argsort(self.events[users], kind="stable")]

    def _even(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """As many batches as `ranks` can share: the last round and what is left over are divided anew.

        That is two rounds, or one where batches of a single user leave too few for two.
        """
        left = len(batches) % self.ranks
        if not left:
            return batches
        whole = max(0, len(batches) - left - self.ranks)
        users = self._by_length(np.concatenate(batches[whole:]))
        return batches[:whole] + np.array_split(users, self.steps_per_epoch * self.ranks - whole)

    def trained_actions(self) -> np.ndarray:
        """How many events of each action an epoch can draw as targets; of actions without weight there are none."""
        past = spans(self.stop, self.user_start[1:])  # held out
        held_out = np.bincount(self.columns.action[past], minlength=len(self.action_weights))
        counts = np.bincount(self.columns.action, minlength=len(self.action_weights)) - held_out
        return np.where(self.action_weights > 0, counts, 0)

    def padding_share(self, epoch: int = 0, *, bucketed: bool = True) -> float:
        """The share of padded cells in an epoch's histories; `bucketed=False` tells what a plain shuffle would have."""
        return padding_share([np.minimum(self.events[users], self.max_events)
                              for users in self._order(epoch, bucketed=bucketed)])

    def epoch(self, epoch: int, first_step: int = 0, *, count: int = 1) -> Iterator[TrainBatch]:
        """This rank's batches of an epoch from its step `first_step` on; `count`:
        those of the next ranks too, in turn.
        """
        order = self._order(epoch)
        steps = range(first_step * self.ranks + self.rank, len(order), self.ranks)
        for number in (step + place for step in steps for place in range(count)):
            first = number - number % self.ranks if self.shared_negatives else number
            bank = [self._targets(order[earlier], self._draw(epoch, earlier))
                    for earlier in range(max(0, first - self.bank_batches), first)]
            others = [self._pick(order[other], self._draw(epoch, other))
                      for other in range(first, first + self.ranks) if self.shared_negatives and other != number]
            yield self.batch(order[number], self._draw(epoch, number), bank=bank, others=others)

    def _draw(self, epoch: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, number])

    def _window(self, users: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """First and one past the last event of each user's targets, at most `max_events` of them."""
        begin, stop = self.user_start[users], self.stop[users]
        begin = begin + rng.integers(0, np.maximum(0, stop - begin - self.max_events) + 1)
        return begin, np.minimum(stop, begin + self.max_events)

    def _thinned(self, event: np.ndarray, count: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Stochastic length (Zhai et al. 2024, arXiv 2402.17152, section 3.2): long windows lose random events.

        A window of n events, more than N^(a / 2), N the longest's, is left whole with probability N^a / n^2 and else
        has N^(a / 2) of its events, so that all cost about N^a. Returns the events left and how many each user has.
        """
        if self.stochastic_alpha >= 2:
            return event, count
        short = self._short
        thin = (count > short) & (rng.random(len(count)) >= self._whole_chance(count))
        user = np.repeat(np.arange(len(count)), count)
        order = np.lexsort((rng.random(len(event)), user))  # each user's events shuffled
        rank = np.empty(len(event), np.int64)
        rank[order] = spans(np.zeros_like(count), count)
        kept = ~thin[user] | (rank < short)
        return event[kept], np.bincount(user[kept], minlength=len(count))

    @property
    def _short(self) -> int:
        """Events that stochastic length leaves of a long window."""
        return max(2, int(self.max_events ** (self.stochastic_alpha / 2)))

    def _whole_chance(self, count: np.ndarray) -> np.ndarray:
        """How likely a window of `count` events stays whole, where it is longer than a short one."""
        return np.minimum(1.0, self._short / np.maximum(count, 1)) ** 2

    def _kept_share(self, count: np.ndarray) -> np.ndarray:
        """Which share of its window's events stochastic length is expected to leave of each user."""
        if self.stochastic_alpha >= 2:
            return np.ones(len(count))
        whole = self._whole_chance(count)
        return whole + (1 - whole) * np.minimum(1.0, self._short / np.maximum(count, 1))

    def _share_of_draws(self, kept_share: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Each item's share [items + 1] of the target events that an epoch is expected to draw.

        An event of a user with n events is within a window of w as often as windows that hold it: the middle of a long
        history oftener than its ends, and a short history's events always.
        """
        share = np.zeros(self.dataset.schema.items + 1)
        for users in np.split(self.users, range(_USERS_AT_ONCE, len(self.users), _USERS_AT_ONCE)):
            count, begin = self.events[users], self.user_start[users]
            event, windows = spans(begin, begin + count), np.maximum(0, count - self.max_events) + 1
            place, windows_N = event - np.repeat(begin, count), np.repeat(windows, count)
            holding = np.minimum(place, windows_N - 1) - np.maximum(0, place - self.max_events + 1) + 1
            chance = holding / windows_N * np.repeat(kept_share(np.minimum(count, self.max_events)), count)
            share += np.bincount(self.columns.item[event], chance, len(share))
        return share / max(1.0, share.sum())

    def _pick(self, users: np.ndarray, rng: np.random.Generator) -> Picked:
        begin, stop = self._window(users, rng)
        return Picked(*self._thinned(spans(begin, stop), stop - begin, rng), self._sample(rng))

    def _targets(self, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.columns.item[spans(*self._window(users, rng))]

    def _sample(self, rng: np.random.Generator) -> np.ndarray:
        if self.drawn is None:
            return rng.integers(1, self.dataset.schema.items + 1, self.sampled)
        found = np.searchsorted(self.drawn_below, rng.random(self.sampled) * self.drawn_below[-1], side="right")
        return np.minimum(found, len(self.drawn) - 1)

    def _expected(self, key: np.ndarray, targets: int, *, bank: int = 0, batches: int = 1) -> np.ndarray:
        """How often each key is to be expected among so many targets,
        events of the bank and samples of `batches` (LogQ).
        """
        sampled = 1 / self.dataset.schema.items if self.drawn is None else self.drawn[key]
        return targets * self.target_share[key] + bank * self.bank_share[key] + batches * self.sampled * sampled

    def batch(self, users: np.ndarray, rng: np.random.Generator, *, bank: Sequence[np.ndarray] = (),
              others: Sequence[Picked] = ()) -> TrainBatch:
        """One step's tensors: a window of at most `max_events` targets of each user, and negatives.

        `bank` has the items of further events whose users are not of this batch, `others` belong to the batches that
        share their keys with this one.
        """
        columns, step = self.columns, (self._pick(users, rng), *others)
        event, count, sampled = step[0]
        step_event = np.concatenate([picked.event for picked in step])
        step_target = columns.item[step_event]
        key, repeats = np.unique(np.concatenate([step_target, *(picked.sampled for picked in step), *bank]),
                                 return_counts=True)
        expected = self._expected(key, len(step_target), bank=sum(map(len, bank)), batches=len(step))
        step_key = np.searchsorted(key, step_target)
        step_weight = np.bincount(step_key, self.action_weights[columns.action[step_event]], len(key)) / len(step)
        target_key = step_key[:len(event)]
        user = np.repeat(np.arange(len(users)), count)
        last = np.cumsum(count) - 1
        own = np.zeros((len(users), len(key)), bool)
        own[user, target_key] = True
        packed = packed_events(columns, users=users, event=np.delete(event, last), count=count - 1,
                               last_action=columns.action[event[last]].astype(np.int64))
        local = np.zeros(len(event), np.int64)
        local[1:] = target_key[:-1] + 1  # a position's event is the target of the position before
        local[packed.start_B[:-1]] = 0
        tensor = torch.from_numpy
        packed = packed._replace(item_N=tensor(local))
        negative = (np.searchsorted(key, sampled)[rng.integers(0, len(sampled), len(event))] if len(sampled)
                    else target_key)
        trend = self._trend(packed, columns.time_seconds[event], key, target_key, rng)
        return TrainBatch(
            item_batch(self.dataset.items, np.concatenate([[0], key]), self.dataset.schema.item_features),
            unpack_history(packed), cells(packed), tensor(target_key), tensor(negative), tensor(user),
            tensor(self.action_weights[columns.action[event]]), tensor(step_weight.astype(np.float32)), tensor(own),
            tensor(np.log(repeats).astype(np.float32)), tensor(np.log(expected).astype(np.float32)), *trend)

    def _trend(self, packed: PackedHistory, time: np.ndarray, key: np.ndarray, target_key: np.ndarray,
               rng: np.random.Generator) -> tuple[torch.Tensor, TrendRows, list[TrendRows | TrendPairs]]:
        """Popularity of the keys and of codes at each row's moment:
        a while before the target's `time`, not before the last event.

        So is a moment at inference: the user's last event or the log's end, some time before the unknown target. Clicks
        are known later still, by a delay drawn for the batch. Counts end where the moment's bucket begins.
        """
        trend = self.dataset.trend
        if not self.popularity:
            return torch.zeros(len(time), dtype=torch.int64), no_trend_rows(len(key)), []
        earliest = time - rng.uniform(0, self.moment_lag, len(time)).astype(np.int64)
        bucket = trend.bucket_of(np.minimum(np.maximum(packed.time_N.numpy(), earliest), time))
        bucket, condition, row_of = distinct_pairs(bucket, packed.next_action_N.numpy())
        click_bucket = bucket - int(rng.random() ** 2 * (self.click_lag + 1))
        found = trend.lookup(key, bucket=bucket, click_bucket=click_bucket)
        latest = np.floor(np.minimum(bucket + self.horizon, trend.buckets)).astype(np.int32)
        absent = trend.first_bucket(key).astype(np.int32) > latest[:, None]
        absent[row_of, target_key] = False
        of_codes = [] if self.code_trend is None else code_rows(
            self.code_trend, self.codes, key[target_key], row_of=row_of, bucket=bucket, click_bucket=click_bucket,
            condition=condition)
        return torch.from_numpy(row_of), trend_rows(found, absent, condition), of_codes


def ahead(batches: Iterator[TrainBatch]) -> Iterator[TrainBatch]:
    """The same batches, the next one made by a thread while this one is used; its errors are raised here."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as maker:
        coming = maker.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = maker.submit(next, batches, None)
            yield batch
