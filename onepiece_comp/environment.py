"""The platform's environment variables: the only reader of `os.environ`."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

from onepiece_comp.errors import InputError


class TrainPaths(NamedTuple):
    """Where a training job reads and writes; `log` is None where the platform sets none."""

    data: Path
    checkpoints: Path
    events: Path | None
    cache: Path
    log: Path | None


class EvalPaths(NamedTuple):
    """Where an evaluation job reads and writes."""

    checkpoint: Path
    data: Path
    result: Path


def _optional(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None


def _required(name: str) -> Path:
    path = _optional(name)
    if path is None:
        raise InputError(f"environment variable {name}", found="not set", expected="a path, as the platform sets it",
                         do="set it, or use the onepiece-comp command, which takes paths as arguments")
    return path


def train_paths() -> TrainPaths:
    """The training job's paths; the cache falls back to a folder beside the checkpoints."""
    checkpoints = _required("TRAIN_CKPT_PATH")
    return TrainPaths(
        data=_required("TRAIN_DATA_PATH"), checkpoints=checkpoints, events=_optional("TRAIN_TF_EVENTS_PATH"),
        cache=_optional("USER_CACHE_PATH") or checkpoints.parent / "cache", log=_optional("TRAIN_LOG_PATH"))


def eval_paths() -> EvalPaths:
    """The evaluation job's paths."""
    return EvalPaths(checkpoint=_required("MODEL_OUTPUT_PATH"), data=_required("EVAL_DATA_PATH"),
                     result=_required("EVAL_RESULT_PATH"))


class Rank(NamedTuple):
    """A process among those that torchrun started; alone by default."""

    rank: int = 0
    ranks: int = 1
    local: int = 0  # its number on this machine


def torchrun_rank() -> Rank:
    """What torchrun says; variables of these names that something else set do not count."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Rank()
    return Rank(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the container's quota where one is set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()[:2]
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def bare_environment(variables: dict[str, str]) -> dict[str, str]:
    """What a job of the platform starts with: its variables, and of ours no more than where programs lie.

    This Python stands first there, since the platform's `run.sh` asks for `python`.
    """
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {"PATH": programs, "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8", **variables}


PLATFORM_VARIABLES = ("RUNTIME_SCRIPT_DIR", "TRAIN_DATA_PATH", "TRAIN_CKPT_PATH", "TRAIN_TF_EVENTS_PATH",
                      "TRAIN_LOG_PATH",
                      "USER_CACHE_PATH", "MODEL_OUTPUT_PATH", "EVAL_DATA_PATH", "EVAL_RESULT_PATH", "EVAL_INFER_PATH")


def stated_variables() -> dict[str, str]:
    """Those of the platform's variables that are set."""
    return {name: os.environ[name] for name in PLATFORM_VARIABLES if os.environ.get(name)}
