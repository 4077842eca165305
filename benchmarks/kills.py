"""A run that is killed again and again ends with the weights of the one that was left alone.

    python benchmarks/kills.py DATASET WORK --kills 20 --results benchmarks/results

The unbroken run tells how long starting and training take; the other is killed (SIGKILL) a random stretch after it has
started and resumed each time, with the state written every few steps. The last start runs to the end. On CPU the
weights must be equal bit for bit; the script fails when they are not.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from onepiece_comp.console import say, table
from onepiece_comp.training.checkpoint import MODEL, find_checkpoint
from onepiece_comp.training.weights import load_tensors


def command(dataset: Path, run: Path, sets: list[str], *, resume: bool) -> list[str]:
    return [sys.executable, "-m", "onepiece_comp", "train", str(dataset), str(run),
            *(part for text in sets for part in ("--set", text)), *(["--resume"] if resume else [])]


def killed_after(seconds: float, start: list[str]) -> bool:
    """Whether the process had to be killed: it may also come to its end."""
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode:
        sys.exit(errors)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="sets", nargs="*", default=["train.epochs=0.3", "train.save_minutes=0.03"])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    whole, broken = options.work / "unbroken", options.work / "killed"
    for run in (whole, broken):
        shutil.rmtree(run, ignore_errors=True)
    options.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    subprocess.run(command(options.dataset, whole, options.sets, resume=False), check=True, stdout=subprocess.DEVNULL)
    took, draw, steps = time.monotonic() - started, random.Random(options.seed), []
    training = json.loads((whole / "run.json").read_text())["figures"]["seconds"]
    for kill in range(options.kills):
        saved = any((broken / name).is_file() for name in ("resume.pt", "run.json"))  # whole, it says so and ends
        if not saved:
            shutil.rmtree(broken, ignore_errors=True)
        stretch = draw.uniform(0, 1.6 / options.kills) * training  # on average all kills come before the end
        if not killed_after(took - training + stretch, command(options.dataset, broken, options.sets, resume=saved)):
            sys.exit(f"training ended after {kill} kills: give it more epochs")
        steps.append(load_tensors(broken / "resume.pt")["progress"][0] if (broken / "resume.pt").is_file() else 0)
        say(f"kill {kill + 1}: the state is that of step {steps[-1]}")
    subprocess.run(command(options.dataset, broken, options.sets, resume=True), check=True, stdout=subprocess.DEVNULL)
    first, second = (torch.load(find_checkpoint(run) / MODEL, weights_only=True) for run in (whole, broken))
    equal = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    rows = [("kills", str(options.kills)), ("of these before the first state was written", str(steps.count(0))),
            ("steps of the state after each kill", " ".join(map(str, steps))),
            ("seconds of the unbroken run", f"{took:.0f}"), ("weights equal, bit for bit", "yes" if equal else "NO")]
    table("kills", ("what", "value"), rows)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "kills.md").write_text("\n".join([
        f"`python benchmarks/kills.py DATASET WORK --kills {options.kills} --seed {options.seed} --set "
        f"{' '.join(options.sets)}`", "", "| what | value |", "|---|---|",
        *(f"| {a} | {b} |" for a, b in rows)]) + "\n")
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
