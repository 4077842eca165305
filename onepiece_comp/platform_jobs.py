"""The platform's two jobs: train on its training folder, and answer its `infer()` call; paths from its variables.

A training job does every stage: columns and tokenizer go to the cache folder, the checkpoint to TRAIN_CKPT_PATH under
a name that begins with global_step. Needs torch, numpy and faiss only.
"""

import shutil
from pathlib import Path

from onepiece_comp.artefacts import MARKERS, fingerprint, read_json, write_json
from onepiece_comp.checkpoint import find_checkpoint, load_checkpoint
from onepiece_comp.config import Config, InferConfig, load_config, merge, to_dict
from onepiece_comp.console import say
from onepiece_comp.evaluation import read_evaluation
from onepiece_comp.paths import eval_paths, train_paths
from onepiece_comp.preprocess import preprocess
from onepiece_comp.submission import recommend
from onepiece_comp.tokenizer import build_tokenizer
from onepiece_comp.training import choose_device, set_threads, train


def frozen_config(beside: Path) -> Config:
    """`config.json` beside the entry point where there is one ({"preset": ..., section: {...}}), else the full preset."""
    path = beside / "config.json"
    if not path.is_file():
        return load_config("full")
    stored = dict(read_json(path))
    stored.pop("cache_gib", None)
    return merge(load_config(stored.pop("preset", "full")), stored, lambda *keys: f"{path}: {'.'.join(keys)}")


def training_job(config: Config) -> Path:
    """All stages of training; returns the checkpoint folder under TRAIN_CKPT_PATH."""
    paths = train_paths()
    key = fingerprint(to_dict(config), str(paths.data))
    cache = paths.cache / f"onepiece-{key}"
    data, tokenizer = cache / "dataset", cache / "tokenizer"
    if not (data / MARKERS["dataset"]).is_file():
        preprocess(paths.data, data, config.preprocess)
    retrieval = _trained(data, cache / "retrieval", config)
    if not (tokenizer / MARKERS["tokenizer"]).is_file():
        build_tokenizer(data, tokenizer, config.tokenizer, checkpoint=retrieval)
    joint = _trained(
        data, cache / "joint", config, tokenizer=tokenizer, warm=retrieval, events=paths.events, log=paths.log
    )
    best = find_checkpoint(joint)
    target = paths.checkpoints / best.name
    paths.checkpoints.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(best, target)
    say(f"checkpoint: {target}")
    return target


def _trained(data: Path, run: Path, config: Config, **inputs: Path | None) -> Path:
    if not (run / MARKERS["run"]).is_file():
        train(data, run, config, resume=(run / "resume.pt").is_file(), **inputs)
    return run


def evaluation_job(config: InferConfig | None = None) -> tuple[list[list[int]], list[str]]:
    """(top10s, users) for the evaluation folder, as the platform's driver expects them."""
    paths = eval_paths()
    checkpoint = load_checkpoint(paths.checkpoint, choose_device("auto"))
    config = config or checkpoint.infer
    set_threads(config.threads)
    evaluation = read_evaluation(paths.data, checkpoint.model.schema, projections=checkpoint.projections)
    submission = recommend(checkpoint, evaluation, config)
    paths.result.mkdir(parents=True, exist_ok=True)
    write_json(paths.result / "funnel.json", submission.funnel)
    return submission.top10s, submission.users
