"""The users of a log into columns on disk, block by block: the middle of `preprocess.py`.

`write_columns` does the whole log, or one part of it (`Log.parts`); `join_columns` puts the columns of consecutive
parts behind one another, so that many processes can share the work and nothing in the result tells.
"""

import contextlib
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.columns import ColumnWriter, load_column
from onepiece_comp.config import PreprocessConfig
from onepiece_comp.console import progress
from onepiece_comp.environment import available_cores
from onepiece_comp.errors import InputError
from onepiece_comp.logs.features import OUTSIDE_VOCABULARY, Feature, ItemFeatures, Profiles
from onepiece_comp.logs.open_log import Log, Part, open_log
from onepiece_comp.logs.user_blocks import count_corners, in_time_order

COLUMNS = {"item_row": "int32", "action": "int8", "time_seconds": "int64", "user_start": "int64",
           "user_token": "int32", "user_token_start": "int64"}
_STARTS = {"user_start": "item_row", "user_token_start": "user_token"}  # column of starts: what it points into
_EVENTS_PER_COPY = 1 << 20
_PARTS_PER_WORKER = 4  # so that a slow worker delays the end little


class EventFigures(NamedTuple):
    """What is known of a log, or a part of it, once its events are written."""

    corners: Counter
    first_second: int
    last_second: int
    user: np.ndarray  # int64 [users], `blocks.user_key` of each


def write_columns(log: Log, folder: Path, *, matrix: ItemFeatures, profiles: Profiles, config: PreprocessConfig,
                  part: Part | None = None) -> EventFigures:
    """Write the columns of `log`, or of one part, into `folder`; fills the features of items without a record."""
    most_item, corners, first, last, users = len(matrix.values) - 1, Counter(), 1 << 62, 0, [np.empty(0, np.int64)]
    blocks = log.blocks(matrix, profiles, most_item=most_item, reader=config.reader, threads=config.threads, part=part)
    with contextlib.ExitStack() as stack:
        column = {name: stack.enter_context(ColumnWriter(folder, name, dtype)) for name, dtype in COLUMNS.items()}
        for name in _STARTS:
            column[name].append(np.zeros(1))
        for block in progress(blocks, total=None, what="users", size=lambda block: len(block.profile_place)):
            corners.update(count_corners(block))
            users.append(block.user)
            block = in_time_order(block)
            column["user_start"].append(block.user_start[1:] + column["item_row"].rows)
            column["user_token_start"].append(block.token_start[1:] + column["user_token"].rows)
            column["item_row"].append(block.item)
            column["action"].append(block.action)
            column["time_seconds"].append(block.time_seconds)
            column["user_token"].append(block.token)
            if len(block.item):
                first, last = min(first, block.time_seconds.min()), max(last, block.time_seconds.max())
    return EventFigures(corners, int(first), int(last), np.concatenate(users))


def join_columns(parts: list[Path], folder: Path) -> None:
    """The columns of consecutive parts as one set of columns in `folder`; copied a piece at a time."""
    for name, dtype in COLUMNS.items():
        with ColumnWriter(folder, name, dtype) as writer:
            base = 0
            for number, part in enumerate(parts):
                column = load_column(part, name)
                begin = 1 if name in _STARTS and number else 0
                for start in range(begin, len(column), _EVENTS_PER_COPY):
                    writer.append(column[start:start + _EVENTS_PER_COPY] + base if name in _STARTS
                                  else column[start:start + _EVENTS_PER_COPY])
                base += int(column[-1]) if name in _STARTS else 0


def joined_figures(parts: list[EventFigures]) -> EventFigures:
    """The figures of all parts together."""
    return EventFigures(sum((part.corners for part in parts), Counter()), min(part.first_second for part in parts),
                        max(part.last_second for part in parts), np.concatenate([part.user for part in parts]))


def refuse_repeated_users(log: Log, user: np.ndarray) -> None:
    """InputError, with both lines, for a user that stands twice: half a history would be another user's."""
    key, times = np.unique(user, return_counts=True)
    if (times > 1).any():
        first, second = np.flatnonzero(user == key[times > 1][0])[:2] + 1
        who = next(itertools.islice(log.lines(), int(second) - 1, None)).user
        raise InputError(log.sequences,
                         found=f"user {who!r} twice, as numbers {first:,} and {second:,} of its users (and "
                         f"{np.count_nonzero(times > 1) - 1:,} others)", expected="each user once, with all events",
                         do="merge them")


def count_items(folder: Path, items: int) -> np.ndarray:
    """Events of each item row, int64 [items + 1], from the written column."""
    counts, rows = np.zeros(items + 1, np.int64), load_column(folder, "item_row")
    for start in range(0, len(rows), _EVENTS_PER_COPY):
        np.add.at(counts, rows[start:start + _EVENTS_PER_COPY], 1)
    return counts


def bound_odd(log: Log, corners: Counter, matrix: ItemFeatures, profiles: Profiles, most: float) -> None:
    """InputError for a log without events, or when a share above `most` of it is odd: not just a few bad rows."""
    if not corners["events"]:
        raise InputError(log.folder, found="no events", expected="at least one user with an event", do="check the log")
    tokens, unknown = sum(profiles.odd.values()) + corners["users"], matrix.odd[OUTSIDE_VOCABULARY]
    shares = {"users not in time order": corners["users not in time order"] / corners["users"],
              "events that repeat the one before": corners["events that repeat the one before"] / corners["events"],
              f"user features: {OUTSIDE_VOCABULARY}": profiles.odd[OUTSIDE_VOCABULARY] / tokens,
              f"item features: {OUTSIDE_VOCABULARY}": unknown / max(1, unknown + np.count_nonzero(matrix.values))}
    for what, share in shares.items():
        if share > most:
            raise InputError(log.folder, found=f"{what}: {100 * share:.1f} %", expected=f"at most {100 * most:.1f} %",
                             do="correct the log, or allow it: --set preprocess.max_odd_share=1")


class _Written(NamedTuple):
    """What a worker reports of its part."""

    folder: Path
    figures: EventFigures
    found_row: np.ndarray  # items without a record that the part shows
    found_features: np.ndarray  # their features in their first event of the part
    item_odd: dict[str, int]
    user_odd: dict[str, int]


class _Vocabulary(NamedTuple):
    """What a worker needs to know besides the log."""

    item_features: list[Feature]
    ignored: frozenset[str]
    user_features: list[Feature]
    max_array_values: int
    recorded: Path  # folder of the column that tells which items have a record


def write_events(log: Log, folder: Path, *, matrix: ItemFeatures, profiles: Profiles,
                 config: PreprocessConfig) -> EventFigures:
    """Write the event columns of `log` into `folder` by the engine that `config` names; the columns are the same."""
    if config.engine == "local":
        return write_columns(log, folder, matrix=matrix, profiles=profiles, config=config)
    if config.engine != "dask":
        raise InputError("preprocess.engine", found=repr(config.engine), expected="local or dask", do="correct it")
    scratch = folder / "parts"
    scratch.mkdir()
    np.save(scratch / "recorded.npy", matrix.recorded)
    vocabulary = _Vocabulary(matrix.features, matrix.ignored, profiles.features, profiles.most, scratch)
    with _cluster(config) as client:
        workers = max(1, len(client.scheduler_info()["workers"]))
        parts = log.parts(_PARTS_PER_WORKER * workers)
        futures = [client.submit(_write_part, log.folder, part, scratch / f"part-{number:05d}", vocabulary, config,
                                 pure=False) for number, part in enumerate(parts)]
        written = [future.result() for future in progress(futures, total=len(futures), what="parts of the log")]
    for part in written:
        new = ~matrix.recorded[part.found_row]
        matrix.values[part.found_row[new]] = part.found_features[new]
        matrix.recorded[part.found_row] = True
        matrix.odd.update(part.item_odd)
        profiles.odd.update(part.user_odd)
    join_columns([part.folder for part in written], folder)
    shutil.rmtree(scratch)
    return joined_figures([part.figures for part in written])


def _write_part(source: Path, part: Part, out: Path, vocabulary: _Vocabulary, config: PreprocessConfig) -> _Written:
    """A worker's task: the columns of one part of the log, under `out`."""
    shutil.rmtree(out, ignore_errors=True)  # of a worker that died
    out.mkdir()
    recorded = load_column(vocabulary.recorded, "recorded")
    matrix = ItemFeatures(vocabulary.item_features, len(recorded), ignored=vocabulary.ignored)
    matrix.recorded[:] = recorded
    profiles = Profiles(vocabulary.user_features, vocabulary.max_array_values)
    log = open_log(source)
    figures = write_columns(log, out, matrix=matrix, profiles=profiles, config=config, part=part)
    found = np.flatnonzero(matrix.recorded & ~recorded)
    return _Written(out, figures, found, matrix.values[found], dict(matrix.odd), dict(profiles.odd))


@contextlib.contextmanager
def _cluster(config: PreprocessConfig) -> Iterator[object]:
    """A client of the scheduler that `config` names, or of one made for this run on this machine."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise InputError("preprocess.engine", found=f"dask without its scheduler ({error})", expected="it installed",
                         do='pip install "dask[distributed]", or leave the engine at local') from error
    if config.engine_address:
        try:
            client = Client(config.engine_address, timeout="5s")
        except (OSError, ValueError) as error:
            raise InputError("preprocess.engine_address", found=f"no scheduler at {config.engine_address!r}",
                             expected="for example tcp://host:8786",
                             do="start dask scheduler, or correct it") from error
        with client:
            yield client
        return
    workers = config.engine_workers or available_cores()
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        yield client
