"""Options that several commands of the command line share."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from onepiece_comp.presets import PRESETS

ConfigFile = Annotated[Optional[Path], typer.Option("--config", help="YAML file of sections and keys.")]
Sets = Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value, may be repeated.")]
Preset = Annotated[str, typer.Option(help=f"Size or recipe: {', '.join(PRESETS)}.")]
