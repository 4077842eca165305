"""A training step's loss written plainly, for the weights of our model: what `train_step.py` compares with.

As research code has it: histories encode their items position by position, attention is einsum and a mask, biases are
look-ups of nn.Embedding, every expert runs on every token, logits [N, K] exist as a whole and autograd does the rest.
Legend: B users, T positions, S attended positions, D width, H heads, K head width or keys, N rows, C codes.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from onepiece_comp.models.batch import ItemBatch, TrainBatch
from onepiece_comp.models.hstu import CrossBlock, HSTUBlock, merge_heads, split_heads
from onepiece_comp.models.moe import Routing, SparseMoE, swiglu
from onepiece_comp.models.popularity import _ABSENT, _STEP as _TREND_STEP, TrendPairs, TrendRows
from onepiece_comp.models.recommender import Encoded, OnePiece
from onepiece_comp.models.similarity import _FLOOR, _SHARPNESS, _STEP, HistorySimilarity, Weighing


def plain_model(model: OnePiece) -> OnePiece:
    """A copy with the same weights whose parts are plain."""
    plain = copy.deepcopy(model)
    for layer in plain.layers:
        layer.block = PlainBlock(layer.block)
        layer.moe = None if layer.moe is None else PlainMoE(layer.moe)
    if plain.decoder is not None:
        plain.decoder.blocks = nn.ModuleList(map(PlainCrossBlock, plain.decoder.blocks))
    return plain


def plain_losses(model: OnePiece, batch: TrainBatch, *, semantic_weight: float) -> torch.Tensor:
    """The total loss that `OnePiece.losses` gives, of a model made by `plain_model`."""
    item_ND, encoded = model.encode_items(batch.items), plain_encode(model, batch)
    total = plain_retrieval_loss(model, batch, encoded, item_ND)
    if model.decoder is not None and semantic_weight:
        total = total + semantic_weight * plain_semantic_loss(model, batch, encoded)
    balance = sum(routing.balance for routing in encoded.routing) / max(1, len(encoded.routing))
    return total + model.config.balance_weight * balance


def plain_encode(model: OnePiece, batch: TrainBatch) -> Encoded:
    """The encoder's output; an item that stands at several positions is encoded at each."""
    history = batch.history
    place_BT = torch.arange(history.item_BT.numel(), device=history.item_BT.device).view_as(history.item_BT)
    return model.encode(history._replace(item_BT=place_BT), model.encode_items(items_by_position(batch)))


def items_by_position(batch: TrainBatch) -> ItemBatch:
    """The items of the flattened histories [B * T], padding included."""
    def at(values: torch.Tensor) -> torch.Tensor:
        return values[batch.history.item_BT.flatten()]

    items = batch.items
    return ItemBatch(at(items.id_row_N), at(items.creative_id_N), at(items.feature_NF),
                     {fid: at(values) for fid, values in items.embeddings.items()},
                     {fid: at(values) for fid, values in items.present.items()})


def plain_retrieval_loss(model: OnePiece, batch: TrainBatch, encoded: Encoded, item_ND: torch.Tensor) -> torch.Tensor:
    """InfoNCE with LogQ, the similarity to the history where there is one, all logits at once."""
    query_ND = model.retrieval_query(encoded.hidden_BTD.flatten(0, 1)[batch.position_N])
    correction_K = batch.log_repeats_K - batch.log_expected_K
    logit_NK = query_ND @ model.keys(item_ND[1:]).T + correction_K
    if model.trend is not None:
        logit_NK = logit_NK + plain_trend_logits(model.trend, model._conditioned(batch.trend))[batch.trend_row_N]
    if model.similarity is not None:
        metric_NM, weighing = model.similarity.metric(item_ND), model.weigh(batch.history, encoded)
        like_BTK = plain_similarity(model.similarity, metric_NM[batch.history.item_BT], metric_NM[1:], weighing)
        logit_NK = logit_NK + like_BTK.flatten(0, 1)[batch.position_N]
    every = torch.arange(len(logit_NK), device=logit_NK.device)
    positive_N = logit_NK[every, batch.target_N] - correction_K[batch.target_N]
    hidden_NK = batch.own_BK[batch.user_N]
    logit_NK = logit_NK.masked_fill(hidden_NK, -torch.inf).index_put((every, batch.target_N), positive_N)
    loss_N = torch.logsumexp(logit_NK, 1) - positive_N
    return (batch.weight_N * loss_N).sum() / batch.weight_N.sum().clamp_min(1e-6)


def plain_semantic_loss(model: OnePiece, batch: TrainBatch, encoded: Encoded) -> torch.Tensor:
    """Cross-entropies of the targets' codes; those without an id count nothing."""
    decoder, (users, length, _) = model.decoder, encoded.hidden_BTD.shape
    code_NL = model.codes[batch.items.id_row_N[1:][batch.target_N]].long()
    weight_N = batch.weight_N * (code_NL >= 0).all(1)
    code_NL = code_NL.clamp_min(0)
    code_BTL = torch.zeros(users * length, decoder.levels, dtype=torch.long, device=code_NL.device)
    code_BTL = code_BTL.index_put((batch.position_N,), code_NL).view(users, length, -1)
    causal_1TS = torch.ones(1, length, length, dtype=torch.bool, device=code_NL.device).tril()
    memories, total = decoder.memories(encoded.states), 0.0
    for level in range(decoder.levels):
        query_BTD = decoder.query(level, encoded.hidden_BTD, code_BTL, memories, causal_1TS)
        logit_NC = query_BTD.flatten(0, 1)[batch.position_N] @ decoder.code_LCD[level].T
        if decoder.trend is not None:
            trend = model._conditioned(batch.code_trend[level])
            bias_RC = plain_trend_logits(decoder.trend[level], spread(trend, logit_NC.shape[1]) if level else trend)
            logit_NC = logit_NC + (bias_RC if level else bias_RC[batch.trend_row_N])
        if level == 0 and decoder.similarity is not None:
            logit_NC = logit_NC + _first_code_similarity(model, batch, encoded)
        total = total + (weight_N * F.cross_entropy(logit_NC, code_NL[:, level], reduction="none")).sum()
    return total / weight_N.sum().clamp_min(1e-6)


def _first_code_similarity(model: OnePiece, batch: TrainBatch, encoded: Encoded) -> torch.Tensor:
    """Logits [N, C] by how near each first code is to those of the history."""
    metric_CM = model.decoder.code_metrics()
    code_BS = model.codes[batch.items.id_row_N[batch.history.item_BT]][..., 0].long()
    code_BS = torch.where(code_BS < 0, len(metric_CM) - 1, code_BS)
    weighing = model.weigh_codes(batch.history, encoded)
    like_BTC = plain_similarity(model.decoder.similarity, metric_CM[code_BS], metric_CM[:-1], weighing)
    return like_BTC.flatten(0, 1)[batch.position_N]


def spread(pairs: TrendPairs, codes: int) -> TrendRows:
    """The pairs in matrices [N, codes] of all rows and codes."""
    seen_NC = torch.zeros(len(pairs.condition_R), codes, dtype=torch.bool, device=pairs.row_S.device)
    seen_NC[pairs.row_S, pairs.key_S] = True
    return TrendRows(pairs.row_S[pairs.lately_P], pairs.key_S[pairs.lately_P], pairs.feature_PW, seen_NC,
                     torch.zeros_like(seen_NC), pairs.condition_R)


def plain_trend_logits(weight_CW: torch.Tensor, trend: TrendRows) -> torch.Tensor:
    """The logits [R, K] of `popularity.trend_logits`: each pair looks up the weights of its condition."""
    weight_RW = (weight_CW * _TREND_STEP)[trend.condition_R]
    recent_P = (trend.feature_PW * weight_RW[trend.row_P, :-1]).sum(1)
    bias_RK = trend.seen_RK * weight_RW[:, -1:] + _ABSENT * trend.absent_RK
    return bias_RK.index_put((trend.row_P, trend.key_P), recent_P, accumulate=True)


def plain_similarity(similarity: HistorySimilarity, metric_BSM: torch.Tensor, key_KM: torch.Tensor,
                     weighing: Weighing) -> torch.Tensor:
    """The logits [B, T, K] of `HistorySimilarity.forward`, one operation after the other."""
    sharpness, floor = (start * (scalar * _STEP).exp() for start, scalar in
                        ((_SHARPNESS, similarity.sharpness), (_FLOOR, similarity.floor)))
    kernel_BSK = torch.exp(sharpness * (torch.einsum("bsm,km->bsk", metric_BSM, key_KM) - 1))
    mixed_BTK = torch.einsum("bts,bsk->btk", weighing.weight_BTS, kernel_BSK)
    return torch.log(mixed_BTK + floor) * weighing.scale_BT[..., None]


def plain_attention(query_BHTK: torch.Tensor, key_BHSK: torch.Tensor, value_BHSK: torch.Tensor, *,
                    bias_BHTS: torch.Tensor | None, allowed_BTS: torch.Tensor, max_length: int) -> torch.Tensor:
    """SiLU(Q K^T + bias) / max_length over the allowed positions, times V: [B, H, T, K]."""
    score_BHTS = torch.einsum("bhtk,bhsk->bhts", query_BHTK, key_BHSK)
    if bias_BHTS is not None:
        score_BHTS = score_BHTS + bias_BHTS
    weight_BHTS = F.silu(score_BHTS) / max_length * allowed_BTS[:, None]
    return torch.einsum("bhts,bhsk->bhtk", weight_BHTS.to(value_BHSK.dtype), value_BHSK)


class PlainBlock(nn.Module):
    """An HSTU block with biases by nn.Embedding."""

    def __init__(self, block: HSTUBlock):
        super().__init__()
        self.heads, self.max_length, self.uvqk, self.out = block.heads, block.max_length, block.uvqk, block.out
        self.dropout = block.dropout
        self.position_table = nn.Embedding.from_pretrained(block.bias.position_HC.detach().T.contiguous(), freeze=False)
        self.time_table = nn.Embedding.from_pretrained(block.bias.time_HC.detach().T.contiguous(), freeze=False)

    def forward(self, x_BTD: torch.Tensor, gap_BTS: torch.Tensor) -> torch.Tensor:
        steps_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        distance_TS = steps_T[:, None] - steps_T
        bias_BTSH = self.position_table(distance_TS.clamp_min(0)) + self.time_table(gap_BTS)
        gate, *parts = F.silu(self.uvqk(F.layer_norm(x_BTD, x_BTD.shape[-1:]))).chunk(4, dim=-1)
        value, query, key = (split_heads(part, self.heads) for part in parts)
        mixed = merge_heads(plain_attention(query, key, value, bias_BHTS=bias_BTSH.permute(0, 3, 1, 2),
                                            allowed_BTS=(distance_TS >= 0)[None], max_length=self.max_length))
        return x_BTD + self.dropout(self.out(gate * F.layer_norm(mixed, mixed.shape[-1:])))


class PlainCrossBlock(nn.Module):
    """A decoder's block with plain attention."""

    def __init__(self, block: CrossBlock):
        super().__init__()
        self.block, self.memory = block, block.memory

    def forward(self, x_BTD: torch.Tensor, memory: tuple[torch.Tensor, torch.Tensor],
                allowed_BTS: torch.Tensor) -> torch.Tensor:
        block, (value, key) = self.block, memory
        gate, query = F.silu(block.gate_query(F.layer_norm(x_BTD, x_BTD.shape[-1:]))).chunk(2, dim=-1)
        mixed = merge_heads(plain_attention(split_heads(query, block.heads), key, value, bias_BHTS=None,
                                            allowed_BTS=allowed_BTS, max_length=block.max_length))
        return x_BTD + block.dropout(block.out(gate * F.layer_norm(mixed, mixed.shape[-1:])))


class PlainMoE(nn.Module):
    """The mixture with every expert on every token, those that a token did not choose weighted with zero."""

    def __init__(self, moe: SparseMoE):
        super().__init__()
        self.moe = moe

    def forward(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        moe = self.moe
        gate_NE = torch.softmax(moe.router(x_ND).float(), dim=-1)
        top_NA, chosen_NA = gate_NE.topk(moe.active, dim=-1)
        chosen_NE = F.one_hot(chosen_NA, gate_NE.shape[1]).sum(1)
        weight_NE = gate_NE * chosen_NE / top_NA.sum(-1, keepdim=True)
        mixed_ND = swiglu(x_ND, moe.shared_gate_up_DF, moe.shared_down_FD)
        for expert in range(gate_NE.shape[1]):
            made_ND = swiglu(x_ND, moe.gate_up_EDF[expert], moe.down_EFD[expert])
            mixed_ND = mixed_ND + weight_NE[:, expert, None].to(made_ND.dtype) * made_ND
        balance = gate_NE.shape[1] * (chosen_NE.float().mean(0) / moe.active * gate_NE.mean(0)).sum()
        return mixed_ND, Routing(balance, chosen_NE.sum(0))
