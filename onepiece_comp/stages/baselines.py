"""Answers of popularity, item-kNN and what was seen last, for the same users and candidates as ours."""

import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from onepiece_comp import console
from onepiece_comp.artefacts import atomic_file
from onepiece_comp.config import InferConfig
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation.baselines import (
    CHUNK_USERS, CLICKS, ResultWriter, each_once, item_neighbours, load_candidates, names, popularity_orders,
    rank_users, read_train_log, to_histories)
from onepiece_comp.logs.formats import read_index
from onepiece_comp.stages.alone import run_alone


def baselines(train: Path, evaluation: Path, out: Path, config: InferConfig = InferConfig()) -> dict[str, Path]:
    """Write out/{name}.json for each of `names`; returns their paths. Of `config` the two filters are read.

    `train` holds seq.jsonl and indexer.pkl, `evaluation` predict_seq.jsonl, predict_set.jsonl and indexer.pkl.
    InputError for files that are missing or broken, or fewer than ten candidates.
    """
    train, evaluation, out, started = Path(train), Path(evaluation), Path(out), time.monotonic()
    train_index, index = read_index(train / "indexer.pkl"), read_index(evaluation / "indexer.pkl")
    candidates = load_candidates(evaluation / "predict_set.jsonl", train_index)
    log = read_train_log(train / "seq.jsonl", items=len(train_index.items))
    orders = popularity_orders(log, candidates)
    neighbours = item_neighbours(log.baskets, candidates, items=len(train_index.items))
    sequences = console.progress(each_once(evaluation / "predict_seq.jsonl"), total=None, what="users ranked")
    histories = to_histories(sequences, index, train_index, candidates, actions=log.actions, config=config)
    learned, paths, users = time.monotonic(), {name: out / f"{name}.json" for name in names(config)}, 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(ResultWriter(stack.enter_context(atomic_file(path)), started))
                 for name, path in paths.items()}
        while chunk := list(islice(histories, CHUNK_USERS)):
            ranked = rank_users(chunk, orders, neighbours)
            for name, file in files.items():
                file.write([history.user for history in chunk], candidates.creative_id[ranked[name]].tolist())
            users += len(chunk)
        if not users:
            raise InputError(evaluation / "predict_seq.jsonl", found="no users", expected="at least one line",
                             do="check the file")
    console.table(f"Baselines: {users:,} users, {len(candidates.creative_id):,} candidates, counting "
                  f"{'clicks and conversions' if log.actions == CLICKS else 'all events'}, {learned - started:.1f} s "
                  f"to count, {users / (time.monotonic() - learned):,.0f} users/s to rank",
                  ("baseline", "written to"), paths.items())
    if config.filter_seen:
        (out / "last_seen.json").unlink(missing_ok=True)  # of an earlier call, under another filter than the others
        console.say("last_seen: none, as infer.filter_seen=true drops what it would answer")
    return paths


if __name__ == "__main__":
    run_alone(baselines)
