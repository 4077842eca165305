"""RecBole's SASRec on a split that we wrote; runs in RecBole's own environment, without our package.

Reads SPLIT.npz (columns user, item, place, train) and writes LISTS.npz: the first 200 items of each user with and
without the seen filter, and what it cost. Training sees the rows marked `train`; histories at the test are all rows of
the file. Sizes, dropout and step size are those of our row, the rest RecBole's defaults.
"""

import argparse
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer, init_logger, init_seed

LIST, AT_ONCE = 200, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("split")
    parser.add_argument("lists")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=0)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    held = {name: column for name, column in np.load(asked.split).items()}
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), held)
        # RecBole holds the last event of each user out; for us that is the one to validate on, which it must not train
        # on
        config = Config(model="SASRec", dataset="split", config_dict={
            "data_path": folder, "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "MAX_ITEM_LIST_LENGTH": asked.length,
            "eval_args": {"split": {"LS": "valid_only"}, "order": "TO", "mode": "full", "group_by": "user"},
            "train_neg_sample_args": None, "loss_type": "CE", "hidden_size": asked.width, "inner_size": asked.width,
            "n_layers": 2,
            "n_heads": 1, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2, "learning_rate": 0.001,
            "epochs": asked.epochs,
            "train_batch_size": asked.batch, "use_gpu": False, "checkpoint_dir": folder, "state": "INFO",
            "show_progress": False})
        init_seed(0, True)
        init_logger(config)
        dataset = create_dataset(config)
        train, _, _ = data_preparation(config, dataset)
        model = get_model("SASRec")(config, train.dataset).to("cpu")
        started, worked = time.monotonic(), time.process_time()
        get_trainer(config["MODEL_TYPE"], "SASRec")(config, model).fit(train, saved=False, verbose=True)
        trained, trained_cpu = time.monotonic(), time.process_time()
        lists = _lists(model, dataset, held, asked.length)
        ended = time.monotonic()
    users = np.unique(held["user"])
    np.savez(asked.lists, peer=f"RecBole {version('recbole')} SASRec, softmax", user=users, **lists,
             train_seconds=trained - started, train_cpu_seconds=trained_cpu - worked,
             users_per_second=len(users) / (ended - trained),
             peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _write(folder: Path, held: dict[str, np.ndarray]) -> None:
    (folder / "split").mkdir()
    rows = "".join(f"{user}\t{item}\t{place}\n" for user, item, place in zip(held["user"], held["item"], held["place"]))
    (folder / "split" / "split.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows)


@torch.no_grad()
def _lists(model: torch.nn.Module, dataset: object, held: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Items [users, LIST] by score with and without the items of the history; all rows of the split are history."""
    model.eval()
    token = dataset.field2id_token["item_id"]  # RecBole's number to ours, "[PAD]" first
    ours = np.array([0, *map(int, token[1:])])
    theirs = np.zeros(ours.max() + 1, np.int64)
    theirs[ours] = np.arange(len(ours))
    stop = np.flatnonzero(np.diff(held["user"], append=-1)) + 1
    start = np.concatenate([[0], stop[:-1]])
    found = {"unseen": [], "all": []}
    for first in range(0, len(start), AT_ONCE):
        histories = [theirs[held["item"][a:b]] for a, b in zip(start[first:first + AT_ONCE],
                                                               stop[first:first + AT_ONCE])]
        latest = [history[-length:] for history in histories]
        sequence = np.zeros((len(latest), length), np.int64)
        for row, history in enumerate(latest):
            sequence[row, :len(history)] = history
        score = model.full_sort_predict(Interaction({
            "item_id_list": torch.from_numpy(sequence),
            "item_length": torch.tensor([len(history) for history in latest])}))
        score[:, 0] = -torch.inf
        found["all"].append(ours[score.topk(LIST).indices.numpy()])
        for row, history in enumerate(histories):
            score[row, torch.from_numpy(history)] = -torch.inf
        found["unseen"].append(ours[score.topk(LIST).indices.numpy()])
    return {name: np.concatenate(parts) for name, parts in found.items()}


if __name__ == "__main__":
    main()
