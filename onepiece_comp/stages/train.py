"""Train on a dataset folder: retrieval alone, or jointly with semantic ids."""

import platform
from pathlib import Path

import torch

from onepiece_comp import __version__
from onepiece_comp.artefacts import MARKERS, move_aside, moving_aside, read_json, write_json
from onepiece_comp.config import Config
from onepiece_comp.config_reading import to_dict
from onepiece_comp.console import be_quiet, say
from onepiece_comp.dataset.preprocess import load_dataset
from onepiece_comp.environment import torchrun_rank
from onepiece_comp.errors import InputError, StaleRun
from onepiece_comp.logs.formats import LIST
from onepiece_comp.stages.alone import run_alone
from onepiece_comp.training.checkpoint import warm_start
from onepiece_comp.training.devices import Ranks, count_replicas
from onepiece_comp.training.loop import Loop
from onepiece_comp.training.process import choose_device, kept_heap, repeatable, set_threads
from onepiece_comp.training.run_log import RunLog
from onepiece_comp.training.table_shards import shard_tables
from onepiece_comp.training.train import (
    announce_run, build_model, card_of_rank, claim_run, finish_run, tokenizer_fingerprint)


def train(dataset: Path, run: Path, config: Config, *, tokenizer: Path | None = None, warm: Path | None = None,
          resume: bool = False, events: Path | None = None, log: Path | None = None) -> Path:
    """Train on a dataset folder and fill the run folder; returns it.

    With `tokenizer` the semantic-id head is trained too. `warm` is a run whose fitting weights are copied first.
    `events` and `log` are further places for TensorBoard events and the JSONL log, as the platform wants them. Under
    torchrun every rank calls it; the first one writes and speaks.
    """
    rank = torchrun_rank()
    device = card_of_rank(rank, choose_device(config.train.device))
    if rank.rank:
        be_quiet()
    with Ranks(rank.rank, rank.ranks, device=device) as ranks:
        return _train(Path(dataset), Path(run), config, ranks, tokenizer, warm, resume, (events, log))


def _train(dataset: Path, run: Path, config: Config, ranks: Ranks, tokenizer: Path | None, warm: Path | None,
           resume: bool, copies: tuple[Path | None, Path | None]) -> Path:
    """`train` as one of its ranks; `copies` are the further places for events and log."""
    data = load_dataset(dataset)
    if len(data.user_start) < 3:
        raise InputError(dataset, found="one user", expected="two or more",
                         do="take a larger log: a user's own items are no negatives")
    if data.schema.items < LIST:
        raise InputError(dataset, found=f"{data.schema.items} items", expected=f"at least {LIST}, as in an answer",
                         do="train on a larger catalogue")
    settings = {"version": __version__, "model": to_dict(config.model), "train": to_dict(config.train),
                "dataset": data.fingerprint, "tokenizer": tokenizer_fingerprint(tokenizer),
                "batches_per_step": (ranks.ranks * config.train.accumulate
                                     * count_replicas(config.train.replicas, ranks.device))}
    if ranks.first:
        claim_run(run, settings, resume)
    ranks.wait()  # the others wait until the run is claimed
    if resume and (run / MARKERS["run"]).is_file():
        say(f"{run} is whole: nothing to go on with")
        if ranks.first:
            (run / "resume.pt").unlink(missing_ok=True)  # where it was killed before it came to that
        return run
    settings["warm_start"], settings["fresh"] = warm is not None, None
    if resume:  # a resumed run is what it was, named again or not
        settings.update({name: value for name, value in read_json(run / "config.json").items() if name in ("warm_start",
            "fresh")})
        if warm is not None and not settings["warm_start"]:
            raise StaleRun(run, found="a run that started from no other", expected="the same start",
                           do="leave out --warm-start")
    device, threads = ranks.device, set_threads(config.train.threads)
    if config.train.precision == "bfloat16" and device.type == "cpu":
        raise InputError("train.precision", found="bfloat16 on a CPU",
                         expected="float32, or a GPU: CPUs are many times slower in it",
                         do="set train.precision=auto, which is bfloat16 on a GPU alone")
    torch.manual_seed(config.train.seed)
    model = build_model(data, config, tokenizer)
    if warm is not None and not resume:
        settings["fresh"] = warm_start(model, warm)
        say(f"warm start: all tensors copied but {len(settings['fresh'])} of {len(model.state_dict())}")
    if config.train.shard_tables:
        if config.train.average or config.train.replicas != 1:
            raise InputError("train.shard_tables", found="average or replicas, which copy whole models",
                             expected="neither",
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
    announce_run(loop, data)
    places = (run, *copies) if ranks.first else ()
    with RunLog(places, loop.progress.step if resume
                else 0) as records, repeatable(device), kept_heap(device.type == "cpu"):
        loop.run_steps(records)
    return finish_run(loop, settings) if ranks.first else run


def train_or_resume(data: Path, run: Path, config: Config, **inputs: Path | None) -> None:
    """Go on where a killed run of the same settings stands.

    A run of others, or one whose state cannot be read, moves aside where that is allowed (`artefacts.moving_aside`);
    one that was killed before it saved anything always does. Any other error leaves the run as it is: a card that is
    missing now, a full disk or a loss that diverged is no reason to train anew.
    """
    if (run / "resume.pt").is_file() and not (run / MARKERS["run"]).is_file():
        try:
            train(data, run, config, resume=True, **inputs)
            return
        except StaleRun as error:
            move_aside(run, InputError(run, found=error.found, expected=error.expected,
                                       do="--force moves it aside under a dated name and trains anew; or give another "
                                          "folder"))
    if run.is_dir() and (run / MARKERS["run"]).is_file():
        move_aside(run, InputError(run, found="a whole run", expected="none", do="give another folder, or --force"))
    if run.is_dir():
        with moving_aside(say):
            move_aside(run, InputError(run, found="a run that was killed before it saved anything", expected="none",
                                       do=""))
    train(data, run, config, **inputs)


if __name__ == "__main__":
    run_alone(train)
