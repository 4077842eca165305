"""Commands that make, read and divide a log: a short function each, no logic."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from onepiece_comp.commands.options import ConfigFile, Preset, Sets, forceable
from onepiece_comp.config_reading import load_config

app = typer.Typer()


@app.command(epilog="Example: onepiece-comp synthesize work/raw --set synthesize.users=3000")
@forceable
def synthesize(
    out: Path,
    layout: Annotated[Optional[str], typer.Option(help="jsonl, or parquet as the public release.")] = None,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Make a synthetic world in the competition's file layout."""
    from onepiece_comp.stages.synthesize import synthesize as stage

    overrides = [*(sets or ()), *([f"synthesize.layout={layout}"] if layout else [])]
    stage(out, load_config(preset, config, overrides).synthesize)


@app.command(epilog="Example: onepiece-comp convert table events.csv work/raw --user user_id --item item_id --time ts")
@forceable
def convert(
    kind: Annotated[str, typer.Argument(help="auto, kuairand, recbole, movielens, amazon, sequences or table.")],
    source: Path,
    out: Path,
    user: Annotated[str, typer.Option(help="Column of users (table, recbole).")] = "",
    item: Annotated[str, typer.Option(help="Column of items (table, recbole).")] = "",
    time: Annotated[str, typer.Option(help="Column of times (table, recbole).")] = "",
    action: Annotated[
        str, typer.Option(help="Column of actions (table, recbole); without it every event is a click.")
    ] = "",
    action_map: Annotated[
        Optional[list[str]], typer.Option("--map", help="VALUE=0, 1 or 2 for an action (table, recbole), repeatable.")
    ] = None,
    user_features: Annotated[Optional[Path], typer.Option(help="Table of users (table).")] = None,
    item_features: Annotated[Optional[Path], typer.Option(help="Table of items (table), products (amazon).")] = None,
    interactions: Annotated[Optional[Path], typer.Option(help="Table user,item,time (sequences).")] = None,
    columns: Annotated[str, typer.Option(help="Names of all columns, by commas, of a text without a header "
                                              "(table).")] = "",
    quote: Annotated[
        str, typer.Option(help="What quotes fields, or none (table); by default \", between tabs none.")
    ] = "",
) -> None:
    """Turn another log into the competition's file layout; original ids survive."""
    from onepiece_comp.converters.convert import ConvertOptions
    from onepiece_comp.stages.convert import convert as stage

    stage(kind, source, out, ConvertOptions(interactions, user, item, time, action, tuple(action_map or ()),
                                            user_features, item_features, columns, quote))


@app.command(epilog="Example: onepiece-comp describe work/raw --out report.html")
def describe(
    path: Path,
    out: Annotated[Optional[Path], typer.Option(help="Page of HTML to write, with plots.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Count embedding tables above 1 GiB too.")] = False,
) -> None:
    """Say what a folder or file is, its counts and distributions, and warn of what will hurt."""
    from onepiece_comp.reports.describe import describe as stage

    stage(path, out=out, embeddings=embeddings)


@app.command(epilog="Example: onepiece-comp split work/raw work/split --set split.cut=2022-05-06T00:00:00Z")
@forceable
def split(raw: Path, out: Path, preset: Preset = "tiny", config: ConfigFile = None, sets: Sets = None) -> None:
    """Withhold each user's target: OUT/train, OUT/eval, OUT/truth.jsonl."""
    from onepiece_comp.stages.split import split as stage

    stage(raw, out, load_config(preset, config, sets or ()).split)


@app.command(epilog="Example: onepiece-comp preprocess work/split/train work/dataset")
@forceable
def preprocess(
    train: Path,
    dataset: Path,
    engine: Annotated[Optional[str], typer.Option(help="local, or dask: share the users among workers.")] = None,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Read the training files once into memory-mapped columns."""
    from onepiece_comp.stages.preprocess import preprocess as stage

    chosen = [f"preprocess.engine={engine}"] if engine else []
    stage(train, dataset, load_config(preset, config, [*(sets or ()), *chosen]).preprocess)
