"""A training step against the plain padded eager form of the same model, part by part, equal losses checked first.

    taskset -c 1 python benchmarks/train_step.py --presets tiny small --batch-users 16 32
    python benchmarks/train_step.py --device cuda --presets base full --events 102 --batch-users 512 \\
        --negatives 50000 400000

The plain form (`plain_step.py`) takes users as shuffled, ours those of like length together; both step the same weights
on as many users, in turn. Columns are made (`made_dataset.py`), dropout is off. Parts are forward and backward; the
bound is the rate of a square matrix product in the same run or, on a card, its peak. Memory is what two steps add.
"""

import argparse
import contextlib
import itertools
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from plain_step import items_by_position, plain_retrieval_loss, plain_semantic_loss
from step_case import FORMS, Case, Clock, Form, Milliseconds
from torch.nn import functional as F

from onepiece_comp.console import say, table
from onepiece_comp.models.batch import TrainBatch
from onepiece_comp.training.arithmetic import Shape, Work, bfloat16_peak, forward_work, shape_of

WARM_UP = 2


def parts(form: Form, batch: TrainBatch) -> dict[str, Callable[[], torch.Tensor]]:
    """Each part as a function to a scalar, on inputs that take a gradient."""
    model = form.model
    retrieval = plain_retrieval_loss if form.plain else type(model).retrieval_loss
    semantic = plain_semantic_loss if form.plain else lambda model, batch, encoded: model.semantic_loss(
        model.forced(batch, encoded), encoded)
    leaf = lambda tensor: tensor.detach().requires_grad_()
    with torch.no_grad(), form.precision():
        item, encoded = model.encode_items(batch.items), model.encode(batch.history, model.encode_items(batch.items))
        x_BTD = model.inputs(batch.history, item)
    item, x_BTD = leaf(item), leaf(x_BTD)
    valid_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) < batch.history.length_B[:, None]
    x_ND, encoded = leaf(x_BTD[valid_BT]), encoded._replace(
        hidden_BTD=leaf(encoded.hidden_BTD), states=[leaf(state) for state in encoded.states])

    def attention() -> torch.Tensor:
        x = x_BTD
        for layer in model.layers:
            x = layer.block(x, encoded.gap_BTS)
        return x.float().square().mean()

    def experts() -> torch.Tensor:
        x = x_ND
        for layer in model.layers:
            x = x + layer.moe(F.layer_norm(x, x.shape[-1:]))[0]
        return x.float().square().mean()

    def towers() -> torch.Tensor:
        found = model.encode_items(batch.items).float().square().mean()
        if not form.plain:
            return found
        return found + model.encode_items(items_by_position(batch)).float().square().mean()

    def without_similarity() -> torch.Tensor:
        kept, model.similarity = model.similarity, None
        try:
            return retrieval(model, batch, encoded, item)
        finally:
            model.similarity = kept

    return {"history attention": attention, "experts": experts, "item tower": towers,
            "retrieval loss": without_similarity,
            "retrieval loss with history similarity": lambda: retrieval(model, batch, encoded, item),
            "semantic loss": lambda: semantic(model, batch, encoded)}


def work_of(part: str, work: Work) -> int | None:
    """Multiply-adds of a part of the forward pass."""
    return {"history attention": work.blocks, "experts": work.experts, "item tower": work.towers,
            "retrieval loss": work.retrieval,
            "retrieval loss with history similarity": work.retrieval + work.similarity,
            "semantic loss": work.semantic, "whole step": sum(work)}.get(part)


def time_parts(case: Case, clock: Clock, repeats: int) -> dict[str, Milliseconds]:
    """Milliseconds of each part, both forms in turn on the same batch."""
    batch, kept = next(case.paired())[0], {name: {} for name in FORMS}
    made = {form.name: parts(form, batch) for form in case.forms}
    for part in made["ours"]:
        for _, form in itertools.product(range(WARM_UP + repeats), case.forms):
            start = clock.now()
            with out_of_memory(form, kept[form.name], part):
                with form.precision():
                    loss = made[form.name][part]()
                loss.backward()
                kept[form.name].setdefault(part, []).append(1000 * (clock.now() - start))
    for form in case.forms:
        form.model.zero_grad()
    return kept


def time_steps(case: Case, clock: Clock, repeats: int) -> tuple[dict[str, Milliseconds], Shape]:
    """Milliseconds of whole steps, both forms in turn; also the shape of our last batch."""
    kept = {name: {} for name in FORMS}
    for number, pair in enumerate(itertools.islice(case.paired(), WARM_UP + repeats)):
        for form, batch in zip(case.forms, pair):
            with out_of_memory(form, kept[form.name], "whole step"):
                form.step(batch, number, clock, kept[form.name])
    return kept, shape_of(pair[0])


@contextlib.contextmanager
def out_of_memory(form: Form, kept: Milliseconds, part: str) -> Iterator[None]:
    """A part that a card has no room for is noted as endless."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        kept.setdefault(part, []).append(float("inf"))
        form.model.zero_grad()
        torch.cuda.empty_cache()


def added_memory(form: Form, case: Case) -> float:
    """Peak MiB that two steps of a form add."""
    on_card = case.device.type == "cuda"
    if on_card:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts anew
        before = _status_kib("VmRSS") * 1024
    kept: Milliseconds = {}
    for number, pair in enumerate(itertools.islice(case.paired(), 2)):
        with out_of_memory(form, kept, "whole step"):
            form.step(pair[form.plain], number, Clock(case.device, 1), kept)
    if float("inf") in kept["whole step"]:
        return float("inf")
    return ((torch.cuda.max_memory_allocated() if on_card else _status_kib("VmHWM") * 1024) - before) / 2 ** 20


def _status_kib(name: str) -> int:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def memory_apart(preset: str, users: int | None, negatives: int | None, form: str) -> float:
    """`added_memory` in a process of its own."""
    command = [sys.executable, *sys.argv, "--presets", preset, "--memory-of", form]
    for name, value in (("--batch-users", users), ("--negatives", negatives)):
        command += [name, str(value)] if value else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def product_rate(clock: Clock, size: int = 1024) -> float:
    """FLOP/s of a square float32 matrix product, the best of a few."""
    a, best = torch.randn(size, size, device=clock.device), 0.0
    for _ in range(12):
        start = clock.now()
        a @ a
        best = max(best, 2 * size ** 3 / (clock.now() - start))
    return best


def measure(preset: str, users: int | None, negatives: int | None, options: argparse.Namespace) -> list[str]:
    """The table of a case as Markdown lines."""
    memory = {form: memory_apart(preset, users, negatives, form) for form in FORMS}
    case = Case(preset, users, negatives, options)
    clock, difference = Clock(case.device, options.threads), case.check()
    on_card = case.device.type == "cuda"
    bound = (bfloat16_peak(torch.cuda.get_device_name()) if on_card else None) or product_rate(clock)
    shape = shape_of(next(case.paired())[0])
    kept = time_parts(case, clock, options.steps)
    steps, last = time_steps(case, clock, options.steps)
    rows = []
    for part in (*kept["ours"], *steps["ours"]):
        source = steps if part in steps["ours"] else kept
        ours, plain = (statistics.median(source[form][part][WARM_UP:]) if part in source[form] else float("inf")
                       for form in FORMS)
        work = work_of(part, forward_work(case.forms[0].model, last if part in steps["ours"] else shape))
        share = f"{6 * work / (ours / 1000) / bound:.0%}" if work else "-"
        rows.append((part, f"{ours:.1f}", f"{plain:.1f}", f"{plain / ours:.1f}x", share))
    seconds, tokens = statistics.median(steps["ours"]["whole step"][WARM_UP:]) / 1000, last.rows
    rows.append(("memory added, MiB", f"{memory['ours']:,.0f}", f"{memory['plain']:,.0f}",
                 f"{memory['plain'] / memory['ours']:.1f}x", "-"))
    head = ("part, forward and backward", "ours, ms", "plain, ms", "ratio", "of the bound, ours")
    table(case.name, head, rows)
    about = (f"{last.users} users, at most {last.positions} positions, {last.rows:,} events, {last.keys:,} keys, "
             f"{case.codes:,} codes, {case.items:,} items; losses differ by {difference:.0e}; "
             f"{tokens / seconds:,.0f} events/s; bound {bound / 1e9:,.0f} GFLOP/s.")
    say(about)
    return ["", f"## {case.name}", about, "",
            *("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["tiny", "small"])
    parser.add_argument("--negatives", nargs="+", type=int, default=[None], help="sampled ones; default: the preset's")
    parser.add_argument("--batch-users", nargs="+", type=int, default=[None], help="for all presets or one each")
    parser.add_argument("--events", type=int, help="longest history; default: the preset's")
    parser.add_argument("--items", type=int, help="of the catalogue; default: 100,000, on a card 2,000,000")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory-of", choices=FORMS, help="only print the MiB that two steps of this form add")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    users = options.batch_users * (len(options.presets) if len(options.batch_users) == 1 else 1)
    if len(users) != len(options.presets):
        parser.error(f"{len(users)} --batch-users for {len(options.presets)} presets")
    cases = [(preset, count, negatives)
             for preset, count in zip(options.presets, users) for negatives in options.negatives]
    if options.memory_of:
        case = Case(*cases[0], options, forms=(options.memory_of,))
        return print(added_memory(case.forms[0], case))
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    lines = [f"`python benchmarks/train_step.py {' '.join(sys.argv[1:])}`", "",
             f"torch {torch.__version__}, {machine}, {options.threads} thread(s), median of {options.steps}."]
    for case in cases:
        lines += measure(*case, options)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"train_step{'_cuda' * (options.device == 'cuda')}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
