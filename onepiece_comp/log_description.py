"""A log or a dataset folder, read once and told in sections and warnings: the larger half of `describe.py`.

A log is read in blocks by the reader that `preprocess.py` uses, a dataset from its memory-mapped columns; memory is
bounded by the item tables. Embedding tables are streamed and only their ids are kept.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefact_sections import marker_section
from onepiece_comp.artefacts import MARKERS, read_marker
from onepiece_comp.blocks import EventBlock
from onepiece_comp.config import PreprocessConfig
from onepiece_comp.console import progress
from onepiece_comp.embedding_tables import RowLookup
from onepiece_comp.embeddings import find_embeddings
from onepiece_comp.features import Feature, ItemFeatures, Profiles, creative_by_row, split_features
from onepiece_comp.log_figures import LogFigures, LogTally, ProfileTally
from onepiece_comp.log_sections import coverage_section, iso, log_section, protocol_section
from onepiece_comp.log_source import Log
from onepiece_comp.log_warnings import (
    Coverage, Warned, coverage_warnings, log_warnings, odd_warnings, profile_warnings, protocol_warnings)
from onepiece_comp.preprocess import Dataset, load_dataset
from onepiece_comp.protocol_figures import count_candidates, has_late_profile
from onepiece_comp.report_html import Section
from onepiece_comp.vector_blocks import read_blocks

_LARGE_TABLE = 1 << 30  # bytes of an embedding table that is counted only when asked for
_PROFILES_LOOKED_AT = 2000
_EVENTS_PER_BLOCK = 1 << 20
_TOLD_ELSEWHERE = ("features", "feature_values", "feature_bins")  # of raw.json: names stand with the coverage


class Description(NamedTuple):
    """What was found; `kind` says what the path is, in words."""

    kind: str
    sections: list[Section]
    warned: list[Warned]


class _Items(NamedTuple):
    """What is known of the items beside their events."""

    values: np.ndarray  # int32 [items + 1, F], feature values
    features: list[Feature]
    identity: list[str]  # features that only repeat the item id
    embeddings: list[Coverage]
    notes: list[str]
    names: dict[str, str]  # what the features are called in the log that was converted


def describe_log(log: Log, *, cut: int | None, embeddings: bool) -> Description:
    """Read a log once; events at or after `cut` (Unix seconds, None = none) are warned of as a leak.

    `embeddings` counts embedding tables of more than a gigabyte too. InputError for what the log's reader refuses.
    """
    index, config = log.index(), PreprocessConfig()
    items, users, creative = len(index.items), len(index.users), creative_by_row(index.items)
    item_features, user_features, identity = split_features(index, log.user_feature_ids(), items)
    del index  # millions of Python objects
    matrix = ItemFeatures(item_features, items + 1, ignored=identity)
    profiles = Profiles(user_features, config.max_array_values)
    for _ in progress(log.item_features(matrix, most_item=items, reader=config.reader) or (), total=None,
                      what="item features"):
        pass
    blocks = log.blocks(matrix, profiles, most_item=items, reader=config.reader, threads=config.threads)
    figures, bags = _count(blocks, items=items, user_features=user_features, cut=cut)
    vectors, notes = _embedding_coverage(log.folder, creative, figures.item_count[:items + 1] > 0, embeddings)
    marker = read_marker(log.folder, "raw") if (log.folder / MARKERS["raw"]).is_file() else {}
    known = _Items(matrix.values, item_features, identity, vectors, notes, marker.get("features", {}))
    extra = [("users numbered", f"{users:,}"),
             ("users without profile record", f"{figures.counts['users without profile record']:,}"),
             *([] if cut is None else [("cut that training must end before", iso(cut))])]
    warned = [*_late_profiles(log), *odd_warnings(matrix.odd + profiles.odd)]
    told = {name: value for name, value in marker.items() if name not in _TOLD_ELSEWHERE}
    about = [marker_section(MARKERS["raw"], told)] if told else []
    if log.layout == "parquet" and (log.folder / "candidate").is_dir():
        asked, _ = count_candidates(log.candidates(), creative)
        about, warned = [protocol_section("Candidates", asked), *about], [*warned, *protocol_warnings(asked)]
    return Description(f"a log of users ({log.layout})", [
        log_section("Log", figures, extra=extra), _coverage(figures, bags, known), *about],
        [*log_warnings(figures), *warned, *_item_warnings(figures, known)])


def describe_dataset(folder: Path) -> Description:
    """Read the columns of a dataset folder once. InputError when it is none."""
    data, marker = load_dataset(folder), read_marker(folder, "dataset")
    figures, bags = _count(_dataset_blocks(data), items=data.schema.items, user_features=data.schema.user_features,
                           cut=None)
    corners = marker.get("corners", {})
    figures.counts["users not in time order"] = corners.get("users not in time order", 0)  # before they were sorted
    seen = figures.item_count > 0
    vectors = [Coverage(f"emb_{fid}", int((np.asarray(data.items.present[fid]) & seen).sum()), int(seen.sum()), width)
               for fid, width in data.schema.embeddings.items()]
    known = _Items(data.items.features, data.schema.item_features, marker.get("identity_features", []), vectors, [], {})
    about = marker_section(MARKERS["dataset"], {"source": marker.get("source"), "corners": corners})
    return Description("a dataset folder", [
        log_section("Log", figures, extra=[("fingerprint", data.fingerprint)]), _coverage(figures, bags, known), about],
        [*log_warnings(figures), *_item_warnings(figures, known)])


def _count(blocks: Iterator[EventBlock], *, items: int, user_features: list[Feature], cut: int | None,
           ) -> tuple[LogFigures, ProfileTally]:
    """The one pass over the users."""
    tally, bags = LogTally(items, cut=cut), ProfileTally(user_features)
    for block in progress(blocks, total=None, what="users", size=lambda block: len(block.profile_place)):
        tally.add(block)
        bags.add(block)
    return tally.figures(), bags


def _late_profiles(log: Log) -> list[Warned]:
    """What the head of the log says of the times of its profile records: the blocks do not hold them."""
    late = [has_late_profile(line) for line in islice(log.lines(), _PROFILES_LOOKED_AT)]
    return profile_warnings(sum(late), len(late))


def _coverage(figures: LogFigures, bags: ProfileTally, known: _Items) -> Section:
    seen = np.flatnonzero(figures.item_count)
    name_of = lambda fid: f"{fid} {known.names[fid]}" if fid in known.names else fid
    item = [_item_coverage(name_of(feature.id), np.asarray(known.values[:, column])[seen], feature)
            for column, feature in enumerate(known.features)]
    user = [Coverage(name_of(feature.id), int(bags.users_with[number]), bags.users,
                     int(bags.seen[feature.offset:feature.offset + feature.size].sum()), feature.size - 1)
            for number, feature in enumerate(bags.features)]
    notes = [*known.notes, *(f"feature {name_of(fid)} is not counted: nearly one value per item"
                             for fid in known.identity)]
    return coverage_section("Coverage", item=item, user=user, embeddings=known.embeddings, notes=notes)


def _item_warnings(figures: LogFigures, known: _Items) -> list[Warned]:
    seen = np.flatnonzero(figures.item_count)
    bare = np.ones(len(seen), bool)
    for column in range(len(known.features)):
        bare &= np.asarray(known.values[:, column])[seen] == 0
    lacking = Coverage("no feature", int(bare.sum()), len(seen))
    return coverage_warnings(lacking, known.embeddings, any_features=bool(known.features), identity=known.identity)


def _item_coverage(name: str, values: np.ndarray, feature: Feature) -> Coverage:
    occurs = np.zeros(feature.size, bool)
    occurs[values] = True
    return Coverage(name, int(np.count_nonzero(values)), len(values), int(occurs[1:].sum()), feature.size - 1)


def _embedding_coverage(folder: Path, creative: np.ndarray, seen: np.ndarray, count_large: bool,
                        ) -> tuple[list[Coverage], list[str]]:
    """How many of the items with events (`seen` [items + 1]) each table has a vector of, and what was left out."""
    lookup, covers, notes = RowLookup(creative), [], []
    sources = find_embeddings(folder)
    for fid, source in sources.items():
        size = sum(part.stat().st_size for part in source.parts())
        if size > _LARGE_TABLE and not count_large:
            notes.append(f"emb_{fid} was not counted ({size / (1 << 30):.1f} GiB): add --embeddings")
            continue
        present, width = np.zeros(len(creative), bool), 0
        for block in progress(read_blocks(source), total=None, what=f"embedding {fid}: blocks"):
            present[lookup.rows(block.creative_id)] = True
            width = block.vectors.shape[1] or width
        covers.append(Coverage(f"emb_{fid}", int((present & seen).sum()), int(seen.sum()), width))
    return covers, notes if sources else ["no embeddings"]


def _dataset_blocks(data: Dataset) -> Iterator[EventBlock]:
    """The columns in blocks of whole users."""
    users = len(data.user_start) - 1
    borders = np.searchsorted(data.user_start, np.arange(0, len(data.item_row) + 1, _EVENTS_PER_BLOCK))
    borders = np.unique([0, *borders.tolist(), users])
    for begin, end in zip(borders[:-1], borders[1:]):
        start, token_start = (np.asarray(column[begin:end + 1]) for column in (data.user_start, data.user_token_start))
        events, tokens = slice(start[0], start[-1]), slice(token_start[0], token_start[-1])
        yield EventBlock(
            start - start[0], data.item_row[events].astype(np.int64), np.asarray(data.action[events]),
            np.asarray(data.time_seconds[events]), token_start - token_start[0], np.asarray(data.user_token[tokens]),
            np.full(end - begin, -1))
