"""Do better semantic ids make better recommendations? Sources x quantisers x rules, each under the same joint model.

    python benchmarks/tokenizer_downstream.py WORK --hours 2 --results benchmarks/results

One synthetic world of about 50,000 items, split by time; one retrieval run, which gives the collaborative vectors and
the weights that every row's joint training starts from. What differs between rows is the tokenizer alone. `beam` ranks
what the semantic ids generate by their own score, so it feels the ids most; `cascade` is the submission. Seeds are of
tokenizer and joint training. Resumable: a finished row is kept in WORK; what does not fit the hours is 'not run'.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import MARKERS, write_json
from onepiece_comp.config_reading import load_config
from onepiece_comp.console import say, table
from onepiece_comp.funnel.infer import MODES
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.stages.infer import infer
from onepiece_comp.stages.preprocess import preprocess
from onepiece_comp.stages.score import score
from onepiece_comp.stages.split import split
from onepiece_comp.stages.synthesize import synthesize
from onepiece_comp.stages.train import train
from onepiece_comp.tokenizer.align import write_aligned

COLUMNS = ("vectors", "quantiser", "rule", "seed", "share an id", "error", "beam HR@10", "beam NDCG@10", "beam score",
           "in the beam", "cascade HR@10", "cascade NDCG@10", "cascade score", "retrieval score")


class Row(NamedTuple):
    """What a row's tokenizer is made of."""

    vectors: str  # run, emb_81, aligned, run+emb_81 or random
    quantiser: str
    rule: str
    seed: int = 0

    @property
    def name(self) -> str:
        return "-".join(map(str, self))


_KMEANS = "residual_kmeans"
ROWS = [  # those that decide first
    Row("run", _KMEANS, "none"), Row("run", _KMEANS, "assignment"), Row("random", _KMEANS, "assignment"),
    Row("run", _KMEANS, "greedy"), Row("emb_81", _KMEANS, "assignment"), Row("run", "rqvae", "assignment"),
    *(Row("run", _KMEANS, rule, seed) for seed in (1, 2) for rule in ("none", "assignment")),
    Row("run", _KMEANS, "random"), Row("run", _KMEANS, "counter"), Row("run+emb_81", _KMEANS, "assignment"),
    Row("aligned", _KMEANS, "assignment"), Row("run", "nested_kmeans", "assignment"), Row("run", "opq", "assignment"),
    Row("run", "fsq", "assignment"), Row("emb_81", _KMEANS, "none"), Row("run", "rqvae", "none"),
]


class World(NamedTuple):
    """What all rows share, and the settings of a row's stages."""

    work: Path
    codes: int
    epochs: float  # of a joint training

    def config(self, row: Row, **tokenizer: object):  # noqa: ANN201
        sets = [f"tokenizer.{key}={value}" for key, value in tokenizer.items()]
        return load_config(sets=[
            "train.threads=1", "infer.threads=1", f"train.seed={row.seed}", f"tokenizer.seed={row.seed}",
            f"tokenizer.codes={self.codes}", f"train.warm_start_epochs={self.epochs}", "infer.semantic_weight=0.1",
            *sets])

    def vectors(self, name: str) -> str:
        """The text that `build_tokenizer` takes for its vectors."""
        if name == "random":
            file, items = self.work / "random.npy", len(np.load(self.work / "dataset" / "creative_id.npy"))
            np.save(file, np.random.default_rng(7).standard_normal((items, 64), np.float32))
            return str(file)
        if name == "aligned":
            file = self.work / "aligned.npy"
            if not file.is_file():
                write_aligned(self.work / "dataset", "emb_81+emb_82+emb_85+emb_86", file)
            return str(file)
        return name.replace("run", str(self.work / "retrieval"))


def prepare(work: Path, users: int, epochs: float) -> None:
    """The world, its split, its columns and the retrieval run."""
    config = load_config(sets=[f"synthesize.users={users}", "synthesize.seed=4", "train.threads=1",
                               f"train.epochs={epochs}"])
    steps: list[tuple[str, Callable]] = [
        (f"raw/{MARKERS['raw']}", lambda: synthesize(work / "raw", config.synthesize)),
        ("split/truth.jsonl", lambda: split(work / "raw", work / "split", config.split)),
        (f"dataset/{MARKERS['dataset']}", lambda: preprocess(work / "split/train", work / "dataset",
                                                             config.preprocess)),
        (f"retrieval/{MARKERS['run']}", lambda: train(work / "dataset", work / "retrieval", config)),
    ]
    for made, step in steps:
        if not (work / made).is_file():
            shutil.rmtree((work / made).parent, ignore_errors=True)
            step()


def run_row(world: World, row: Row) -> dict:
    """Tokenizer, joint training, submission and its score; kept in WORK/rows."""
    folder = world.work / "rows" / row.name
    done, config = folder / "row.json", world.config(row, quantiser=row.quantiser, resolve=row.rule)
    if done.is_file():
        return json.loads(done.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    build_tokenizer(world.work / "dataset", folder / "tokenizer", config.tokenizer, vectors=world.vectors(row.vectors))
    train(world.work / "dataset", folder / "joint", config, tokenizer=folder / "tokenizer",
          warm=world.work / "retrieval")
    infer(folder / "joint", folder, config.infer, data=world.work / "split/eval",
          truth=world.work / "split/truth.jsonl", beside=MODES)
    truth = world.work / "split/truth.jsonl"
    score(folder / "result.json", truth, config.score, out=folder / "score.json",
          against={mode: folder / f"{mode}.json" for mode in MODES})
    judged = json.loads((folder / "score.json").read_text())
    figures = json.loads((folder / "tokenizer" / MARKERS["tokenizer"]).read_text())["figures"]["after"][-1]
    steps = json.loads((folder / "funnel.json").read_text())["steps"]
    found = {
        "share": figures["shared"], "error": figures.get("relative_error"), "seconds": time.monotonic() - started,
        "in the beam": next(step["targets"] for step in steps if step["step"] == "beam"),
        "modes": {"cascade": judged, **judged["against"]}}
    write_json(done, found)
    shutil.rmtree(folder / "joint")
    return found


def cells(row: Row, found: dict | None) -> tuple[str, ...]:
    """A line of the table."""
    if found is None:
        return (*map(str, row), *["not run"] * (len(COLUMNS) - len(row)))
    measured = lambda mode, what: f"{found['modes'][mode][what]['mean']:.4f}"
    error = "" if found["error"] is None else f"{found['error']:.4f}"
    return (*map(str, row), f"{found['share']:.1%}", error, measured("beam", "hr"), measured("beam", "ndcg"),
            measured("beam", "score"), f"{found['in the beam']:.4f}", measured("cascade", "hr"),
            measured("cascade", "ndcg"), measured("cascade", "score"), measured("retrieval", "score"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--users", type=int, default=11_000)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--epochs", type=float, default=2.0, help="of the retrieval run")
    parser.add_argument("--joint-epochs", type=float, default=1.0, help="of each joint training")
    parser.add_argument("--hours", type=float, default=2.0, help="no row is begun after these")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    until = time.monotonic() + 3600 * options.hours
    prepare(options.work, options.users, options.epochs)
    world, found = World(options.work, options.codes, options.joint_epochs), {}
    for row in ROWS:
        if (options.work / "rows" / row.name / "row.json").is_file() or time.monotonic() < until:
            say(f"== {row.name}")
            found[row] = run_row(world, row)
            write_table(options, found)
    write_table(options, found)


def write_table(options: argparse.Namespace, found: dict[Row, dict]) -> None:
    rows = [cells(row, found.get(row)) for row in ROWS]
    table("tokenizers, downstream", COLUMNS, rows)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "tokenizer_downstream.md").write_text("\n".join([
        f"`python benchmarks/tokenizer_downstream.py WORK --users {options.users} --codes {options.codes} "
        f"--epochs {options.epochs:g} --joint-epochs {options.joint_epochs:g} --hours {options.hours:g}`", "",
        f"2 x {options.codes} codes. Error: squared error / variance. In the beam: targets among the beam's survivors. "
        "Share of the ids in the cascade's score: .1.",
        "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|",
        *("| " + " | ".join(row) + " |" for row in rows)]) + "\n")


if __name__ == "__main__":
    main()
