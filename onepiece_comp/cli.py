"""The command line, put together. Errors from outside end with exit code 2, Ctrl-C with 130."""

import signal
import sys
from typing import NoReturn

import typer

from onepiece_comp import console
from onepiece_comp.commands import (
    container as platform_commands, data as data_commands, model as model_commands, studies as study_commands)
from onepiece_comp.errors import InputError

app = typer.Typer(name="onepiece-comp", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode=None, help="From a user-event log to a scored top-10 submission, stage by stage.")
for group in (data_commands, model_commands, platform_commands, study_commands):
    # `add_typer` joins them without a name only since typer 0.15
    app.registered_commands += group.app.registered_commands


class _Stopped(BaseException):
    """Ctrl-C or a termination: passes through the libraries, so that every stage cleans up behind itself."""


def _stop(signum: int, frame: object) -> NoReturn:
    raise _Stopped


def main() -> None:
    """Entry point of `onepiece-comp`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGINT is in what a script starts with `&`
            signal.signal(number, _stop)
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
