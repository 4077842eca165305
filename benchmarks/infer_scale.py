"""Inference at the real size: 3.6 M candidates from the log of a million users, for as many users as there is time for.

    python benchmarks/scale.py work/scale --users 1000000 --keep
    python benchmarks/infer_scale.py work/scale --users 8192 --set infer.threads=1

The log of `scale.py` is noise of the right shape, so a few steps of training do: sizes, time and memory are what is
measured. Candidates are the first items of the index, users the first of the log. Two shards of the cascade, of which
the second joins both, then exact retrieval alone; each is a process of its own, whose peak memory is reported. A
million users are extrapolated: what is done once is counted once.
"""

import argparse
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

from onepiece_comp.artefacts import link_or_copy, read_json
from onepiece_comp.console import progress, say, table
from onepiece_comp.logs.features import creative_by_row
from onepiece_comp.logs.formats import Candidate, read_index, read_item_features, write_candidates

MILLION = 1_000_000
COLUMNS = ("what", "users", "once, s", "users/s", "peak memory, MiB", "a million users, h")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="a folder of scale.py --keep")
    parser.add_argument("--users", type=int, default=8192)
    parser.add_argument("--candidates", type=int, default=3_600_000)
    parser.add_argument("--codes", type=int, default=4096, help="of each of two levels")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="infer.key=value")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    work, evaluation = options.work, options.work / f"eval-{options.users}-{options.candidates}"
    prepare(work, options.codes)
    if not (evaluation / "predict_set.jsonl").is_file():
        write_evaluation(work / "train", evaluation, users=options.users, candidates=options.candidates)
    sets = ["infer.batch_users=64", "infer.cache=false", *options.sets]
    rows = []
    for mode in ("cascade", "retrieval"):
        for shard in ("1/2", "2/2"):
            command("infer", "--ckpt", work / "joint", "--data", evaluation, "--out", work / mode, "--mode", mode,
                    "--shard", shard,
                    sets=sets)
        rows.append(line(mode, read_json(work / mode / "funnel.json"), read_json(work / mode / "result.json")["time"]))
    table(f"{options.candidates:,} candidates", COLUMNS, rows)
    write(options, rows)


def prepare(work: Path, codes: int) -> None:
    """Semantic ids of all items, and a joint model that has seen some batches."""
    if not (work / "tokenizer").is_dir():
        command("build-tokenizer", work / "dataset", work / "tokenizer", "--vectors", "emb_81", sets=[
            f"tokenizer.codes={codes}", "tokenizer.resolve=none", "tokenizer.iterations=5",
            "tokenizer.points_per_code=16"])
    if not (work / "joint" / "run.json").is_file():
        command("train", work / "dataset", work / "joint", "--tokenizer", work / "tokenizer", sets=[
            "train.epochs=0.0002", "train.validation_users=0", "train.checkpoints=1"])


def write_evaluation(raw: Path, out: Path, *, users: int, candidates: int) -> None:
    """An evaluation folder: the log's first users, the index's first items."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("indexer.pkl", "item_feat_dict.json", "user_feat_num.json"):
        link_or_copy(raw / name, out / name)
    for path in (raw / "creative_emb").rglob("part-*"):
        link_or_copy(path, out / path.relative_to(raw))
    with open(raw / "seq.jsonl", "rb") as log, open(out / "predict_seq.jsonl", "wb") as lines:
        lines.writelines(islice(log, users))
    creative = creative_by_row(read_index(raw / "indexer.pkl").items)
    chosen = ((reid, features) for reid, features in read_item_features(raw / "item_feat_dict.json")
              if reid <= candidates)
    shown = progress(islice(chosen, candidates), total=candidates, what="candidates written")
    aside = out / "aside.jsonl"
    write_candidates(aside, (Candidate(int(creative[reid]), number, features) for number, (reid,
        features) in enumerate(shown)))
    aside.rename(out / "predict_set.jsonl")


def command(*words: object, sets: list[str]) -> None:
    """A command of the package, in a process of its own."""
    text = [str(word) for word in words]
    say("== " + " ".join(text))
    subprocess.run([sys.executable, "-m", "onepiece_comp", *text, *(word for one in sets for word in ("--set", one))],
                   check=True)


def line(mode: str, funnel: dict, last_seconds: float) -> tuple[str, ...]:
    """A row: the second shard read and encoded everything, answered for half of the users, and joined."""
    once, rate = last_seconds - funnel["seconds"] / 2, funnel["users_per_second"]
    return (mode, f"{funnel['users']:,}", f"{once:,.0f}", f"{rate:,.0f}", f"{funnel['peak_memory_mib']:,}",
            f"{(once + MILLION / rate) / 3600:.1f}")


def write(options: argparse.Namespace, rows: list[tuple[str, ...]]) -> None:
    """The table as Markdown, with the command that makes it."""
    asked = " ".join(["python benchmarks/infer_scale.py WORK", f"--users {options.users}",
                      f"--candidates {options.candidates}",
                      *(f"--set {one}" for one in options.sets)])
    made = json.loads((options.work / "train" / "made.json").read_text())
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "infer_scale.md").write_text("\n".join([
        f"`{asked}`", "", f"{options.candidates:,} candidates of {made['items']:,} items, model of the preset `tiny` "
                          f"with 2 x "
        f"{options.codes:,} codes, two shards one after the other. `once` = reading, item vectors, ids, popularity; "
        f"the last "
        "column is extrapolated.", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|",
        *("| " + " | ".join(row) + " |" for row in rows)]) + "\n")


if __name__ == "__main__":
    main()
