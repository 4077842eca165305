"""Training as a stage: a dataset in, a run folder out.

`training_loop.py` has the steps. The run folder holds config, environment, log (JSONL and, where installed,
TensorBoard), checkpoints, the best one's item vectors for the tokenizer, and `resume.pt`.
"""

import contextlib
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from onepiece_comp import __version__
from onepiece_comp.artefacts import MARKERS, atomic_file, move_aside, peak_memory_mib, read_json, write_json
from onepiece_comp.columns import create_mapped
from onepiece_comp.checkpoint import find_checkpoint, load_checkpoint, warm_start
from onepiece_comp.config import Config
from onepiece_comp.config_reading import NEUTRAL, to_dict
from onepiece_comp.console import be_quiet, say, table
from onepiece_comp.errors import InputError, StaleRun
from onepiece_comp.formats import LIST
from onepiece_comp.heap import kept_heap
from onepiece_comp.identity import NAME_COLUMN, original_ids
from onepiece_comp.model import OnePiece, size
from onepiece_comp.optim import bytes_per_id
from onepiece_comp.parallel import Ranks, count_replicas
from onepiece_comp.paths import Rank, available_cores, torchrun_rank
from onepiece_comp.preprocess import Dataset, load_dataset
from onepiece_comp.retrieval import TILE, encode_item_table
from onepiece_comp.run_log import RunLog
from onepiece_comp.semantic_ids import load_tokenizer
from onepiece_comp.table_shards import shard_tables
from onepiece_comp.training_loop import Loop
from onepiece_comp.validation import repeated


_SHARED_OUT = ("accumulate", "replicas", "shard_tables")  # who takes a step's batches: another one may go on with a run


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; asking for a GPU that is not there is an InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise InputError("device", found=f"{cards} CUDA devices", expected=f"one, as device={name} asks" if device.index is None else
                         f"card {device.index}, as device={name} asks", do="use device=cpu or auto")
    return device


def set_threads(threads: int) -> int:
    """Use `threads` CPU threads, or as many as this process may."""
    threads = threads or available_cores()
    torch.set_num_threads(threads)
    return threads


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On CPU: sums into shared rows in one order, however many threads there are. The settings are put back."""
    before, fill = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # ours is never read before it is written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def train(dataset: Path, run: Path, config: Config, *, tokenizer: Path | None = None, warm: Path | None = None,
          resume: bool = False, events: Path | None = None, log: Path | None = None) -> Path:
    """Train on a dataset folder and fill the run folder; returns it.

    With `tokenizer` the semantic-id head is trained too. `warm` is a run whose fitting weights are copied first.
    `events` and `log` are further places for TensorBoard events and the JSONL log, as the platform wants them. Under
    torchrun every rank calls it; the first one writes and speaks.
    """
    rank = torchrun_rank()
    device = _card_of(rank, choose_device(config.train.device))
    if rank.rank:
        be_quiet()
    with Ranks(rank.rank, rank.ranks, device=device) as ranks:
        return _train(Path(dataset), Path(run), config, ranks, tokenizer, warm, resume, (events, log))


def _card_of(rank: Rank, device: torch.device) -> torch.device:
    """Each of several ranks of a machine has a card of its own; InputError where there are fewer cards."""
    if rank.ranks == 1 or device.type != "cuda":
        return device
    if rank.local >= torch.cuda.device_count():
        raise InputError("torchrun", found=f"rank {rank.local} on a machine with {torch.cuda.device_count()} visible cards",
                         expected="a card for each rank", do="give --nproc_per_node the number of cards")
    torch.cuda.set_device(rank.local)
    return torch.device("cuda", rank.local)


def _train(dataset: Path, run: Path, config: Config, ranks: Ranks, tokenizer: Path | None, warm: Path | None,
           resume: bool, copies: tuple[Path | None, Path | None]) -> Path:
    """`train` as one of its ranks; `copies` are the further places for events and log."""
    data = load_dataset(dataset)
    if len(data.user_start) < 3:
        raise InputError(dataset, found="one user", expected="two or more", do="take a larger log: a user's own items are no negatives")
    if data.schema.items < LIST:
        raise InputError(dataset, found=f"{data.schema.items} items", expected=f"at least {LIST}, as in an answer",
                         do="train on a larger catalogue")
    settings = {"version": __version__, "model": to_dict(config.model), "train": to_dict(config.train),
                "dataset": data.fingerprint, "tokenizer": _fingerprint_of(tokenizer),
                "batches_per_step": (ranks.ranks * config.train.accumulate
                                     * count_replicas(config.train.replicas, ranks.device))}
    if ranks.first:
        _claim(run, settings, resume)
    ranks.wait()  # the others wait until the run is claimed
    if resume and (run / MARKERS["run"]).is_file():
        say(f"{run} is whole: nothing to go on with")
        if ranks.first:
            (run / "resume.pt").unlink(missing_ok=True)  # where it was killed before it came to that
        return run
    settings["warm_start"], settings["fresh"] = warm is not None, None
    if resume:  # a resumed run is what it was, named again or not
        settings.update({name: value for name, value in read_json(run / "config.json").items() if name in ("warm_start", "fresh")})
        if warm is not None and not settings["warm_start"]:
            raise StaleRun(run, found="a run that started from no other", expected="the same start", do="leave out --warm-start")
    device, threads = ranks.device, set_threads(config.train.threads)
    if config.train.precision == "bfloat16" and device.type == "cpu":
        raise InputError("train.precision", found="bfloat16 on a CPU", expected="float32, or a GPU: CPUs are many times slower in it",
                         do="set train.precision=auto, which is bfloat16 on a GPU alone")
    torch.manual_seed(config.train.seed)
    model = _build(data, config, tokenizer)
    if warm is not None and not resume:
        settings["fresh"] = warm_start(model, warm)
        say(f"warm start: all tensors copied but {len(settings['fresh'])} of {len(model.state_dict())}")
    if config.train.shard_tables:
        if config.train.average or config.train.replicas != 1:
            raise InputError("train.shard_tables", found="average or replicas, which copy whole models", expected="neither",
                             do="set train.average=0 and train.replicas=1, or leave the tables whole")
        shard_tables(model, ranks)  # before a card would have to hold them
    model.to(device)
    loop = Loop(model, data, run, config, device, warm=settings["warm_start"], ranks=ranks, fresh=settings["fresh"])
    ranks.wait()  # all have read whether the run was there before the first one writes to it
    if ranks.first:  # not before the loop stands: a run that could not begin claims no folder
        write_json(run / "config.json", settings)
        write_json(run / "environment.json", {
            "python": platform.python_version(), "torch": torch.__version__, "threads": threads, "ranks": ranks.ranks,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"})
    _announce(loop, data)
    places = (run, *copies) if ranks.first else ()
    with RunLog(places, loop.progress.step if resume else 0) as records, repeatable(device), kept_heap(device.type == "cpu"):
        loop.run_steps(records)
    return _finish(loop, settings) if ranks.first else run


def _fingerprint_of(tokenizer: Path | None) -> str | None:
    return None if tokenizer is None else read_json(Path(tokenizer) / MARKERS["tokenizer"])["checksum"]


def _claim(run: Path, settings: dict, resume: bool) -> None:
    """A new run needs a free folder; a resumed one the same settings, with a step's batches shared out in any way."""
    saved = any((run / name).is_file() for name in ("resume.pt", MARKERS["run"]))
    if not saved and (run / "config.json").is_file():
        raise InputError(run, found="a run that has saved nothing yet", expected="a new run folder, or a run with a resume.pt",
                         do="remove the folder if that run was killed, and start without --resume; it may be running still")
    if resume:
        if not saved:
            raise InputError(run, found="no resume.pt", expected="a run to resume", do="start it without --resume")
        stored = read_json(run / "config.json")
        changed = [f"{part}.{key}" for part in ("model", "train") for key in settings[part]
                   if stored[part].get(key) != settings[part][key] and key not in _SHARED_OUT and key not in NEUTRAL]
        changed += [key for key in ("dataset", "tokenizer", "batches_per_step") if stored.get(key) != settings[key]]
        if changed:
            raise StaleRun(
                run,
                found=f"a run with other settings ({', '.join(changed)})",
                expected="the same settings",
                do="resume with the run's own config, data and tokenizer",
            )
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        move_aside(run, InputError(run, found="a folder that is not empty", expected="a new run folder", do="go on with --resume, "
                                   "choose another folder, or --force, which moves this one aside under a dated name"))
    run.mkdir(parents=True, exist_ok=True)


def _build(data: Dataset, config: Config, tokenizer: Path | None) -> OnePiece:
    codes = None
    if tokenizer is not None:
        codes = torch.from_numpy(np.array(load_tokenizer(tokenizer, data.schema.item_space, data.schema.numberings).codes))
    model = OnePiece(config.model, data.schema, codes)
    model.inputs.time.fit(np.asarray(data.time_seconds))
    return model


def _announce(loop: Loop, data: Dataset) -> None:
    count, config = size(loop.model), loop.config
    events = int(loop.batches.events.sum())
    say(f"{len(loop.batches.users):,} users, {events:,} events, {data.schema.items:,} items; "
        f"{loop.total_steps:,} steps of {config.train.batch_users * loop.batches.ranks} users, {loop.total_steps / loop.batches.steps_per_epoch:.3g} epochs; "
        f"{count.dense:,} dense parameters, {count.tables:,} in tables; {len(loop.held_out.user)} validation users; "
        f"{loop.device}, {torch.get_num_threads()} threads")
    if again := repeated(data, loop.held_out):
        say(f"{again} of the validation users clicked an item of their own history: the filter of seen items drops it, a miss")
    weights, state = bytes_per_id(loop.model, config.train.table_optimiser)
    say(f"bytes per item id: {weights} of weights, {state} of optimiser state ({config.train.table_optimiser}, "
        f"{config.train.table_precision})")
    if loop.progress.step:
        say(f"resuming after step {loop.progress.step}")


def _finish(loop: Loop, settings: dict) -> Path:
    """Item vectors of the best checkpoint, the run's marker, and a table."""
    run = loop.run
    best = load_checkpoint(find_checkpoint(run / loop.progress.best_checkpoint), loop.device).model
    _write_item_vectors(run / "item_vectors.npy", best, loop.data, loop.device)
    creative = np.asarray(loop.data.items.creative_id)
    named = original_ids(loop.data.path, creative)
    for name, column in (("item_ids", creative), *([(NAME_COLUMN, named)] if named is not creative else [])):
        with atomic_file(run / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, column)
    count = size(best)
    figures = {
        "steps": loop.progress.step,
        "valid_score": float(loop.kept_score.mean()) if len(loop.kept_score) else 0.0,  # of the weights that are kept
        "seconds": round(loop.seconds, 1),
        "dense_parameters": count.dense,
        "table_parameters": count.tables,
        "peak_memory_mib": round(peak_memory_mib()),
    }
    write_json(run / MARKERS["run"], {**settings, "checkpoint": loop.progress.best_checkpoint, "figures": figures})
    (run / "resume.pt").unlink(missing_ok=True)  # three times the weights, which nobody will go on from
    table("train", ("what", "value"), [(what.replace("_", " "), f"{value:,}") for what, value in figures.items()])
    say(f"wrote {run / loop.progress.best_checkpoint}")
    return run


def _write_item_vectors(path: Path, model: OnePiece, data: Dataset, device: torch.device) -> None:
    """All items' vectors, of both towers side by side where there are two, row 0 zeros; a tile in memory at a time."""
    items = data.schema.items
    with atomic_file(path) as temporary:
        written = None
        for rows in np.array_split(np.arange(1, items + 1), max(1, -(-items // TILE))):
            made = [part.cpu().numpy() for part in encode_item_table(model, data.items, rows, device) if part is not None]
            block = np.concatenate(made, axis=1) / len(made) ** 0.5  # unit vectors again
            written = create_mapped(temporary, np.float32, (items + 1, block.shape[1])) if written is None else written
            written[rows] = block
        del written  # mapped until here
