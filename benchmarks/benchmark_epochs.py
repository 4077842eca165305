"""CPU seconds of an epoch (training and validation) of each row, from the first users of a public benchmark, scaled up.

python benchmarks/benchmark_epochs.py ml-1m-order DATA --users 300 --models sasrec-softmax,hstu

A row with codes has them of vectors that nothing was learned for: its first stage is a row of its own. The last column
is the look at the test events, which is taken once.

Scaled by users, which are in no order of length in the published files. CPU time, so that a busy machine does not
count.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from onepiece_comp.benchmark.full_ranking import Scorer, judge
from onepiece_comp.benchmark.interactions import first_users, read_interactions
from onepiece_comp.benchmark.next_item_model import NextItemModel
from onepiece_comp.benchmark.next_item_ranking import code_scorer, ranking_of
from onepiece_comp.benchmark.next_item_training import Trained, scored, scorer, train_next_item
from onepiece_comp.benchmark.rows import PROTOCOLS, RowConfig, chosen
from onepiece_comp.benchmark.trained_rows import Task, first_stage, train_codes
from onepiece_comp.console import be_quiet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("data", type=Path)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--models", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    protocol = PROTOCOLS[asked.name]
    log = read_interactions(asked.data, form=protocol.form, ties=protocol.ties)
    few = first_users(log, asked.users)
    be_quiet()
    for row, config in chosen(asked.name, asked.models).items():
        if config.model in ("sequence", "codes"):
            task = Task(Path(), {"protocol": asked.name}, few, protocol.max_length)
            trained, score = _one_epoch(task, dataclasses.replace(config, epochs=1))
            started = time.process_time()
            judge(scored(score, few, 1), items=few.items)
            epoch, test = (seconds * log.users / few.users for seconds in (
                trained.epochs[0].cpu_seconds, time.process_time() - started))
            print(f"{asked.name}  {row:18s} {epoch:8.1f} CPU s an epoch {test:8.1f} CPU s the test", flush=True)


def _one_epoch(task: Task, config: RowConfig) -> tuple[Trained, Scorer]:
    if config.model == "sequence":
        trained = train_next_item(task.log, config, max_length=task.max_length, seed=0)
        return trained, scorer(trained.model, task.log, task.max_length)
    first = NextItemModel(first_stage(task.about["protocol"], config), items=task.log.items, max_length=task.max_length,
                          attributes=task.log.attributes)
    trained = train_codes(task, config, first, seed=0)
    return trained, code_scorer(trained.model, task.log, task.max_length, ranking_of(config))


if __name__ == "__main__":
    main()
