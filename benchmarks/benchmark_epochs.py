"""CPU seconds of an epoch (training and validation) of each row, from the first users of a public benchmark, scaled up.

python benchmarks/benchmark_epochs.py ml-1m-order DATA --users 300 --models sasrec-softmax,hstu

Scaled by users, which are in no order of length in the published files. CPU time, so that a busy machine does not count.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from onepiece_comp.benchmark_rows import PROTOCOLS, chosen
from onepiece_comp.console import be_quiet
from onepiece_comp.interactions import first_users, read_interactions
from onepiece_comp.next_item_training import train_next_item


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
        if config.model == "sequence":
            epoch = train_next_item(few, dataclasses.replace(config, epochs=1), max_length=protocol.max_length, seed=0).epochs[0]
            print(f"{asked.name}  {row:16s} {epoch.cpu_seconds * log.users / few.users:8.1f} CPU s an epoch", flush=True)


if __name__ == "__main__":
    main()
