"""Time of the target ranker a user: candidates together, in both forms, against every candidate scored alone.

    python benchmarks/rerank.py --results benchmarks/results

Random weights and histories at the tiny preset's sizes; one thread, processor time, median. "Alone" passes each
candidate through the same blocks as the last event of a history of its own, so the history is passed once a candidate;
for DIN, which has no pass over the history, it is one call a candidate. All in one run; both ways' scores are compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from onepiece_comp.config import RankerConfig
from onepiece_comp.console import say, table
from onepiece_comp.models.hstu import gaps
from onepiece_comp.models.ranker import PARTS, RankerInput, TargetRanker, sized
from onepiece_comp.models.target_attention import Past

USERS, EVENTS, STATE, ITEM = 4, 100, 64, 128
COLUMNS = ("form", "candidates", "together, ms a user", "alone, ms a user", "ratio", "largest difference")


def made(candidates: int) -> RankerInput:
    """Random inputs of users with whole histories."""
    draw = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=draw)
    time_BS = torch.randint(1, 40_000, (USERS, EVENTS + 1), generator=draw).cumsum(1)
    return RankerInput(normal(USERS, EVENTS + 1, STATE), normal(USERS, EVENTS + 1, ITEM),
                       torch.randint(0, 3, (USERS, EVENTS + 1), generator=draw), gaps(time_BS),
                       torch.full((USERS,), EVENTS + 1), normal(USERS, candidates, ITEM),
                       normal(USERS, candidates, len(PARTS)), torch.ones(USERS, candidates, dtype=torch.bool))


def ranker(kind: str) -> TargetRanker:
    """Random weights, the last layer's too."""
    torch.manual_seed(1)
    net = TargetRanker(RankerConfig(kind=kind), state_width=STATE, item_width=ITEM, max_length=EVENTS + 1).eval()
    for parameter in net.head[-1].parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def alone(net: TargetRanker, given: RankerInput, blocks: list, *, at_once: int = 64) -> torch.Tensor:
    """Logits [B, M], every candidate as the last event of a copy of the history, through plain HSTU blocks."""
    part = (given.part_BMF - net.part_mean_F) / net.part_scale_F
    event = net.state(given.state_BSV) + net.item(sized(given.item_BSV)) + net.action_table(given.action_BS)
    user = net.user(given.state_BSV[:, -1]) + net.action_table.weight[-1]
    candidate = net.item(sized(given.key_BMV)) + net.part(part) + user[:, None]
    gap = F.pad(given.gap_BSS, (0, 1, 0, 1))
    gap[:, -1, :-1] = Past(event, given.gap_BSS, given.length_B).last_gap_BS
    rows = []
    for number in range(len(event)):
        for some in candidate[number].split(at_once):
            x = torch.cat([event[number].expand(len(some), -1, -1), some[:, None]], 1)
            for block in blocks:
                x = block(x, gap[number].expand(len(some), -1, -1))
            rows.append(x[:, -1])
    x = torch.cat(rows).view_as(candidate)
    change = net.head(torch.cat([F.layer_norm(x, x.shape[-1:]), part], -1))[..., 0]
    return given.part_BMF[..., 0] + change


def one_by_one(net: TargetRanker, given: RankerInput) -> torch.Tensor:
    """Logits [B, M], one call a candidate."""
    one = lambda number: given._replace(key_BMV=given.key_BMV[:, number:number + 1],
                                        part_BMF=given.part_BMF[:, number:number + 1],
                                        allowed_BM=given.allowed_BM[:, number:number + 1])
    return torch.cat([net(one(number)).logit_BM for number in range(given.key_BMV.shape[1])], 1)


def cost(action: Callable[[], object], repeats: int) -> float:
    """Median processor milliseconds a user."""
    spent = []
    for _ in range(repeats):
        started = time.process_time()
        action()
        spent.append(time.process_time() - started)
    return 1000 * statistics.median(spent) / USERS


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, nargs="+", default=[50, 200, 484])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind in ("attention", "din"):
        net = ranker(kind)
        for candidates in options.candidates:
            given = made(candidates)
            plain = (lambda: alone(net, given, list(net.attention.blocks))) if kind == "attention" else (
                lambda: one_by_one(net, given))
            apart = float((net(given).logit_BM - plain()).abs().max())
            fast, slow = cost(lambda: net(given), options.repeats), cost(plain, max(1, options.repeats // 2))
            rows.append((kind, f"{candidates}", f"{fast:.2f}", f"{slow:.1f}", f"{slow / fast:.1f}x", f"{apart:.1e}"))
            say("  ".join(rows[-1]))
    table("rerank", COLUMNS, rows)
    lines = ["`python benchmarks/rerank.py`", "",
             f"torch {torch.__version__}, one thread, processor time, median of {options.repeats} (alone: of "
             f"{max(1, options.repeats // 2)}); histories of {EVENTS} events, ranker of width {RankerConfig().width}, "
             f"{RankerConfig().layers} layer.", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS),
             *("| " + " | ".join(row) + " |" for row in rows), ""]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "rerank.md").write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
