"""From the organisers' training files to columns on disk: train/ in, dataset/ out.

One pass over the log (`logs/open_log.py`), memory bounded by the item tables. Columns: `item_row`, `action`,
`time_seconds` [events], `user_start` [users + 1], `user_token` with `user_token_start`, `item_features`, `item_count`,
`creative_id` [items + 1], `emb_*` with presence, `trend_counts`. Row 0 of every item table is padding. `schema.json`
ends it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import MARKERS, read_marker
from onepiece_comp.columns import load_column
from onepiece_comp.config import PreprocessConfig
from onepiece_comp.console import progress, say, table
from onepiece_comp.dataset.embedding_tables import coverage_rows
from onepiece_comp.dataset.popularity_counts import Trend, load_trend
from onepiece_comp.logs.features import ItemFeatures, Schema
from onepiece_comp.logs.open_log import Log


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


def fill_items(log: Log, matrix: ItemFeatures, items: int, config: PreprocessConfig) -> list[str]:
    """Read the items' own records; what there is to note about them."""
    done = log.item_features(matrix, most_item=items, reader=config.reader)
    if done is None:
        return ["no record of the items' features: they are taken from the events"]
    for _ in progress(done, total=None, what="item features"):
        pass
    return []


def report_columns(out: Path, schema: Schema, figures: dict) -> None:
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
