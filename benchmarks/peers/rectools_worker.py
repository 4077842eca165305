"""RecTools' SASRec on a split that we wrote; runs in RecTools' own environment, without our package.

Reads SPLIT.npz (columns user, item, place, train) and writes LISTS.npz: the first 200 items of each user with and
without the seen filter, and what it cost. Training sees the rows marked `train`; histories at the test are all rows of
the file.
"""

import argparse
import resource
import time
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

LIST = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("split")
    parser.add_argument("lists")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    held = np.load(asked.split)
    frame = pd.DataFrame({
        Columns.User: held["user"], Columns.Item: held["item"], Columns.Weight: 1.0,
        # one day a place: the order is ours, whatever the times were
        Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(held["place"], unit="D")})
    model = SASRecModel(n_blocks=2, n_heads=1, n_factors=asked.width, dropout_rate=0.2, session_max_len=asked.length,
                        loss="softmax", lr=0.001, batch_size=asked.batch, epochs=asked.epochs, verbose=1,
                        recommend_torch_device="cpu")
    started, worked = time.monotonic(), time.process_time()
    model.fit(Dataset.construct(frame[held["train"]]))
    trained, trained_cpu = time.monotonic(), time.process_time()
    everything, users = Dataset.construct(frame), np.unique(held["user"])
    lists = {name: _lists(model.recommend(users=users, dataset=everything, k=LIST, filter_viewed=name == "unseen",
                                          on_unsupported_targets="ignore"), users) for name in ("unseen", "all")}
    ended = time.monotonic()
    np.savez(asked.lists, peer=f"RecTools {version('rectools')} SASRec, softmax", user=users, **lists,
             train_seconds=trained - started,
             train_cpu_seconds=trained_cpu - worked, users_per_second=2 * len(users) / (ended - trained),
             peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _lists(frame: pd.DataFrame, users: np.ndarray) -> np.ndarray:
    """Items [users, LIST] by rank, 0 where a list ends early."""
    lists = np.zeros((len(users), LIST), np.int64)
    lists[np.searchsorted(users, frame[Columns.User]), frame[Columns.Rank].to_numpy() - 1] = frame[Columns.Item]
    return lists


if __name__ == "__main__":
    main()
