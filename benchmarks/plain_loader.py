"""The official loader's scheme, written plainly: the slow side of `loader.py`.

A sample is one user: seek to a JSON line, a dict of features for each of 102 positions padded on the left, defaults
for what is missing, a random negative drawn until it is none of the user's items; a collate function makes tensors of
the dicts, feature by feature.
"""

import json
from pathlib import Path

import numpy as np
import torch

from onepiece_comp.logs.embeddings import find_embeddings, read_embedding
from onepiece_comp.logs.formats import read_index
from onepiece_comp.logs.pickles import load_pickle

WIDTH = 102  # positions of the official arrays, padded on the left
USER_ARRAYS = ("106", "107", "108", "110")
EMBEDDING = "81"
_BITS = (1 << 64) - 1
Batch = dict[str, torch.Tensor]


def drawn(draw: int | np.ndarray, items: int) -> int | np.ndarray:
    """An item 1..items for the number of a draw, by splitmix64's last steps; a whole number or an array of uint64."""
    draw = (draw ^ (draw >> 30)) * 0xBF58476D1CE4E5B9 & _BITS
    draw = (draw ^ (draw >> 27)) * 0x94D049BB133111EB & _BITS
    return ((draw >> 32) * items >> 32) + 1


class PlainDataset(torch.utils.data.Dataset):
    """One sample per user, as the official loader makes it: everything in Python objects."""

    def __init__(self, raw: Path, item_features: list[str], user_features: list[str], width: int):
        self.path = raw / "seq.jsonl"
        self.reopen()
        self.offsets = load_pickle(raw / "seq_offsets.pkl", list)
        self.item_features = json.loads((raw / "item_feat_dict.json").read_text())
        self.creative_id = {reid: creative for creative, reid in read_index(raw / "indexer.pkl").items.items()}
        vectors = read_embedding(find_embeddings(raw)[EMBEDDING])
        self.vector = {item: v.astype(np.float16).astype(np.float32) for item, v in vectors if v is not None}
        self.item_ids, self.user_ids, self.no_vector = item_features, user_features, np.zeros(width, np.float32)
        self.nothing = self.filled({}, 0)

    def reopen(self, worker: int = 0) -> None:
        """Open the log; each worker must, for forked ones would share one place in the file."""
        self.file = open(self.path, "rb")  # noqa: SIM115

    def __len__(self) -> int:
        return len(self.offsets)

    def filled(self, features: dict, item: int) -> dict:
        """The features with a default for each that is missing, and the item's vector."""
        filled = dict(features)
        for fid in self.item_ids:
            if fid not in filled:
                filled[fid] = 0
        for fid in self.user_ids:
            if fid not in filled:
                filled[fid] = [0] if fid in USER_ARRAYS else 0
        filled[EMBEDDING] = self.vector.get(self.creative_id.get(item), self.no_vector)
        return filled

    def negative(self, user: int, position: int, own: set[int]) -> int:
        for attempt in range(64):
            item = drawn((user * WIDTH + position) * 64 + attempt + 1, len(self.item_features))
            if item not in own:
                return item
        return 0

    def __getitem__(self, number: int) -> dict:
        self.file.seek(self.offsets[number])
        tokens, own = [], set()
        for user, item, user_features, item_features, action, _ in json.loads(self.file.readline()):
            if user_features:
                tokens.insert(0, (user, self.filled(user_features, 0), 2, None))
            if item and item_features:
                tokens.append((item, self.filled(item_features, item), 1, action))
                own.add(item)
        names = ("seq", "pos", "neg", "token_type", "next_token_type", "next_action_type")
        sample = {name: np.zeros(WIDTH, np.int32) for name in names}
        features = {name: [self.nothing] * WIDTH for name in names[:3]}
        at, following = WIDTH - 1, tokens[-1]
        for token in reversed(tokens[:-1]):
            sample["seq"][at], features["seq"][at], sample["token_type"][at], _ = token
            sample["next_token_type"][at] = following[2]
            if following[3] is not None:
                sample["next_action_type"][at] = following[3]
            sample["pos"][at], features["pos"][at] = following[:2]
            negative = self.negative(number, at, own)
            sample["neg"][at], features["neg"][at] = negative, self.filled(self.item_features[str(negative)], negative)
            following, at = token, at - 1
            if at < 0:
                break
        return {**sample, "features": features}

    def collate(self, samples: list[dict]) -> Batch:
        """Samples to tensors, one feature after the other."""
        batch = {name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
                 for name in samples[0] if name != "features"}
        for name in ("seq", "pos", "neg"):
            rows = [sample["features"][name] for sample in samples]
            for fid in self.item_ids + (self.user_ids if name == "seq" else []):
                if fid in USER_ARRAYS:
                    longest = max(len(features[fid]) for row in rows for features in row)
                    values = np.zeros((len(rows), WIDTH, longest), np.int32)
                    for b, row in enumerate(rows):
                        for position, features in enumerate(row):
                            values[b, position, :len(features[fid])] = features[fid]
                else:
                    values = np.array([[features[fid] for features in row] for row in rows], np.int32)
                batch[f"{name}/{fid}"] = torch.from_numpy(values)
            vectors = np.stack([np.stack([features[EMBEDDING] for features in row]) for row in rows])
            batch[f"{name}/{EMBEDDING}"] = torch.from_numpy(vectors)
        return batch
