"""The platform's two jobs: train on its training folder, and answer its `infer()` call; paths from its variables.

A training job does every stage: columns and tokenizer go to the cache folder, the checkpoint to TRAIN_CKPT_PATH under
a name that begins with global_step. Needs torch, numpy and faiss only.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

from onepiece_comp import __version__
from onepiece_comp.artefacts import MARKERS, atomic_folder, moving_aside, read_json, write_json
from onepiece_comp.config import Config, InferConfig
from onepiece_comp.config_ranges import check_ranges
from onepiece_comp.config_reading import load_config, merge, result_settings, to_dict
from onepiece_comp.console import say
from onepiece_comp.container.job_cache import JobCache
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.environment import eval_paths, train_paths
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.infer import recommend
from onepiece_comp.logs.open_log import log_fingerprint
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.stages.preprocess import preprocess
from onepiece_comp.stages.train import train_or_resume
from onepiece_comp.training.checkpoint import CONFIG, find_checkpoint, load_checkpoint
from onepiece_comp.training.process import choose_device, set_threads


class Frozen(NamedTuple):
    """What `config.json` beside the entry point says."""

    config: Config
    cache_gib: float = 20.0  # quota of USER_CACHE_PATH


def frozen_config(beside: Path) -> Frozen:
    """`config.json` ({"preset": ..., "cache_gib": ..., section: {...}}) where there is one, else the full preset."""
    path = beside / "config.json"
    if not path.is_file():
        return Frozen(load_config("full"))
    stored = read_json(path)
    if not isinstance(stored, dict) or not isinstance(stored.get("preset", ""), str):
        raise InputError(path, found=str(stored)[:80], expected="an object whose preset is a name", do="pack it again")
    preset, cache_gib = stored.pop("preset", "full"), stored.pop("cache_gib", 20.0)
    if type(cache_gib) not in (int, float) or cache_gib <= 0:
        raise InputError(f"{path}: cache_gib", found=repr(cache_gib), expected="a number above 0", do="correct it")
    config = merge(load_config(preset), stored, lambda *keys: f"{path}: {'.'.join(keys)}")
    check_ranges(config)
    return Frozen(config, float(cache_gib))


@moving_aside(say)
def training_job(frozen: Frozen) -> Path:
    """All stages of training, those of an earlier job reused; returns the checkpoint folder under TRAIN_CKPT_PATH."""
    paths, config = train_paths(), frozen.config
    cache = JobCache(paths.cache, quota_bytes=frozen.cache_gib * 2**30)
    learning = [result_settings(config.model), result_settings(config.train)]
    data = cache.made("dataset", [__version__, log_fingerprint(paths.data), result_settings(config.preprocess)],
                      MARKERS["dataset"],
                      lambda out: preprocess(paths.data, out, config.preprocess))
    first = cache.made("retrieval", [data.name, learning], MARKERS["run"],
                       lambda out: train_or_resume(data, out, config))
    codes = cache.made("tokenizer", [first.name, to_dict(config.tokenizer)], MARKERS["tokenizer"],
                       lambda out: build_tokenizer(data, out, config.tokenizer, checkpoint=first))
    joint = cache.made("joint", [codes.name, learning], MARKERS["run"],
                       lambda out: train_or_resume(data, out, config, tokenizer=codes, warm=first, events=paths.events,
                                                   log=paths.log))
    target = _checkpoint_for_release(find_checkpoint(joint), paths.checkpoints, config.infer)
    cache.close()
    say(f"checkpoint: {target}")
    return target


def _checkpoint_for_release(best: Path, checkpoints: Path, infer: InferConfig) -> Path:
    """A copy with this job's settings of inference: a run that is reused may have been made with others."""
    with atomic_folder(checkpoints / best.name, CONFIG) as folder:
        shutil.copytree(best, folder, dirs_exist_ok=True)
        write_json(folder / CONFIG, {**read_json(folder / CONFIG), "infer": to_dict(infer)})
    return checkpoints / best.name


def evaluation_job(config: InferConfig | None = None) -> tuple[list[list[int]], list[str]]:
    """(top10s, users) for the evaluation folder, as the platform's driver expects them."""
    paths = eval_paths()
    checkpoint = load_checkpoint(paths.checkpoint, choose_device("cpu"))
    config = config or checkpoint.infer
    checkpoint = checkpoint._replace(model=checkpoint.model.to(choose_device(config.device)))
    set_threads(config.threads)
    evaluation = read_evaluation(paths.data, checkpoint.model.schema, projections=checkpoint.projections)
    submission = recommend(checkpoint, evaluation, config)
    paths.result.mkdir(parents=True, exist_ok=True)
    write_json(paths.result / "funnel.json", submission.funnel)
    return submission.top10s, submission.users
