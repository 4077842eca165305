"""OnePiece: towers, HSTU + MoE encoder, InfoNCE queries, semantic-id decoder, joined into one model.

Source: OnePiece (arXiv 2512.07424). Deviations: MoE follows the HSTU block as a sublayer of its own (the released code
cannot combine them), LogQ corrects a mixed proposal, popularity windows are an additive logit of the retrieval head.
Legend: B users, T positions, D width, N rows or items, K keys, L code levels, C codes, R popularity buckets.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from onepiece_comp.config import ModelConfig
from onepiece_comp.dataset.popularity_counts import FEATURES as TREND_FEATURES
from onepiece_comp.logs.features import Schema
from onepiece_comp.models.batch import ItemBatch, TrainBatch
from onepiece_comp.models.declared import ZERO, initialise
from onepiece_comp.models.encoder import EncoderLayer, LatentSteps
from onepiece_comp.models.histories import NO_ACTION, History
from onepiece_comp.models.history_inputs import HistoryInputs
from onepiece_comp.models.hstu import gaps, residual_scale
from onepiece_comp.models.item_tower import ItemTower
from onepiece_comp.models.losses import LossOptions, PairBias, RowBias, LossRows, retrieval_loss, softmax_loss
from onepiece_comp.models.moe import Routing
from onepiece_comp.models.popularity import CONDITIONS, TrendPairs, TrendRows, pair_logits, trend_logits
from onepiece_comp.models.sid_decoder import SemanticIdDecoder
from onepiece_comp.models.similarity import HistorySimilarity, Weighing

_LEAST_TEMPERATURE = 0.01  # a learned one stops here, as in CLIP
CELLS = {"cpu": 1 << 24, "cuda": 1 << 28}  # users x positions x keys compared at once


class Encoded(NamedTuple):
    """What the encoder makes of a batch of histories."""

    hidden_BTD: torch.Tensor  # after the last block, the latent steps and a LayerNorm
    states: list[torch.Tensor]  # [B, T, D] after each block
    routing: list[Routing]  # one per MoE sublayer
    gap_BTS: torch.Tensor  # int64, bucketed time between every two positions


class Losses(NamedTuple):
    """Parts of a training loss; `total` is what is minimised."""

    total: torch.Tensor
    retrieval: torch.Tensor
    semantic: torch.Tensor  # sum over levels; zero without semantic ids
    conditioned: torch.Tensor  # of the query that knows the target's first code; zero without one
    balance: torch.Tensor
    expert_load: torch.Tensor | None  # tokens per expert, summed over layers


class Forced(NamedTuple):
    """The rows' targets as codes, and the decoder's queries with the codes before each level given."""

    batch: TrainBatch  # targets without an id at weight 0
    code_NL: torch.Tensor  # int64, 0 where the target has no id
    query_ND: list[torch.Tensor]  # per level


class OnePiece(nn.Module):
    """The joint model. `codes` [items + 1, L] (row 0 and items without an id: -1) switches the semantic-id head on."""

    DECLARES = {"log_temperature": ZERO, "trend": ZERO}

    def __init__(self, config: ModelConfig, schema: Schema, codes: torch.Tensor | None = None):
        super().__init__()
        self.config, self.schema = config, schema
        self.max_length = config.max_events + 1
        self.item_tower = ItemTower(config, schema, codes)
        self.inputs = HistoryInputs(config, schema)
        self.layers = nn.ModuleList(EncoderLayer(config, self.max_length) for _ in range(config.layers))
        self.latent = None
        if config.latent_steps:
            self.latent = LatentSteps(config.latent_steps, width=config.width, heads=config.heads,
                                      max_length=self.max_length, dropout=config.dropout)
        self.log_temperature = nn.Parameter(torch.zeros(())) if config.learned_temperature else None
        self.trend = nn.Parameter(torch.zeros(CONDITIONS, TREND_FEATURES + 1)) if config.trend else None
        self.similarity = None
        if config.similarity_width:
            self.similarity = HistorySimilarity(width=config.width, metric_width=config.similarity_width)
        self.register_buffer("codes", torch.empty(0, 0, dtype=torch.int32) if codes is None else codes.int())
        self.decoder = None
        if codes is not None:
            self.decoder = SemanticIdDecoder(config, levels=codes.shape[1], codes=int(codes.max()) + 1,
                                             max_length=self.max_length)
        initialise(self, branch_scale=residual_scale(config.layers))

    def encode_items(self, items: ItemBatch) -> torch.Tensor:
        """Candidate-side item vectors [N, D], not normalised."""
        return self.item_tower(items)

    def encode(self, history: History, item_ND: torch.Tensor) -> Encoded:
        """Encode histories whose items are rows of `item_ND`."""
        x_BTD, steps_T = self.inputs(history, item_ND), torch.arange(history.item_BT.shape[1], device=item_ND.device)
        valid_BT = steps_T < history.length_B[:, None]
        gap_BTS, states, routing = gaps(history.time_BT), [], []
        for layer in self.layers:
            x_BTD, routed = layer(x_BTD, gap_BTS, valid_BT)
            states.append(x_BTD)
            routing += [routed] if routed else []
        x_BTD = x_BTD if self.latent is None else self.latent(x_BTD)
        return Encoded(F.layer_norm(x_BTD, x_BTD.shape[-1:]), states, routing, gap_BTS)

    def retrieval_query(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """User vectors whose dot product with `keys` is the logit: by default unit vectors over the temperature."""
        query_ND = self.keys(hidden_ND) / self.config.temperature
        if self.log_temperature is None:
            return query_ND
        return query_ND * torch.exp(-self.log_temperature).clamp_max(self.config.temperature / _LEAST_TEMPERATURE)

    def keys(self, vector_ND: torch.Tensor) -> torch.Tensor:
        """Item vectors as the logits take them: unit vectors where the logit is a cosine."""
        if not self.config.cosine:
            return vector_ND
        return F.normalize(vector_ND.float(), dim=-1).to(vector_ND.dtype)

    def trend_bias(self, trend: TrendRows) -> torch.Tensor:
        """Additive logits [R, K] of popularity windows: linear in the features, by next action."""
        return trend_logits(self.trend, self._conditioned(trend))

    def code_bias(self, level: int, trend: TrendRows) -> torch.Tensor:
        """The same for the codes or prefixes of a level."""
        return trend_logits(self.decoder.trend[level], self._conditioned(trend))

    def code_pairs(self, level: int, trend: TrendPairs) -> PairBias:
        """The same in training, for the codes that can follow those of each row's target."""
        return PairBias(pair_logits(self.decoder.trend[level], self._conditioned(trend)), trend.row_S, trend.key_S)

    def _conditioned(self, trend: TrendRows | TrendPairs) -> TrendRows | TrendPairs:
        """Without conditioning all rows have the same."""
        if self.config.next_action:
            return trend
        return trend._replace(condition_R=torch.full_like(trend.condition_R, NO_ACTION))

    def losses(self, batch: TrainBatch, *, semantic_weight: float, conditioned_weight: float = 0.0,
               retrieval_weight: float = 1.0, options: LossOptions = LossOptions()) -> Losses:
        """The training loss and its parts on one batch; `options` are those of the retrieval loss."""
        item_ND = self.encode_items(batch.items)
        encoded = self.encode(batch.history, item_ND)
        semantic = conditioned = zero = item_ND.new_zeros((), dtype=torch.float32)
        retrieval = self.retrieval_loss(batch, encoded, item_ND, options=options) if retrieval_weight else zero
        if self.decoder is not None and (semantic_weight or conditioned_weight):
            forced = self.forced(batch, encoded)
            semantic = self.semantic_loss(forced, encoded) if semantic_weight else zero
            if self.decoder.dense is not None and conditioned_weight:
                query_ND = self._conditioned_query(encoded.hidden_BTD.flatten(0, 1)[batch.position_N],
                                                   forced.query_ND[1])
                conditioned = self.retrieval_loss(forced.batch, encoded, item_ND, query_ND=query_ND, options=options)
        balance = sum((routing.balance for routing in encoded.routing), zero) / max(1, len(encoded.routing))
        load = torch.stack([routing.load_E for routing in encoded.routing]).sum(0) if encoded.routing else None
        total = (retrieval_weight * retrieval + semantic_weight * semantic + conditioned_weight * conditioned
                 + self.config.balance_weight * balance)
        return Losses(total, retrieval.detach(), semantic.detach(), conditioned.detach(), balance.detach(), load)

    def _conditioned_query(self, hidden_ND: torch.Tensor, code_query_ND: torch.Tensor) -> torch.Tensor:
        return self.retrieval_query(hidden_ND + self.decoder.dense(code_query_ND))

    def conditioned_query(self, hidden_BD: torch.Tensor, code_BK: torch.Tensor,
                          memories: list[tuple[torch.Tensor, torch.Tensor]], allowed_B1S: torch.Tensor) -> torch.Tensor:
        """Query vectors [B, K, D] of users given first codes: COBRA (arXiv 2503.02453), section 3.2."""
        hidden_BKD = hidden_BD[:, None].expand(-1, code_BK.shape[1], -1)
        query_BKD = self.decoder.query(1, hidden_BKD, code_BK[..., None], memories,
                                       allowed_B1S.expand(-1, code_BK.shape[1], -1))
        return self._conditioned_query(hidden_BKD, query_BKD)

    def retrieval_loss(self, batch: TrainBatch, encoded: Encoded, item_ND: torch.Tensor, *,
                       query_ND: torch.Tensor | None = None, options: LossOptions = LossOptions()) -> torch.Tensor:
        """Mean retrieval loss over the rows; with history similarity some users at a time, so that memory is bounded.

        `query_ND` stands for the encoder's own queries.
        """
        if query_ND is None:
            query_ND = self.retrieval_query(encoded.hidden_BTD.flatten(0, 1)[batch.position_N])
        key_KD = self.keys(item_ND[1:]).to(query_ND.dtype)
        trend = [RowBias(self.trend_bias(batch.trend), batch.trend_row_N)] if self.trend is not None else []
        if self.similarity is None:
            total = retrieval_loss(query_ND, key_KD, batch, *trend, options=options)
        else:
            total = self._loss_with_similarity(batch, encoded, item_ND, query_ND, key_KD, trend, options)
        return total / batch.step_weight_K.sum().clamp_min(1e-6)

    def _loss_with_similarity(self, batch: TrainBatch, encoded: Encoded, item_ND: torch.Tensor, query_ND: torch.Tensor,
                              key_KD: torch.Tensor, trend: list[RowBias], options: LossOptions) -> torch.Tensor:
        """The sum of the losses; a part of the users is computed again in the backward pass where not all fit at
        once.
        """
        length, metric_NM = batch.history.item_BT.shape[1], self.similarity.metric(item_ND)
        weighing = self.weigh(batch.history, encoded)

        def part(first: int, last: int, rows: slice) -> torch.Tensor:
            like_BTK = self.similarity(metric_NM[batch.history.item_BT[first:last]], metric_NM[1:],
                                       weighing.of(slice(first, last)))
            biases = [RowBias(like_BTK.flatten(0, 1), batch.position_N[rows] - first * length),
                      *(bias.of(rows) for bias in trend)]
            return retrieval_loss(query_ND[rows], key_KD, batch, *biases, options=options, rows=rows)

        return _in_user_blocks(part, batch, len(key_KD))

    def first_code_logits(self, id_row_BS: torch.Tensor, weighing: Weighing) -> torch.Tensor:
        """How near each first code is to those of the history's items (`id_row_BS`), [B, T, C]."""
        metric_CM = self.decoder.code_metrics()
        code_BS = self.codes[id_row_BS][..., 0].long()
        code_BS = torch.where(code_BS < 0, len(metric_CM) - 1, code_BS)
        return self.decoder.similarity(F.embedding(code_BS, metric_CM), metric_CM[:-1], weighing)

    def weigh_codes(self, history: History, encoded: Encoded) -> Weighing:
        """How much each event of a history counts for its similarity to a first code."""
        return self.decoder.similarity.weigh(history, encoded.gap_BTS, next_action=self.config.next_action)

    def weigh(self, history: History, encoded: Encoded) -> Weighing:
        """How much each event of a history counts for its similarity to a candidate."""
        return self.similarity.weigh(history, encoded.gap_BTS, next_action=self.config.next_action)

    def forced(self, batch: TrainBatch, encoded: Encoded) -> Forced:
        """Codes of the targets and queries at every level, teacher forced."""
        users, length, _ = encoded.hidden_BTD.shape
        code_KL = self.codes[batch.items.id_row_N[1:]].long()
        code_NL = code_KL[batch.target_N].clamp_min(0)
        code_BTL = code_NL.new_zeros(users * length, code_NL.shape[1])
        code_BTL[batch.position_N] = code_NL
        code_BTL = code_BTL.view(users, length, -1)
        memories = self.decoder.memories(encoded.states)
        causal_1TS = torch.ones(1, length, length, dtype=torch.bool, device=code_NL.device).tril()
        queries = [self.decoder.query(level, encoded.hidden_BTD, code_BTL, memories, causal_1TS)
                   for level in range(self.decoder.levels)]
        return Forced(batch.with_targets((code_KL >= 0).all(1)), code_NL,
                      [query_BTD.flatten(0, 1)[batch.position_N] for query_BTD in queries])

    def semantic_loss(self, forced: Forced, encoded: Encoded) -> torch.Tensor:
        """Mean over rows of the summed cross-entropies of the target's codes."""
        return self.code_losses(forced, encoded).sum()

    def code_losses(self, forced: Forced, encoded: Encoded) -> torch.Tensor:
        """Mean over rows of the cross-entropy of each level's code [L], the codes before it given."""
        batch, found = forced.batch, []
        for level, query_ND in enumerate(forced.query_ND):
            rows, biases = LossRows(forced.code_NL[:, level], batch.weight_N), []
            if self.decoder.trend is not None:
                trend = batch.code_trend[level]
                biases = [self.code_pairs(level, trend) if level else RowBias(self.code_bias(0, trend),
                                                                              batch.trend_row_N)]
            if level == 0 and self.decoder.similarity is not None:
                found.append(self._first_code_loss(batch, encoded, query_ND, rows, biases))
            else:
                found.append(softmax_loss(query_ND, self.decoder.code_LCD[level], rows, *biases))
        return torch.stack(found) / batch.step_weight_K.sum().clamp_min(1e-6)

    def _first_code_loss(self, batch: TrainBatch, encoded: Encoded, query_ND: torch.Tensor, rows: LossRows,
                         biases: list[RowBias]) -> torch.Tensor:
        """Sum of cross-entropies of the first codes, compared with those of the history; some users at a time."""
        id_row_BS, weighing = batch.items.id_row_N[batch.history.item_BT], self.weigh_codes(batch.history, encoded)

        def part(first: int, last: int, some: slice) -> torch.Tensor:
            like_BTC = self.first_code_logits(id_row_BS[first:last], weighing.of(slice(first, last)))
            like = RowBias(like_BTC.flatten(0, 1), batch.position_N[some] - first * id_row_BS.shape[1])
            return softmax_loss(query_ND[some], self.decoder.code_LCD[0],
                                LossRows(rows.target_N[some], rows.weight_N[some]),
                                like, *(bias.of(some) for bias in biases))

        return _in_user_blocks(part, batch, self.decoder.codes)


def _in_user_blocks(part: Callable[[int, int, slice], torch.Tensor], batch: TrainBatch, keys: int) -> torch.Tensor:
    """The sum of `part` (first user, one past the last, their rows) over blocks of users whose logits fit at once.

    Where there are several, each is computed again in the backward pass.
    """
    users, length = batch.history.item_BT.shape
    step = max(1, CELLS.get(batch.user_N.device.type, CELLS["cpu"]) // (length * keys))
    firsts = list(range(0, users, step))
    edges = torch.searchsorted(batch.user_N, torch.tensor([*firsts, users], device=batch.user_N.device)).tolist()
    parts = [(first, min(users, first + step), slice(*edge)) for first, edge in zip(firsts, zip(edges, edges[1:]))]
    if len(parts) == 1:
        return part(*parts[0])
    return sum(checkpoint(part, *arguments, use_reentrant=False) for arguments in parts)


class Size(NamedTuple):
    """Parameters of a model: embedding tables, and everything else."""

    tables: int
    dense: int


def size(model: nn.Module) -> Size:
    """Count parameters, embedding tables apart."""
    tables = {id(p) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for p in m.parameters()}
    counts = [0, 0]
    for parameter in model.parameters():
        counts[id(parameter) not in tables] += parameter.numel()
    return Size(*counts)
