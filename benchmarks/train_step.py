"""A training step against the plain padded eager form of the same model, part by part, equal losses checked first.

    taskset -c 1 python benchmarks/train_step.py --presets tiny small
    python benchmarks/train_step.py --device cuda --presets base full --events 102 --batch-users 512 --negatives 50000 400000

The plain form (`plain_step.py`) takes users as shuffled, ours those of like length together; both step the same weights
on as many users, in turn. Columns are made (`made_dataset.py`), dropout is off. Parts are forward and backward; the
bound is the rate of a square matrix product in the same run or, on a card, its peak. Memory is what two steps add.
"""

import argparse
import contextlib
import dataclasses
import itertools
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from made_dataset import made_codes, made_dataset
from plain_step import items_by_position, plain_losses, plain_model, plain_retrieval_loss, plain_semantic_loss
from torch.nn import functional as F

from onepiece_comp.arithmetic import Shape, Work, bfloat16_peak, forward_work, shape_of
from onepiece_comp.batches import TrainBatch, TrainingBatches
from onepiece_comp.config import Config, TokenizerConfig, load_config
from onepiece_comp.console import say, table
from onepiece_comp.model import OnePiece
from onepiece_comp.optim import Optimisers
from onepiece_comp.preprocess import Dataset
from onepiece_comp.tokenizer import choose_codes

FORMS = ("ours", "plain")
WARM_UP = 2
_CHECKED_USERS = 16
Milliseconds = dict[str, list[float]]


class Form:
    """One way of stepping a model: its loss, its optimisers."""

    def __init__(self, name: str, model: OnePiece, config: Config, device: torch.device):
        self.name, self.device, self.plain, self.config = name, device, name == "plain", config
        self.model = (plain_model(model) if self.plain else model).to(device).train()
        settings = config.train
        self.optimisers = Optimisers(
            self.model, learning_rate=settings.learning_rate, muon_learning_rate=settings.muon_learning_rate,
            weight_decay=settings.weight_decay, warmup_steps=1, total_steps=1000)
        for group in self.optimisers.adam.param_groups if self.plain else ():
            group["fused"] = None  # one tensor and operation after the other

    def loss(self, batch: TrainBatch) -> torch.Tensor:
        weight = self.config.train.semantic_weight
        if self.plain:
            return plain_losses(self.model, batch, semantic_weight=weight)
        return self.model.losses(batch, semantic_weight=weight).total

    def precision(self) -> contextlib.AbstractContextManager:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else contextlib.nullcontext()

    def step(self, batch: TrainBatch, number: int, clock: "Clock", kept: Milliseconds) -> None:
        """One step of training, timed in three parts."""
        start = clock.now()
        with self.precision():
            loss = self.loss(batch)
        forward = clock.now()
        loss.backward()
        backward = clock.now()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip)
        self.optimisers.step(number)
        end = clock.now()
        for part, seconds in (("forward", forward - start), ("backward", backward - forward),
                              ("optimiser", end - backward), ("whole step", end - start)):
            kept.setdefault(part, []).append(1000 * seconds)


class Clock:
    """Processor seconds of one thread, else those of the wall; a card is waited for."""

    def __init__(self, device: torch.device, threads: int):
        self.device, self.read = device, time.process_time if device.type == "cpu" and threads == 1 else time.perf_counter

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.read()


class Case:
    """A preset with its data and both forms."""

    def __init__(self, preset: str, negatives: int | None, options: argparse.Namespace, *, forms: tuple[str, ...] = FORMS):
        self.device, config = torch.device(options.device), load_config(preset)
        train = {"batch_users": options.batch_users, "sampled_negatives": negatives}
        model = {"max_events": options.events, "dropout": 0.0, "id_dropout": 0.0}
        self.config = config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, **{k: v for k, v in train.items() if v}),
            model=dataclasses.replace(config.model, **{k: v for k, v in model.items() if v is not None}))
        self.name = f"{preset}, {config.train.sampled_negatives:,} sampled negatives"
        self.items = options.items or (2_000_000 if self.device.type == "cuda" else 100_000)
        self.data = made_dataset(17 * config.train.batch_users, items=self.items, events=config.model.max_events)
        self.codes = choose_codes(self.items, TokenizerConfig())
        ids = made_codes(self.items, codes=self.codes)
        self.batches = training_batches(self.data, config, ids.numpy())
        self.forms = [Form(name, self._model(ids), config, self.device) for name in forms]

    def _model(self, ids: torch.Tensor) -> OnePiece:
        """The same weights each time; those that start at zero are drawn, so that nothing is hidden by zeros."""
        torch.manual_seed(0)
        model = OnePiece(self.config.model, self.data.schema, ids)
        for name, parameter in model.named_parameters():
            if name.endswith(("_HC", "trend", "id_table.weight")):
                torch.nn.init.normal_(parameter, std=0.1)
        return model

    def paired(self) -> Iterator[tuple[TrainBatch, TrainBatch]]:
        """Batches of users of like length, and of as many users as shuffled."""
        bucketed, shuffled = (self.batches._order(0, bucketed=bucketed) for bucketed in (True, False))
        whole = (part for part in zip(bucketed, shuffled) if len(part[0]) == len(part[1]) == self.config.train.batch_users)
        for number, users in enumerate(itertools.cycle(whole)):
            yield tuple(self.batches.batch(some, np.random.default_rng(number)).to(self.device) for some in users)

    def check(self) -> float:
        """Both forms give the same loss and gradient in float32; the relative difference of the losses."""
        rng = np.random.default_rng(0)
        batch = self.batches.batch(rng.choice(self.batches.users, _CHECKED_USERS, replace=False), rng).to(self.device)
        found = []
        for form in self.forms:
            loss = form.loss(batch)
            weight = form.model.item_tower.linear.weight
            found.append((float(loss), torch.autograd.grad(loss, weight)[0]))
        (ours, gradient), (plain, reference) = found
        assert abs(ours - plain) < 1e-4 * abs(plain), f"losses differ: {ours} and {plain}"
        assert (gradient - reference).norm() < 1e-3 * reference.norm(), "gradients differ"
        return abs(ours - plain) / abs(plain)


def training_batches(data: Dataset, config: Config, codes: np.ndarray) -> TrainingBatches:
    """What `train` reads."""
    settings = config.train
    return TrainingBatches(
        data, stop=np.array(data.user_start[1:]), batch_users=settings.batch_users, max_events=config.model.max_events,
        sampled_negatives=settings.sampled_negatives, action_weights=settings.action_weights,
        moment_lag_seconds=settings.moment_lag_hours * 3600, click_lag_seconds=settings.click_lag_hours * 3600,
        horizon_seconds=settings.horizon_days * 86400, seed=0, codes=codes)


def parts(form: Form, batch: TrainBatch) -> dict[str, Callable[[], torch.Tensor]]:
    """Each part as a function to a scalar, on inputs that take a gradient."""
    model, retrieval = form.model, plain_retrieval_loss if form.plain else lambda model, *given: model.retrieval_loss(*given)
    semantic = plain_semantic_loss if form.plain else lambda model, *given: model.semantic_loss(*given)
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
            "retrieval loss": work.retrieval, "retrieval loss with history similarity": work.retrieval + work.similarity,
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


def memory_apart(preset: str, negatives: int | None, form: str) -> float:
    """`added_memory` in a process of its own."""
    command = [sys.executable, *sys.argv, "--presets", preset, "--memory-of", form]
    command += ["--negatives", str(negatives)] if negatives else []
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


def measure(preset: str, negatives: int | None, options: argparse.Namespace) -> list[str]:
    """The table of a case as Markdown lines."""
    memory = {form: memory_apart(preset, negatives, form) for form in FORMS}
    case = Case(preset, negatives, options)
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
    parser.add_argument("--batch-users", type=int, help="default: the preset's")
    parser.add_argument("--events", type=int, help="longest history; default: the preset's")
    parser.add_argument("--items", type=int, help="of the catalogue; default: 100,000, on a card 2,000,000")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory-of", choices=FORMS, help="only print the MiB that two steps of this form add")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [(preset, negatives) for preset in options.presets for negatives in options.negatives]
    if options.memory_of:
        case = Case(*cases[0], options, forms=(options.memory_of,))
        return print(added_memory(case.forms[0], case))
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    lines = [f"`python benchmarks/train_step.py {' '.join(sys.argv[1:])}`", "",
             f"torch {torch.__version__}, {machine}, {options.threads} thread(s), median of {options.steps}."]
    for preset, negatives in cases:
        lines += measure(preset, negatives, options)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"train_step{'_cuda' * (options.device == 'cuda')}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
