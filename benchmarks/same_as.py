"""Does this checkout still do what another commit did? The same commands under both, and what they wrote side by side.

    python benchmarks/same_as.py COMMIT --data ../shared/data --out /tmp/same_as [--only
    run,ladder,benchmark,tokenizers,rehearse]

Compared: losses of every log line, results but for their time, weights under their new names (`RENAMED`), codes of
tokenizers, figures of reports. One thread each. What stands in OUT already is not run again. Exit code 1 where anything
differs.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
RENAMED: tuple[tuple[str, str], ...] = ()  # patterns of names of weights: of the commit, of this checkout
THREADS = ("--set", "train.threads=1", "--set", "infer.threads=1")
LADDER = """config:
  split: {cut: "2022-05-03T00:00:00Z", until: "2022-05-06T00:00:00Z"}
  model: {temperature: 0.05}
  train: {epochs: 1, threads: 1, moment_lag_hours: 12, batch_users: 256, sampled_negatives: 6200,
          validation_users: 1000}
  infer: {mode: retrieval, threads: 1}
rows:
  the recipe: {}
"""
# how fast it was,
TIMES = re.compile(r"seconds|time|memory|per_second|users_per|events_per|users/s|flops|share_of_peak"
                   r"|path|source|evaluation|version|left|wrote|^key$|^pack$|^vectors$")  # and where it stands


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(CASES))
    options = parser.parse_args()
    out = options.out.resolve()
    before = out / "checkout"
    if not before.is_dir():
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(before), options.commit], check=True)
    differences = 0
    for name in options.only.split(","):
        found = {side: dict(_run(name, checkout, out / side / name, options.data.resolve()))
                 for side, checkout in (("before", before), ("after", ROOT))}
        different = sorted(key for key in found["before"].keys() | found["after"].keys()
                           if not _equal(found["before"].get(key), found["after"].get(key)))
        print(f"{name}: {len(found['after'])} things compared, {len(different)} differ", flush=True)
        for key in different[:20]:
            print(f"    {key}: {str(found['before'].get(key))[:80]} -> {str(found['after'].get(key))[:80]}", flush=True)
        differences += len(different)
    sys.exit(bool(differences))


def _run(name: str, checkout: Path, work: Path, data: Path) -> Iterator[tuple[str, object]]:
    """The commands of a case under a checkout, unless they have been run, and what they wrote."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "ladder.yaml").write_text(LADDER, "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    for number, command in enumerate(CASES[name]):
        done = work / f".done-{number}"
        if done.is_file():
            continue
        arguments = [argument.format(data=data) for argument in command]
        with open(work / f"{number}.log", "w", encoding="utf-8") as log:
            subprocess.run([sys.executable, "-m", "onepiece_comp", *arguments], cwd=work, env=environment, check=True,
                           stdout=log, stderr=subprocess.STDOUT)
        done.touch()
    return _written(work)


CASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "run": (("synthesize", "raw", "--set", "synthesize.users=2400"), ("run", "raw", "work", *THREADS)),
    "ladder": (("convert", "kuairand", "{data}/kuairand_pure", "raw"),
               ("ablate", "ladder.yaml", "raw", "work", "--seeds", "1", "--best", "0")),
    "benchmark": (("benchmark", "beauty", "--data", "{data}/amazon2014_beauty", "--out", "work", "--quick", "--threads",
                   "1",
                   "--models", "popularity,item-knn,sasrec-softmax,hstu-softmax,esasrec,tiger,cobra,"
                   "onepiece-cascade"),),
    "tokenizers": (("preprocess", "{data}/tencentgr_1k_sample", "dataset", "--set", "preprocess.max_odd_share=1"),
                   ("tokenizer-report", "dataset", "work/page.html", "--vectors", "emb_81", "--quantiser",
                    "residual_kmeans",
                    "--quantiser", "fsq", "--rule", "assignment", "--rule", "greedy")),
    "rehearse": (("rehearse", "{data}/tencentgr_1k_sample", "--out", "work/package", *THREADS),
                 ("pack", "work/flat", "--preset", "tiny", "--flat", "--no-check", *THREADS),
                 ("rehearse", "{data}/tencentgr_1k_sample", "--out", "work/played", "--pack", "work/flat")),
}


def _written(work: Path) -> Iterator[tuple[str, object]]:
    for path in sorted(work.rglob("*")):
        name = str(path.relative_to(work))
        if path.name in ("environment.json", "pack.json", "manifest.json",
                         "stages.json") or "/training/" in name or "/evaluation/" in name:
            continue
        if path.name == "log.jsonl":
            for number, line in enumerate(path.read_text("utf-8").splitlines()):
                yield from _values(f"{name}:{number}", json.loads(line))
        elif path.name in ("result.json", "score.json", "funnel.json",
                           "truth.jsonl") or path.suffix == ".json" and path.stat().st_size < 1 << 22:
            yield from _values(name, [json.loads(line) for line in path.read_text("utf-8").splitlines()]
                               if path.suffix == ".jsonl" else json.loads(path.read_text("utf-8")))
        elif path.suffix == ".npy":
            yield name, np.load(path)
        elif path.name == "model.pt":
            for key, value in torch.load(path, weights_only=True).items():
                yield f"{name}:{_new_name(key)}", value.numpy()


def _new_name(weight: str) -> str:
    for old, new in RENAMED:
        weight = re.sub(old, new, weight)
    return weight


def _values(place: str, value: object) -> Iterator[tuple[str, object]]:
    """Every number and text of a JSON value by its place, those about time and paths left out."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not TIMES.search(key) and not str(part).startswith("/"):
                yield from _values(f"{place}/{key}", part)
    elif isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        for number, part in enumerate(value):
            yield from _values(f"{place}/{number}", part)
    else:
        yield place, value


def _equal(first: object, second: object) -> bool:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    return type(first) is type(second) and (first == second or first != first and second != second)


if __name__ == "__main__":
    main()
