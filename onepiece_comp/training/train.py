"""Training as a stage: a dataset in, a run folder out.

`loop.py` has the steps. The run folder holds config, environment, log (JSONL and, where installed,
TensorBoard), checkpoints, the best one's item vectors for the tokenizer, and `resume.pt`.
"""

from pathlib import Path

import numpy as np
import torch

from onepiece_comp.artefacts import MARKERS, atomic_file, move_aside, peak_memory_mib, read_json, write_json
from onepiece_comp.columns import create_mapped
from onepiece_comp.config import Config
from onepiece_comp.config_reading import NEUTRAL
from onepiece_comp.console import say, table
from onepiece_comp.dataset.preprocess import Dataset
from onepiece_comp.environment import Rank
from onepiece_comp.errors import InputError, StaleRun
from onepiece_comp.logs.identity import NAME_COLUMN, original_ids
from onepiece_comp.models.recommender import OnePiece, size
from onepiece_comp.models.retrieval import TILE, encode_item_table
from onepiece_comp.tokenizer.folder import load_tokenizer
from onepiece_comp.training.checkpoint import find_checkpoint, load_checkpoint
from onepiece_comp.training.loop import Loop
from onepiece_comp.training.optimisers import bytes_per_id
from onepiece_comp.training.validation import repeated


_SHARED_OUT = ("accumulate", "replicas", "shard_tables")  # who takes a step's batches: another one may go on with a run


def card_of_rank(rank: Rank, device: torch.device) -> torch.device:
    """Each of several ranks of a machine has a card of its own; InputError where there are fewer cards."""
    if rank.ranks == 1 or device.type != "cuda":
        return device
    if rank.local >= torch.cuda.device_count():
        raise InputError("torchrun", found=f"rank {rank.local} on a machine with {torch.cuda.device_count()} visible "
                                           f"cards",
                         expected="a card for each rank", do="give --nproc_per_node the number of cards")
    torch.cuda.set_device(rank.local)
    return torch.device("cuda", rank.local)


def tokenizer_fingerprint(tokenizer: Path | None) -> str | None:
    return None if tokenizer is None else read_json(Path(tokenizer) / MARKERS["tokenizer"])["checksum"]


def claim_run(run: Path, settings: dict, resume: bool) -> None:
    """A new run needs a free folder; a resumed one the same settings, with a step's batches shared out in any way."""
    saved = any((run / name).is_file() for name in ("resume.pt", MARKERS["run"]))
    if not saved and (run / "config.json").is_file():
        raise InputError(run, found="a run that has saved nothing yet",
                         expected="a new run folder, or a run with a resume.pt",
                         do="remove the folder if that run was killed, and start without --resume; it may be running "
                            "still")
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
        move_aside(run, InputError(run, found="a folder that is not empty", expected="a new run folder",
                                   do="go on with --resume, "
                                   "choose another folder, or --force, which moves this one aside under a dated name"))
    run.mkdir(parents=True, exist_ok=True)


def build_model(data: Dataset, config: Config, tokenizer: Path | None) -> OnePiece:
    codes = None
    if tokenizer is not None:
        codes = torch.from_numpy(np.array(load_tokenizer(tokenizer, data.schema.item_space,
                                                         data.schema.numberings).codes))
    model = OnePiece(config.model, data.schema, codes)
    model.inputs.time.fit(np.asarray(data.time_seconds))
    return model


def announce_run(loop: Loop, data: Dataset) -> None:
    count, config = size(loop.model), loop.config
    events = int(loop.batches.events.sum())
    say(f"{len(loop.batches.users):,} users, {events:,} events, {data.schema.items:,} items; "
        f"{loop.total_steps:,} steps of {config.train.batch_users * loop.batches.ranks} users, "
        f"{loop.total_steps / loop.batches.steps_per_epoch:.3g} epochs; "
        f"{count.dense:,} dense parameters, {count.tables:,} in tables; {len(loop.held_out.user)} validation users; "
        f"{loop.device}, {torch.get_num_threads()} threads")
    if again := repeated(data, loop.held_out):
        say(f"{again} of the validation users clicked an item of their own history: the filter of seen items drops "
            f"it, a miss")
    weights, state = bytes_per_id(loop.model, config.train.table_optimiser)
    say(f"bytes per item id: {weights} of weights, {state} of optimiser state ({config.train.table_optimiser}, "
        f"{config.train.table_precision})")
    if loop.progress.step:
        say(f"resuming after step {loop.progress.step}")


def finish_run(loop: Loop, settings: dict) -> Path:
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
            made = [part.cpu().numpy() for part in encode_item_table(model, data.items, rows,
                                                                     device) if part is not None]
            block = np.concatenate(made, axis=1) / len(made) ** 0.5  # unit vectors again
            written = create_mapped(temporary, np.float32, (items + 1, block.shape[1])) if written is None else written
            written[rows] = block
        del written  # mapped until here
