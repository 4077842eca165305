"""Pages of HTML: what is put in stays text, dates are dates, and the page is well-formed with and without plots."""

import xml.etree.ElementTree as ElementTree

import numpy as np

from onepiece_comp.reports import page as report_html
from onepiece_comp.reports.page import BARS, Plot, Section, Table, Text, draw, render, write_report

SVG = "{http://www.w3.org/2000/svg}svg"


def test_what_stands_in_a_page_is_text_and_never_markup():
    hostile = '<script>alert("x")</script> & more'
    plot = Plot(hostile, np.arange(3), {hostile: np.arange(3), "b": np.ones(3)}, hostile, "$x_1$", BARS)
    text = render(hostile, [Section(hostile, [Text(hostile, warning=True), Table(hostile, (hostile,), [(1,)]), plot])])
    assert "<script" not in text
    labels = [one.get("aria-label") for one in ElementTree.fromstring(text).iter(SVG)]
    assert labels == [hostile]


def test_days_are_drawn_as_dates():
    days = np.arange("2025-03-01", "2025-06-01", dtype="datetime64[D]")
    plot = Plot("days", days, {"events": np.arange(len(days))}, "day", "events")
    assert all(month in draw(plot) for month in ("Mar", "Apr", "May"))


def test_the_same_plot_is_the_same_bytes():
    plot = Plot("line", np.arange(9), {"a": np.arange(9)}, "x", "y")
    assert draw(plot) == draw(plot)


def test_a_page_holds_its_sections_in_order_and_every_kind_of_part(tmp_path, monkeypatch):
    plots = [Plot("line", np.arange(1, 5), {"a": np.arange(1, 5)}, "x", "y", log="xy"),
             Plot("one bar", np.array([3]), {"a": np.array([2])}, "x", "y", BARS),
             Plot("nothing", np.arange(0), {"a": np.arange(0)}, "x", "y")]
    sections = [Section("first", [Text("words"), *plots]), Section("second", [Table("t", ("a", "b"), [("c", 1)])])]
    page = ElementTree.parse(write_report(tmp_path / "new" / "page.html", "title", sections)).getroot()
    name = lambda tag: f"{{http://www.w3.org/1999/xhtml}}{tag}"
    assert [one.text for one in page.iter(name("h2"))] == ["first", "second"]
    assert [one.text for one in page.iter(name("figcaption"))] == ["line", "one bar", "nothing"]
    assert [one.text for one in page.iter(name("td"))] == ["c", "1"] and len(list(page.iter(SVG))) == 3
    assert draw(plots[1]).count('id="patch_') == draw(plots[2]).count('id="patch_') + 1  # the bar
    monkeypatch.setattr(report_html, "can_plot", lambda: False)
    bare = ElementTree.fromstring(render("title", sections))
    assert not list(bare.iter(SVG)) and "need matplotlib" in "".join(bare.itertext())
    assert "need matplotlib" not in render("title", sections[1:])
