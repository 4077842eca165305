"""What a model reads: the items of a batch, each once, and a training step's rows; and how they come to a device.

Stands before the model and the sampler that fills it.
Legend: B users, T positions, N items or rows of the batch, K keys, F features.
"""

from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.dataset.preprocess import ItemTable
from onepiece_comp.logs.features import Feature
from onepiece_comp.models.histories import History
from onepiece_comp.models.popularity import TrendPairs, TrendRows


class ItemBatch(NamedTuple):
    """The items of a batch; row 0 is padding."""

    id_row_N: torch.Tensor  # int64, row in the training catalogue, 0 = cold or padding
    creative_id_N: torch.Tensor  # int64, for the hashed tables
    feature_NF: torch.Tensor  # int64 tokens of the joint item vocabulary
    embeddings: dict[str, torch.Tensor]  # feature id to float32 [N, width]
    present: dict[str, torch.Tensor]  # feature id to float32 [N, 1]


class TrainBatch(NamedTuple):
    """A step's input. Rows are the valid (user, position) pairs in order; keys are the items 1..K of `items`."""

    items: ItemBatch  # row 0 padding, then the keys in catalogue order
    history: History
    position_N: torch.Tensor  # int64 [N rows], index into the flattened [B, T]
    target_N: torch.Tensor  # int64 [N rows], key of the row's positive (0-based)
    negative_N: torch.Tensor  # int64 [N rows], the sampled key that a binary loss sets against it
    user_N: torch.Tensor  # int64 [N rows], user within the batch
    weight_N: torch.Tensor  # float32 [N rows], loss weight of the target's action
    step_weight_K: torch.Tensor  # float32, weight of the rows with this target: mean of the batches that share keys
    own_BK: torch.Tensor  # bool, keys among the user's targets here: never that user's negatives
    log_repeats_K: torch.Tensor  # float32, log of how often the key was drawn in this batch
    log_expected_K: torch.Tensor  # float32, log of how often it was to be expected (LogQ)
    trend_row_N: torch.Tensor  # int64 [N rows], row of `trend` with the row's moment and next action
    trend: TrendRows
    # of each level's codes, see `popularity.code_rows`; empty for a model without
    code_trend: list[TrendRows | TrendPairs]

    def to(self, device: torch.device) -> "TrainBatch":
        return move(self, device)

    def with_targets(self, kept_K: torch.Tensor) -> "TrainBatch":
        """The same batch, rows with other targets at weight 0."""
        return self._replace(weight_N=self.weight_N * kept_K[self.target_N], step_weight_K=self.step_weight_K * kept_K)


def move(value: object, device: torch.device) -> object:
    """Tensors in nested tuples, lists and dicts, moved to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list):
        return [move(item, device) for item in value]
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
