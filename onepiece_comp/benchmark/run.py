"""A public benchmark end to end: one result per row and seed with all that is needed to repeat it, and a table.

WORK/rows/ROW/seed-S.json holds protocol, data checksums, configuration, versions, figures, times; a row that is done
and unchanged is not run again, one that is missing prints 'not run'. WORK/weights/ has the trained models,
WORK/result.json all results of one setting together, and each row's difference to the baselines by user;
WORK/benchmark.html is its page. A quick run has WORK/quick for all.
The test events are looked at once, by the weights of the best validation epoch.
"""

import dataclasses
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from onepiece_comp import __version__
from onepiece_comp.artefacts import fingerprint, peak_memory_mib, read_json, write_json
from onepiece_comp.benchmark.baselines import knn_scorer, popularity_scorer
from onepiece_comp.benchmark.full_ranking import FILTERS, Scorer, figures, judge
from onepiece_comp.benchmark.interactions import (
    LEAST_EVENTS, Interactions, files_of, first_users, read_interactions, repeats, sha256, targets, train_counts)
from onepiece_comp.benchmark.next_item_ranking import code_scorer, ranking_of
from onepiece_comp.benchmark.next_item_training import by_length, lacks, scored, scorer
from onepiece_comp.benchmark.pairs import save_ranks
from onepiece_comp.benchmark.report import report, setting
from onepiece_comp.benchmark.rows import PROTOCOLS, CodeRowConfig, Protocol, RowConfig, chosen, training_part
from onepiece_comp.benchmark.trained_rows import Learned, Task, check, first_stage, learned_row
from onepiece_comp.config_reading import from_dict, parse_value, to_dict
from onepiece_comp.console import say
from onepiece_comp.errors import InputError

QUICK_USERS, QUICK_EPOCHS = 1000, 2
TRAINED = ("sequence", "codes")  # models that a seed changes
TIES_SEED = 0  # of the protocols that shuffle ties: the data is the same for all seeds of a row


def benchmark(name: str, data: Path, out: Path, *, seeds: Sequence[int] = (0,), models: str = "", quick: bool = False,
              sets: Sequence[str] = (), threads: int = 0) -> Path:
    """Run what is missing of the rows of a protocol and print its table; returns OUT/result.json.

    `quick` takes the first QUICK_USERS users and QUICK_EPOCHS epochs and OUT/quick: it shows that all works, its
    figures say nothing. `sets` are `key=value` of all the rows. Without `models` rows that read what the data does not
    have are left out. InputError for an unknown name, data that cannot be read, and for a row that could not be
    trained.
    """
    out = Path(out) / "quick" if quick else Path(out)
    wanted = {row: _changed(config, sets, quick) for row, config in chosen(name, models).items()}
    protocol = PROTOCOLS[name]
    if threads:
        torch.set_num_threads(threads)
    files = sha256(files_of(data, form=protocol.form))
    log = read_interactions(data, form=protocol.form, ties=protocol.ties, seed=TIES_SEED)
    if not log.users:
        raise InputError(data, found=f"{log.left_out:,} users, none with {LEAST_EVENTS} events", do="give a longer log",
                         expected="users with an event to train on, one to validate and one to test")
    about = {"protocol": name, **to_dict(protocol), "data_sha256": files, "users": log.users, "items": log.items,
             "events": len(log.item), "users_left_out": log.left_out, "quick": quick,
             "data_as_published": _as_published(log, protocol)}
    say(f"{name}, version {protocol.version}: {log.users:,} users, {log.items:,} items, {len(log.item):,} events"
        + ("" if about["data_as_published"] else "; these are not the published data, figures are your own"))
    log = first_users(log, QUICK_USERS) if quick else log
    wanted = wanted if models.strip() else _able(wanted, log, name)
    for config in wanted.values():
        check(config, log, name)
    settings = {}
    for row, config in wanted.items():
        for seed in seeds if config.model in TRAINED else (0,):
            settings[row] = _one(row, config, seed, Task(out, about, log, protocol.max_length))
    page = report(out, name, settings)
    if again := repeats(log, 1):
        say(f"{again:,} of {log.users:,} test items ({again / log.users:.1%}) stand in their user's own history: "
            f"`unseen` hides "
            "what else is there and so gives them away, to every row; read `all`")
    return page


def _able(wanted: dict[str, RowConfig], log: Interactions, name: str) -> dict[str, RowConfig]:
    """The rows that the data has all for, in both of their stages."""
    missing = {row: lacks(log, config) or (isinstance(config, CodeRowConfig) and lacks(log, first_stage(name, config)))
               for row, config in wanted.items()}
    for what in sorted({lack for lack in missing.values() if lack}):
        say(f"left out, for the data has no {what}: {', '.join(row for row, lack in missing.items() if lack == what)}")
    return {row: config for row, config in wanted.items() if not missing[row]}


def _changed(config: RowConfig, sets: Sequence[str], quick: bool) -> RowConfig:
    """The settings of a row with `sets`; a quick run has few epochs in both of its stages."""
    values = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}", found="no key=value", expected="for example epochs=20", do="write it so")
        values[key] = parse_value(value)
    config = from_dict(type(config), {**to_dict(config), **values}, "--set")
    limits = ("epochs", "first_epochs") if isinstance(config, CodeRowConfig) else ("epochs",)
    return dataclasses.replace(config, **{name: min(getattr(config, name), QUICK_EPOCHS) for name in limits if quick})


def _as_published(log: Interactions, protocol: Protocol) -> bool:
    return bool(protocol.published) and (log.users, log.items, len(log.item)) == protocol.published


def _one(row: str, config: RowConfig, seed: int, task: Task) -> str:
    """Run a row under a seed unless its result is there and made of the same things; returns its setting."""
    path, log = task.out / "rows" / row / f"seed-{seed}.json", task.log
    first = first_stage(task.about["protocol"], config) if isinstance(config, CodeRowConfig) else None
    if log.attributes and (config.attributes or (first and first.attributes)):
        task = task._replace(about={**task.about, "attributes": fingerprint(*log.attributes)})
    about = {**task.about, "first": training_part(first)} if first else task.about
    made_of = setting(about, to_dict(config))
    key = fingerprint(made_of, seed)
    if path.is_file() and read_json(path).get("key") == key:
        say(f"{row}, seed {seed}: done before ({path})")
        return made_of
    say(f"== {row}, seed {seed}")
    started, worked = time.monotonic(), time.process_time()
    score, learned = _scorer(config, task, seed)
    fitted, fitted_cpu = time.monotonic(), time.process_time()
    judged = judge(scored(score, log, 1), items=log.items)
    ended, counts, target = time.monotonic(), train_counts(log), targets(log, 1)[by_length(log)]
    # what was trained in an earlier call, or for another row, counts as if it had been trained here
    train_seconds, train_cpu = (fitted - started, fitted_cpu - worked) if learned is None else learned.cost()
    save_ranks(path, judged)
    write_json(path, {
        "key": key, "row": row, "seed": seed, "about": about, "config": to_dict(config), "versions": _versions(),
        "figures": {name: figures(judged[name], counts, target) for name in FILTERS},
        **_training(learned), "train_seconds": train_seconds,
        "seconds": train_seconds + ended - fitted, "cpu_seconds": train_cpu + time.process_time() - fitted_cpu,
        "users_per_second": log.users / (ended - fitted), "threads": torch.get_num_threads(),
        "peak_memory_mib": peak_memory_mib()})
    return made_of


def _scorer(config: RowConfig, task: Task, seed: int) -> tuple[Scorer, Learned | None]:
    if config.model == "popularity":
        return popularity_scorer(task.log), None
    if config.model == "item_knn":
        return knn_scorer(task.log), None
    learned = learned_row(task, config, seed)
    if isinstance(config, CodeRowConfig):
        return code_scorer(learned.trained.model, task.log, task.max_length, ranking_of(config)), learned
    return scorer(learned.trained.model, task.log, task.max_length), learned


def _training(learned: Learned | None) -> dict:
    """Epochs and size of what was learned, and the stage before it."""
    if learned is None:
        return {"best_epoch": None, "epochs": [], "parameters": 0}
    trained, first = learned.trained, learned.first
    return {"best_epoch": trained.best_epoch, "epochs": [epoch._asdict() for epoch in trained.epochs],
            "parameters": sum(part.numel() for part in trained.model.parameters()),
            **({"first": {"best_epoch": first.trained.best_epoch, "seconds": first.seconds}} if first else {})}


def _versions() -> dict[str, str]:
    return {"onepiece_comp": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__, "machine": platform.machine()}
