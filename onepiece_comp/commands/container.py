"""Commands around the competition's platform: a short function each, no logic."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from onepiece_comp.commands.options import ConfigFile, Preset, Sets, forceable
from onepiece_comp.config_reading import load_config

app = typer.Typer()


@app.command("export-ann", epilog="Example: onepiece-comp export-ann work/joint work/ann --data work/split/eval")
@forceable
def export_ann(ckpt: Path, out: Path, data: Annotated[Path, typer.Option(help="Evaluation folder.")],
               config: ConfigFile = None, sets: Sets = None) -> None:
    """Write vectors of candidates and users in the files of the platform's neighbour search."""
    from onepiece_comp.container.ann_export import export_ann as stage
    from onepiece_comp.funnel.infer import stored_config

    stage(ckpt, out, stored_config(ckpt, config, sets or ()), data=data)


@app.command(epilog="Example: onepiece-comp pack work/upload --preset base")
@forceable
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
    from onepiece_comp.container.pack import pack as stage

    stage(out, load_config(preset, config, sets or ()), preset=preset, flat=flat, cache_gib=cache_gib, check=check)


@app.command(epilog="Example: onepiece-comp rehearse work/raw --pack work/upload")
@forceable
def rehearse(
    raw: Path,
    pack: Annotated[Optional[Path], typer.Option(help="A folder that pack wrote; default: one is packed.")] = None,
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("work/rehearsal"),
    minutes: Annotated[float, typer.Option(help="Time limit of each job; 0 = none.")] = 0.0,
    cache_gib: Annotated[float, typer.Option(help="Quota of USER_CACHE_PATH.")] = 20.0,
    hide: Annotated[Optional[list[str]], typer.Option(help="A further library that the jobs cannot import.")] = None,
    keep_cache: Annotated[bool, typer.Option("--keep-cache",
                                             help="Begin with the cache of the last rehearsal in OUT.")] = False,
    preset: Preset = "tiny",
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Run the training and evaluation jobs as the platform does, with its environment variables only and no network."""
    from onepiece_comp.container.pack import rehearse_packed as stage
    from onepiece_comp.container.rehearse import Limits
    from onepiece_comp.container.sandbox import NOT_PROMISED

    limits = Limits(minutes, cache_gib, (*NOT_PROMISED, *(hide or ())), keep_cache)
    stage(raw, out, load_config(preset, config, sets or ()), pack=pack, preset=preset, limits=limits)


@app.command(epilog="Example: onepiece-comp plan --users 1000000 --items 4800000 --gpu-memory 19GiB --hours 8")
def plan(
    users: Annotated[int, typer.Option(help="In the training log.", min=1)],
    items: Annotated[int, typer.Option(help="In the index.", min=1)],
    candidates: Annotated[int, typer.Option(help="To rank for every user.", min=1)] = 660_000,
    gpu_memory: Annotated[str, typer.Option(help="As 19GiB.")] = "19GiB",
    hours: Annotated[float, typer.Option(help="For all stages together.", min=0)] = 8.0,
    tflops: Annotated[float, typer.Option(help="Of a training step; 0 = measured here from a product of matrices.",
                                          min=0)] = 0.0,
    preset: Annotated[Optional[list[str]], typer.Option(help="May be repeated; default: tiny to full.")] = None,
    sets: Sets = None,
) -> None:
    """Forecast memory and hours of every stage by preset, before a try is spent."""
    from onepiece_comp.container.plan import SIZES, Scale
    from onepiece_comp.container.plan import plan as stage

    stage(Scale(users, items, candidates), gpu_memory=gpu_memory, within_hours=hours, presets=preset or SIZES,
          tflops=tflops,
          sets=sets or ())


@app.command(epilog="Example: onepiece-comp doctor work/raw")
def doctor(data: Annotated[Optional[Path], typer.Argument(help="A data folder to recognise.")] = None) -> None:
    """Versions, devices, memory, disk, the platform's variables, and what a data folder is."""
    from onepiece_comp.container.doctor import doctor as stage

    stage(data)
