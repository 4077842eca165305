"""From the organisers' training files to columns on disk: train/ in, dataset/ out.

One pass over the log (`log_source.py`), memory bounded by the item tables. Columns: `item_row`, `action`,
`time_seconds` [events], `user_start` [users + 1], `user_token` with `user_token_start`, `item_features`, `item_count`,
`creative_id` [items + 1], `emb_*` with presence, `trend_counts`. Row 0 of every item table is padding. `schema.json`
ends it.
"""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp import __version__
from onepiece_comp.artefacts import MARKERS, atomic_folder, fingerprint, peak_memory_mib, read_marker, write_json
from onepiece_comp.columns import load_column
from onepiece_comp.config import PreprocessConfig
from onepiece_comp.config_reading import result_settings, to_dict
from onepiece_comp.console import progress, say, table
from onepiece_comp.embedding_tables import coverage_rows, write_embedding_tables
from onepiece_comp.engine import write_events
from onepiece_comp.event_columns import bound_odd, count_items, refuse_repeated_users
from onepiece_comp.features import ItemFeatures, Profiles, Schema, creative_by_row, known_values, split_features
from onepiece_comp.identity import NAME_COLUMN, item_names, numberings, read_names
from onepiece_comp.log_source import Log, open_log
from onepiece_comp.trend import Trend, choose_bucket_seconds, load_trend, write_counts


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
    log, started = open_log(train), time.monotonic()
    index = log.index()
    items, creative = len(index.items), creative_by_row(index.items)
    item_features, user_features, identity = split_features(index, log.user_feature_ids(), items)
    numbered = numberings(creative, index, names := read_names(log.folder), known_values(item_features, user_features))
    named = item_names(creative, names)
    del index, names  # millions of Python objects
    with atomic_folder(out, MARKERS["dataset"], {"train": str(Path(train).resolve()), **result_settings(config)}) as folder:
        matrix = ItemFeatures(item_features, items + 1, ignored=identity)
        profiles = Profiles(user_features, config.max_array_values)
        notes = _fill_items(log, matrix, items, config)
        np.save(folder / "creative_id.npy", creative)
        if named is not None:
            np.save(folder / f"{NAME_COLUMN}.npy", named)
        events = write_events(log, folder, matrix=matrix, profiles=profiles, config=config)
        refuse_repeated_users(log, events.user)
        bound_odd(log, events.corners, matrix, profiles, config.max_odd_share)
        np.save(folder / "item_count.npy", count_items(folder, items))
        np.save(folder / "item_features.npy", matrix.values)
        corners = {**events.corners, **{f"item: {what}": n for what, n in matrix.odd.items()},
                   **{f"user: {what}": n for what, n in profiles.odd.items()},
                   "items without features": int(items - matrix.recorded[1:].sum())}
        del matrix
        widths, coverage = write_embedding_tables(log.folder, folder, creative, config)
        span = events.last_second - events.first_second
        bucket = choose_bucket_seconds(items=items, events=corners["events"], span_seconds=span,
                                       budget_mib=config.trend_budget_mib, hours=config.trend_bucket_hours)
        write_counts(folder, items=items, bucket_seconds=bucket, first_second=events.first_second,
                     last_second=events.last_second)
        end = events.first_second + (span // bucket + 1) * bucket
        schema = Schema(items, item_features, user_features, widths, fingerprint(creative), bucket, end,
                        config.max_array_values, numbered)
        source = {"path": str(Path(train).resolve()), "layout": log.layout, "notes": notes,
                  "profile records": {what: n for what, n in corners.items() if "profile record" in what},
                  "seconds": round(time.monotonic() - started, 2), "peak_memory_mib": round(peak_memory_mib())}
        figures = {"corners": {what: n for what, n in sorted(corners.items()) if n and "profile record" not in what},
                   "coverage": coverage, "identity_features": identity, "source": source}
        columns = [load_column(folder, name) for name in (
            "item_row", "action", "time_seconds", "user_start", "user_token", "user_token_start", "item_features",
            *(f"emb_{fid}" for fid in widths))]
        write_json(folder / MARKERS["dataset"], {
            "version": __version__, "config": to_dict(config), "first_second": events.first_second,
            "fingerprint": fingerprint(creative, *columns, schema.to_dict(), result_settings(config)), **schema.to_dict(), **figures})
    _report(out, schema, figures)
    return Path(out)


def _fill_items(log: Log, matrix: ItemFeatures, items: int, config: PreprocessConfig) -> list[str]:
    """Read the items' own records; what there is to note about them."""
    done = log.item_features(matrix, most_item=items, reader=config.reader)
    if done is None:
        return ["no record of the items' features: they are taken from the events"]
    for _ in progress(done, total=None, what="item features"):
        pass
    return []


def _report(out: Path, schema: Schema, figures: dict) -> None:
    corners = figures["corners"]
    rows = [(what, f"{count:,}") for what, count in corners.items()]
    rows += [("items", f"{schema.items:,}"), ("item features", len(schema.item_features)),
             ("user features", len(schema.user_features)),
             ("popularity bucket", f"{schema.trend_bucket_seconds // 3600} h")]
    rows += coverage_rows(schema.embeddings, figures["coverage"])
    source = figures["source"]
    rows += [(what, f"{count:,}") for what, count in source["profile records"].items() if count]
    rows += [("seconds", source["seconds"]), ("peak memory, MiB", source["peak_memory_mib"])]
    table("preprocess", ("what", "count"), rows)
    for note in source["notes"]:
        say(f"note: {note}")
    if figures["identity_features"]:
        say(f"note: left out {', '.join(figures['identity_features'])}: nearly one value per item, the item id again")
    say(f"wrote {out}")
