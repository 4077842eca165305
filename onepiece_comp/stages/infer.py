"""A checkpoint and an evaluation folder in, a checked result.json out."""

import dataclasses
import functools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from onepiece_comp.artefacts import write_json
from onepiece_comp.config import InferConfig
from onepiece_comp.config_reading import to_dict
from onepiece_comp.console import say, table
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.infer import WITHOUT_RANKER, Submission, choose_mode, recommend, stored_config
from onepiece_comp.stages.alone import run_alone
from onepiece_comp.training.checkpoint import load_checkpoint
from onepiece_comp.training.process import choose_device, set_threads


def infer(checkpoint: Path, out: Path, config: InferConfig, *, data: Path | None = None, truth: Path | None = None,
          beside: Sequence[str] = (), shard: tuple[int, int] = (0, 1)) -> Path | None:
    """Write out/result.json and out/funnel.json; `data` defaults to the evaluation folder that the run remembers.

    Other modes named in `beside` are written to out/{mode}.json too, for comparison. Until the result is written,
    answers are kept in out/parts; of several shards the last one to end writes it, for the others it is None.
    """
    started, out = time.monotonic(), Path(out)
    set_threads(config.threads)
    loaded = load_checkpoint(checkpoint, choose_device(config.device))
    config = dataclasses.replace(config, mode=choose_mode(config.mode, loaded))
    data = data or (Path(loaded.evaluation) if loaded.evaluation else None)
    if data is None:
        raise InputError(
            "--data",
            found="nothing, and the run remembers no evaluation folder",
            expected="a folder with predict_seq.jsonl",
            do="give --data EVAL",
        )
    evaluation = read_evaluation(data, loaded.model.schema, projections=loaded.projections)
    answer = functools.partial(recommend, loaded, evaluation, truth=truth, keep=out, shard=shard)
    submission = answer(config)
    if submission is None:
        say(f"shard {shard[0] + 1} of {shard[1]} is done; when all are, infer with the same --out joins them")
        return None
    for name, other in _beside(config, beside, with_truth=truth is not None):
        _write(out / f"{name}.json", submission if other == config else answer(other), time.monotonic() - started)
    write_json(out / "funnel.json", {**submission.funnel, "checkpoint": loaded.path.name, "settings": to_dict(config)})
    _write(out / "result.json", submission, time.monotonic() - started)
    shutil.rmtree(out / "parts", ignore_errors=True)
    _report(submission.funnel, out)
    return out / "result.json"


def _beside(config: InferConfig, modes: Sequence[str], *, with_truth: bool) -> list[tuple[str, InferConfig]]:
    """What else is ranked, for comparison: other modes, all without the ranker, and the same without it."""
    plain = dataclasses.replace(config, ranker="")
    others = [(mode, dataclasses.replace(plain, mode=mode)) for mode in modes]
    if config.ranker and with_truth and config.mode not in modes:
        others.append((WITHOUT_RANKER, plain))
    return others


def _write(path: Path, submission: Submission, seconds: float) -> None:
    write_json(path, {"time": round(seconds, 3), "top10s": submission.top10s, "user": submission.users}, indent=None)


def _report(funnel: dict, out: Path) -> None:
    rows = [(step["step"], f"{step['per_user']:,.1f}", f"{step['targets']:.4f}" if "targets" in step else "")
            for step in funnel["steps"]]
    rows += [(f"places filled: {name}", f"{count:,}", "") for name, count in funnel["filled"].items() if count]
    table(f"infer: {funnel['mode']}, {funnel['users']:,} users, {funnel['users_per_second']:,} users/s, "
          f"{funnel['users_without_history']:,} without history", ("step", "kept per user", "targets kept"), rows)
    if "ranker" in funnel and not funnel["ranker"]["kept"]:
        say(f"{funnel['ranker']['path']} was not better than no ranker on its validation users, so it was left out")
    if "index" in funnel:
        found = ", ".join(f"{100 * value:.1f} % of the best {name.rpartition('_')[2]}"
                          for name, value in funnel["index"].items() if name.startswith("recall"))
        say(f"{funnel['index']['kind']} finds {found} of exact retrieval ({funnel['index']['users']} users)")
    say("asked for: " + ", ".join(f"{name}, {count:,} users" for name, count in funnel["asked_for"].items()))
    say(f"wrote {out / 'result.json'}")


if __name__ == "__main__":
    run_alone(infer, settings=lambda options: stored_config(options.checkpoint, options.config, options.sets))
