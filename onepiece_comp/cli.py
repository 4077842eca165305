"""The command line: one short function per stage, no logic. Errors from outside end with exit code 2."""

import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer

from onepiece_comp import console
from onepiece_comp.config import load_config
from onepiece_comp.presets import PRESETS
from onepiece_comp.errors import InputError

app = typer.Typer(name="onepiece-comp", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode=None, help="From a user-event log to a scored top-10 submission, stage by stage.")

ConfigFile = Annotated[Optional[Path], typer.Option("--config", help="YAML file of sections and keys.")]
Sets = Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value, may be repeated.")]
Preset = Annotated[str, typer.Option(help=f"Size or recipe: {', '.join(PRESETS)}.")]


@app.command(epilog="Example: onepiece-comp synthesize work/raw --set synthesize.users=3000")
def synthesize(
    out: Path,
    layout: Annotated[Optional[str], typer.Option(help="jsonl, or parquet as the public release.")] = None,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Make a synthetic world in the competition's file layout."""
    from onepiece_comp.synthetic import synthesize as stage

    overrides = [*(sets or ()), *([f"synthesize.layout={layout}"] if layout else [])]
    stage(out, load_config(preset, config, overrides).synthesize)


@app.command(epilog="Example: onepiece-comp convert table events.csv work/raw --user user_id --item item_id --time ts")
def convert(
    kind: Annotated[str, typer.Argument(help="auto, kuairand, recbole, movielens, amazon, sequences or table.")],
    source: Path,
    out: Path,
    user: Annotated[str, typer.Option(help="Column of users (table, recbole).")] = "",
    item: Annotated[str, typer.Option(help="Column of items (table, recbole).")] = "",
    time: Annotated[str, typer.Option(help="Column of times (table, recbole).")] = "",
    action: Annotated[str, typer.Option(help="Column of actions (table); without it every event is a click.")] = "",
    action_map: Annotated[
        Optional[list[str]], typer.Option("--map", help="VALUE=0, 1 or 2 for an action (table), may be repeated.")
    ] = None,
    user_features: Annotated[Optional[Path], typer.Option(help="Table of users (table).")] = None,
    item_features: Annotated[Optional[Path], typer.Option(help="Table of items (table), products (amazon).")] = None,
    interactions: Annotated[Optional[Path], typer.Option(help="Table user,item,time (sequences).")] = None,
) -> None:
    """Turn another log into the competition's file layout; original ids survive."""
    from onepiece_comp.convert import ConvertOptions
    from onepiece_comp.convert import convert as stage

    stage(kind, source, out, ConvertOptions(interactions, user, item, time, action, tuple(action_map or ()),
                                            user_features, item_features))


@app.command(epilog="Example: onepiece-comp describe work/raw --out report.html")
def describe(
    path: Path,
    out: Annotated[Optional[Path], typer.Option(help="Page of HTML to write, with plots.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Count embedding tables above 1 GiB too.")] = False,
) -> None:
    """Say what a folder or file is, its counts and distributions, and warn of what will hurt."""
    from onepiece_comp.describe import describe as stage

    stage(path, out=out, embeddings=embeddings)


@app.command(epilog="Example: onepiece-comp split work/raw work/split --set split.cut=2022-05-06T00:00:00Z")
def split(raw: Path, out: Path, preset: Preset = "tiny", config: ConfigFile = None, sets: Sets = None) -> None:
    """Withhold each user's target: OUT/train, OUT/eval, OUT/truth.jsonl."""
    from onepiece_comp.split import split as stage

    stage(raw, out, load_config(preset, config, sets or ()).split)


@app.command(epilog="Example: onepiece-comp preprocess work/split/train work/dataset")
def preprocess(
    train: Path,
    dataset: Path,
    engine: Annotated[Optional[str], typer.Option(help="local, or dask: share the users among workers.")] = None,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Read the training files once into memory-mapped columns."""
    from onepiece_comp.preprocess import preprocess as stage

    chosen = [f"preprocess.engine={engine}"] if engine else []
    stage(train, dataset, load_config(preset, config, [*(sets or ()), *chosen]).preprocess)


@app.command(
    "build-tokenizer", epilog="Example: onepiece-comp build-tokenizer work/dataset work/tokenizer --ckpt work/retrieval"
)
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
    from onepiece_comp.tokenizer import build_tokenizer as stage

    stage(dataset, out, load_config(preset, config, sets or ()).tokenizer, vectors=vectors, checkpoint=ckpt,
          extend=extend)


@app.command(
    "tokenizer-report",
    epilog="Example: onepiece-comp tokenizer-report work/dataset work/tokenizers.html --vectors emb_81 --rule assignment",
)
def tokenizer_report(
    dataset: Path,
    out: Annotated[Path, typer.Argument(help="Page of HTML to write; the figures lie beside it as .json.")],
    vectors: Annotated[
        list[str], typer.Option(help="What to quantise, as in build-tokenizer; may be repeated.")
    ],
    quantiser: Annotated[
        Optional[list[str]], typer.Option(help="May be repeated; default: tokenizer.quantiser.")
    ] = None,
    rule: Annotated[
        Optional[list[str]], typer.Option(help="How shared ids come apart, may be repeated; default: every rule.")
    ] = None,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Compare sources x quantisers x rules: collisions, use of codes, error, neighbours kept, time."""
    from onepiece_comp.tokenizer_report import tokenizer_report as stage

    stage(dataset, out, load_config(preset, config, sets or ()).tokenizer, sources=vectors, quantisers=quantiser or (),
          rules=rule or ())


@app.command(epilog="Example: onepiece-comp align work/dataset work/aligned.npy --vectors emb_81")
def align(
    dataset: Path,
    out: Path,
    vectors: Annotated[str, typer.Option(help="What to align, as build-tokenizer takes it.")],
    seed: Annotated[int, typer.Option(help="Of pairs, batches and anchors.")] = 0,
) -> None:
    """Bring vectors of items that users click together close, for build-tokenizer --vectors OUT.npy."""
    from onepiece_comp.alignment import write_aligned as stage

    stage(dataset, vectors, out, seed=seed)


@app.command(
    epilog="Example: onepiece-comp train work/dataset work/joint --tokenizer work/tokenizer --warm-start work/retrieval"
)
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
    from onepiece_comp.training import train as stage

    stage(dataset, run, load_config(preset, config, sets or ()), tokenizer=tokenizer, warm=warm_start, resume=resume)


@app.command(epilog="Example: onepiece-comp infer --ckpt work/joint --data work/split/eval --out work/result")
def infer(ckpt: Annotated[Path, typer.Option(help="A run or a checkpoint folder.")],
          data: Annotated[Optional[Path], typer.Option(help="Evaluation folder; default: the run's own.")] = None,
          out: Annotated[Optional[Path], typer.Option(help="Where to write; default: CKPT/result.")] = None,
          truth: Annotated[Optional[Path], typer.Option(help="truth.jsonl, for the funnel only.")] = None,
          mode: Annotated[Optional[str], typer.Option(help="retrieval, beam or cascade.")] = None,
          shard: Annotated[str, typer.Option(help="I/N: make only the I-th of N shares of the answers.")] = "1/1",
          config: ConfigFile = None, sets: Sets = None) -> None:
    """Write result.json: ten candidates for every user."""
    from onepiece_comp.answer_parts import read_shard
    from onepiece_comp.submission import infer as stage
    from onepiece_comp.submission import stored_config

    overrides = [*(sets or ()), *([f"infer.mode={mode}"] if mode else [])]
    stage(ckpt, out or ckpt / "result", stored_config(ckpt, config, overrides), data=data, truth=truth,
          shard=read_shard(shard))


@app.command("export-ann", epilog="Example: onepiece-comp export-ann work/joint work/ann --data work/split/eval")
def export_ann(ckpt: Path, out: Path, data: Annotated[Path, typer.Option(help="Evaluation folder.")],
               config: ConfigFile = None, sets: Sets = None) -> None:
    """Write vectors of candidates and users in the files of the platform's neighbour search."""
    from onepiece_comp.ann_export import export_ann as stage
    from onepiece_comp.submission import stored_config

    stage(ckpt, out, stored_config(ckpt, config, sets or ()), data=data)


@app.command(epilog="Example: onepiece-comp baselines work/split/train work/split/eval work/baselines")
def baselines(train: Path, evaluation: Path, out: Path) -> None:
    """Write result files of popularity, last-day popularity and item-kNN."""
    from onepiece_comp.baselines import baselines as stage

    stage(train, evaluation, out)


@app.command(
    epilog="Example: onepiece-comp score work/result/result.json work/split/truth.jsonl --against work/baselines/item_knn.json"
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
    from onepiece_comp.scoring import score as stage

    others = {path.stem if path.stem != "result" else path.parent.name: path for path in against or ()}
    stage(result, truth, load_config("tiny", config, sets or ()).score, against=others)


@app.command(epilog="Example: onepiece-comp run work/raw work --preset tiny")
def run(raw: Path, work: Path, preset: Preset = "tiny", config: ConfigFile = None, sets: Sets = None) -> None:
    """The lot: split, preprocess, train, tokenizer, train jointly, infer, score; reuses what is done."""
    from onepiece_comp.flow import run_all

    run_all(raw, work, load_config(preset, config, sets or ()))


@app.command(epilog="Example: onepiece-comp ablate benchmarks/ladder.yaml work/raw work/ablation --hours 2")
def ablate(
    ladder: Path,
    raw: Path,
    work: Path,
    hours: Annotated[float, typer.Option(help="No row is begun after these.")] = 2.0,
    seeds: Annotated[int, typer.Option(help="For the first row and the best others.", min=1)] = 3,
    best: Annotated[int, typer.Option(help="How many others, by validation score.", min=0)] = 3,
) -> None:
    """Run a ladder of settings over one split: table, intervals, plot; goes on where it stopped."""
    from onepiece_comp.ablation import ablate as stage

    stage(ladder, raw, work, hours=hours, seeds=seeds, best=best)


@app.command(epilog="Example: onepiece-comp pack work/upload --preset base")
def pack(
    out: Path,
    preset: Preset = "small",
    config: ConfigFile = None,
    sets: Sets = None,
    flat: Annotated[bool, typer.Option("--flat", help="Plain files without subfolders.")] = False,
    cache_gib: Annotated[float, typer.Option(help="Quota of USER_CACHE_PATH: 20, in the second round 200.")] = 20.0,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Run both jobs on a tiny world.")] = True,
) -> None:
    """Write the two upload folders with the configuration frozen in, and try them out."""
    from onepiece_comp.pack import pack as stage

    stage(out, load_config(preset, config, sets or ()), preset=preset, flat=flat, cache_gib=cache_gib, check=check)


@app.command(epilog="Example: onepiece-comp rehearse work/raw --pack work/upload")
def rehearse(
    raw: Path,
    pack: Annotated[Optional[Path], typer.Option(help="A folder that pack wrote; default: one is packed.")] = None,
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("work/rehearsal"),
    minutes: Annotated[float, typer.Option(help="Time limit of each job; 0 = none.")] = 0.0,
    cache_gib: Annotated[float, typer.Option(help="Quota of USER_CACHE_PATH.")] = 20.0,
    hide: Annotated[Optional[list[str]], typer.Option(help="A further library that the jobs cannot import.")] = None,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """The platform's life of a submission: training job, release, evaluation job, score; no network, bare variables."""
    from onepiece_comp.pack import rehearse_packed as stage

    stage(raw, out, load_config(preset, config, sets or ()), pack=pack, preset=preset, minutes=minutes,
          cache_gib=cache_gib, hide=hide or ())


@app.command(epilog="Example: onepiece-comp doctor work/raw")
def doctor(data: Annotated[Optional[Path], typer.Argument(help="A data folder to recognise.")] = None) -> None:
    """Versions, devices, memory, disk, the platform's variables, and what a data folder is."""
    from onepiece_comp.doctor import doctor as stage

    stage(data)


@app.command(epilog="Example: onepiece-comp plan --users 1000000 --items 4800000 --gpu-memory 19GiB --hours 8")
def plan(
    users: Annotated[int, typer.Option(help="In the training log.")],
    items: Annotated[int, typer.Option(help="In the index.")],
    candidates: Annotated[int, typer.Option(help="To rank for every user.")] = 660_000,
    gpu_memory: Annotated[str, typer.Option(help="As 19GiB.")] = "19GiB",
    hours: Annotated[float, typer.Option(help="For all stages together.")] = 8.0,
    tflops: Annotated[float, typer.Option(help="Of a training step; 0 = measured here from a product of matrices.")] = 0.0,
    preset: Annotated[Optional[list[str]], typer.Option(help="May be repeated; default: tiny to full.")] = None,
    sets: Sets = None,
) -> None:
    """Forecast memory and hours of every stage by preset, before a try is spent."""
    from onepiece_comp.plan import SIZES, Scale
    from onepiece_comp.plan import plan as stage

    stage(Scale(users, items, candidates), gpu_memory=gpu_memory, within_hours=hours, presets=preset or SIZES, tflops=tflops,
          sets=sets or ())


class _Stopped(BaseException):
    """Ctrl-C or a termination: passes through the libraries, so that every stage cleans up behind itself."""


def _stop(signum: int, frame: object) -> NoReturn:
    raise _Stopped


def main() -> None:
    """Entry point of `onepiece-comp`."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        app()
    except InputError as error:
        console.complain(f"error: {error}")
        sys.exit(2)
    except OSError as error:  # what the operating system refuses is about the user's paths
        console.complain(f"error: {error.filename or 'input or output'}: {error.strerror or error}; check the path")
        sys.exit(2)
    except _Stopped:
        console.complain(
            "interrupted: nothing half-written was left; run the same command again (train: with --resume)"
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
