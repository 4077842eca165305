"""Withhold one target per user, as the organisers did: raw/ to train/, eval/ and truth.jsonl.

train/ is written from events before the cut alone and has an index of its own, so that nothing later can reach it.
"""

import time
from pathlib import Path

from onepiece_comp import console
from onepiece_comp.artefacts import MARKERS, atomic_folder, fingerprint, write_json
from onepiece_comp.config import SplitConfig
from onepiece_comp.config_reading import result_settings, to_dict
from onepiece_comp.converters.convert import open_raw
from onepiece_comp.dataset.split import (
    candidate_items, candidate_lines, divide_log, link_shared_files, repeats, split_figures, survey_log,
    write_action_types, write_histories)
from onepiece_comp.dataset.targets import NEVER, check_config, iso_time
from onepiece_comp.logs.formats import LIST, write_candidates
from onepiece_comp.stages.alone import run_alone


def split(raw: Path, out: Path, config: SplitConfig) -> Path:
    """Write `out/` with train/, eval/, truth.jsonl (original ids) and split.json; returns `out`.

    `raw` is a training folder, in the organisers' layout or the public release's. InputError for a folder that is
    none, a bad time, or a cut that leaves nothing to train on or no target.
    """
    raw, out, started = Path(raw), Path(out), time.monotonic()
    check_config(config)
    log = survey_log(open_raw(raw), config)
    with atomic_folder(out, MARKERS["split"], {"raw": str(raw.resolve()), **result_settings(config)}) as folder:
        train_index, gathered = divide_log(log, folder)
        write_histories(folder, train_index)
        items = candidate_items(log, gathered)
        write_candidates(folder / "eval" / "predict_set.jsonl", candidate_lines(items, log, gathered, train_index))
        if config.action_types:
            write_action_types(folder)
        link_shared_files(raw, folder)
        figures = split_figures(log, gathered, candidates=items, train_index=train_index)
        cut, until, seconds = iso_time(log.window.cut), log.window.until, round(time.monotonic() - started, 1)
        truth_fingerprint = fingerprint(folder / "truth.jsonl")
        write_json(folder / MARKERS["split"], {
            "config": to_dict(config), "cut": log.window.cut, "cut_time": cut, "seconds": seconds,
            "until": None if until == NEVER else until, "figures": figures, "truth_fingerprint": truth_fingerprint})
    shown = {"cut": cut or "none", **{name: f"{value:,}" for name, value in figures.items()},
             "truth fingerprint": truth_fingerprint, "seconds": seconds}
    console.table(f"Split {raw} into {out} ({config.mode})", ["figure", "value"], shown.items())
    if len(items) < LIST:
        console.say(f"warning: {len(items)} candidates, and an answer has {LIST}: nothing can be inferred for this "
                    f"split")
    if figures["targets seen in the history"]:
        console.say(f"{repeats(out)}: infer.filter_seen=true, the default, leaves them out while ten others are left; "
                    "compare with --set infer.filter_seen=false")
    return out


if __name__ == "__main__":
    run_alone(split)
