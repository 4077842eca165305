"""A self-contained HTML page of texts, tables and plots: no scripts, no files beside it, readable offline.

The end of every stage that reports to a person. Plots are drawn by matplotlib as inline SVG whose text stays text;
where matplotlib is missing the page has its tables and says what it lacks. The page is well-formed XML as well, and
the same input gives the same bytes.
"""

import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import atomic_file

LINE, BARS = "line", "bars"
_COLOURS = ("#1f5fa8", "#c8541a", "#3f7f3f", "#7a4a9a")
_SIZE_INCHES = (6.4, 3.0)
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c1c1c; background: #fff; margin: 2em auto; max-width: 72em;
       padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; border-bottom: 1px solid #bbb; margin-top: 2em }
.parts { display: flex; flex-wrap: wrap; gap: 1.2em 2em; align-items: flex-start }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption, figcaption { text-align: left; font-weight: 600; padding-bottom: .3em }
th, td { padding: .15em .7em; text-align: right; border-bottom: 1px solid #e4e4e4; vertical-align: top }
th { border-bottom: 1px solid #888 } th:first-child, td:first-child { text-align: left }
figure { margin: 0 } figure svg { max-width: 100%; height: auto }
p { max-width: 60em; margin: .3em 0 }
p.warning { border-left: 4px solid #c8541a; padding: .2em .8em; background: #fdf3ec }
.text { flex-basis: 100% }
"""


class Text(NamedTuple):
    """A paragraph; a warning stands out."""

    text: str
    warning: bool = False


class Table(NamedTuple):
    """Rows under column names; the first column is left-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


class Plot(NamedTuple):
    """One or more series over the same x; x may be numbers or dates (datetime64). Drawn in the order given."""

    title: str
    x: np.ndarray  # [n]
    series: Mapping[str, np.ndarray]  # label to [n]; with a single one no legend is drawn
    x_label: str
    y_label: str
    kind: str = LINE  # LINE or BARS
    log: str = ""  # axes on a logarithmic scale: "", "x", "y" or "xy"


class Section(NamedTuple):
    """A headline and what stands under it."""

    title: str
    parts: Sequence[Text | Table | Plot]


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write_report(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page to `path`, atomically; returns `path`."""
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(render(title, sections), "utf-8")
    return Path(path)


def render(title: str, sections: Sequence[Section]) -> str:
    """The page as text."""
    drawable = can_plot()
    lacking = not drawable and any(isinstance(part, Plot) for section in sections for part in section.parts)
    note = _text(Text("The plots are missing: they need matplotlib (pip install matplotlib).")) if lacking else ""
    body = "".join(_section(section, drawable) for section in sections)
    return (f'<!DOCTYPE html>\n<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>'
            f'<meta name="viewport" content="width=device-width"/><title>{escape(title)}</title>'
            f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{note}{body}</body></html>\n")


def _section(section: Section, drawable: bool) -> str:
    drawn = []
    for part in section.parts:
        if isinstance(part, Plot):
            drawn.append(_figure(part) if drawable else "")
        else:
            drawn.append(_text(part) if isinstance(part, Text) else _table(part))
    return f'<h2>{escape(section.title)}</h2>\n<div class="parts">{"".join(drawn)}</div>\n'


def _text(text: Text) -> str:
    name = "text warning" if text.warning else "text"
    return f'<p class="{name}">{escape(text.text)}</p>\n'


def _table(table: Table) -> str:
    row = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>\n"
    body = "".join(row(cells, "td") for cells in table.rows)
    return (f"<table><caption>{escape(table.title)}</caption>\n<thead>{row(table.columns, 'th')}</thead>"
            f"<tbody>{body}</tbody></table>\n")


def _figure(plot: Plot) -> str:
    return f"<figure><figcaption>{escape(plot.title)}</figcaption>{draw(plot)}</figure>\n"


def draw(plot: Plot) -> str:
    """The plot as an SVG element."""
    from matplotlib import rc_context
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # the salt makes the ids inside the drawing the same in every run, and different from those of other drawings
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.title, "font.family": "sans-serif"}):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        for number, (label, values) in enumerate(plot.series.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            if plot.kind == BARS:
                axes.bar(plot.x, values, width=_bar_widths(plot), align="edge", color=colour, label=label)
            else:
                axes.plot(plot.x, values, color=colour, linewidth=1.4, marker="." if len(plot.x) < 60 else "",
                          label=label)
        axes.set_xscale("log" if "x" in plot.log else axes.get_xscale())
        axes.set_yscale("log" if "y" in plot.log else axes.get_yscale())
        axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if np.asarray(plot.x).dtype.kind == "M":
            locator = AutoDateLocator()
            axes.xaxis.set(major_locator=locator, major_formatter=ConciseDateFormatter(locator))
        if len(plot.series) > 1:
            axes.legend(frameon=False)
        written = io.StringIO()
        FigureCanvasSVG(figure).print_svg(written, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = written.getvalue()
    return svg[svg.index("<svg"):].replace("<svg", f'<svg role="img" aria-label="{escape(plot.title)}"', 1)


def _bar_widths(plot: Plot) -> np.ndarray:
    """From each x to the next; the last is as wide as the one before."""
    if len(plot.x) < 2:
        return np.ones(len(plot.x), "timedelta64[D]" if np.asarray(plot.x).dtype.kind == "M" else float)
    steps = np.diff(plot.x)
    return np.append(steps, steps[-1:])
