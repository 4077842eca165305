"""Public benchmarks' models with semantic ids: an encoder of histories, a decoder of codes, a dense query beside it.

Stands between `next_item_training.py` and `next_item_ranking.py`. There is no text of items: vectors are those of a row
trained before on the same training events, quantised by the tokenizer's residual k-means. Sources and deviations:
TIGER (arXiv 2305.05065): an item is one position, the sum of its codes, and cross-attention reads the encoder, no T5;
residual k-means for RQ-VAE, no user token. LIGER (arXiv 2411.18814): the same, the vectors for text; items without
training events stay in the dense softmax. COBRA (arXiv 2503.02453): codes and vector are one position, not two; a free
vector per item for a text encoder; softmax over all items. OnePiece (arXiv 2512.07424): ids alone, no item features.
Legend: B users, T positions, D width, L levels, C codes, I items, G distinct ids, V width of given vectors.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.benchmark.interactions import Attributes, Window
from onepiece_comp.benchmark.next_item_losses import full_softmax
from onepiece_comp.benchmark.next_item_model import IdTable, NextItemModel, id_table
from onepiece_comp.benchmark.next_item_training import next_item_loss
from onepiece_comp.benchmark.rows import CodeRowConfig
from onepiece_comp.config import ModelConfig, TokenizerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.models.prefix_table import PrefixTable, build_prefix_table
from onepiece_comp.models.recommender import Encoded
from onepiece_comp.models.sid_decoder import SemanticIdDecoder
from onepiece_comp.tokenizer.build import choose_codes, fit_quantiser
from onepiece_comp.tokenizer.collisions import check_rule, resolve_collisions

INPUTS, DENSE = ("codes", "ids", "codes+ids", "codes+vectors"), ("none", "last", "conditioned")


class Ids(NamedTuple):
    """The tree of distinct ids, and which one each item has."""

    table: PrefixTable  # its items are the distinct ids
    code_GL: torch.Tensor  # int64
    id_I: torch.Tensor  # int64, item row i at i - 1


class CodeModel(nn.Module):
    """States of every position, from which codes are decoded and, with a dense head, items are found."""

    def __init__(self, config: CodeRowConfig, *, code_IL: torch.Tensor, vector_IV: torch.Tensor,
                 max_length: int,  # noqa: N803
                 attributes: Attributes | None = None):
        super().__init__()
        check_codes(config, len(code_IL))
        self.config = config
        self.register_buffer("code_IL", code_IL.long())
        self.register_buffer("vector_IV", vector_IV)
        source = (id_table(config, len(code_IL), attributes) if config.inputs == "ids" else
                  CodeSource(config, code_IL, vector_IV))
        self.encoder = NextItemModel(config, items=len(code_IL), max_length=max_length, source=source)
        decoder = ModelConfig(width=config.width, heads=config.heads, dropout=config.dropout,
                              decoder_layers=config.decoder_layers, trend=False, similarity_width=0)
        # a conditioned query is the one of a level behind the id's last, whose codes nobody asks for
        levels = code_IL.shape[1] + (config.dense == "conditioned")
        self.decoder = SemanticIdDecoder(decoder, levels=levels, codes=int(code_IL.max()) + 1, max_length=max_length)
        _initialise(self.decoder)
        code_GL, id_I = torch.unique(self.code_IL, dim=0, return_inverse=True)
        self.ids = Ids(build_prefix_table(code_GL), code_GL, id_I)

    def encode(self, window: Window) -> Encoded:
        """Histories as the beam and the decoder read them;
        the decoder has no bias by time, so that no gaps are told.
        """
        states = self.encoder.states(window)
        return Encoded(F.layer_norm(states[-1], states[-1].shape[-1:]), states, [], torch.empty(0, dtype=torch.long))

    def keys(self) -> torch.Tensor:
        """Keys [I, D] of the dense head."""
        return self.encoder.keys()

    def dense_query(self, encoded: Encoded) -> torch.Tensor:
        """Queries [B, T, D] from the states alone."""
        return self.encoder.query(encoded.states[-1])

    def conditioned_query(self, hidden_BND: torch.Tensor, code_BNL: torch.Tensor,  # noqa: N803
                          memories: list[tuple[torch.Tensor, torch.Tensor]], allowed_BNS: torch.Tensor) -> torch.Tensor:
        """Queries [B, N, D] given whole ids: COBRA, section 3.2."""
        return self.encoder.query(self.decoder.query(code_BNL.shape[-1], hidden_BND, code_BNL, memories, allowed_BNS))

    def loss(self, window: Window, target_BT: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:  # noqa: N803
        """Mean over rows of the codes' cross-entropies (mean over levels), plus that of the dense head."""
        config, encoded, valid_BT = self.config, self.encode(window), target_BT > 0
        code_BTL = self.code_IL[(target_BT - 1).clamp_min(0)]
        length = target_BT.shape[1]
        causal_1TS = torch.ones(1, length, length, dtype=torch.bool).tril()
        memories, hidden = self.decoder.memories(encoded.states), encoded.hidden_BTD
        total = 0.0
        for level in range(code_BTL.shape[2]):
            query_BTD = self.decoder.query(level, hidden, code_BTL, memories, causal_1TS)
            total = total + full_softmax(query_BTD[valid_BT], self.decoder.code_LCD[level],
                                         code_BTL[..., level][valid_BT])
        total = config.code_weight * total / code_BTL.shape[2]
        if config.dense == "none":
            return total
        query_BTD = (self.dense_query(encoded) if config.dense == "last" else
                     self.conditioned_query(hidden, code_BTL, memories, causal_1TS))
        return total + next_item_loss(query_BTD, self.keys(), config, target_BT, rng)


class CodeSource(nn.Module):
    """What is read of an item: the sum of its codes' vectors, and a dense one that is free,
    or made of a given vector.
    """

    def __init__(self, config: CodeRowConfig, code_IL: torch.Tensor, vector_IV: torch.Tensor):  # noqa: N803
        super().__init__()
        codes = int(code_IL.max()) + 1
        place_IL = 1 + code_IL.long() + codes * torch.arange(code_IL.shape[1])
        self.register_buffer("place_IL", F.pad(place_IL, (0, 0, 1, 0)))  # rows from 1; 0 = padding
        self.code_table = nn.Embedding(1 + codes * code_IL.shape[1], config.width, padding_idx=0)
        self.dense = None
        if config.inputs == "codes+ids":
            self.dense = IdTable(len(code_IL), config.width)
        elif config.inputs == "codes+vectors":
            self.dense = GivenVectors(vector_IV, config.width)

    def forward(self, item_BT: torch.Tensor) -> torch.Tensor:  # noqa: N803
        """Vectors [B, T, D] of items in a history."""
        summed_BTD = self.code_table(self.place_IL[item_BT]).sum(-2)
        return summed_BTD if self.dense is None else summed_BTD + self.dense(item_BT)

    def keys(self) -> torch.Tensor:
        """The dense vectors [I, D] of all items."""
        return self.dense.keys()


class GivenVectors(nn.Module):
    """Vectors that do not learn, each column at mean 0 and deviation 1, through a small network that does."""

    def __init__(self, vector_IV: torch.Tensor, width: int):  # noqa: N803
        super().__init__()
        scaled_IV = (vector_IV - vector_IV.mean(0)) / vector_IV.std(0, correction=0).clamp_min(1e-6)
        self.register_buffer("vector_IV", F.pad(scaled_IV, (0, 0, 1, 0)))
        self.up, self.down = nn.Linear(vector_IV.shape[1], 4 * width), nn.Linear(4 * width, width)

    def forward(self, item_BT: torch.Tensor) -> torch.Tensor:  # noqa: N803
        """Vectors [B, T, D] of items in a history, about as long as those of a table at its start."""
        return self.down(F.relu(self.up(self.vector_IV[item_BT]))) / self.down.out_features ** 0.5

    def keys(self) -> torch.Tensor:
        """Vectors [I, D] of all items."""
        return self.down(F.relu(self.up(self.vector_IV[1:])))


def codes_of(vector_IV: np.ndarray, config: CodeRowConfig, seed: int) -> np.ndarray:  # noqa: N803
    """Codes int32 [I, L] of item vectors by residual k-means, collisions resolved as `config` has it."""
    settings = _tokenizer(config, seed)
    quantiser = fit_quantiser(vector_IV, choose_codes(len(vector_IV), settings), settings)
    return resolve_collisions(vector_IV, quantiser.encode(vector_IV), quantiser, settings).codes


def _tokenizer(config: CodeRowConfig, seed: int) -> TokenizerConfig:
    return TokenizerConfig(levels=config.levels, codes=config.codes, resolve=config.resolve, seed=seed)


def check_codes(config: CodeRowConfig, items: int) -> None:
    """InputError for what no model can be made of, and for fewer ids than items."""
    check_rule(_tokenizer(config, 0))
    choose_codes(items, _tokenizer(config, 0))
    for place, value, valid in (("inputs", config.inputs, INPUTS), ("dense", config.dense, DENSE)):
        if value not in valid:
            raise InputError(place, found=repr(value), expected=f"one of {', '.join(valid)}", do="choose one of these")
    if config.attributes and config.inputs != "ids":
        raise InputError("attributes", found=f"inputs={config.inputs}",
                         expected="inputs=ids, to whose vectors they are added",
                         do="choose one")
    if config.dense != "none" and config.inputs == "codes":
        raise InputError("inputs", found=f"codes alone with dense={config.dense}", do="choose another",
                         expected="ids, codes+ids or codes+vectors, which a dense query can be compared with")


@torch.no_grad()
def _initialise(decoder: SemanticIdDecoder) -> None:
    """Code vectors normal with deviation .02, those of given codes 1 over the root of the width,
    other matrices Xavier.
    """
    for name, parameter in decoder.named_parameters():
        if name == "code_LCD":
            parameter.normal_(0, 0.02)
        elif name.startswith("prefix."):
            parameter.normal_(0, parameter.shape[1] ** -0.5)
        elif parameter.dim() == 2:
            nn.init.xavier_uniform_(parameter)
        else:
            parameter.zero_()
