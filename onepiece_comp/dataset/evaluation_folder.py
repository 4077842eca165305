"""The evaluation folder as arrays: histories, candidates and the table of just the items that they need.

Reads `predict_seq.jsonl`, `predict_set.jsonl`, `indexer.pkl`, `creative_emb/` against the schema of a checkpoint, so
inference needs no dataset folder; or the public release, whose histories are those of `seq/`. Items are numbered
locally: 0 = padding, then by first appearance; an item keeps the training row in `id_row`, 0 where training never saw
it. Memory: the histories' columns and the items needed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onepiece_comp.artefacts import fingerprint
from onepiece_comp.console import progress, say
from onepiece_comp.dataset.embedding_tables import load_embedding
from onepiece_comp.dataset.preprocess import ItemTable
from onepiece_comp.dataset.reduction import Projection
from onepiece_comp.errors import InputError
from onepiece_comp.logs.embeddings import find_embeddings
from onepiece_comp.logs.features import ItemFeatures, Profiles, Schema, creative_by_row, known_values
from onepiece_comp.logs.formats import (
    LIST, UNKNOWN_ACTION, Candidate, Index, UserLine, check_offsets, read_action_types, read_candidates, read_index,
    read_item_features, read_sequences)
from onepiece_comp.logs.identity import check_same, numberings, read_names
from onepiece_comp.logs.json_lines import joined
from onepiece_comp.logs.open_log import is_release, open_release
from onepiece_comp.logs.user_blocks import in_time_order

if TYPE_CHECKING:
    from onepiece_comp.logs.release import ReleaseLog


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
        self._ignored = set(index.features) - known
        self._schema = schema
        self.features = self.matrix(1024)

    def matrix(self, rows: int) -> ItemFeatures:
        """An empty matrix of the schema's item features."""
        return ItemFeatures(self._schema.item_features, rows, ignored=self._ignored)

    def creative(self, item: int) -> int:
        """A re-id's creative id; numbers beyond the index are creative ids already."""
        return int(self.creative_of[item]) if item < len(self.creative_of) else item

    def row(self, creative_id: int, features: dict) -> int:
        row = self.rows.setdefault(creative_id, len(self.rows) + 1)
        if row >= len(self.features.values) or not self.features.recorded[row]:
            self.features.add(row, features)
        return row


def read_evaluation(folder: Path, schema: Schema, *, projections: dict[str, Projection] | None = None) -> Evaluation:
    """Read an evaluation folder; `projections` are the checkpoint's, for the embeddings that were reduced.

    InputError when its items are not those of the schema (another dataset's checkpoint), when a user stands twice or
    the candidate set has fewer than ten items.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, found="no such folder", expected="an evaluation folder with predict_seq.jsonl",
                         do="check the path")
    index = read_index(folder / "indexer.pkl")
    _check_identity(folder, index, schema)
    local, profiles = _LocalItems(index, schema), Profiles(schema.user_features, schema.max_array_values)
    if is_release(folder):
        log = open_release(folder)
        candidate = _candidates(folder / "candidate", log.candidates(), local)
        histories = _release_histories(log, local, profiles)
    else:
        path = folder / "predict_set.jsonl"
        candidate = _candidates(path, read_candidates(path), local)
        histories = _histories(folder, local, profiles)
        _fill_known_features(folder, local)
    table = _item_table(folder, local, schema, projections or {})
    actions = read_action_types(folder)
    target_action = np.array([actions.get(user, -1) for user in histories["users"]], np.int8)
    return Evaluation(candidate=candidate, items=table, target_action=target_action, **histories)


def _check_identity(folder: Path, index: Index, schema: Schema) -> None:
    """The index numbers all that the checkpoint knows as training did; what it numbers beyond that is new to both."""
    creative, do = creative_by_row(index.items)[:schema.items
                                                + 1], "give the evaluation folder of the same data as the checkpoint"
    here = numberings(creative, index, read_names(folder), known_values(schema.item_features, schema.user_features))
    check_same(folder / "indexer.pkl", here, schema.numberings, other="the checkpoint", do=do)
    if fingerprint(creative) != schema.item_space:
        raise InputError(folder / "indexer.pkl", found=f"{len(index.items)} items that are not those of the checkpoint",
                         expected=f"the {schema.items} items that the checkpoint was trained on", do=do)


def _candidates(path: Path, candidates: Iterator[Candidate], local: _LocalItems) -> np.ndarray:
    rows = [local.row(candidate.creative_id, candidate.features)
            for candidate in progress(candidates, total=None, what="candidates")]
    distinct = len(set(rows))
    if distinct < LIST:
        raise InputError(path, found=f"{distinct} distinct candidates", expected=f"at least {LIST}, as in an answer",
                         do="check the candidate set")
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
    _check_users(users, path)
    events = np.concatenate(blocks)
    starts = lambda parts: np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return {"users": users, "item": events[:, 0], "action": events[:, 1].astype(np.int8), "time_seconds": events[:, 2],
            "user_start": starts(blocks), "user_token": np.concatenate(tokens), "user_token_start": starts(tokens)}


def _check_users(users: list[str], path: Path) -> None:
    if len(set(users)) < len(users):
        raise InputError(path, found="a user that stands twice", expected="one line per user", do="merge the lines")
    if not users:
        raise InputError(path, found="no users", expected="at least one line", do="check the file")


def _release_histories(log: "ReleaseLog", local: _LocalItems, profiles: Profiles) -> dict:
    """As `_histories`, of all users of the public release, and the features of their items."""
    names = {reid: user for user, reid in local.index.users.items()}
    users = [names.get(reid, str(reid)) for reid in log.user_ids().tolist()]
    _check_users(users, log.sequences)
    items = len(local.index.items)
    catalogue = local.matrix(items + 1)
    for _ in log.item_features(catalogue, most_item=items):
        pass
    local_of, blocks = _KnownItems(local), []
    for block in progress(log.blocks(catalogue, profiles, most_item=items), total=None, what="histories",
                          size=lambda block: len(block.profile_place)):
        block = in_time_order(block)
        blocks.append(block._replace(item=local_of.rows(block.item)))
    local_of.finish(catalogue.values)
    whole = joined(blocks)
    return {"users": users, "item": whole.item, "action": whole.action, "time_seconds": whole.time_seconds,
            "user_start": whole.user_start, "user_token": whole.token, "user_token_start": whole.token_start}


class _KnownItems:
    """Numbers re-ids as `_LocalItems` does, many at a time."""

    def __init__(self, local: _LocalItems):
        self._local, self._row = local, np.zeros(len(local.index.items) + 1, np.int64)
        for creative_id, row in local.rows.items():
            self._row[local.index.items.get(creative_id, 0)] = row
        self._row[0] = 0

    def rows(self, item: np.ndarray) -> np.ndarray:
        """The local row of each re-id; new ones are numbered by first appearance."""
        new, first = np.unique(item[self._row[item] == 0], return_index=True)
        new = new[np.argsort(first)]
        self._row[new] = len(self._local.rows) + 1 + np.arange(len(new))
        self._local.rows.update(zip(self._local.creative_of[new].tolist(), self._row[new].tolist()))
        return self._row[item]

    def finish(self, catalogue: np.ndarray) -> None:
        """Complete the features from those of the catalogue, int32 [items + 1, F]."""
        features, known = self._local.features, np.flatnonzero(self._row)
        values = np.zeros((len(self._local.rows) + 1, features.values.shape[1]), np.int32)
        stated = features.values[:len(values)]
        values[:len(stated)] = stated
        row = self._row[known]
        values[row] = np.where(values[row] > 0, values[row], catalogue[known])
        features.values = values


def _fill_known_features(folder: Path, local: _LocalItems) -> None:
    """Complete what the records lack from item_feat_dict.json, for the items needed; says where most contradict it."""
    path = folder / "item_feat_dict.json"
    if not path.is_file():
        return
    told = other = 0
    for reid, features in read_item_features(path):
        row = local.rows.get(local.creative(reid))
        if row is not None:
            told, other = told + 1, other + local.features.contradicts(row, features)
            local.features.add(row, features)
    if 2 * other > told:
        say(f"note: {other:,} of {told:,} items have other features in {folder} than in its {path.name}: if a split "
            f"wrote "
            "it, split anew; else see whether both number feature values alike")


def _item_table(
    folder: Path, local: _LocalItems, schema: Schema, projections: dict[str, Projection]
) -> ItemTable:
    creative = creative_by_row(local.rows)
    id_row = np.array([local.index.items.get(int(creative_id), 0) for creative_id in creative], np.int64)
    id_row[id_row > schema.items] = 0  # the index goes on where training ended
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
        embeddings[fid], present[fid] = load_embedding(sources[fid], creative, width=width,
                                                       projection=projections.get(fid))
    return ItemTable(creative, id_row, local.features.values[:len(creative)], embeddings, present)
