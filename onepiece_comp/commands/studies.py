"""Commands that compare: tokenizers, settings, sizes, runs, public benchmarks; a short function each, no logic."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from onepiece_comp.commands.options import ConfigFile, Preset, Sets
from onepiece_comp.config_reading import load_config
from onepiece_comp.errors import InputError

app = typer.Typer()


@app.command(epilog="Example: onepiece-comp align work/dataset work/aligned.npy --vectors emb_81")
def align(
    dataset: Path,
    out: Path,
    vectors: Annotated[str, typer.Option(help="What to align, as build-tokenizer takes it.")],
    seed: Annotated[int, typer.Option(help="Of pairs, batches and anchors.")] = 0,
) -> None:
    """Bring vectors of items that users click together close, for build-tokenizer --vectors OUT.npy."""
    from onepiece_comp.tokenizer.align import write_aligned as stage

    stage(dataset, vectors, out, seed=seed)


@app.command(
    "tokenizer-report",
    epilog="Example: onepiece-comp tokenizer-report work/dataset work/tokenizers.html --vectors emb_81 --rule "
           "assignment",
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
        Optional[list[str]], typer.Option(help="How collisions are resolved, may be repeated; default: every rule.")
    ] = None,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Compare sources x quantisers x rules: collisions, use of codes, error, neighbours kept, time."""
    from onepiece_comp.studies.tokenizer_report import tokenizer_report as stage

    stage(dataset, out, load_config(preset, config, sets or ()).tokenizer, sources=vectors, quantisers=quantiser or (),
          rules=rule or ())


@app.command(epilog="Example: onepiece-comp ablate benchmarks/ladder.yaml work/raw work/ablation --hours 2")
def ablate(
    ladder: Path,
    raw: Path,
    work: Path,
    hours: Annotated[float, typer.Option(help="No row is started after this many hours.")] = 2.0,
    seeds: Annotated[int, typer.Option(help="For the first row and the best others.", min=1)] = 3,
    best: Annotated[int, typer.Option(help="How many others, by validation score.", min=0)] = 3,
) -> None:
    """Run a ladder of settings over one split: table, intervals, plot; goes on where it stopped."""
    from onepiece_comp.studies.ablation import ablate as stage

    stage(ladder, raw, work, hours=hours, seeds=seeds, best=best)


@app.command(epilog="Example: onepiece-comp benchmark beauty --data amazon2014_beauty --out work/beauty --seeds 0,1,2")
def benchmark(
    name: Annotated[str, typer.Argument(help="ml-1m-order, ml-1m-time, beauty, beauty-20, beauty-shuffled, "
                                             "leave-one-out or leave-one-out-200.")],
    data: Annotated[Path, typer.Option(help="Sequences, MovieLens ratings, or a table of user, item, time.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; what is done there, to the last whole epoch, is "
                                           "not run again.")],
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0",
    models: Annotated[str, typer.Option(help="Rows, comma-separated; default: all.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="1,000 users, 2 epochs: that it works, no more.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 = all.", min=0)] = 0,
    sets: Annotated[Optional[list[str]], typer.Option("--set", help="key=value of all rows, as epochs=20.")] = None,
) -> None:
    """Run a public benchmark: split, train with early stopping, test once, a result file per row and seed."""
    from onepiece_comp.benchmark.run import benchmark as stage

    if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        raise InputError("--seeds", found=repr(seeds), expected="numbers such as 0,1,2", do="correct them")
    stage(name, data, out, seeds=[int(seed) for seed in seeds.split(",")], models=models, quick=quick,
          sets=sets or (), threads=threads)


@app.command(epilog="Example: onepiece-comp scaling benchmarks/scaling.yaml work/dataset work/scaling --hours 3")
def scaling(
    grid: Path,
    dataset: Path,
    out: Path,
    hours: Annotated[float, typer.Option(help="No row is started after this many hours.")] = 3.0,
) -> None:
    """Train a grid of sizes for each objective and both, and fit laws of loss against size;
    goes on where it stopped.
    """
    from onepiece_comp.studies.scaling import scaling as stage

    stage(grid, dataset, out, hours=hours)


@app.command(epilog="Example: onepiece-comp report work --out report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Work folders as `run` makes them.")],
    out: Annotated[Path, typer.Option(help="Page of HTML to write.")] = Path("report.html"),
) -> None:
    """One page over finished runs: data, training, funnel, slices, codes, users, and runs side by side."""
    from onepiece_comp.studies.report import report as stage

    stage(runs, out)
