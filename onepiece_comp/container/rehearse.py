"""The whole life of a submission as the platform has it: training job, release, evaluation job, score.

Both jobs run from an uploaded folder in a process of their own (`sandbox.py`), with the platform's variables, quota
and time limit. The evaluation's driver behaves as the organisers' does, and shares no code with the package.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from onepiece_comp.artefacts import MARKERS, read_json, read_marker, write_json
from onepiece_comp.config import ScoreConfig, SplitConfig
from onepiece_comp.console import say, table
from onepiece_comp.container.sandbox import NOT_PROMISED, Ended, run_job
from onepiece_comp.container.upload import check_upload
from onepiece_comp.errors import InputError
from onepiece_comp.stages.score import score
from onepiece_comp.stages.split import split

_RELEASABLE = re.compile(r"global_step[A-Za-z0-9_\-=.]*")
_WRITTEN = ("split", "checkpoints", "events", "log", "cache", "released", "result", "training.log", "evaluation.log",
            "score.json", MARKERS["rehearsal"])
_DRIVER = """
import json, os, shutil, sys, time
sys.path.append(os.environ["EVAL_INFER_PATH"])
from infer import infer
started, result = time.time(), os.environ["EVAL_RESULT_PATH"]
top10s, users = infer()
short = sum(len(ten) < 10 for ten in top10s)
if short:
    print(f"warning: {short} users with fewer than ten", flush=True)
with open(os.path.join(result, "result.json"), "w") as file:
    json.dump({"time": time.time() - started, "top10s": top10s, "user": users}, file)
for name in os.listdir(result):
    path = os.path.join(result, name)
    if name != "result.json":
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
"""


class Limits(NamedTuple):
    """What the platform allows a job, and what its container lacks."""

    minutes: float = 0.0  # 0 = no limit
    cache_gib: float = 20.0
    hidden: Sequence[str] = NOT_PROMISED
    keep_cache: bool = False  # what an earlier rehearsal left in USER_CACHE_PATH is there, as between jobs of one team


def rehearse(raw: Path, out: Path, pack: Path, *, limits: Limits = Limits(), splitting: SplitConfig = SplitConfig(),
             judging: ScoreConfig = ScoreConfig()) -> Path:
    """Split RAW, train and answer from the folders of `pack`, score; writes OUT/rehearsal.json and returns it."""
    pack, out = Path(pack).resolve(), Path(out).resolve()
    stored = read_marker(pack, "pack")
    check_upload(pack, stored)
    _claim(out, Path(raw).resolve(), pack, keep=("cache",) if limits.keep_cache else ())
    split(raw, out / "split", splitting)
    trained = training_job_of(pack / "training", out / "split" / "train", out, limits)
    released = release(out / "checkpoints", out / "released")
    answered = evaluation_job_of(pack / "evaluation", released, out / "split" / "eval", out, limits)
    check_result(out / "result" / "result.json", out / "evaluation.log")
    score(out / "result" / "result.json", out / "split" / "truth.jsonl", judging, out=out / "score.json")
    figures = {"training seconds": round(trained.seconds, 1), "evaluation seconds": round(answered.seconds, 1),
               "cache MiB": round(_bytes(out / "cache") / 2**20, 1), "checkpoint": released.name,
               "checkpoint MiB": round(_bytes(released) / 2**20, 1), "network": trained.network,
               "hidden": " ".join(trained.hidden)}
    write_json(out / MARKERS["rehearsal"], {"pack": stored["folders"], "figures": figures})
    table("rehearsal", ("what", "value"), figures.items())
    return out / MARKERS["rehearsal"]


def _claim(out: Path, raw: Path, pack: Path, *, keep: Sequence[str] = ()) -> None:
    """A new or empty folder, or an earlier rehearsal's, of which goes what a rehearsal writes and nothing else."""
    for needed in (raw, pack):
        if needed.is_relative_to(out):
            raise InputError(out, found=f"{needed} in it", expected="a folder apart from the log and the pack",
                             do="choose another folder with --out")
    if not any((raw / name).exists() for name in ("seq.jsonl", "seq")):
        raise InputError(raw, found="neither seq.jsonl nor seq/", expected="a log as training reads it",
                         do="check the path")
    ours = out.is_dir() and ((out / MARKERS["rehearsal"]).is_file() or (out / "training.log").is_file())
    if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, found="a folder that is no rehearsal's", expected="a new or empty folder",
                         do="choose another folder with --out")
    for path in [out / name for name in _WRITTEN if ours and name not in keep]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)


def training_job_of(scripts: Path, data: Path, out: Path, limits: Limits) -> Ended:
    """`bash run.sh` with the variables of a training job; InputError when the cache outgrows its quota."""
    places = {"TRAIN_DATA_PATH": data, "TRAIN_CKPT_PATH": out / "checkpoints", "TRAIN_TF_EVENTS_PATH": out / "events",
              "TRAIN_LOG_PATH": out / "log", "USER_CACHE_PATH": out / "cache"}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    say(f"training job: {out / 'training.log'}")
    ended = run_job(["bash", str(scripts / "run.sh")], _texts({**places, "RUNTIME_SCRIPT_DIR": scripts}), folder=out,
                    log=out / "training.log", hidden=limits.hidden, minutes=limits.minutes)
    _within_quota(out / "cache", limits, "training")
    return ended


def release(checkpoints: Path, released: Path) -> Path:
    """What the platform offers of a training job's checkpoints: the last folder whose name it accepts, copied."""
    folders = sorted((path for path in checkpoints.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    fitting = [path for path in folders if _RELEASABLE.fullmatch(path.name) and list(path.glob("*.pt"))]
    if not fitting:
        raise InputError(checkpoints, found=", ".join(path.name for path in folders) or "nothing",
                         expected="a folder global_step... of letters, digits and _-=. with a .pt file in it",
                         do="write the checkpoint there")
    return Path(shutil.copytree(fitting[-1], released / fitting[-1].name))


def evaluation_job_of(scripts: Path, checkpoint: Path, data: Path, out: Path, limits: Limits) -> Ended:
    """The organisers' driver around `infer()` of the evaluation folder;
    InputError when the cache outgrows its quota.
    """
    places = {"MODEL_OUTPUT_PATH": checkpoint, "EVAL_DATA_PATH": data, "EVAL_RESULT_PATH": out / "result",
              "EVAL_INFER_PATH": scripts, "USER_CACHE_PATH": out / "cache"}
    (out / "result").mkdir(parents=True, exist_ok=True)
    say(f"evaluation job: {out / 'evaluation.log'}")
    ended = run_job([sys.executable, "-c", _DRIVER], _texts(places), folder=out, log=out / "evaluation.log",
                    hidden=limits.hidden, minutes=limits.minutes)
    _within_quota(out / "cache", limits, "evaluation")
    return ended


def _within_quota(cache: Path, limits: Limits, job: str) -> None:
    used = _bytes(cache)
    if used > limits.cache_gib * 2**30:
        raise InputError(cache, found=f"{used / 2**30:.2f} GiB after the {job} job",
                         expected=f"at most {limits.cache_gib:g} GiB",
                         do="see `onepiece-comp plan` for what fits")


def check_result(path: Path, log: Path) -> None:
    """InputError unless the driver left ten whole numbers for each user and nothing else in the folder."""
    result = read_json(path)
    wrong = sum(len(set(ten)) != 10 or any(type(item) is not int for item in ten) for ten in result["top10s"])
    if wrong or len(result["top10s"]) != len(result["user"]):
        raise InputError(path, found=f"{wrong} of {len(result['user'])} users without ten distinct creative ids",
                         expected="ten for each user", do=f"see {log}")
    beside = [name.name for name in path.parent.iterdir() if name != path]
    if beside:
        raise InputError(path.parent, found=f"{beside[0]} beside result.json", expected="result.json alone",
                         do=f"see {log}")


def _texts(places: dict[str, Path]) -> dict[str, str]:
    return {name: str(place) for name, place in places.items()}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
