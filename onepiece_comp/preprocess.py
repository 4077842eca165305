"""From the organisers' training files to columns on disk: train/ in, dataset/ out.

One pass over `seq.jsonl`, memory bounded by the item tables. Columns: `item_row`, `action`, `time_seconds` [events],
`user_start` [users + 1], `user_token` with `user_token_start`, `item_features`, `item_count`, `creative_id`
[items + 1], `emb_*` with presence, `trend_counts`. Row 0 of every item table is padding. `schema.json` ends it.
"""

import itertools
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp import __version__
from onepiece_comp.artefacts import (
    MARKERS, ColumnWriter, atomic_folder, fingerprint, load_column, peak_memory_mib, read_json, read_marker, write_json)
from onepiece_comp.config import PreprocessConfig, to_dict
from onepiece_comp.console import progress, say, table
from onepiece_comp.embeddings import EmbeddingSource, find_embeddings, read_embedding
from onepiece_comp.errors import InputError
from onepiece_comp.features import ItemFeatures, Profiles, Schema, creative_by_row, split_features
from onepiece_comp.formats import (
    UNKNOWN_ACTION, Index, UserLine, check_offsets, read_index, read_item_features, read_sequences)
from onepiece_comp.trend import Trend, choose_bucket_seconds, load_trend, write_counts

_USERS_PER_BLOCK = 4096
_USERS_TO_LEARN_FEATURES_FROM = 2000


class ItemTable(NamedTuple):
    """What is known of a set of items, row by row; row 0 is padding.

    In a dataset row = item row. At inference a table holds only the items needed; `id_row` is then the item's row in
    the training catalogue, 0 for a cold one.
    """

    creative_id: np.ndarray  # int64 [n]
    id_row: np.ndarray  # int64 [n]
    features: np.ndarray  # int32 [n, F], values (not tokens)
    embeddings: dict[str, np.ndarray]  # feature id to float16 [n, width]
    present: dict[str, np.ndarray]  # feature id to bool [n]


class Dataset(NamedTuple):
    """The memory-mapped columns of a dataset folder."""

    path: Path
    schema: Schema
    fingerprint: str
    item_row: np.ndarray  # int32 [events]
    action: np.ndarray  # int8 [events]
    time_seconds: np.ndarray  # int64 [events]
    user_start: np.ndarray  # int64 [users + 1]
    user_token: np.ndarray  # int32 [tokens]
    user_token_start: np.ndarray  # int64 [users + 1]
    item_count: np.ndarray  # int64 [items + 1]
    items: ItemTable
    trend: Trend


def load_dataset(path: Path) -> Dataset:
    """Open a dataset folder; InputError when it is none or of another version."""
    path = Path(path)
    marker = read_marker(path, "dataset")
    schema = Schema.from_dict(marker, path / MARKERS["dataset"])
    columns = {name: load_column(path, name) for name in (
        "item_row", "action", "time_seconds", "user_start", "user_token", "user_token_start", "item_count")}
    items = ItemTable(
        load_column(path, "creative_id"), np.arange(schema.items + 1), load_column(path, "item_features"),
        {fid: load_column(path, f"emb_{fid}") for fid in schema.embeddings},
        {fid: load_column(path, f"emb_{fid}_present") for fid in schema.embeddings})
    trend = load_trend(path, first_second=marker["first_second"], bucket_seconds=schema.trend_bucket_seconds)
    return Dataset(path, schema, marker["fingerprint"], items=items, trend=trend, **columns)


def preprocess(train: Path, out: Path, config: PreprocessConfig) -> Path:
    """Read the training files in `train` once and write the dataset folder `out`."""
    train, started = Path(train), time.monotonic()
    sequences = train / "seq.jsonl"
    if not sequences.is_file():
        raise InputError(sequences, found="no such file", expected="the competition's training files",
                         do="give the folder that holds seq.jsonl (a split's train/)")
    check_offsets(sequences, train / "seq_offsets.pkl")
    index = read_index(train / "indexer.pkl")
    items = len(index.items)
    item_features, user_features, identity = split_features(index, _user_feature_ids(train), items)
    with atomic_folder(out, MARKERS["dataset"]) as folder:
        matrix, notes = _item_matrix(train, ItemFeatures(item_features, items + 1, ignored=identity), items)
        profiles = Profiles(user_features, config.max_array_values)
        counts, corners, first, last = _write_events(sequences, folder, items, matrix, profiles)
        np.save(folder / "item_features.npy", matrix.values)
        np.save(folder / "item_count.npy", counts)
        creative = creative_by_row(index.items)
        np.save(folder / "creative_id.npy", creative)
        widths, coverage = _write_embeddings(train, folder, index, config)
        bucket = choose_bucket_seconds(items=items, events=corners["events"], span_seconds=last - first,
                                       budget_mib=config.trend_budget_mib, hours=config.trend_bucket_hours)
        write_counts(folder, items=items, bucket_seconds=bucket, first_second=first, last_second=last)
        end = first + ((last - first) // bucket + 1) * bucket
        schema = Schema(items, item_features, user_features, widths, fingerprint(creative), bucket, end)
        corners.update({f"item: {what}": n for what, n in matrix.odd.items()})
        corners.update({f"user: {what}": n for what, n in profiles.odd.items()})
        corners["items without features"] = int(items - matrix.recorded[1:].sum())
        figures = {"corners": dict(sorted(corners.items())), "coverage": coverage, "notes": notes,
                   "identity_features": identity, "seconds": round(time.monotonic() - started, 2),
                   "peak_memory_mib": round(peak_memory_mib())}
        write_json(
            folder / MARKERS["dataset"],
            {
                "version": __version__,
                "config": to_dict(config),
                "source": str(train.resolve()),
                "first_second": first,
                "fingerprint": fingerprint(sequences, train / "indexer.pkl", to_dict(config)),
                **schema.to_dict(),
                **figures,
            },
        )
    _report(out, schema, figures)
    return Path(out)


def _user_feature_ids(train: Path) -> set[str]:
    """Features of users: those that user_feat_num.json names and those of the first profiles."""
    stated = train / "user_feat_num.json"
    ids = set(read_json(stated)) if stated.is_file() else set()
    for line in itertools.islice(read_sequences(train / "seq.jsonl"), _USERS_TO_LEARN_FEATURES_FROM):
        ids.update(line.profile)
    return ids


def _item_matrix(train: Path, matrix: ItemFeatures, items: int) -> tuple[ItemFeatures, list[str]]:
    path = train / "item_feat_dict.json"
    if not path.is_file():
        return matrix, ["item_feat_dict.json is missing: item features are taken from the records"]
    for row, record in progress(read_item_features(path), total=None, what="item features"):
        if not 1 <= row <= items:
            raise InputError(f"{path}: key {row}", found="an item outside indexer.pkl", expected=f"1 to {items}",
                             do="use the files of one release together")
        matrix.add(row, record)
    return matrix, []


def _check_known(line: UserLine, items: int, place: str) -> None:
    worst = max((event.item for event in line.events), default=1)
    if worst > items or min((event.item for event in line.events), default=1) < 1:
        raise InputError(place, found=f"item {worst}", expected=f"1 to {items}, as in indexer.pkl",
                         do="use the seq.jsonl and indexer.pkl of one release together")


def _write_events(sequences: Path, folder: Path, items: int, matrix: ItemFeatures, profiles: Profiles,
                  ) -> tuple[np.ndarray, Counter, int, int]:
    """Stream the users into columns; returns item counts, corner counts, first and last second."""
    counts, corners = np.zeros(items + 1, np.int64), Counter()
    described = matrix.recorded.copy()  # items whose own record or first snapshot has been read
    first, last = 1 << 62, 0
    with (
        ColumnWriter(folder, "item_row", "int32") as rows,
        ColumnWriter(folder, "action", "int8") as actions,
        ColumnWriter(folder, "time_seconds", "int64") as times,
        ColumnWriter(folder, "user_start", "int64") as starts,
        ColumnWriter(folder, "user_token", "int32") as tokens,
        ColumnWriter(folder, "user_token_start", "int64") as token_starts,
    ):
        starts.append(np.zeros(1))
        token_starts.append(np.zeros(1))
        for number, line in enumerate(progress(read_sequences(sequences), total=None, what="users"), start=1):
            _check_known(line, items, f"{sequences}:{number}")
            _count_corners(line, corners)
            events = sorted(line.events, key=lambda event: event.time)  # stable: ties keep the file's order
            for event in events:
                if not described[event.item]:
                    described[event.item] = True
                    matrix.add(event.item, event.features)
            row = np.fromiter((event.item for event in events), np.int64, len(events))
            rows.append(row)
            actions.append(
                np.fromiter((UNKNOWN_ACTION if e.action is None else e.action for e in events), np.int8, len(events))
            )
            times.append(np.fromiter((event.time for event in events), np.int64, len(events)))
            np.add.at(counts, row, 1)
            tokens.append(np.array(profiles.tokens(line.profile), np.int32))
            starts.append(np.array([rows.rows]))
            token_starts.append(np.array([tokens.rows]))
            if events:
                first, last = min(first, events[0].time), max(last, events[-1].time)
    if not rows.rows:
        raise InputError(sequences, found="no events", expected="at least one user with an event", do="check the file")
    return counts, corners, first, last


def _count_corners(line: UserLine, corners: Counter) -> None:
    corners["users"] += 1
    corners["events"] += len(line.events)
    for event in line.events:
        corners[
            ("exposures", "clicks", "conversions")[event.action] if event.action is not None else "null actions"
        ] += 1
    times = [event.time for event in line.events]
    corners["events at the time of the one before"] += sum(a == b for a, b in zip(times, times[1:]))
    corners["users not in time order"] += any(a > b for a, b in zip(times, times[1:]))
    if line.profile_place is None:
        corners["users without profile record"] += 1
    else:
        where = "last" if line.profile_place == len(line.events) else "mid-sequence" if line.profile_place else "first"
        corners[f"profile records {where}"] += 1


def _write_embeddings(train: Path, folder: Path, index: Index, config: PreprocessConfig) -> tuple[dict, dict]:
    """Each wanted table as a float16 matrix by item row with presence bits; widths and coverage by feature id."""
    widths, coverage = {}, {}
    for fid, source in find_embeddings(train).items():
        if fid in config.embeddings:
            loaded = load_embedding(source, index.items, len(index.items) + 1, max_width=config.max_embedding_width)
            if loaded is None:
                say(
                    f"embedding {fid}: left out, wider than preprocess.max_embedding_width = {config.max_embedding_width}"
                )
                continue
            matrix, present, empty = loaded
            widths[fid] = matrix.shape[1]
            coverage[fid] = {
                "items": int(present.sum()),
                "missing": int(len(index.items) - present.sum()),
                "records_without_emb": empty,
            }
            np.save(folder / f"emb_{fid}.npy", matrix)
            np.save(folder / f"emb_{fid}_present.npy", present)
    return widths, coverage


def load_embedding(source: EmbeddingSource, row_of: dict[int, int], rows: int, *, max_width: int,
                   width: int | None = None) -> tuple[np.ndarray, np.ndarray, int] | None:
    """A float16 matrix [rows, width], presence bits [rows] and the count of records without a vector.

    `row_of` maps creative ids to rows; others are skipped. None when the table is wider than `max_width`; InputError
    when it is not of the `width` asked for.
    """
    matrix, present, empty = None, np.zeros(rows, bool), 0
    for creative_id, vector in progress(read_embedding(source), total=None, what=f"embedding {source.feature}"):
        if vector is None:
            empty += 1
            continue
        if matrix is None:
            if width is not None and vector.size != width:
                raise InputError(
                    source.path,
                    found=f"embeddings of width {vector.size}",
                    expected=f"{width}, as in training",
                    do="use the embedding table that the model was trained with",
                )
            if vector.size > max_width:
                return None
            matrix = np.zeros((rows, vector.size), np.float16)
        row = row_of.get(creative_id)
        if row is not None:
            matrix[row], present[row] = vector, True
    return (np.zeros((rows, width or 1), np.float16) if matrix is None else matrix), present, empty


def _report(out: Path, schema: Schema, figures: dict) -> None:
    corners = figures["corners"]
    rows = [(what, f"{count:,}") for what, count in corners.items() if count]
    rows += [("items", f"{schema.items:,}"), ("item features", len(schema.item_features)),
             ("user features", len(schema.user_features)),
             ("popularity bucket", f"{schema.trend_bucket_seconds // 3600} h")]
    for fid, cover in figures["coverage"].items():
        rows.append((f"emb_{fid}: width", schema.embeddings[fid]))
        rows.append((f"emb_{fid}: items without vector", f"{cover['missing']:,}"))
        rows.append((f"emb_{fid}: records without emb", f"{cover['records_without_emb']:,}"))
    rows += [("seconds", figures["seconds"]), ("peak memory, MiB", figures["peak_memory_mib"])]
    table("preprocess", ("what", "count"), rows)
    for note in figures["notes"]:
        say(f"note: {note}")
    if figures["identity_features"]:
        say(f"note: left out {', '.join(figures['identity_features'])}: nearly one value per item, the item id again")
    say(f"wrote {out}")
