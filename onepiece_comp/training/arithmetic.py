"""Multiply-adds of a training step, counted from the shapes of model and batch: what a rate of work is measured in.

Stands between the model and the training loop. Counted are matrix products, of padded positions and of the future
too where the model computes them; look-ups, biases, norms and the optimiser are not. A training step is three
forward passes, one for the values and one for each side of a product in the backward pass; what is computed again to
save memory does not count (model FLOPs, as in PaLM, arXiv 2204.02311, appendix B).
Legend: B users, T positions, N rows, D width, K keys, C codes, M metric width.
"""

import re
from typing import NamedTuple

from torch import nn

from onepiece_comp.models.batch import TrainBatch
from onepiece_comp.models.declared import declarations
from onepiece_comp.models.encoder import EncoderLayer, LatentSteps
from onepiece_comp.models.moe import SparseMoE
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.models.sid_decoder import SemanticIdDecoder

_PEAKS = {  # dense bfloat16 FLOP/s by the vendor's data sheets, more particular names first
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H20": 148e12,
    "A100": 312e12, "L40S": 362e12, "L20": 119.5e12, "L4": 121e12, "A10": 125e12, "RTX 4090": 165e12,
}


class Shape(NamedTuple):
    """What the arithmetic of a step depends on beside the model."""

    users: int  # B
    positions: int  # T, of the longest history
    rows: int  # N, valid (user, position) pairs
    keys: int  # K, distinct items

    @property
    def cells(self) -> int:
        """Positions of all users, padding included."""
        return self.users * self.positions


class Work(NamedTuple):
    """Multiply-adds of a forward pass."""

    blocks: int  # the encoder's attention and its linear maps, latent steps included
    experts: int
    towers: int  # item tower and inputs
    retrieval: int  # logits of the keys
    similarity: int  # of keys to histories
    semantic: int  # decoder, logits of codes, their similarity to histories
    conditioned: int  # the retrieval loss once more, with queries that know the first code

    @property
    def training_flops(self) -> float:
        """FLOP of a training step: two per multiply-add, three passes."""
        return 6.0 * sum(self)


def shape_of(batch: TrainBatch) -> Shape:
    """The shape of a training batch."""
    return Shape(*batch.history.item_BT.shape, len(batch.target_N), len(batch.items.id_row_N) - 1)


def forward_work(model: OnePiece, shape: Shape, *, semantic: bool = True, conditioned: bool = False,
                 compared: int | None = None) -> Work:
    """The work of a forward pass with all losses, that of the semantic ids and of the conditioned query if asked for.

    A row is `compared` with so many keys, None: with all of them.
    """
    width, decoder = model.config.width, model.decoder
    retrieval = shape.rows * (shape.keys if compared is None else compared) * width
    similarity = _similarity(model, shape, keys=shape.keys) if model.similarity is not None else 0
    conditioned = conditioned and decoder is not None and decoder.dense is not None
    decodes = decoder is not None and (semantic or conditioned)
    return Work(
        blocks=sum(_block(layer, shape, width) for layer in model.layers)
        + (_latent(model.latent, shape, width) if model.latent is not None else 0),
        experts=sum(_experts(layer.moe, shape.rows) for layer in model.layers if layer.moe is not None),
        towers=_matrices(model.item_tower) * (shape.keys + 1) + _matrices(model.inputs) * shape.cells,
        retrieval=retrieval, similarity=similarity,
        semantic=(_queries(decoder, shape, width) if decodes else 0)
        + (_codes(model, decoder, shape) if decodes and semantic else 0),
        conditioned=shape.rows * _matrices(decoder.dense) + retrieval + similarity if conditioned else 0)


def bfloat16_peak(card: str) -> float | None:
    """Peak FLOP/s of a card by its name, None for an unknown one: "NVIDIA H100 80GB HBM3" has 989e12."""
    return next((peak for name, peak in _PEAKS.items() if re.search(rf"\b{name}\b", card)), None)


def _matrices(module: nn.Module) -> int:
    """Multiply-adds of one row through all matrices of a module, each taken once."""
    linear = sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
    declared = declarations(module)
    return linear + sum(p.numel() for name, p in module.named_parameters() if declared[name].inputs_first
                        and p.dim() == 2)


def _block(layer: EncoderLayer, shape: Shape, width: int) -> int:
    """Linear maps; scores of every two positions and their sum over values, all heads together."""
    return shape.cells * (_matrices(layer.block) + 2 * shape.positions * width)


def _latent(latent: LatentSteps, shape: Shape, width: int) -> int:
    """The history's keys and values once, then a query, attention and a linear map for each step."""
    memory = latent.block.value_key.weight.numel()
    step = _matrices(latent.block) - memory + 2 * shape.positions * width
    return shape.cells * (memory + len(latent.step_table.weight) * step)


def _experts(moe: SparseMoE, rows: int) -> int:
    """Router, shared expert and the active ones of each row."""
    one = moe.gate_up_EDF[0].numel() + moe.down_EFD[0].numel()
    return rows * (_matrices(moe) + moe.active * one)


def _similarity(model: OnePiece, shape: Shape, *, keys: int) -> int:
    """Metric vectors of `keys` and padding, their kernel with each event, the mixture at each position."""
    width = model.config.similarity_width
    return (keys + 1) * model.config.width * width + shape.cells * keys * (width + shape.positions)


def _queries(decoder: SemanticIdDecoder, shape: Shape, width: int) -> int:
    """The decoder's queries of each level; the encoder's states are read for all but the first."""
    memory = sum(block.value_key.weight.numel() for block in decoder.blocks)
    attention = len(decoder.blocks) * 2 * shape.positions * width
    blocks = sum(_matrices(block) for block in decoder.blocks) - memory + attention
    start = sum(linear.weight.numel() for linear in decoder.start)
    return shape.cells * (decoder.first.weight.numel() + start + memory + (decoder.levels - 1) * blocks)


def _codes(model: OnePiece, decoder: SemanticIdDecoder, shape: Shape) -> int:
    """Logits of the codes, and how near the first ones are to those of the history."""
    logits = decoder.levels * shape.rows * decoder.codes * model.config.width
    return logits + (_similarity(model, shape, keys=decoder.codes) if decoder.similarity is not None else 0)
