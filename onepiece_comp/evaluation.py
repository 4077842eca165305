"""The evaluation folder as arrays: histories, candidates and the table of just the items that they need.

Reads `predict_seq.jsonl`, `predict_set.jsonl`, `indexer.pkl`, `creative_emb/` against the schema of a checkpoint, so
inference needs no dataset folder. Items are numbered locally: 0 = padding, then by first appearance; an item keeps
the training row in `id_row`, 0 where training never saw it. Memory: the histories' columns and the items needed.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import fingerprint
from onepiece_comp.console import progress
from onepiece_comp.embeddings import find_embeddings
from onepiece_comp.errors import InputError
from onepiece_comp.features import ItemFeatures, Profiles, Schema, creative_by_row
from onepiece_comp.formats import (
    UNKNOWN_ACTION, Index, UserLine, check_offsets, read_action_types, read_candidates, read_index, read_item_features,
    read_sequences)
from onepiece_comp.preprocess import ItemTable, load_embedding


class Evaluation(NamedTuple):
    """Users to serve and candidates to choose from, in local item numbers."""

    users: list[str]  # original ids, in file order
    item: np.ndarray  # int64 [events], local item
    action: np.ndarray  # int8 [events]
    time_seconds: np.ndarray  # int64 [events]
    user_start: np.ndarray  # int64 [users + 1]
    user_token: np.ndarray  # int32 [tokens]
    user_token_start: np.ndarray  # int64 [users + 1]
    target_action: np.ndarray  # int8 [users], -1 where the folder does not tell
    candidate: np.ndarray  # int64 [M], local items in file order
    items: ItemTable


class _LocalItems:
    """Numbers items as they come: creative id to local row, filling features from the records seen."""

    def __init__(self, index: Index, schema: Schema):
        self.index = index
        self.creative_of = creative_by_row(index.items)
        self.rows: dict[int, int] = {}
        known = {feature.id for feature in schema.item_features}
        self.features = ItemFeatures(schema.item_features, 1024, ignored=set(index.features) - known)

    def creative(self, item: int) -> int:
        """A re-id's creative id; numbers beyond the index are creative ids already."""
        return int(self.creative_of[item]) if item < len(self.creative_of) else item

    def row(self, creative_id: int, features: dict) -> int:
        row = self.rows.setdefault(creative_id, len(self.rows) + 1)
        if row >= len(self.features.values) or not self.features.recorded[row]:
            self.features.add(row, features)
        return row


def read_evaluation(folder: Path, schema: Schema, *, max_array_values: int = 16) -> Evaluation:
    """Read an evaluation folder.

    InputError when its items are not those of the schema (another dataset's checkpoint), when a user stands twice or
    the candidate set has fewer than ten items.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, found="no such folder", expected="an evaluation folder with predict_seq.jsonl",
                         do="check the path")
    index = read_index(folder / "indexer.pkl")
    _check_item_space(folder, index, schema)
    local = _LocalItems(index, schema)
    candidate = _candidates(folder / "predict_set.jsonl", local)
    histories = _histories(folder, local, Profiles(schema.user_features, max_array_values))
    _fill_known_features(folder, local)
    table = _item_table(folder, local, schema)
    actions = read_action_types(folder)
    target_action = np.array([actions.get(user, -1) for user in histories["users"]], np.int8)
    return Evaluation(candidate=candidate, items=table, target_action=target_action, **histories)


def _check_item_space(folder: Path, index: Index, schema: Schema) -> None:
    if fingerprint(creative_by_row(index.items)) != schema.item_space:
        raise InputError(folder / "indexer.pkl", found=f"{len(index.items)} items that are not those of the checkpoint",
                         expected=f"the {schema.items} items that the checkpoint was trained on",
                         do="give the evaluation folder of the same data as the checkpoint")


def _candidates(path: Path, local: _LocalItems) -> np.ndarray:
    rows = [local.row(candidate.creative_id, candidate.features)
            for candidate in progress(read_candidates(path), total=None, what="candidates")]
    distinct = len(set(rows))
    if distinct < 10:
        raise InputError(path, found=f"{distinct} distinct candidates", expected="at least ten",
                         do="a top-10 needs ten: check the candidate set")
    if distinct < len(rows):
        raise InputError(
            path,
            found=f"{len(rows) - distinct} candidates that stand twice",
            expected="each creative id once",
            do="remove the repetitions",
        )
    return np.array(rows, np.int64)


def _original_user(line: UserLine, names: dict[int, str]) -> str:
    return line.user if isinstance(line.user, str) else names.get(line.user, str(line.user))


def _histories(folder: Path, local: _LocalItems, profiles: Profiles) -> dict:
    path = folder / "predict_seq.jsonl"
    check_offsets(path, folder / "predict_seq_offsets.pkl")
    names = {reid: user for user, reid in local.index.users.items()}
    users, blocks, tokens = [], [], []
    for line in progress(read_sequences(path), total=None, what="histories"):
        users.append(_original_user(line, names))
        events = sorted(line.events, key=lambda event: event.time)
        block = np.zeros((len(events), 3), np.int64)
        for i, event in enumerate(events):
            block[i] = (local.row(local.creative(event.item), event.features),
                        UNKNOWN_ACTION if event.action is None else event.action, event.time)
        blocks.append(block)
        tokens.append(np.array(profiles.tokens(line.profile), np.int32))
    if len(set(users)) < len(users):
        raise InputError(path, found="a user that stands twice", expected="one line per user", do="merge the lines")
    if not users:
        raise InputError(path, found="no users", expected="at least one line", do="check the file")
    events = np.concatenate(blocks)
    starts = lambda parts: np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return {"users": users, "item": events[:, 0], "action": events[:, 1].astype(np.int8), "time_seconds": events[:, 2],
            "user_start": starts(blocks), "user_token": np.concatenate(tokens), "user_token_start": starts(tokens)}


def _fill_known_features(folder: Path, local: _LocalItems) -> None:
    """Complete what the records lack from item_feat_dict.json, for the items needed."""
    path = folder / "item_feat_dict.json"
    if not path.is_file():
        return
    for reid, features in read_item_features(path):
        row = local.rows.get(local.creative(reid))
        if row is not None:
            local.features.add(row, features)


def _item_table(folder: Path, local: _LocalItems, schema: Schema) -> ItemTable:
    rows = len(local.rows) + 1
    creative = creative_by_row(local.rows)
    id_row = np.array([local.index.items.get(int(creative_id), 0) for creative_id in creative], np.int64)
    embeddings, present = {}, {}
    sources = find_embeddings(folder)
    for fid, width in schema.embeddings.items():
        if fid not in sources:
            raise InputError(
                folder / "creative_emb",
                found=f"no embedding {fid}",
                expected=f"emb_{fid}_*, as in training",
                do="copy creative_emb/ into the evaluation folder",
            )
        embeddings[fid], present[fid], _ = load_embedding(sources[fid], local.rows, rows, max_width=width, width=width)
    return ItemTable(creative, id_row, local.features.values[:rows], embeddings, present)
