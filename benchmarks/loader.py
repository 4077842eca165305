"""Users per second of the batch loader against the official scheme written plainly, the same tensors from both.

    python benchmarks/loader.py --users 5000 --batch 128 --rounds 5

Both give ids, token and action types of 102 positions, a random negative each, 13 item features and emb_81 of every
item, positive and negative, and the user's features. To be comparable, negatives come from a hash of user, position
and attempt; vectors have the columns' float16 precision; records repeat their item's one set of features (in the
world one in fifty differs; the columns keep one set an item, and lists of a profile as bags); feature 111, the item's
own id again, is left out.
One process, rounds interleaved, medians.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from plain_loader import EMBEDDING, USER_ARRAYS, WIDTH, Batch, PlainDataset, drawn
from torch.utils.data import DataLoader

from onepiece_comp.config import PreprocessConfig, SynthesizeConfig, TrainConfig
from onepiece_comp.console import table
from onepiece_comp.dataset.preprocess import Dataset, load_dataset
from onepiece_comp.logs.formats import UNKNOWN_ACTION
from onepiece_comp.logs.pickles import save_pickle
from onepiece_comp.models.histories import event_columns, spans
from onepiece_comp.stages.preprocess import preprocess
from onepiece_comp.stages.synthesize import synthesize
from onepiece_comp.training.batches import TrainingBatches

class ColumnLoader:
    """The same tensors from the columns of a dataset; users have at most 101 events, as in the organisers' files."""

    def __init__(self, dataset: Dataset):
        self.columns, self.schema = event_columns(dataset), dataset.schema
        self.user_start = np.asarray(dataset.user_start)
        self.features = np.asarray(dataset.items.features)
        self.vectors = np.asarray(dataset.items.embeddings[EMBEDDING])
        assert np.diff(self.user_start).max() < WIDTH, "longer than the official arrays"

    def batch(self, users: np.ndarray) -> Batch:
        """Tokens stand at the right of [B, WIDTH + 1]: all but the last are `seq`, all but the first are `pos`."""
        columns, width = self.columns, WIDTH + 1
        start, stop = self.user_start[users], self.user_start[users + 1]
        event = stop[:, None] + np.arange(-width, 0)
        inside = event >= start[:, None]
        item, action = (column.take(event, mode="clip") * inside for column in (columns.item, columns.action))
        action = np.where(action == UNKNOWN_ACTION, 0, action).astype(np.int32)
        kind, token = inside.astype(np.int32), item.copy()
        row = np.flatnonzero(columns.user_token_start[users + 1] > columns.user_token_start[users])
        place = width - 1 - (stop - start)[row]
        kind[row, place], token[row, place] = 2, users[row] + 1
        valid = kind[:, :-1] > 0
        positive, negative = item[:, 1:] * valid, self._negatives(users, item) * valid
        batch = {"seq": token[:, :-1], "pos": positive, "neg": negative, "token_type": kind[:, :-1],
                 "next_token_type": kind[:, 1:] * valid, "next_action_type": action[:, 1:] * valid}
        batch = {name: torch.from_numpy(value) for name, value in batch.items()}
        batch.update(self._user_features(users, row, place))
        shared = np.array_equal(positive, item[:, 1:])  # not where a user without profile begins with an item
        self._item_features(batch, [item, negative] + ([] if shared else [positive]))
        return batch

    def _negatives(self, users: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Draws [B, WIDTH], again where the item is the user's own; only those with equal lowest bits are compared."""
        draw = (users.astype(np.uint64)[:, None] * WIDTH + np.arange(WIDTH, dtype=np.uint64)) * 64
        item = drawn(draw + 1, self.schema.items).astype(np.int32)
        bits = np.zeros((len(users), 4096), bool)
        np.put_along_axis(bits, own & 4095, True, 1)
        row, position = np.nonzero(np.take_along_axis(bits, item & 4095, 1))
        for attempt in range(2, 64):
            taken = (own[row] == item[row, position][:, None]).any(1)
            row, position = row[taken], position[taken]
            if not len(row):
                break
            item[row, position] = drawn(draw[row, position] + attempt, self.schema.items)
        return item

    def _item_features(self, batch: Batch, items: list[np.ndarray]) -> None:
        """One gather for items, positives and negatives; the tensors are views of it."""
        row = np.concatenate([part.ravel() for part in items])
        values, vectors = self.features.take(row, axis=0), torch.from_numpy(self.vectors.take(row, axis=0)).float()
        ends = np.cumsum([part.size for part in items])
        for name, part in (("seq", 0), ("neg", 1), ("pos", len(items) - 1 if len(items) > 2 else 0)):
            cut = slice(ends[part] - items[part].size, ends[part])
            shape = items[part].shape
            window = slice(None, -1) if name == "seq" else slice(shape[1] - WIDTH, None)
            found = torch.from_numpy(values[cut]).view(*shape, -1)[:, window]
            for f, feature in enumerate(self.schema.item_features):
                batch[f"{name}/{feature.id}"] = found[:, :, f]
            batch[f"{name}/{EMBEDDING}"] = vectors[cut].view(*shape, -1)[:, window]

    def _user_features(self, users: np.ndarray, row: np.ndarray, place: np.ndarray) -> Batch:
        """Bags of tokens back to features, at the `place` of each `row` with a profile."""
        begin, stop = self.columns.user_token_start[users[row]], self.columns.user_token_start[users[row] + 1]
        token, owner = self.columns.user_token[spans(begin, stop)], np.repeat(np.arange(len(row)), stop - begin)
        offset = np.array([feature.offset for feature in self.schema.user_features])
        which = np.searchsorted(offset, token, side="right") - 1
        new = np.flatnonzero(np.diff(owner * len(offset) + which, prepend=-1))
        slot = np.arange(len(token)) - np.repeat(new, np.diff(new, append=len(token)))
        batch = {}
        for f, feature in enumerate(self.schema.user_features):
            mine = np.flatnonzero(which == f)
            longest = int(slot[mine].max(initial=0)) + 1
            values = np.zeros((len(users), WIDTH, longest), np.int32)
            values[row[owner[mine]], place[owner[mine]], slot[mine]] = token[mine] - feature.offset
            batch[f"seq/{feature.id}"] = torch.from_numpy(values if feature.id in USER_ARRAYS else values[:, :, 0])
        return batch


def agree(raw: Path) -> None:
    """Write seq.jsonl again: records with their item's features in item_feat_dict.json, lists of profiles in order."""
    features, offsets, lines = json.loads((raw / "item_feat_dict.json").read_text()), [0], []
    for line in (raw / "seq.jsonl").read_bytes().splitlines():
        records = json.loads(line)
        for record in records:
            if record[1]:
                record[3] = features[str(record[1])]
            else:
                record[2] = {fid: sorted(v) if isinstance(v, list) else v for fid, v in record[2].items()}
        lines.append(json.dumps(records).encode() + b"\n")
        offsets.append(offsets[-1] + len(lines[-1]))
    (raw / "seq.jsonl").write_bytes(b"".join(lines))
    save_pickle(raw / "seq_offsets.pkl", offsets[:-1])


def contiguous(batch: Batch) -> Batch:
    """Every tensor as memory of its own."""
    return {name: tensor.contiguous() for name, tensor in batch.items()}


def check_equal(plain: Batch, ours: Batch) -> None:
    assert plain.keys() == ours.keys(), plain.keys() ^ ours.keys()
    for name, tensor in plain.items():
        assert tensor.dtype == ours[name].dtype and torch.equal(tensor, ours[name]), name


def training_batches(dataset: Dataset, batch_users: int, *, popularity: bool) -> TrainingBatches:
    """What `train` reads, with the defaults of its configuration."""
    config = TrainConfig()
    return TrainingBatches(
        dataset, stop=np.array(dataset.user_start[1:]), batch_users=batch_users, max_events=WIDTH - 1,
        sampled_negatives=config.sampled_negatives, action_weights=config.action_weights,
        moment_lag_seconds=config.moment_lag_hours * 3600, click_lag_seconds=config.click_lag_hours * 3600,
        horizon_seconds=config.horizon_days * 86400, seed=0, popularity=popularity)


class Clock:
    """Users per second of each way, by processor time and by the wall; one entry a round."""

    def __init__(self) -> None:
        self.rates: dict[str, list[tuple[float, float]]] = {}

    def measure(self, name: str, batches: Iterator, users: int) -> None:
        """Exhaust `batches`, which hold `users` users."""
        processor, wall = time.process_time(), time.perf_counter()
        for _ in batches:
            pass
        self.rates.setdefault(name, []).append((users / (time.process_time() - processor),
                                                users / (time.perf_counter() - wall)))

    def median(self, name: str) -> tuple[float, float]:
        return tuple(statistics.median(rates) for rates in zip(*self.rates[name]))


PLAIN, WORKERS, VIEWS, COPIES = ("official scheme, plain", "official scheme, 2 workers", "columns, features as views",
                                 "columns, every tensor contiguous")
OWN, OWN_PLAIN = "own batches of `train`, popularity windows included", "own batches of `train`, without popularity"


def measure(raw: Path, dataset: Dataset, *, batch_users: int, rounds: int, plain_batches: int) -> Clock:
    """Check that both deliver the same, then take turns."""
    schema, ours, clock = dataset.schema, ColumnLoader(dataset), Clock()
    ids = ([f.id for f in schema.item_features], [f.id for f in schema.user_features])
    plain = PlainDataset(raw, *ids, schema.embeddings[EMBEDDING])
    users = np.random.default_rng(0).permutation(len(plain))
    batches = np.split(users, range(batch_users, len(users), batch_users))
    chosen: list[int] = []
    loader = lambda workers: DataLoader(plain, batch_size=batch_users, sampler=chosen, num_workers=workers,
                                        collate_fn=plain.collate, persistent_workers=workers > 0,
                                        worker_init_fn=plain.reopen)
    alone, helped = loader(0), loader(2)
    own = {name: training_batches(dataset, batch_users, popularity=name == OWN) for name in (OWN, OWN_PLAIN)}
    for turn in range(rounds + 1):
        chosen[:] = np.resize(users[turn * plain_batches * batch_users:], plain_batches * batch_users).tolist()
        if turn == 0:  # equal results first; this also warms everything up
            for number, batch in enumerate(alone):
                check_equal(batch, ours.batch(np.array(chosen[number * batch_users:][:batch_users])))
        clock.measure(PLAIN, iter(alone), len(chosen))
        clock.measure(VIEWS, (ours.batch(part) for part in batches), len(users))
        clock.measure(COPIES, (contiguous(ours.batch(part)) for part in batches), len(users))
        for name, maker in own.items():
            clock.measure(name, maker.epoch(turn), len(maker.users))
        clock.measure(WORKERS, iter(helped), len(chosen))
    clock.rates = {name: rates[1:] for name, rates in clock.rates.items()}
    return clock


def report(clock: Clock, dataset: Dataset, results: Path, options: argparse.Namespace) -> None:
    """Two tables, on the screen and as `loader.md`."""
    base, wall = clock.median(PLAIN)
    rates = [("way", "users/s, processor time", "ratio", "users/s, wall", "ratio")]
    for name in (PLAIN, VIEWS, COPIES, OWN_PLAIN, OWN, WORKERS):
        mine = clock.median(name)
        by_processor = ("-", "-") if name == WORKERS else (f"{mine[0]:,.0f}", f"{mine[0] / base:.1f}x")
        rates.append((name, *by_processor, f"{mine[1]:,.0f}", f"{mine[1] / wall:.1f}x"))
    shares = [("users a batch", "padding, users shuffled", "padding, users of like length together")]
    for users in (16, options.batch, 512):
        maker = training_batches(dataset, users, popularity=False)
        shares.append((users, f"{maker.padding_share(bucketed=False):.1%}", f"{maker.padding_share():.1%}"))
    machine = (f"{platform.machine()}, one thread, torch {torch.__version__}, numpy {np.__version__}; "
               f"{options.users:,} users, batches of {options.batch}, median of {options.rounds} rounds.")
    lines = [f"`python benchmarks/loader.py --users {options.users} --batch {options.batch} --rounds {options.rounds}`",
             "", machine, "Both sides' tensors were compared and are equal, but for `train`'s own batches, which hold "
             "each item once and other negatives. The wall's figures depend on what else the machine does."]
    for head, *rows in (rates, shares):
        table("loader", head, rows)
        lines += ["", *("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows])]
    results.mkdir(parents=True, exist_ok=True)
    (results / "loader.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128, help="users a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain-batches", type=int, default=4, help="batches of the plain loader in a round")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        raw = synthesize(Path(folder) / "raw", SynthesizeConfig(users=options.users))
        agree(raw)
        dataset = load_dataset(preprocess(raw, Path(folder) / "dataset", PreprocessConfig(embeddings=(EMBEDDING,))))
        clock = measure(raw, dataset, batch_users=options.batch, rounds=options.rounds,
                        plain_batches=options.plain_batches)
        report(clock, dataset, options.results, options)


if __name__ == "__main__":
    main()
