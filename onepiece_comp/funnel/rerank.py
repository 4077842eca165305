"""Ranking a cascade's survivors anew: what the ranker reads, and its folder on disk.

Stands between the requests and `cascade.py`; `ranking/train.py` writes the folder. A ranker belongs to the checkpoint
that it was trained against, for its inputs are that checkpoint's states and vectors, and to its mode of ranking.
Legend: B users, S history positions, M candidates, V width of item vectors, F parts.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from onepiece_comp.artefacts import MARKERS, fingerprint, read_marker
from onepiece_comp.config import RankerConfig
from onepiece_comp.config_reading import from_dict
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.users import Request
from onepiece_comp.models.ranker import RankerInput, TargetRanker
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.models.retrieval import EncodedItems
from onepiece_comp.training.checkpoint import MODEL, Checkpoint
from onepiece_comp.training.weights import load_weights

WEIGHTS = "ranker.pt"


class Reranker(NamedTuple):
    """A ranker ready to run."""

    net: TargetRanker
    depth: int  # survivors that it orders
    kept: bool  # whether it was better than no ranker on validation users
    key: str  # fingerprint of its folder


def build_ranker(model: OnePiece, config: RankerConfig) -> TargetRanker:
    """A new ranker for the states and vectors of `model`."""
    item_width = model.config.width + model.config.similarity_width
    return TargetRanker(config, state_width=model.config.width, item_width=item_width, max_length=model.max_length)


def ranker_input(model: OnePiece, vectors: EncodedItems, request: Request, index_BM: torch.Tensor,
                 part_BMF: torch.Tensor,
                 allowed_BM: torch.Tensor) -> RankerInput:
    """What a ranker reads of a batch of users and the candidates `index_BM`."""
    item_NV = model.keys(request.item_ND).float()
    if model.similarity is not None:
        item_NV = torch.cat([item_NV, model.similarity.metric(request.item_ND)], 1)
    key_BMV = torch.cat([part[index_BM] for part in vectors if part is not None], -1)
    return RankerInput(request.encoded.hidden_BTD.float(), item_NV[request.history.item_BT], request.history.action_BT,
                       request.encoded.gap_BTS, request.history.length_B, key_BMV, part_BMF, allowed_BM)


def load_ranker(path: Path, checkpoint: Checkpoint, mode: str) -> Reranker:
    """The ranker of a folder; InputError when it was trained against another checkpoint or for another mode."""
    path = Path(path)
    stored = read_marker(path, "ranker")
    try:
        config = from_dict(RankerConfig, stored["config"], path / MARKERS["ranker"])
        own, named, trained_for, kept = stored["checkpoint"], stored["checkpoint_path"], stored["mode"], stored["kept"]
    except KeyError as error:
        raise InputError(path / MARKERS["ranker"], found=f"no {error} in it", expected="the fields of a ranker",
                         do="train it again with this version") from error
    if own != checkpoint_key(checkpoint):
        raise InputError(path, found=f"a ranker trained against another checkpoint ({named})",
                         expected=f"one trained against {checkpoint.path}",
                         do="run train-ranker with this checkpoint, or infer with that one")
    if trained_for != mode:
        raise InputError(path, found=f"a ranker trained for mode {trained_for}", expected=f"one for mode {mode}",
                         do=f"infer with --mode {trained_for}, or train it with --set infer.mode={mode}")
    net = load_weights(path / WEIGHTS, lambda state: build_ranker(checkpoint.model, config), parts=config.layers,
                       described=path / MARKERS["ranker"])
    device = next(checkpoint.model.parameters()).device
    return Reranker(net.to(device).eval(), config.depth, kept,
                    fingerprint(path / WEIGHTS, path / MARKERS["ranker"]))


def checkpoint_key(checkpoint: Checkpoint) -> str:
    """What tells a checkpoint's weights from all others."""
    return fingerprint(checkpoint.path / MODEL)
