"""Histories of users as tensors: cut from the event columns by vectorised indexing, packed or padded.

Position 0 of a history is the user token, position p the p-th event. Packed, the histories of a batch stand one after
the other in flat arrays, as kernels for ragged attention want them; padded, they are rows as long as the longest of
the batch, filled on the right, as the model reads them. Both hold the same. Stands before the batches.
Legend: B users, T positions, N valid (user, position) pairs.
"""

from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.dataset.preprocess import Dataset

NO_ACTION = 4  # what a position is conditioned on where the next action is not to be told


class History(NamedTuple):
    """Padded histories, item numbers local to an ItemBatch."""

    item_BT: torch.Tensor  # int64, 0 at the user token and in the padding
    action_BT: torch.Tensor  # int64
    next_action_BT: torch.Tensor  # int64, what the position is to predict
    time_BT: torch.Tensor  # int64 seconds; the user token has the first event's time
    length_B: torch.Tensor  # int64, user token included
    user_token: torch.Tensor  # int64, flat bags
    user_token_start_B: torch.Tensor  # int64


class PackedHistory(NamedTuple):
    """The same histories without padding: user b's positions are start_B[b]:start_B[b + 1] of the flat arrays."""

    item_N: torch.Tensor  # int64, 0 at the user token
    action_N: torch.Tensor  # int64
    next_action_N: torch.Tensor  # int64
    time_N: torch.Tensor  # int64 seconds
    position_N: torch.Tensor  # int64, place within the history, 0 = user token
    start_B: torch.Tensor  # int64 [B + 1]
    user_token: torch.Tensor  # int64, flat bags
    user_token_start_B: torch.Tensor  # int64


class Columns(NamedTuple):
    """The event columns that histories are cut from; items in any numbering."""

    item: np.ndarray
    action: np.ndarray
    time_seconds: np.ndarray
    user_token: np.ndarray
    user_token_start: np.ndarray


def event_columns(dataset: Dataset) -> Columns:
    """A dataset's event columns; items are catalogue rows."""
    return Columns(*map(np.asarray, (  # plain views: a memory map's own indexing is slower
        dataset.item_row, dataset.action, dataset.time_seconds, dataset.user_token, dataset.user_token_start)))


def spans(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """The indices start[i]..stop[i] - 1 of every i, flat: [2, 9] and [4, 10] give [2, 3, 9]."""
    length = stop - start
    return np.arange(length.sum()) + np.repeat(start - np.cumsum(length) + length, length)


def packed_history(columns: Columns, *, users: np.ndarray, start: np.ndarray, stop: np.ndarray,
                   last_action: np.ndarray) -> PackedHistory:
    """Events start[b]:stop[b] of user users[b], packed; items in the columns' numbering.

    `last_action` [B] conditions the last position (NO_ACTION = nothing known); earlier ones know theirs.
    """
    return packed_events(columns, users=users, event=spans(start, stop), count=stop - start, last_action=last_action)


def packed_events(columns: Columns, *, users: np.ndarray, event: np.ndarray, count: np.ndarray,
                  last_action: np.ndarray) -> PackedHistory:
    """The same of any events: `event` has the first user's count[0], then the second's, each in the order of time."""
    length = count + 1
    first = np.concatenate([[0], np.cumsum(length)])
    position = spans(np.zeros_like(length), length)
    after_token = position > 0
    item, action, time = (np.zeros(len(position), np.int64) for _ in range(3))
    item[after_token], action[after_token] = columns.item[event], columns.action[event]
    time[after_token] = columns.time_seconds[event]
    with_events = first[:-1][count > 0]
    time[with_events] = time[with_events + 1]
    next_action = np.empty_like(action)
    next_action[:-1] = action[1:]
    next_action[first[1:] - 1] = last_action
    token_start, token_stop = columns.user_token_start[users], columns.user_token_start[users + 1]
    tokens = token_stop - token_start
    parts = (item, action, next_action, time, position, first,
             columns.user_token[spans(token_start, token_stop)].astype(np.int64), np.cumsum(tokens) - tokens)
    return PackedHistory(*map(torch.from_numpy, parts))


def build_history(columns: Columns, *, users: np.ndarray, start: np.ndarray, stop: np.ndarray, last_action: np.ndarray,
                  ) -> tuple[History, np.ndarray]:
    """`packed_history`, padded; also the items [B, T] in the columns' numbering."""
    history = unpack_history(packed_history(columns, users=users, start=start, stop=stop, last_action=last_action))
    return history, history.item_BT.numpy()


def cells(packed: PackedHistory) -> torch.Tensor:
    """Where each packed position stands in the flattened padded [B, T], int64 [N]."""
    length_B = packed.start_B.diff()
    row_B = torch.arange(len(length_B), device=length_B.device) * length_B.max()
    return torch.repeat_interleave(row_B, length_B) + packed.position_N


def unpack_history(packed: PackedHistory) -> History:
    """Packed to padded, on the right, to the longest of the batch."""
    length_B, cell_N = packed.start_B.diff(), cells(packed)
    batch, width = len(length_B), int(length_B.max())

    def padded(x_N: torch.Tensor, padding: int = 0) -> torch.Tensor:
        return x_N.new_full((batch * width,), padding).index_copy_(0, cell_N, x_N).view(batch, width)

    return History(padded(packed.item_N), padded(packed.action_N), padded(packed.next_action_N, NO_ACTION),
                   padded(packed.time_N), length_B, packed.user_token, packed.user_token_start_B)


def pack_history(history: History) -> PackedHistory:
    """Padded to packed: the inverse of `unpack`."""
    length_B = history.length_B
    step_T = torch.arange(history.item_BT.shape[1], device=length_B.device)
    valid_BT = step_T < length_B[:, None]
    start_B = torch.cat([length_B.new_zeros(1), length_B.cumsum(0)])
    return PackedHistory(history.item_BT[valid_BT], history.action_BT[valid_BT], history.next_action_BT[valid_BT],
                         history.time_BT[valid_BT], step_T.expand_as(valid_BT)[valid_BT], start_B,
                         history.user_token, history.user_token_start_B)


def padding_share(lengths: list[np.ndarray]) -> float:
    """The share of cells that are padding when each batch of `lengths` is padded to its longest."""
    held = sum(len(batch) * int(batch.max()) for batch in lengths)
    return 1 - sum(int(batch.sum()) for batch in lengths) / held


def last_position(history: History, x_BT: torch.Tensor) -> torch.Tensor:
    """x at each user's last position: [B, T, ...] to [B, ...]."""
    return x_BT[torch.arange(len(x_BT), device=x_BT.device), history.length_B - 1]
