"""From memory-mapped columns to tensors: users by vectorised indexing, each item of a batch encoded once.

Position 0 of a history is the user token, position p the p-th event; position p predicts event p + 1. Histories are
padded on the right, to the longest of the batch. Legend: B users, T positions, N items of the batch, F features.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.features import Feature
from onepiece_comp.preprocess import Dataset, ItemTable
from onepiece_comp.trend import Lookup

NO_ACTION = 4  # what a position is conditioned on where the next action is not to be told


class ItemBatch(NamedTuple):
    """The items of a batch; row 0 is padding."""

    id_row_N: torch.Tensor  # int64, row in the training catalogue, 0 = cold or padding
    creative_id_N: torch.Tensor  # int64, for the hashed tables
    feature_NF: torch.Tensor  # int64 tokens of the joint item vocabulary
    embeddings: dict[str, torch.Tensor]  # feature id to float32 [N, width]
    present: dict[str, torch.Tensor]  # feature id to float32 [N, 1]


class History(NamedTuple):
    """Histories of users, item numbers local to an ItemBatch."""

    item_BT: torch.Tensor  # int64, 0 at the user token and in the padding
    action_BT: torch.Tensor  # int64
    next_action_BT: torch.Tensor  # int64, what the position is to predict
    time_BT: torch.Tensor  # int64 seconds; the user token has the first event's time
    length_B: torch.Tensor  # int64, user token included
    user_token: torch.Tensor  # int64, flat bags
    user_token_start_B: torch.Tensor  # int64


class TrendRows(NamedTuple):
    """Popularity of K keys at R rows, a row being a moment and a next action; see `trend.Lookup`."""

    row_P: torch.Tensor  # int64
    key_P: torch.Tensor  # int64
    feature_PW: torch.Tensor  # float32
    seen_RK: torch.Tensor  # bool, shown before the moment
    absent_RK: torch.Tensor  # bool, not yet a candidate at the moment
    condition_R: torch.Tensor  # int64, next action


class TrainBatch(NamedTuple):
    """A step's input. Rows are the valid (user, position) pairs in order; keys are the items 1..K of `items`."""

    items: ItemBatch  # row 0 padding, then the keys in catalogue order
    history: History
    position_N: torch.Tensor  # int64 [N rows], index into the flattened [B, T]
    target_N: torch.Tensor  # int64 [N rows], key of the row's positive (0-based)
    user_N: torch.Tensor  # int64 [N rows], user within the batch
    weight_N: torch.Tensor  # float32 [N rows], loss weight of the target's action
    own_BK: torch.Tensor  # bool, keys that the user has in the log: never that user's negatives
    log_repeats_K: torch.Tensor  # float32, log of how often the key was drawn in this batch
    log_expected_K: torch.Tensor  # float32, log of how often it was to be expected (LogQ)
    trend_row_N: torch.Tensor  # int64 [N rows], row of `trend` with the row's moment and next action
    trend: "TrendRows"

    def to(self, device: torch.device) -> "TrainBatch":
        return move(self, device)


def move(value: object, device: torch.device) -> object:
    """Tensors in nested tuples and dicts, moved to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    return type(value)(*(move(item, device) for item in value))


def item_batch(table: ItemTable, rows: np.ndarray, features: list[Feature]) -> ItemBatch:
    """The items of `rows` as tensors."""
    offset = np.array([feature.offset for feature in features], np.int64)
    tensor = lambda values, dtype: torch.from_numpy(np.ascontiguousarray(values, dtype))
    return ItemBatch(
        tensor(table.id_row[rows], np.int64), tensor(table.creative_id[rows], np.int64),
        tensor(table.features[rows] + offset, np.int64),
        {fid: tensor(values[rows], np.float32) for fid, values in table.embeddings.items()},
        {fid: tensor(bits[rows], np.float32)[:, None] for fid, bits in table.present.items()})


def _ragged(values: np.ndarray, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """values[start[i]:stop[i]] of each i, flat, and the length of each."""
    length = stop - start
    first = np.repeat(start - np.concatenate([[0], np.cumsum(length)[:-1]]), length)
    return values[first + np.arange(length.sum())], length


class Columns(NamedTuple):
    """The event columns that histories are cut from; items in any numbering."""

    item: np.ndarray
    action: np.ndarray
    time_seconds: np.ndarray
    user_token: np.ndarray
    user_token_start: np.ndarray


def event_columns(dataset: Dataset) -> Columns:
    """A dataset's event columns; items are catalogue rows."""
    return Columns(dataset.item_row, dataset.action, dataset.time_seconds, dataset.user_token, dataset.user_token_start)


def last_position(history: History, x_BT: torch.Tensor) -> torch.Tensor:
    """x at each user's last position: [B, T, ...] to [B, ...]."""
    return x_BT[torch.arange(len(x_BT), device=x_BT.device), history.length_B - 1]


def build_history(columns: Columns, *, users: np.ndarray, start: np.ndarray, stop: np.ndarray, last_action: np.ndarray,
                  ) -> tuple[History, np.ndarray]:
    """Events start[b]:stop[b] of user users[b] as a History; also the items [B, T] in the columns' numbering.

    `last_action` [B] conditions the last position (NO_ACTION = nothing known); earlier ones know theirs.
    """
    batch, length = len(users), stop - start + 1
    width = int(length.max())
    inside = np.arange(width)[None, :] < length[:, None]
    event = inside.copy()
    event[:, 0] = False
    item, action, time = (np.zeros((batch, width), np.int64) for _ in range(3))
    item[event], _ = _ragged(columns.item, start, stop)
    action[event], _ = _ragged(columns.action, start, stop)
    time[event], _ = _ragged(columns.time_seconds, start, stop)
    if width > 1:
        time[:, 0] = time[:, 1]
    next_action = np.full((batch, width), NO_ACTION, np.int64)
    next_action[:, :-1] = np.where(event[:, 1:], action[:, 1:], NO_ACTION)
    next_action[np.arange(batch), length - 1] = last_action
    token, tokens = _ragged(columns.user_token, columns.user_token_start[users], columns.user_token_start[users + 1])
    token_start = np.concatenate([[0], np.cumsum(tokens)[:-1]])
    parts = (item, action, next_action, time, length, token.astype(np.int64), token_start)
    return History(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts)), item


def distinct_pairs(bucket: np.ndarray, condition: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct (bucket, condition) pairs, and which of them each entry has."""
    pair, place = np.unique(bucket * (NO_ACTION + 1) + condition, return_inverse=True)
    return *np.divmod(pair, NO_ACTION + 1), place.reshape(-1)


def trend_rows(found: Lookup, absent_RK: np.ndarray, condition_R: np.ndarray) -> TrendRows:
    """A lookup as tensors."""
    return TrendRows(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (*found, absent_RK, condition_R)))


class TrainingBatches:
    """Batches of one dataset, the same for the same seed, epoch and step, so that a resumed run sees what it missed.

    `stop` [users] ends each user's events for training (validation users end before their held-out target).
    """

    def __init__(self, dataset: Dataset, *, stop: np.ndarray, batch_users: int, max_events: int, sampled_negatives: int,
                 action_weights: tuple[float, ...], moment_lag_seconds: float, click_lag_seconds: float,
                 horizon_seconds: float, seed: int):
        self.dataset, self.stop, self.batch_users, self.max_events = dataset, stop, batch_users, max_events
        self.sampled = min(sampled_negatives, dataset.schema.items)
        self.action_weights = np.array(action_weights, np.float32)
        self.moment_lag, self.seed = moment_lag_seconds, seed
        self.click_lag = click_lag_seconds / dataset.schema.trend_bucket_seconds
        self.horizon = horizon_seconds / dataset.schema.trend_bucket_seconds
        self.columns = event_columns(dataset)
        self.events = np.asarray(stop - dataset.user_start[:-1])
        self.users = np.flatnonzero(self.events > 0)
        self.total = max(1, int(dataset.item_count.sum()))

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.users) // self.batch_users)

    def _order(self, epoch: int) -> list[np.ndarray]:
        """Users in batches: shuffled, sorted by length within stretches of 16 batches, batches shuffled again."""
        rng = np.random.default_rng([self.seed, epoch])
        users = rng.permutation(self.users)
        stretch = 16 * self.batch_users
        users = np.concatenate([part[np.argsort(self.events[part], kind="stable")]
                                for part in np.split(users, range(stretch, len(users), stretch))])
        batches = np.split(users, range(self.batch_users, len(users), self.batch_users))
        return [batches[i] for i in rng.permutation(len(batches))]

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[TrainBatch]:
        """The batches of an epoch from `first_step` on."""
        for step, users in enumerate(self._order(epoch)):
            if step >= first_step:
                yield self.batch(users, np.random.default_rng([self.seed, epoch, step]))

    def batch(self, users: np.ndarray, rng: np.random.Generator) -> TrainBatch:
        """One step's tensors: a window of at most `max_events` targets of each user, and sampled negatives."""
        data = self.dataset
        begin, stop = data.user_start[users], self.stop[users]
        spare = np.maximum(0, stop - begin - self.max_events)
        begin = begin + rng.integers(0, spare + 1)
        stop = np.minimum(stop, begin + self.max_events)
        target, count = _ragged(data.item_row, begin, stop)
        action, _ = _ragged(data.action, begin, stop)
        history, item = build_history(self.columns, users=users, start=begin, stop=stop - 1,
                                      last_action=data.action[stop - 1].astype(np.int64))
        sampled = rng.integers(1, data.schema.items + 1, self.sampled)
        key, repeats = np.unique(np.concatenate([target, sampled]), return_counts=True)
        expected = len(target) * data.item_count[key] / self.total + self.sampled / data.schema.items
        user = np.repeat(np.arange(len(users)), count)
        target_key = np.searchsorted(key, target)
        own = np.zeros((len(users), len(key)), bool)
        own[user, target_key] = True
        local = np.where(item > 0, np.searchsorted(key, item) + 1, 0)
        history = history._replace(item_BT=torch.from_numpy(local))
        first = np.cumsum(count) - count
        time, _ = _ragged(data.time_seconds, begin, stop)
        position = user * item.shape[1] + np.arange(len(target)) - np.repeat(first, count)
        tensor = torch.from_numpy
        return TrainBatch(
            item_batch(data.items, np.concatenate([[0], key]), data.schema.item_features), history, tensor(position),
            tensor(target_key), tensor(user), tensor(self.action_weights[action]), tensor(own),
            tensor(np.log(repeats).astype(np.float32)), tensor(np.log(expected).astype(np.float32)),
            *self._trend(history, position, time, key, target_key, rng))

    def _trend(self, history: History, position: np.ndarray, time: np.ndarray, key: np.ndarray, target_key: np.ndarray,
               rng: np.random.Generator) -> tuple[torch.Tensor, TrendRows]:
        """Popularity of the keys at each row's moment: a while before the target's `time`, not before the last event.

        So is a moment at inference: the user's last event or the log's end, some time before the unknown target. Clicks
        are known later still, by a delay drawn for the batch. Counts end where the moment's bucket begins.
        """
        trend = self.dataset.trend
        earliest = time - rng.uniform(0, self.moment_lag, len(time)).astype(np.int64)
        moment = np.maximum(history.time_BT.flatten().numpy()[position], earliest)
        bucket = trend.bucket_of(np.minimum(moment, time))
        condition = history.next_action_BT.flatten().numpy()[position]
        bucket, condition, row_of = distinct_pairs(bucket, condition)
        found = trend.lookup(key, bucket=bucket, click_bucket=bucket - int(rng.random() ** 2 * (self.click_lag + 1)))
        absent = trend.first_bucket(key)[None] > bucket[:, None] + self.horizon
        absent[row_of, target_key] = False
        return torch.from_numpy(row_of), trend_rows(found, absent, condition)
