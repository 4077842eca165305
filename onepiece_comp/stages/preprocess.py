"""A log to memory-mapped columns: the stage between `split` and `train`."""

import time
from pathlib import Path

import numpy as np

from onepiece_comp import __version__
from onepiece_comp.artefacts import MARKERS, atomic_folder, fingerprint, peak_memory_mib, write_json
from onepiece_comp.columns import load_column
from onepiece_comp.config import PreprocessConfig
from onepiece_comp.config_reading import result_settings, to_dict
from onepiece_comp.dataset.embedding_tables import write_embedding_tables
from onepiece_comp.dataset.event_columns import bound_odd, count_items, refuse_repeated_users, write_events
from onepiece_comp.dataset.popularity_counts import choose_bucket_seconds, write_counts
from onepiece_comp.dataset.preprocess import fill_items, report_columns
from onepiece_comp.logs.features import ItemFeatures, Profiles, Schema, creative_by_row, known_values, split_features
from onepiece_comp.logs.identity import NAME_COLUMN, item_names, numberings, read_names
from onepiece_comp.logs.open_log import open_log
from onepiece_comp.stages.alone import run_alone


def preprocess(train: Path, out: Path, config: PreprocessConfig) -> Path:
    """Read the training files in `train` once and write the dataset folder `out`."""
    log, started = open_log(train), time.monotonic()
    index = log.index()
    items, creative = len(index.items), creative_by_row(index.items)
    item_features, user_features, identity = split_features(index, log.user_feature_ids(), items)
    numbered = numberings(creative, index, names := read_names(log.folder), known_values(item_features, user_features))
    named = item_names(creative, names)
    del index, names  # millions of Python objects
    with atomic_folder(out, MARKERS["dataset"],
                       {"train": str(Path(train).resolve()), **result_settings(config)}) as folder:
        matrix = ItemFeatures(item_features, items + 1, ignored=identity)
        profiles = Profiles(user_features, config.max_array_values)
        notes = fill_items(log, matrix, items, config)
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
            "fingerprint": fingerprint(creative, *columns, schema.to_dict(), result_settings(config)),
            **schema.to_dict(), **figures})
    report_columns(out, schema, figures)
    return Path(out)


if __name__ == "__main__":
    run_alone(preprocess)
