"""What a person sees: lines, tables, progress. Uses rich where it is installed, plain text elsewhere.

The platform's container does not promise rich; nothing here may be needed for a result.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean, stdev

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text
except ImportError:  # the platform's container
    Console = None

_quiet = False
_console = Console(highlight=False, soft_wrap=True) if Console else None


def be_quiet() -> None:
    """From here on this process prints errors only: one among several that do the same."""
    global _quiet
    _quiet = True


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within the block this process prints errors only: what is tried on the side has its own reports."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


def say(line: str) -> None:
    """Print one line of plain text at once (square brackets are text, not markup)."""
    if _quiet:
        return
    if _console:
        _console.print(line, markup=False)
    else:
        print(line, flush=True)


def complain(line: str) -> None:
    """Print one line to standard error."""
    print(line, file=sys.stderr, flush=True)


def mean_and_spread(values: Sequence[float], *, sign: bool = False) -> str:
    """A cell of a table: the mean of what several seeds reached, and their standard deviation where they differ."""
    mean = f"{fmean(values):+.4f}" if sign else f"{fmean(values):.4f}"
    return mean + (f" ± {stdev(values):.4f}" if len(set(values)) > 1 else "")


def _plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [list(columns), *rows]) for i in range(len(columns))]
    line = lambda row: "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    return "\n".join([title, line(columns), "  ".join("-" * width for width in widths), *map(line, rows)])


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the first column is left-aligned, the others right-aligned."""
    if _quiet:
        return
    text_rows = [[str(cell) for cell in row] for row in rows]
    if not (_console and _console.is_terminal):
        say(_plain_table(title, columns, text_rows))
        return
    drawn = Table(title=Text(title), title_justify="left")  # brackets in it are no markup
    for i, column in enumerate(columns):
        drawn.add_column(Text(column), justify="left" if i == 0 else "right")
    for row in text_rows:
        drawn.add_row(*map(Text, row))
    _console.print(drawn)


def progress(items: Iterable, *, total: int | None, what: str, size: Callable[[object], int] = lambda item: 1,
             ) -> Iterator:
    """Iterate over `items` with a bar on a terminal; elsewhere a line every 30 s. An item counts as its `size`."""
    if _console and _console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=_console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            for item in items:
                yield item
                bar.advance(task, size(item))
        return
    last, done = time.monotonic(), 0
    for item in items:
        yield item
        done += size(item)
        if time.monotonic() - last > 30:
            say(f"{what}: {done:,}" + (f" of {total:,}" if total else ""))
            last = time.monotonic()
