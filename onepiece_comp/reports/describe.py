"""What a folder or file holds: statistics, and warnings about data problems, as tables on the terminal,
plots in a page of HTML.

Looks at anything that the stages read or write: logs, datasets, evaluation folders, splits, tokenizers, runs, truths,
results; of other logs it says which converter fits. A log is read once, in blocks, by the reader that `preprocess.py`
uses; memory is bounded by the item tables.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import MARKERS, read_marker
from onepiece_comp.config import PreprocessConfig
from onepiece_comp.console import progress, say, table
from onepiece_comp.converters.convert import detect_log
from onepiece_comp.dataset.embedding_tables import RowLookup
from onepiece_comp.dataset.preprocess import Dataset, load_dataset
from onepiece_comp.errors import InputError
from onepiece_comp.logs.embedding_blocks import read_blocks
from onepiece_comp.logs.embeddings import find_embeddings
from onepiece_comp.logs.features import Feature, ItemFeatures, Profiles, creative_by_row, split_features
from onepiece_comp.logs.open_log import Log, is_release, open_log
from onepiece_comp.logs.truths import read_truth
from onepiece_comp.logs.user_blocks import EventBlock
from onepiece_comp.reports.artefact_sections import marker_section, result_section, truth_section
from onepiece_comp.reports.evaluation_figures import count_candidates, has_late_profile, read_protocol
from onepiece_comp.reports.log_figures import LogFigures, LogTally, ProfileTally
from onepiece_comp.reports.log_sections import coverage_section, iso, log_section, protocol_section, warning_section
from onepiece_comp.reports.log_warnings import (
    Coverage, Warned, coverage_warnings, log_warnings, odd_warnings, order_warnings, profile_warnings,
    protocol_warnings)
from onepiece_comp.reports.page import Section, Table, Text, can_plot, write_report

_NAMES_SHOWN = 8
_OF_A_FOLDER = ("seq.jsonl", "predict_seq.jsonl", "predict_set.jsonl", "indexer.pkl", "item_feat_dict.json")
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


def describe(path: Path, *, out: Path | None = None, embeddings: bool = False) -> Description:
    """Print what `path` is and write the HTML page `out` (None = no page); returns what was found.

    `embeddings` counts embedding tables of more than a gigabyte too. InputError for what is nothing of ours, and for
    a broken file, with its line.
    """
    path = Path(path)
    found = _read(path, embeddings)
    page = [Section("What it is", [Text(f"{path}: {found.kind}.")]), warning_section(found.warned), *found.sections]
    say(f"{path}: {found.kind}")
    for section in found.sections:
        _print(section)
    for one in found.warned:
        say(f"warning: {one.line()}")
    if not found.warned:
        say("no warnings")
    if out is None:
        say("no page was written: add --out report.html for plots")
    else:
        say(f"wrote {write_report(out, f'{path.name}: {found.kind}', page)}"
            + ("" if can_plot() else " (without plots: they need matplotlib)"))
    return found


def _print(section: Section) -> None:
    for part in section.parts:
        if isinstance(part, Table):
            table(f"{section.title}: {part.title}", part.columns, part.rows)
        elif isinstance(part, Text):
            say(f"note: {part.text}")


def _read(path: Path, embeddings: bool) -> Description:
    """Tell what the path is, by its markers and file names, and read it."""
    if not path.exists():
        raise InputError(path, found="no such file or folder", expected="something to describe", do="check the path")
    if path.is_file():
        return _read_file(path)
    readers: dict[str, Callable[[Path], Description]] = {
        "split": lambda folder: _read_split(folder, embeddings), "dataset": describe_dataset,
        **{kind: lambda folder, kind=kind: _read_artefact(folder, kind)
           for kind in ("tokenizer", "run", "ranker", "neighbour search")}}
    for kind, reader in readers.items():
        if (path / MARKERS[kind]).is_file():
            return reader(path)
    if (path / "predict_seq.jsonl").is_file():
        return _read_evaluation(path, _beside(path, "truth.jsonl"))
    if (path / "seq.jsonl").is_file() or is_release(path):
        return describe_log(open_log(path), cut=_cut_beside(path), embeddings=embeddings)
    raise _not_ours(path)


def _not_ours(path: Path) -> InputError:
    """What to say of something that no stage writes: the converter that fits, or what lies inside."""
    kind = detect_log(path)
    if kind:
        return InputError(path, found=f"a log of another kind ({kind})", expected="the competition's layout",
                          do=f"convert it first: onepiece-comp convert {kind} {path} work/raw")
    signs, held = (*MARKERS.values(), "predict_seq.jsonl", "seq.jsonl"), sorted(path.iterdir()) if path.is_dir() else []
    inside = [one for one in held if any((one / sign).is_file() for sign in signs)]
    names = ", ".join(one.name for one in held[:_NAMES_SHOWN]) if path.is_dir() else "a file"
    return InputError(
        path, found=f"nothing that is known ({names or 'an empty folder'})",
        expected="a log, an evaluation folder, a split, a dataset, a tokenizer, a run, truth.jsonl or result.json",
        do=f"describe what lies in it: {', '.join(map(str, inside))}" if inside else "check the path")


def _beside(folder: Path, name: str) -> Path | None:
    """A file of this name in the folder or in the one around it."""
    return next((place / name for place in (folder, folder.resolve().parent) if (place / name).is_file()), None)


def _cut_beside(folder: Path) -> int | None:
    """When the training data of a split must end: as the split says, else at the first target of a truth beside."""
    marker, truth = _beside(folder, MARKERS["split"]), _beside(folder, "truth.jsonl")
    if marker is not None:
        return read_marker(marker.parent, "split").get("cut")
    times = [one.time for one in read_truth(truth)] if truth else []
    return min(times) if times else None


def _read_evaluation(folder: Path, truth: Path | None) -> Description:
    asked = read_protocol(folder, truth)
    warned = [*order_warnings(asked.histories), *profile_warnings(asked.late_profiles, asked.protocol.users),
              *protocol_warnings(asked.protocol)]
    return Description("an evaluation folder" + (f", with the truth in {truth}" if truth else ""), [
        protocol_section("Evaluation", asked.protocol), log_section("Histories", asked.histories)], warned)


def _read_split(folder: Path, embeddings: bool) -> Description:
    marker, truth = read_marker(folder, "split"), folder / "truth.jsonl"
    train = describe_log(open_log(folder / "train"), cut=marker.get("cut"), embeddings=embeddings)
    evaluation = _read_evaluation(folder / "eval", truth)
    named = lambda side, sections: [section._replace(title=f"{side}: {section.title}") for section in sections]
    warned = [one._replace(found=f"train: {one.found}") for one in train.warned]
    return Description("a split (train, eval, truth)", [
        *named("train", train.sections), *named("eval", evaluation.sections), truth_section(truth),
        marker_section(MARKERS["split"], marker)],
        [*warned, *(one._replace(found=f"eval: {one.found}") for one in evaluation.warned)])


def _read_artefact(folder: Path, kind: str) -> Description:
    return Description(f"a {kind} folder", [marker_section(MARKERS[kind], read_marker(folder, kind))], [])


def _read_file(path: Path) -> Description:
    """A truth or a result; of other files, what to do with them."""
    if path.name in _OF_A_FOLDER:
        raise InputError(path, found="one file of a folder", expected="the folder", do=f"describe {path.parent}")
    with open(path, "rb") as file:
        head = file.read(1 << 12)
    if path.suffix == ".jsonl" and all(name in head for name in (b'"user"', b'"item"', b'"action"', b'"time"')):
        return Description("the targets of a split", [truth_section(path)], [])
    if path.name == "result.json" or path.suffix == ".json" and b'"top10s"' in head:
        return Description("the result of an inference", [result_section(path)], [])
    raise _not_ours(path)
