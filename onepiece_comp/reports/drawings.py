"""Drawings that no plotting library makes well, as small SVG:
intervals side by side, a funnel, a tree of codes as rings.

Stands beside `page.py`, whose page gives the colours (light, dark, print). Pure functions of numbers; the text
stays text. Each returns one well-formed SVG element.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import cos, pi, sin

import numpy as np

from onepiece_comp.reports.page import COLOURS

_ROW, _LABEL, _PLOT, _VALUE = 22, 190, 320, 150  # pixels
_LETTER = 7.6  # pixels of a wide font's letter at the size of the text, so that no label is cut
_RING, _HOLE = 62, 46


def interval_chart(rows: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]], *, zero: bool = False) -> str:
    """Points with their intervals: rows of (label, {series: (mean, low, high)}); with `zero` a line at no difference.

    The series of a row stand under each other in one colour each over all rows; where colours run out, in another
    shape.
    """
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    finite = [value for _, values in rows for three in values.values() for value in three if np.isfinite(value)]
    low, high = min([*finite, 0.0]), max([*finite, 1e-9])
    left = _label_width(label for label, _ in rows)
    place = lambda value: left + _PLOT * (value - low) / (high - low)
    height, marks = _legend(names, left + _PLOT + _VALUE // 2) if len(names) > 1 else (8, [])
    top = height
    for label, values in rows:
        marks.append(_said(left - 10, height + 15, label, "end"))
        for name, (mean, least, most) in values.items():
            marks.append(_interval(place, height + 11, (mean, least, most), names.index(name)))
            marks.append(_said(left + _PLOT + 14, height + 15, f"{mean:+.4f}" if zero else f"{mean:.4f}", "start"))
            height += _ROW
        height += 4 if len(names) > 1 else 0
    line = f'<line x1="{place(0):.1f}" x2="{place(0):.1f}" y1="{top}" y2="{height}" style="stroke: var(--soft)"/>'
    return _svg(left + _PLOT + _VALUE // 2, height + 6, line + "".join(marks), "intervals")


def _label_width(labels: Iterable[str]) -> float:
    """Of the column of labels: the longest has room."""
    return max(_LABEL, *(14 + _LETTER * len(label) for label in labels), 0)


def _interval(place: object, y: float, value: tuple[float, float, float], series: int) -> str:
    mean, low, high = map(place, value)
    return (f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{COLOURS[series % len(COLOURS)]}" '
            f'stroke-width="5" '
            f'stroke-opacity="0.35" stroke-linecap="round"/>{_dot(mean, y, series)}')


def _dot(x: float, y: float, series: int) -> str:
    """A series' mark: circles in all colours, then squares in all colours."""
    again, colour = divmod(series, len(COLOURS))
    if again % 2 == 0:
        return f'<circle cx="{x:.1f}" cy="{y}" r="4.2" fill="{COLOURS[colour]}"/>'
    return f'<rect x="{x - 3.8:.1f}" y="{y - 3.8}" width="7.6" height="7.6" fill="{COLOURS[colour]}"/>'


def _legend(names: Sequence[str], width: float) -> tuple[int, list[str]]:
    """(height, marks): the series' names side by side, in as many lines as they need."""
    x, y, marks = 12.0, 10, []
    for number, name in enumerate(names):
        needs = 28 + _LETTER * len(name)
        if x > 12 and x + needs > width:
            x, y = 12.0, y + 18
        marks += [_dot(x, y, number), _said(x + 9, y + 4, name, "start")]
        x += needs
    return y + 16, marks


def funnel_chart(steps: Sequence[tuple[str, float, float | None]]) -> str:
    """What survives each step: (step, candidates per user, share of the targets or None), widths by logarithm."""
    largest, left = np.log10(max([10.0, *(kept for _, kept, _ in steps)])), _label_width(name for name, _, _ in steps)
    height, marks, middle = 6, [], left + _PLOT / 2
    for name, kept, share in steps:
        width = max(8.0, _PLOT * np.log10(max(kept, 1.0)) / largest)
        marks.append(f'<rect x="{middle - width / 2:.1f}" y="{height}" width="{width:.1f}" height="28" rx="5" '
                     f'fill="{COLOURS[0]}" fill-opacity="{0.25 + 0.75 * (share if share is not None else 0.15):.2f}"/>')
        marks.append(_said(left - 10, height + 18, name, "end"))
        found = "" if share is None else f" · {100 * share:.1f} % of the targets"
        marks.append(_said(left + _PLOT + 14, height + 18, f"{kept:,.0f}{found}", "start"))
        height += 34
    return _svg(left + _PLOT + 210, height, "".join(marks), "what survives each step")


def code_rings(codes: np.ndarray) -> str:
    """The tree of semantic ids [items, L]: the first codes as a ring, most used first, with what is below each outside.

    An angle is a code's share of the items; the bar outside it is as long as the share of the second codes that occur
    under it, beside the code that has most of them.
    """
    codes = codes[(codes >= 0).all(1)]
    size, start, marks = 2 * (_HOLE + 2 * _RING) + 12, 0.0, []
    first, counts = np.unique(codes[:, 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    below = np.array([len(np.unique(codes[codes[:, 0] == code, 1:2])) for code in first])
    for code, count, children in zip(first[order], counts[order], below[order]):
        span, colour = 2 * pi * count / max(1, len(codes)), f"hsl({hue(int(code))} 58% 56%)"
        marks.append(_sector(start, span, _HOLE, _HOLE + _RING, colour, f"{code}: {count} items", size / 2))
        outer = _HOLE + _RING + 3 + (_RING - 3) * children / max(1, below.max())
        marks.append(_sector(start, span, _HOLE + _RING + 3, outer, f"hsl({hue(int(code))} 45% 70%)", "", size / 2))
        start += span
    middle = _said(size / 2, size / 2 - 2, f"{len(first):,} codes", "middle") + _said(
        size / 2, size / 2 + 15, f"{len(codes):,} items", "middle")
    return _svg(size, size, "".join(marks) + middle, "tree of the semantic ids")


def hue(code: int) -> int:
    """The colour of a first code, in degrees: the golden angle keeps neighbouring numbers apart."""
    return int(code * 137.508) % 360


def _sector(start: float, span: float, inner: float, outer: float, colour: str, title: str, centre: float) -> str:
    span = min(span, 2 * pi - 1e-4)
    point = lambda radius, angle: f"{centre + radius * sin(angle):.1f} {centre - radius * cos(angle):.1f}"
    large, stop = int(span > pi), start + span
    path = (f"M{point(inner, start)}L{point(outer, start)}A{outer:.1f} {outer:.1f} 0 {large} 1 {point(outer, stop)}"
            f"L{point(inner, stop)}A{inner:.1f} {inner:.1f} 0 {large} 0 {point(inner, start)}Z")
    note = f"<title>{escape(title)}</title>" if title else ""
    return f'<path d="{path}" fill="{colour}" style="stroke: var(--card)" stroke-width="0.4">{note}</path>'


def _said(x: float, y: float, text: str, anchor: str) -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="12.5" text-anchor="{anchor}" style="fill: var(--ink)">'
            f'{escape(text)}</text>')


def _svg(width: float, height: float, body: str, label: str) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.0f} '
            f'{height:.0f}" width="{width:.0f}" height="{height:.0f}" font-family="system-ui, sans-serif">{body}</svg>')
