"""Inference in parts: exact and approximate top-k at two sizes, the beam with its constraint and without.

    taskset -c 1 python benchmarks/infer.py WORK --threads 1

Top-k: batches of 256 users, width 64, the best 384, 100 seen items masked for each user, equal results checked first.
Candidates are unit vectors about 2,000 centres; a query is the mean of four of them, over a temperature of .1: between
what indexes are good at and what they fail at. Processor seconds, median of the repeats; memory is the peak of the
process above what it held before, so without faiss's own copy of the candidates. Recall is that of the exact best
among the 1,000 that an index names, which is what `infer.index` ranks. The beam is that of a model that
`onepiece-comp run RAW WORK` trained, on its evaluation's users; its bound is the rate at which its matrix products
alone would run, were they as fast as one large product.
"""

import argparse
import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from onepiece_comp.config import InferConfig
from onepiece_comp.console import say, table
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.funnel.beam import beam_search
from onepiece_comp.funnel.cascade import Funnel
from onepiece_comp.funnel.index import MaximumIndex
from onepiece_comp.models.recommender import Encoded, OnePiece
from onepiece_comp.models.retrieval import recall, top_k
from onepiece_comp.tokenizer.nearest_words import faiss_settings
from onepiece_comp.training.checkpoint import load_checkpoint

USERS, WIDTH, BEST, SEEN, FETCH = 256, 64, 384, 100, 1000
DEPTHS = (10, 100, BEST)


class Case(NamedTuple):
    """Candidates, queries and what each user has seen."""

    candidate_MD: torch.Tensor
    query_BD: torch.Tensor
    hidden: tuple[torch.Tensor, torch.Tensor]


class Cost(NamedTuple):
    """Of one call."""

    processor: float  # seconds
    wall: float
    mib: float  # above what was held before


def made_case(candidates: int) -> Case:
    draw = torch.Generator().manual_seed(0)
    centre = torch.randn(2000, WIDTH, generator=draw)
    candidate = centre[torch.randint(0, 2000, (candidates,), generator=draw)]
    candidate = F.normalize(candidate + 0.7 * torch.randn(candidates, WIDTH, generator=draw), dim=1)
    query = F.normalize(candidate[torch.randint(0, candidates, (USERS, 4), generator=draw)].mean(1), dim=1) / 0.1
    seen = torch.stack([torch.randperm(candidates, generator=draw)[:SEEN] for _ in range(USERS)])
    return Case(candidate, query, (torch.arange(USERS).repeat_interleave(SEEN), seen.flatten()))


def ours(case: Case) -> torch.Tensor:
    return top_k(case.query_BD, case.candidate_MD, k=BEST, hidden=case.hidden).index_BK


def plain(case: Case) -> torch.Tensor:
    """One matrix product and one topk."""
    score = case.query_BD @ case.candidate_MD.T
    score[case.hidden] = -torch.inf
    return score.topk(BEST, dim=1).indices


def by_faiss(index: faiss.Index) -> Callable[[Case], torch.Tensor]:
    """faiss has no mask for each query: as many more are asked for as may be seen, then those are dropped."""
    def search(case: Case) -> torch.Tensor:
        with faiss_settings():
            score, found = (torch.from_numpy(part) for part in index.search(case.query_BD.numpy(), BEST + SEEN))
        user, total = torch.arange(USERS)[:, None], len(case.candidate_MD)
        score[torch.isin(user * total + found, case.hidden[0] * total + case.hidden[1])] = -torch.inf
        return found.gather(1, score.topk(BEST, dim=1).indices)
    return search


def _status_mib(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def measure(way: Callable[[], object], repeats: int) -> Cost:
    """Medians of the seconds; the peak of memory of the first call."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator still holds of others would hide a need
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is held now
    before, spent = _status_mib("VmRSS"), []
    for turn in range(repeats + 1):
        processor, wall = time.process_time(), time.perf_counter()
        way()
        spent.append((time.process_time() - processor, time.perf_counter() - wall))
        if turn == 0:
            peak = _status_mib("VmHWM") - before
    return Cost(*(statistics.median(column) for column in zip(*spent[1:])), peak)


def exact_rows(case: Case, threads: list[int], repeats: int) -> list[tuple]:
    """One row for each way and number of threads."""
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(case.candidate_MD.numpy())
    ways = {"ours: tiles, masked": ours, "matmul, mask, topk": plain, "faiss IndexFlatIP": by_faiss(flat)}
    sets = [way(case).sort(dim=1).values for way in ways.values()]
    for other in sets[1:]:  # rounding may swap neighbours at the very end of a list
        assert (sets[0] == other).float().mean() > 0.999, "the ways differ"
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        faiss.omp_set_num_threads(count)
        for name, way in ways.items():
            cost = measure(lambda: way(case), repeats)
            rows.append((f"{len(case.candidate_MD):,}", name, count, *_seconds(cost), f"{cost.mib:,.0f}"))
            say(" | ".join(map(str, rows[-1])))
    return rows


def index_rows(case: Case, kinds: list[str], efforts: list[float], repeats: int) -> list[tuple]:
    """One row for each index and effort, of a graph the first effort alone; one thread."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    exact, query, rows = top_k(case.query_BD, case.candidate_MD, k=BEST).index_BK, case.query_BD.numpy(), []
    for kind in kinds:
        start = time.process_time()
        index = MaximumIndex(case.candidate_MD.numpy(), kind=kind)
        build = time.process_time() - start
        for effort in efforts if kind == "ivf" else efforts[:1]:
            found = torch.from_numpy(index.search(query, FETCH, effort=effort))
            cost = measure(lambda: index.search(query, FETCH, effort=effort), repeats)
            hits = (f"{recall(exact[:, :depth], found):.3f}" for depth in DEPTHS)
            rows.append((f"{len(case.candidate_MD):,}", f"{kind}, effort {effort:g}", f"{build:.0f}",
                         *_seconds(cost), *hits))
            say(" | ".join(map(str, rows[-1])))
    return rows


def _seconds(cost: Cost) -> tuple[str, str]:
    return tuple(f"{1000 / USERS * value:.2f}" for value in (cost.processor, cost.wall))


def free_beam(model: OnePiece, encoded: Encoded, length_B: torch.Tensor, *, beam: int, survivors: int) -> torch.Tensor:
    """Beam search over all codes, of which a candidate may have none: ids [B, K, L]."""
    decoder, users = model.decoder, torch.arange(len(length_B))
    hidden_BD, memories = encoded.hidden_BTD[users, length_B - 1], decoder.memories(encoded.states)
    allowed_B1S = (torch.arange(encoded.hidden_BTD.shape[1]) < length_B[:, None])[:, None]
    codes, score = torch.zeros(len(users), 1, 0, dtype=torch.long), torch.zeros(len(users), 1)
    for level in range(decoder.code_LCD.shape[0]):
        width = codes.shape[1]
        query = decoder.query(level, hidden_BD[:, None].expand(-1, width, -1), codes, memories,
                              allowed_B1S.expand(-1, width, -1))
        step = torch.log_softmax((query @ decoder.code_LCD[level].T).float(), dim=2)
        total = (score[..., None] + step).flatten(1)
        best = total.topk(survivors if level == decoder.code_LCD.shape[0] - 1 else beam, dim=1)
        score, parent, code = best.values, best.indices // step.shape[2], best.indices % step.shape[2]
        codes = torch.cat([codes.gather(1, parent[..., None].expand(-1, -1, codes.shape[2])), code[..., None]], 2)
    return codes


@torch.no_grad()
def beam_rows(work: Path, repeats: int) -> list[tuple]:
    """Both beams on the same users, without popularity: their speed, and how many of their ids name a candidate."""
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(work / "joint", torch.device("cpu"))
    evaluation, config = read_evaluation(work / "split" / "eval", checkpoint.model.schema), InferConfig(mode="beam")
    ranker = Funnel(checkpoint, evaluation, config, torch.device("cpu"))
    prefixes, model = ranker.candidates.prefixes, checkpoint.model
    request = ranker._request(np.arange(min(USERS, len(evaluation.users))), None)
    length_B, size = request.history.length_B, {"beam": config.beam, "survivors": config.survivors}
    path = prefixes.leaf_path
    legal = {tuple(row) for row in torch.stack(
        [prefixes.code[level][path[:, level]] for level in range(path.shape[1])], 1).tolist()}
    free = free_beam(model, request.encoded, length_B, **size)
    own = beam_search(model, prefixes, request.encoded, length_B, **size)
    shares = {"over ids that exist (ours)": (own.log_prob_BK > -torch.inf).float().mean(),
              "over all codes": np.mean([tuple(one) in legal for one in free.flatten(0, 1).tolist()])}
    searches = (lambda: beam_search(model, prefixes, request.encoded, length_B, **size),
                lambda: free_beam(model, request.encoded, length_B, **size))
    costs, rate = [measure(search, repeats) for search in searches], product_rate(repeats)
    bounds = [rate * len(length_B) / products(search) for search in searches]
    shape = f"{len(legal):,} ids in {model.decoder.code_LCD.shape[0]} levels of {model.decoder.codes:,} codes"
    rows = [(name, shape, f"{len(length_B) / cost.processor:,.0f}", f"{bound:,.0f}", f"{cost.mib:,.0f}",
             f"{float(share):.1%}")
            for (name, share), cost, bound in zip(shares.items(), costs, bounds)]
    for row in rows:
        say(" | ".join(row))
    return rows


def products(search: Callable[[], object]) -> int:
    """Floating-point operations of a search's matrix products, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        search()
    return counter.get_total_flops()


def product_rate(repeats: int) -> float:
    """Floating-point operations a processor second of one product large enough to run at the core's best."""
    side = 2048
    left, right = torch.randn(side, side), torch.randn(side, side)
    return 2 * side ** 3 / measure(lambda: left @ right, repeats).processor


def report(parts: dict[tuple, list[tuple]], options: argparse.Namespace, command: str) -> None:
    """The tables, on the screen and as `infer.md`."""
    lines = [f"`{command}`", "", f"{platform.machine()}, torch {torch.__version__}, faiss {faiss.__version__}, median "
             f"of {options.repeats}; what is measured stands at the script's head. Ratios carry over, times do not."]
    for head, rows in ((head, rows) for head, rows in parts.items() if rows):
        table("inference", head, rows)
        lines += ["", *("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows])]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "infer.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="a folder of `onepiece-comp run`")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--candidates", type=int, nargs="*", default=[100_000, 1_000_000], help="none = the beam alone")
    parser.add_argument("--largest-graph", type=int, default=100_000, help="no graph is built of more candidates")
    parser.add_argument("--efforts", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    exact, indexes = [], []
    beams = beam_rows(options.work, options.repeats)
    for candidates in options.candidates:
        case = made_case(candidates)
        exact += exact_rows(case, options.threads, options.repeats)
        kinds = ["ivf", "hnsw"] if candidates <= options.largest_graph else ["ivf"]
        indexes += index_rows(case, kinds, options.efforts, options.repeats)
    seconds = ("processor s / 1,000 users", "wall s / 1,000 users")
    report({("candidates", "exact top-384", "threads", *seconds, "peak extra MiB"): exact,
            ("candidates", "index", "build, s", *seconds, *(f"recall@{k}" for k in DEPTHS)): indexes,
            ("beam 20, 384 survivors", "candidates", "users / processor s", "bound by products", "peak extra MiB",
             "generated ids that name a candidate"): beams},
           options, f"python benchmarks/infer.py WORK --threads {' '.join(map(str, options.threads))}"
           + ("" if options.candidates else " --candidates"))


if __name__ == "__main__":
    main()
