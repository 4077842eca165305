"""Each fast path against the plain way of doing the same, in one process, interleaved, equal results checked first.

    python benchmarks/fast_paths.py --results benchmarks/results

One thread, processor time, median of the repeats; ratios carry over, times do not.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from plain_step import plain_trend_logits, spread
from torch import nn
from torch.nn import functional as F

from onepiece_comp.console import table
from onepiece_comp.dataset.popularity_counts import FEATURES, WINDOW_DAYS, Trend
from onepiece_comp.models.hstu import HSTUBlock, RelativeBias, gaps
from onepiece_comp.models.losses import PairBias, RowBias, LossRows, softmax_loss
from onepiece_comp.models.moe import SparseMoE, swiglu
from onepiece_comp.models.popularity import CONDITIONS, TrendPairs, TrendRows, pair_logits, trend_logits
from onepiece_comp.models.retrieval import top_k
from onepiece_comp.models.similarity import HistorySimilarity, Weighing
from onepiece_comp.training.process import kept_heap


def loss_case() -> tuple[str, Callable, Callable]:
    """4,000 rows, 8,192 keys, width 64, a bias row each and hidden keys: forward and backward."""
    query, key, bias = (torch.randn(*shape, requires_grad=True) for shape in ((4000, 64), (8192, 64), (300, 8192)))
    row = torch.randint(0, 300, (4000,))
    rows = LossRows(torch.randint(0, 8192, (4000,)), torch.ones(4000),
                hidden_BK=torch.rand(64, 8192) < 0.01, hidden_row_N=torch.randint(0, 64, (4000,)))

    def fast() -> torch.Tensor:
        return torch.autograd.grad(softmax_loss(query, key, rows, RowBias(bias, row)), (query, key, bias))[0]

    def plain() -> torch.Tensor:
        logit = query @ key.T + bias[row]
        hidden = rows.hidden_BK[rows.hidden_row_N].scatter(1, rows.target_N[:, None], False)
        loss = F.cross_entropy(logit.masked_fill(hidden, -torch.inf), rows.target_N, reduction="sum")
        return torch.autograd.grad(loss, (query, key, bias))[0]
    return "softmax loss in blocks, gradient in forward | eager", fast, plain


def block_case() -> tuple[str, Callable, Callable]:
    """1,800 rows, 12,101 keys, width 64, as 256 users of Beauty have them: forward and backward."""
    query, key = (torch.randn(*shape, requires_grad=True) for shape in ((1800, 64), (12101, 64)))
    rows = LossRows(torch.randint(0, 12101, (1800,)), torch.ones(1800))

    def fast() -> torch.Tensor:
        return torch.autograd.grad(softmax_loss(query, key, rows), (query, key))[0]

    def plain() -> torch.Tensor:
        with mock.patch("onepiece_comp.models.losses.rows_per_block", lambda key_KD: 256):
            return fast()
    return "softmax loss in blocks of a million logits | of 256 rows", fast, plain


def bias_case() -> tuple[str, Callable, Callable]:
    """Time and position bias of 64 users x 101 positions, 4 heads: forward and backward."""
    bias = RelativeBias(heads=4, max_length=101)
    gap, weight = gaps(torch.randint(0, 10 ** 6, (64, 101)).cumsum(1)), torch.randn(64, 4, 101, 101)
    steps = torch.arange(101)

    def fast() -> torch.Tensor:
        return torch.autograd.grad((bias(gap) * weight).sum(), bias.time_HC)[0]

    def plain() -> torch.Tensor:
        distance = F.embedding((steps[:, None] - steps).clamp_min(0), bias.position_HC.T).permute(2, 0, 1)
        made = distance + F.embedding(gap, bias.time_HC.T).permute(0, 3, 1, 2)
        return torch.autograd.grad((made * weight).sum(), bias.time_HC)[0]
    return "attention bias by scatter | nn.functional.embedding", fast, plain


def similarity_case() -> tuple[str, Callable, Callable]:
    """16 users x 100 events against 3,000 keys, metric width 64: forward and backward."""
    similarity = HistorySimilarity(width=64, metric_width=64)
    metric, key = (F.normalize(torch.randn(*shape), dim=-1).requires_grad_() for shape in ((16, 100, 64), (3000, 64)))
    weighing = Weighing(torch.softmax(torch.randn(16, 100, 100), -1).tril().requires_grad_(), torch.ones(16, 100))
    gradient = torch.randn(16, 100, 3000)

    def fast() -> torch.Tensor:
        return torch.autograd.grad(similarity(metric, key, weighing), (metric, key, weighing.weight_BTS), gradient)[0]

    def plain() -> torch.Tensor:
        kernel = (8.0 * (metric @ key.T - 1)).exp()
        logit = (weighing.weight_BTS @ kernel + 0.02).log() * weighing.scale_BT[..., None]
        return torch.autograd.grad(logit, (metric, key, weighing.weight_BTS), gradient)[0]
    return "similarity to the history, own gradient | autograd", fast, plain


def expert_case() -> tuple[str, Callable, Callable]:
    """4,000 tokens, 16 experts, 2 active, width 128: forward."""
    moe = SparseMoE(width=128, experts=16, active=2, hidden=256)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x = torch.randn(4000, 128)

    @torch.no_grad()
    def fast() -> torch.Tensor:
        return moe(x)[0]

    @torch.no_grad()
    def plain() -> torch.Tensor:
        weight, chosen = torch.softmax(moe.router(x), -1).topk(2, -1)
        gate = torch.zeros(len(x), 16).scatter(1, chosen, weight / weight.sum(1, keepdim=True))
        every = torch.stack([swiglu(x, moe.gate_up_EDF[e], moe.down_EFD[e]) for e in range(16)], 1)
        return swiglu(x, moe.shared_gate_up_DF, moe.shared_down_FD) + (gate[..., None] * every).sum(1)
    return "experts on their own tokens | every expert on every token", fast, plain


def popularity_case() -> tuple[str, Callable, Callable]:
    """Logits of 3,400 keys at 450 moments, 280,000 pairs shown lately, as in a batch of 16 users: both ways."""
    keys, moments = 3400, 450
    pair = torch.randperm(keys * moments)[:280_000].sort().values
    none, seen = torch.zeros(moments, keys, dtype=torch.bool), torch.rand(moments, keys) < 0.5
    rows = TrendRows(pair // keys, pair % keys, torch.rand(len(pair), FEATURES), seen, none,
                     torch.randint(0, CONDITIONS, (moments,)))
    weight, gradient = torch.randn(CONDITIONS, FEATURES + 1, requires_grad=True), torch.randn(moments, keys)

    def fast() -> torch.Tensor:
        return torch.autograd.grad(trend_logits(weight, rows), weight, gradient)[0]

    def plain() -> torch.Tensor:
        return torch.autograd.grad(plain_trend_logits(weight, rows), weight, gradient)[0]
    return "popularity logits by products with every condition | by look-ups of weights", fast, plain


def second_codes_case() -> tuple[str, Callable, Callable]:
    """Loss of second codes: 2,000 rows, 16,384 codes, of which 100 can follow each row's first,
    a third shown lately.
    """
    rows, codes, width, children = 2000, 16_384, 64, 100
    key_S = torch.stack([torch.randperm(codes)[:children].sort().values for _ in range(rows)]).flatten()
    lately = torch.arange(0, rows * children, 3)
    pairs = TrendPairs(torch.arange(rows).repeat_interleave(children), key_S, lately, torch.rand(len(lately), FEATURES),
                       torch.randint(0, CONDITIONS, (rows,)))
    query, key = torch.randn(rows, width, requires_grad=True), torch.randn(codes, width, requires_grad=True)
    weight = torch.randn(CONDITIONS, FEATURES + 1, requires_grad=True)
    targets = LossRows(key_S[::children].clone(), torch.ones(rows))

    def fast() -> torch.Tensor:
        bias = PairBias(pair_logits(weight, pairs), pairs.row_S, pairs.key_S)
        return torch.autograd.grad(softmax_loss(query, key, targets, bias), (query, key, weight))[2]

    def plain() -> torch.Tensor:
        bias = RowBias(trend_logits(weight, spread(pairs, codes)), torch.arange(rows))
        return torch.autograd.grad(softmax_loss(query, key, targets, bias), (query, key, weight))[2]
    return "loss of second codes, popularity in pairs | in a matrix of all codes", fast, plain


def top_ten_case() -> tuple[str, Callable, Callable]:
    """256 users, 200,000 candidates, width 64, top 10."""
    return top_k_case(10)


def shortlist_case() -> tuple[str, Callable, Callable]:
    """The same, top 5,000: the shortlist before similarity to the history."""
    return top_k_case(5000)


def top_k_case(k: int) -> tuple[str, Callable, Callable]:
    query, candidate = torch.randn(256, 64), torch.randn(200_000, 64)
    return (f"exact top {k:,} in tiles behind a foretold end | matmul and one topk",
            lambda: top_k(query, candidate, k=k).score_BK, lambda: (query @ candidate.T).topk(k, dim=1).values)


def trend_case() -> tuple[str, Callable, Callable]:
    """Popularity windows of 3,000 items at 300 moments, one pair in twelve shown lately."""
    rng = np.random.default_rng(0)
    counts = np.zeros((5000, 1001, 2), np.int32)
    births = rng.integers(0, 990, 5000)
    for item, birth in enumerate(births):
        counts[item, birth:birth + 8] = rng.integers(0, 3, (len(counts[item, birth:birth + 8]), 2))
    counts[:, 0] = 0
    trend = Trend(counts.cumsum(1, dtype=np.int32), 0, 3 * 3600)
    item, bucket = (
        np.sort(rng.choice(5000, 3000, replace=False)),
        np.sort(rng.choice(np.arange(100, 1000), 300, replace=False)),
    )

    def fast() -> torch.Tensor:
        found = trend.lookup(item, bucket=bucket, click_bucket=bucket)
        return torch.from_numpy(found.feature_PW.sum(0))

    def plain() -> torch.Tensor:
        dense, total = trend.counts[item], np.zeros(FEATURES, np.float32)
        size = [round(days * 86400 / trend.bucket_seconds) for days in WINDOW_DAYS]
        lately = dense[:, bucket, 0] > dense[:, np.maximum(bucket - size[-1], 0), 0]
        for kind in (0, 1):
            for i, length in enumerate(size):
                window = (dense[:, bucket, kind] - dense[:, np.maximum(bucket - length, 0), kind]).astype(np.float32)
                total[kind * len(size) + i] = (np.log1p(window) * lately).sum()
                if kind == 0:
                    total[2 * len(size) + i] = ((window > 0) * lately).sum()
                    start = np.maximum(bucket - length, 0)
                    first = (window > 0) & (dense[:, start, 0] == 0) & (start > 0)
                    total[3 * len(size) + i] = (first * lately).sum()
            total[-2 + kind] = (np.log1p(dense[:, bucket, kind].astype(np.float32)) * lately).sum()
        return torch.from_numpy(total)
    return "popularity of pairs shown lately | of all pairs", fast, plain


def heap_case() -> tuple[str, Callable, Callable]:
    """Ten forward and backward passes of two HSTU blocks, 128 users x 101 positions, width 64."""
    blocks = nn.ModuleList(HSTUBlock(width=64, heads=4, max_length=101, dropout=0.0) for _ in range(2))
    gap, x = gaps(torch.randint(0, 10 ** 6, (128, 101)).cumsum(1)), torch.randn(128, 101, 64)

    def plain() -> torch.Tensor:
        for _ in range(10):
            y = x
            for block in blocks:
                y = block(y, gap)
            gradient = torch.autograd.grad(y.square().mean(), blocks[0].uvqk.weight)[0]
        return gradient

    def fast() -> torch.Tensor:
        with kept_heap():
            return plain()
    return "freed memory kept for the next step | given back to the system", fast, plain


def measure(fast: Callable, plain: Callable, repeats: int) -> tuple[float, float]:
    """Median processor seconds of both, run in turn."""
    torch.testing.assert_close(fast(), plain(), rtol=2e-3, atol=2e-3)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for way, kept in zip((fast, plain), times):
            start = time.process_time()
            way()
            kept.append(time.process_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for case in (loss_case, block_case, bias_case, similarity_case, popularity_case, second_codes_case, expert_case,
                 top_ten_case, shortlist_case,
                 trend_case, heap_case):
        name, fast, plain = case()
        ours, theirs = measure(fast, plain, options.repeats)
        rows.append((name, f"{1000 * ours:.1f}", f"{1000 * theirs:.1f}", f"{theirs / ours:.1f}x"))
    columns = ("fast | plain", "fast, ms", "plain, ms", "ratio")
    table(f"fast paths, one thread, median of {options.repeats}", columns, rows)
    options.results.mkdir(parents=True, exist_ok=True)
    lines = [
        "`python benchmarks/fast_paths.py`",
        "",
        f"torch {torch.__version__}, one thread, processor time, median of {options.repeats}.",
        "",
        "| " + " | ".join(columns).replace("fast | plain", "fast against plain") + " |",
        "|---" * len(columns) + "|",
        *("| " + " | ".join(cell.replace(" | ", ", against ") for cell in row) + " |" for row in rows),
    ]
    (options.results / "fast_paths.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
