"""A stage as a program of its own, where typer, rich and yaml cannot be imported, as in the platform's container.

    python -m onepiece_comp.stages.preprocess TRAIN DATASET --set preprocess.threads=2

Arguments follow from the stage's signature: paths and numbers without a default stand in order, the others are options,
and the section of settings comes from --preset, --config (YAML needs its library) and --set, as on the command line.
"""

import argparse
import contextlib
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path

from onepiece_comp import config_reading
from onepiece_comp.artefacts import moving_aside
from onepiece_comp.config import Config
from onepiece_comp.console import complain, say
from onepiece_comp.errors import InputError


def run_alone(stage: Callable[..., object], settings: Callable[[argparse.Namespace], object] | None = None) -> None:
    """Call `stage` with what the command line says; exit code 2 and a line for bad input.

    `settings` makes the stage's configuration where it does not come from a preset, as a checkpoint's does not.
    """
    parameters, kinds = inspect.signature(stage).parameters, typing.get_type_hints(stage)
    parser = argparse.ArgumentParser(prog=f"python -m {stage.__module__}", description=inspect.getdoc(stage),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    plain = [name for name in parameters if name != "config"]
    for name in plain:
        _add(parser, name, kinds[name], parameters[name].default)
    if "config" in parameters:
        parser.add_argument("--preset", default="tiny", choices=list(config_reading.PRESETS))
        parser.add_argument("--config", type=Path, help="YAML file of sections and keys")
        parser.add_argument("--set", dest="sets", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--force", action="store_true", help="move what stands in the way aside, under a dated name")
    options = parser.parse_args()
    try:
        given = {name: getattr(options, name) for name in plain}
        if "config" in parameters:
            given["config"] = settings(options) if settings else _section(kinds["config"], options)
        with moving_aside(say) if options.force else contextlib.nullcontext():
            stage(**given)
    except InputError as error:
        complain(f"error: {error}")
        sys.exit(2)
    except OSError as error:  # what the operating system refuses is about the user's paths
        complain(f"error: {error.filename or 'input or output'}: {error.strerror or error}; check the path")
        sys.exit(2)


def _add(parser: argparse.ArgumentParser, name: str, kind: object, default: object) -> None:
    """A parameter as an argument; those that a caller within Python alone can give are left out by their type."""
    kind = next((part for part in typing.get_args(kind) if part is not type(None)), kind)
    if default is inspect.Parameter.empty:
        parser.add_argument(name, type=kind)
    elif kind is bool:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, action="store_true")
    elif kind in (Path, str, int, float):
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, default=default)
    else:
        parser.set_defaults(**{name: default})


def _section(kind: type, options: argparse.Namespace) -> object:
    """The whole configuration, or the one section of it that the stage takes."""
    config = config_reading.load_config(options.preset, options.config, options.sets)
    return config if kind is Config else next(part for part in vars(config).values() if type(part) is kind)
