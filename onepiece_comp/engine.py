"""Who writes the event columns: this process, or the workers of a Dask cluster, each with some of the users.

Dask's scheduler takes a plain function per part and runs on one machine, over SSH, on Kubernetes, Slurm or YARN; it
is pure Python. Spark would bring a Java machine, and both Spark and Ray Data want tables of rows where the log has
lines. Needed only for `preprocess.engine: dask` (`pip install "dask[distributed]"`). Workers and this process must
see the log and the output under the same paths.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.columns import load_column
from onepiece_comp.config import PreprocessConfig
from onepiece_comp.console import progress
from onepiece_comp.errors import InputError
from onepiece_comp.event_columns import EventFigures, join_columns, joined_figures, write_columns
from onepiece_comp.features import Feature, ItemFeatures, Profiles
from onepiece_comp.log_source import Log, Part, open_log
from onepiece_comp.paths import available_cores

_PARTS_PER_WORKER = 4  # so that a slow worker delays the end little


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
                             expected="for example tcp://host:8786", do="start dask scheduler, or correct it") from error
        with client:
            yield client
        return
    workers = config.engine_workers or available_cores()
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        yield client
