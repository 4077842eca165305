"""A self-contained HTML page of texts, tables and plots: no scripts, no files beside it, readable offline.

The end of every stage that reports to a person. Plots are drawn by matplotlib as inline SVG whose text stays text;
where matplotlib is missing the page has its tables and says what it lacks. The page is well-formed XML as well, and
the same input gives the same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import atomic_file

LINE, BARS = "line", "bars"
COLOURS = ("#2f6fc4", "#d4661f", "#2f8f5b", "#8a5bb5", "#b98a00", "#c2447a")  # seen on white and on near-black alike
_INK, _GRID = "#010203", "#040506"  # stand for the page's own colours until a drawing is on the page
_SIZE_INCHES = (6.4, 3.0)
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5d6675; --line: #dfe3ea; --page: #fbfbfd; --card: #fff;
        --accent: #2f6fc4; --warn: #d4661f; --warn-page: #fdf3ec }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b4; --line: #303746; --page: #12151b;
        --card: #1a1f28; --accent: #78aaf0; --warn: #ef9355; --warn-page: #2c2119 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); background: var(--page);
       margin: 0 auto; max-width: 76rem; padding: 2.2rem 1.4rem 4rem }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .9rem; padding-bottom: .35rem; border-bottom: 2px solid var(--line) }
a { color: var(--accent); text-decoration: none }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: .7rem 0; font-size: .9rem }
.parts { display: flex; flex-wrap: wrap; gap: 1.2rem 1.6rem; align-items: flex-start }
.parts > * { max-width: 100% }
.held { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92em }
caption, figcaption { text-align: left; font-weight: 600; padding-bottom: .4em }
th, td { padding: .22em .75em; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--soft) }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem }
figure.plot { flex: 1 1 24rem; max-width: calc(50% - .8rem) } figure.plot svg { width: 100% }
@media (max-width: 56rem) { figure.plot { max-width: 100% } }
figure svg { max-width: 100%; height: auto; display: block }
.cards { display: flex; flex-wrap: wrap; gap: .7rem; flex-basis: 100% }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .6rem 1rem;
  min-width: 8.5rem }
.card b { display: block; font-size: 1.4rem; line-height: 1.3; font-variant-numeric: tabular-nums; white-space: nowrap }
.card span { color: var(--soft); font-size: .82rem; display: block }
p { max-width: 60em; margin: .3em 0 }
p.warning { border-left: 4px solid var(--warn); padding: .3em .9em; background: var(--warn-page);
  border-radius: 0 6px 6px 0 }
.text { flex-basis: 100%; color: var(--soft) } .text.warning { color: inherit }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #ccc; --page: #fff; --card: #fff }
  body { max-width: none; padding: 0; font-size: 10.5pt } nav { display: none } h2 { break-after: avoid }
  figure, table tr, .card { break-inside: avoid } .held { overflow: visible } }
"""
# what no page may hold: names of files may
_STRANGE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_FEW = 4  # sections without a table of contents


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
    points: Sequence[str] = ()  # series of a LINE plot that are drawn as points


class Cards(NamedTuple):
    """The figures that one looks for first: (what, value, a word on it), side by side."""

    figures: Sequence[tuple[str, str, str]]


class Drawing(NamedTuple):
    """A drawing made elsewhere: well-formed SVG of ours, put into the page as it is."""

    title: str
    svg: str


class Section(NamedTuple):
    """A headline and what stands under it."""

    title: str
    parts: Sequence[Text | Table | Plot | Cards | Drawing]


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write_report(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page to `path`, atomically; returns `path`."""
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(_STRANGE.sub("\ufffd", render(title, sections)), "utf-8")
    return Path(path)


def as_markdown(sections: Sequence[Section]) -> str:
    """Texts and tables as Markdown; plots are left out."""
    lines = []
    for section in sections:
        lines += [f"## {section.title}", ""]
        for part in section.parts:
            if isinstance(part, Text):
                lines += [part.text, ""]
            elif isinstance(part, Table):
                lines += [part.title + ":", ""] if part.title else []
                rows = (part.columns, ["---"] * len(part.columns), *part.rows)
                lines += [*("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows), ""]
    return "\n".join(lines)


def render(title: str, sections: Sequence[Section]) -> str:
    """The page as text."""
    drawable = can_plot()
    lacking = not drawable and any(isinstance(part, Plot) for section in sections for part in section.parts)
    note = _text(Text("The plots are missing: they need matplotlib (pip install matplotlib).")) if lacking else ""
    body = "".join(_section(number, section, drawable) for number, section in enumerate(sections, 1))
    return (f'<!DOCTYPE html>\n<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>'
            f'<meta name="viewport" content="width=device-width"/><title>{escape(title)}</title>'
            f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{_contents(sections)}{note}{body}"
            f"</body></html>\n")


def _contents(sections: Sequence[Section]) -> str:
    """Links to the sections, where there are enough to lose one's way."""
    if len(sections) < _FEW:
        return ""
    links = (f'<a href="#s{number}">{escape(section.title)}</a>' for number, section in enumerate(sections, 1))
    return f"<nav>{' '.join(links)}</nav>\n"


def _section(number: int, section: Section, drawable: bool) -> str:
    drawn = "".join(_part(part, drawable) for part in section.parts)
    return f'<h2 id="s{number}">{escape(section.title)}</h2>\n<div class="parts">{drawn}</div>\n'


def _part(part: Text | Table | Plot | Cards | Drawing, drawable: bool) -> str:
    if isinstance(part, Plot):
        return _figure(Drawing(part.title, draw(part)), "plot") if drawable else ""
    if isinstance(part, Drawing):
        return _figure(part, "drawing")
    return _cards(part) if isinstance(part, Cards) else _text(part) if isinstance(part, Text) else _table(part)


def _cards(cards: Cards) -> str:
    one = "".join(
        f'<div class="card"><span>{escape(what)}</span><b>{escape(value)}</b><span>{escape(word)}</span></div>'
        for what, value, word in cards.figures)
    return f'<div class="cards">{one}</div>\n'


def _text(text: Text) -> str:
    name = "text warning" if text.warning else "text"
    return f'<p class="{name}">{escape(text.text)}</p>\n'


def _table(table: Table) -> str:
    row = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>\n"
    body = "".join(row(cells, "td") for cells in table.rows)
    return (f'<div class="held"><table><caption>{escape(table.title)}</caption>\n'
            f"<thead>{row(table.columns, 'th')}</thead><tbody>{body}</tbody></table></div>\n")


def _figure(drawing: Drawing, kind: str) -> str:
    return f'<figure class="{kind}"><figcaption>{escape(drawing.title)}</figcaption>{drawing.svg}</figure>\n'


def draw(plot: Plot) -> str:
    """The plot as an SVG element."""
    from matplotlib import rc_context
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # the salt makes the ids inside the drawing the same in every run, and different from those of other drawings
    inks = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.title, "font.family": "sans-serif", **inks}):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        for number, (label, values) in enumerate(plot.series.items()):
            colour = COLOURS[number % len(COLOURS)]
            if plot.kind == BARS:
                axes.bar(plot.x, values, width=_bar_widths(plot), align="edge", color=colour, label=label)
            else:
                apart = label in plot.points
                axes.plot(plot.x, values, color=colour, linewidth=0 if apart else 1.4, label=label,
                          marker="o" if apart else "." if len(plot.x) < 60 else "")
        axes.set_xscale("log" if "x" in plot.log else axes.get_xscale())
        axes.set_yscale("log" if "y" in plot.log else axes.get_yscale())
        axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        if np.asarray(plot.x).dtype.kind == "M":
            locator = AutoDateLocator()
            axes.xaxis.set(major_locator=locator, major_formatter=ConciseDateFormatter(locator))
        if len(plot.series) > 1:
            axes.legend(frameon=False)
        written = io.StringIO()
        FigureCanvasSVG(figure).print_svg(written, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = written.getvalue().replace(_INK, "var(--soft)").replace(_GRID, "var(--line)")
    return svg[svg.index("<svg"):].replace("<svg", f'<svg role="img" aria-label="{escape(plot.title)}"', 1)


def _bar_widths(plot: Plot) -> np.ndarray:
    """From each x to the next; the last is as wide as the one before."""
    if len(plot.x) < 2:
        return np.ones(len(plot.x), "timedelta64[D]" if np.asarray(plot.x).dtype.kind == "M" else float)
    steps = np.diff(plot.x)
    return np.append(steps, steps[-1:])
