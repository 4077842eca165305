"""A synthetic world whose truth is known, in the competition's layout: the first stage where there is no log."""

import time
from pathlib import Path

import numpy as np

from onepiece_comp import console
from onepiece_comp.artefacts import MARKERS, atomic_folder, peak_memory_mib, write_json
from onepiece_comp.config import SynthesizeConfig
from onepiece_comp.config_reading import result_settings, to_dict
from onepiece_comp.errors import InputError
from onepiece_comp.stages.alone import run_alone
from onepiece_comp.world.arrays import build_world
from onepiece_comp.world.impressions import calibrate_world
from onepiece_comp.world.observables import Catalogue
from onepiece_comp.world.oracle import OracleWriter
from onepiece_comp.world.synthesize import (
    ReleaseWorldWriter, Tally, WorldWriter, world_figures, world_lines, write_release_candidates,
    write_world_embeddings)


def synthesize(out: Path, config: SynthesizeConfig) -> Path:
    """Write the raw folder `out` (marker raw.json) with config.users users; returns `out`.

    Memory holds the item tables, never the log. InputError for a size or a rate out of range.
    """
    out, started = Path(out), time.monotonic()
    _check(config)
    world = calibrate_world(build_world(config.users, config.seed), config.seed)
    catalogue, release = Catalogue(world, config.seed), config.layout == "parquet"
    if release or not config.feature_111:
        catalogue.leave_out("111")
    with atomic_folder(out, MARKERS["raw"], result_settings(config)) as folder:
        tally, cold = Tally(len(world.items.leaf)), np.empty(0, int)
        files = ReleaseWorldWriter(folder, users=config.users) if release else WorldWriter(folder)
        with files as writer, OracleWriter(folder, world, catalogue.creative_id) as oracle:
            lines = world_lines(world, catalogue, config, oracle=oracle, tally=tally)
            for line in console.progress(lines, total=config.users, what="users written"):
                writer.add(line)
        if release:
            cold = write_release_candidates(folder, world, catalogue, tally=tally, index=writer.index, seed=config.seed)
        log_seconds = time.monotonic() - started
        coverage = write_world_embeddings(folder, world, catalogue, rows=np.array(tally.rows), cold=cold, config=config)
        figures = world_figures(config, tally, coverage)
        seconds = time.monotonic() - started
        figures += [("seconds, log alone", "", round(log_seconds, 1)), ("seconds", "", round(seconds, 1)),
                    ("users/s, log alone", "", round(config.users / log_seconds)),
                    ("users/s", "", round(config.users / seconds)), ("peak memory, MiB", "", round(peak_memory_mib()))]
        write_json(folder / MARKERS["raw"], {
            "source": "synthetic", "seed": config.seed, "config": to_dict(config),
            "world": {"branch": world.topics.branch, "intercept": world.intercept, "spare": world.spare},
            "figures": {name: {"published": published, "ours": ours} for name, published, ours in figures}})
    rows = [(name, published, f"{ours:,}" if isinstance(ours, int) else ours) for name, published, ours in figures]
    console.table(f"Synthetic world in {out}", ["figure", "published", "ours"], rows)
    return out


def _check(config: SynthesizeConfig) -> None:
    if config.users < 20:
        raise InputError("synthesize.users", found=repr(config.users), expected="at least 20", do="ask for more users")
    if config.seed < 0:
        raise InputError("synthesize.seed", found=repr(config.seed), expected="a whole number from 0", do="correct it")
    if not 0 <= config.conversion_rate <= 1:
        raise InputError("synthesize.conversion_rate", found=repr(config.conversion_rate),
                         expected="a share from 0 to 1", do="correct it")
    if config.layout not in ("jsonl", "parquet"):
        raise InputError("synthesize.layout", found=repr(config.layout), expected="jsonl or parquet", do="correct it")


if __name__ == "__main__":
    run_alone(synthesize)
