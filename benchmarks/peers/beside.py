"""Other people's SASRec beside ours: the same split, the same judge, each with its own code and environment.

python benchmarks/peers/beside.py rectools beauty DATA work/peers --epochs 20
python benchmarks/peers/beside.py recbole beauty DATA work/peers --epochs 20

Makes work/peers/PEER-env with pip unless --python names an environment that has what PEER needs. A peer trains a number
of epochs that is given, without validation: choose it on ours, or compare at several. Writes work/peers/PEER.json.
"""

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np

from onepiece_comp.artefacts import atomic_file, write_json
from onepiece_comp.benchmark.full_ranking import CUTS, FILTERS, Scored, batches_of, figures, judge
from onepiece_comp.benchmark.interactions import (
    Interactions, files_of, first_users, read_interactions, sha256, targets, train_counts)
from onepiece_comp.benchmark.rows import PROTOCOLS, rows

# one call of pip for each list; RecBole 1.2.1 is of 2023 and asks for what no longer installs, so it comes without what
# it asks for
NEEDS = {"rectools": [["rectools[torch]"]],
         "recbole": [["torch==2.13.0", "numpy==1.24.4", "scipy==1.11.4", "pandas==2.0.3", "colorlog==4.7.2",
                      "colorama==0.4.4",
                      "setuptools==80.9.0", "tabulate", "texttable", "psutil", "thop", "tqdm", "pyyaml", "plotly",
                      "tensorboard",
                      "scikit-learn"],
                     ["--no-deps", "recbole==1.2.1"]]}
COST = ("train_seconds", "train_cpu_seconds", "users_per_second", "peak_memory_mib")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=NEEDS)
    parser.add_argument("name")
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--users", type=int, default=0, help="the first so many alone; 0 = all")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = all")
    parser.add_argument("--python", help="of an environment that has what the peer needs")
    asked = parser.parse_args()
    protocol = PROTOCOLS[asked.name]
    log = read_interactions(asked.data, form=protocol.form, ties=protocol.ties)
    log = first_users(log, asked.users) if asked.users else log
    asked.work = asked.work.resolve()
    asked.work.mkdir(parents=True, exist_ok=True)
    split, lists = asked.work / "split.npz", asked.work / f"{asked.peer}.npz"
    write_split(log, split)
    # a link is not followed: its place is what names the environment
    python = asked.python and os.path.abspath(shutil.which(asked.python) or asked.python)
    worker = Path(__file__).resolve().with_name(f"{asked.peer}_worker.py")
    # in the work folder, since both libraries write logs of their own where they are started
    subprocess.run([python or _environment(asked.work / f"{asked.peer}-env", asked.peer), worker, split, lists,
                    "--epochs", str(asked.epochs), "--length", str(protocol.max_length), "--threads",
                    str(asked.threads),
                    "--width", str(rows(asked.name)["sasrec-softmax"].width)],
                   check=True, cwd=asked.work, env=_own_environment())
    held = np.load(lists)
    found = {"protocol": asked.name, "peer": str(held["peer"]), "epochs": asked.epochs, "users": log.users,
             "threads": asked.threads, "data_sha256": sha256(files_of(asked.data, form=protocol.form)),
             **{name: float(held[name]) for name in COST}, "figures": judge_lists(log, lists)}
    write_json(asked.work / f"{asked.peer}.json", found)
    print("  ".join(f"{name} {found[name]:,.1f}" for name in COST))
    for kind in FILTERS:
        print(f"{kind:7s}" + "  ".join(f"{name} {found['figures'][kind][name]:.4f}" for name in ("hr@10", "ndcg@10",
            "hr@200")))


def _environment(folder: Path, peer: str) -> str:
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        for wanted in NEEDS[peer]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True, env=_own_environment())
    return str(python)


def _own_environment() -> dict[str, str]:
    """The variables of this process without the path of our packages, which are not the peer's."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def write_split(log: Interactions, path: Path) -> None:
    """All events but each user's last, and which of them training may see: all but the one before it."""
    user = np.repeat(np.arange(log.users), np.diff(log.start))
    place = np.arange(len(log.item)) - log.start[user]
    from_end = log.start[user + 1] - np.arange(len(log.item))
    kept = from_end > 1
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, user=user[kept], item=log.item[kept], place=place[kept], train=(from_end > 2)[kept])


def judge_lists(log: Interactions, path: Path) -> dict[str, dict[str, float]]:
    """Our figures of lists of items: what is not in a list ranks behind all of it."""
    held, target, counts, found = np.load(path), targets(log, 1), train_counts(log), {}
    assert (held["user"] == np.arange(log.users)).all(), "the lists are of other users"
    for kind in FILTERS:
        def batches(lists: np.ndarray = held[kind]):
            for users in batches_of(np.arange(log.users), 256):
                score = np.zeros((len(users), log.items + 1), np.float32)
                np.put_along_axis(score, lists[users], np.arange(CUTS[-1], 0, -1, dtype=np.float32)[None], 1)
                yield Scored(score, target[users], np.zeros((len(users), 1), np.int64))
        found[kind] = figures(judge(batches(), items=log.items)["all"], counts, target)
    return found


if __name__ == "__main__":
    sys.exit(main())
