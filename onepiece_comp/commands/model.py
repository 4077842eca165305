"""Commands from a dataset to a scored answer: a short function each, no logic."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from onepiece_comp.artefacts import names_apart
from onepiece_comp.commands.options import ConfigFile, Preset, Sets, forceable
from onepiece_comp.config_reading import load_config

app = typer.Typer()


@app.command(
    "build-tokenizer", epilog="Example: onepiece-comp build-tokenizer work/dataset work/tokenizer --ckpt work/retrieval"
)
@forceable
def build_tokenizer(
    dataset: Path,
    out: Path,
    vectors: Annotated[
        Optional[str], typer.Option(help="What to quantise: emb_81, FILE.npy, a run, or several: emb_81+RUN:2.")
    ] = None,
    ckpt: Annotated[Optional[Path], typer.Option(help="A run whose item vectors to quantise.")] = None,
    extend: Annotated[
        Optional[Path], typer.Option(help="An earlier tokenizer: its ids stay, new items take free ones.")
    ] = None,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Give every item a semantic id of its own."""
    from onepiece_comp.stages.build_tokenizer import build_tokenizer as stage

    stage(dataset, out, load_config(preset, config, sets or ()).tokenizer, vectors=vectors, checkpoint=ckpt,
          extend=extend)


@app.command(
    epilog="Example: onepiece-comp train work/dataset work/joint --tokenizer work/tokenizer --warm-start work/retrieval"
)
@forceable
def train(
    dataset: Path,
    run: Path,
    tokenizer: Annotated[Optional[Path], typer.Option(help="Train the semantic-id head too.")] = None,
    warm_start: Annotated[Optional[Path], typer.Option(help="A run to copy fitting weights from.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Train on a dataset; retrieval only, or jointly with semantic ids."""
    from onepiece_comp.stages.train import train as stage

    stage(dataset, run, load_config(preset, config, sets or ()), tokenizer=tokenizer, warm=warm_start, resume=resume)


@app.command(
    "train-ranker", epilog="Example: onepiece-comp train-ranker work/joint work/dataset work/ranker"
)
@forceable
def train_ranker(
    ckpt: Annotated[Path, typer.Argument(help="A run or a checkpoint folder; it is not changed.")],
    dataset: Path,
    out: Path,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Train a ranker of the cascade's survivors for infer --ranker OUT; kept only if better than none."""
    from onepiece_comp.stages.train_ranker import train_ranker as stage
    from onepiece_comp.funnel.infer import stored_config

    stage(ckpt, dataset, out, load_config(preset, config, sets or ()).ranker, stored_config(ckpt, config, sets or ()))


@app.command(epilog="Example: onepiece-comp infer --ckpt work/joint --data work/split/eval --out work/result")
def infer(ckpt: Annotated[Path, typer.Option(help="A run or a checkpoint folder.")],
          data: Annotated[Optional[Path], typer.Option(help="Evaluation folder; default: the run's own.")] = None,
          out: Annotated[Optional[Path], typer.Option(help="Where to write; default: CKPT/result.")] = None,
          truth: Annotated[Optional[Path], typer.Option(help="truth.jsonl, for the funnel only.")] = None,
          mode: Annotated[Optional[str], typer.Option(help="retrieval, beam or cascade.")] = None,
          ranker: Annotated[Optional[Path],
                            typer.Option(help="A folder of train-ranker: orders the survivors anew.")] = None,
          shard: Annotated[str, typer.Option(help="I/N: make only the I-th of N shares of the answers.")] = "1/1",
          config: ConfigFile = None, sets: Sets = None) -> None:
    """Write result.json: ten candidates for every user."""
    from onepiece_comp.funnel.answer_parts import read_shard
    from onepiece_comp.stages.infer import infer as stage
    from onepiece_comp.funnel.infer import stored_config

    overrides = [*(sets or ()), *([f"infer.mode={mode}"] if mode else []),
                 *([f"infer.ranker={ranker}"] if ranker else [])]
    stage(ckpt, out or ckpt / "result", stored_config(ckpt, config, overrides), data=data, truth=truth,
          shard=read_shard(shard))


@app.command(epilog="Example: onepiece-comp baselines work/split/train work/split/eval work/baselines")
def baselines(train: Path, evaluation: Path, out: Path, preset: Preset = "tiny", config: ConfigFile = None,
              sets: Sets = None) -> None:
    """Write result files of popularity, last-day popularity, item-kNN and what was seen last, under infer's filters."""
    from onepiece_comp.stages.baselines import baselines as stage

    stage(train, evaluation, out, load_config(preset, config, sets or ()).infer)


@app.command(
    epilog="Example: onepiece-comp score work/result/result.json work/split/truth.jsonl --against "
           "work/baselines/item_knn.json"
)
def score(
    result: Path,
    truth: Path,
    against: Annotated[
        Optional[list[Path]], typer.Option(help="Another result on the same users; may be repeated.")
    ] = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Score a result: HR@10, NDCG@10, 0.31/0.69 score with intervals, by history length and warm or cold target."""
    from onepiece_comp.stages.score import score as stage

    others = list(against or ())
    names = [path.stem if path.stem != "result" else path.parent.name for path in others]
    if len(set(names)) < len(names):
        names = names_apart(others, "--against")
    stage(result, truth, load_config("tiny", config, sets or ()).score, against=dict(zip(names, others)))


@app.command(epilog="Example: onepiece-comp settings train")
def settings(
    section: Annotated[str, typer.Argument(help="synthesize, split, preprocess, tokenizer, model, train, ...")] = "",
    preset: Preset = "tiny", config: ConfigFile = None, sets: Sets = None,
) -> None:
    """List the settings with their values, what they may be, and what they mean."""
    from onepiece_comp.config_ranges import show_settings

    show_settings(load_config(preset, config, sets or ()), section)


@app.command(epilog="Example: onepiece-comp run work/raw work --preset tiny")
@forceable
def run(raw: Path, work: Path, preset: Preset = "tiny", config: ConfigFile = None, sets: Sets = None) -> None:
    """The whole pipeline: split, preprocess, train, tokenizer, train jointly, infer, score; reuses what is done."""
    from onepiece_comp.stages.run import run_all

    run_all(raw, work, load_config(preset, config, sets or ()))
