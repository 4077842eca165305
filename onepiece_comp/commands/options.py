"""Options that several commands of the command line share."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Optional

import typer

from onepiece_comp.artefacts import moving_aside
from onepiece_comp.console import say
from onepiece_comp.presets import PRESETS

ConfigFile = Annotated[Optional[Path], typer.Option("--config", help="YAML file of sections and keys.")]
Sets = Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value, may be repeated.")]
Preset = Annotated[str, typer.Option(help=f"Size or recipe: {', '.join(PRESETS)}.")]
Force = Annotated[bool, typer.Option("--force", help="Move what stands in the way aside, under a dated name.")]


def forceable(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the option `--force`: an output in the way is moved aside instead of refused."""
    @functools.wraps(command)
    def forced(*arguments: object, force: bool = False, **options: object) -> None:
        with moving_aside(say) if force else contextlib.nullcontext():
            command(*arguments, **options)

    signature = inspect.signature(command)
    added = inspect.Parameter("force", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Force)
    forced.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])
    forced.__annotations__ = {**command.__annotations__, "force": Force}
    return forced
