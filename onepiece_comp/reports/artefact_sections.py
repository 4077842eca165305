"""Files and folders whose content is a few figures, as sections of a report: markers, truths, results."""

from collections import Counter
from pathlib import Path

from onepiece_comp.artefacts import read_json
from onepiece_comp.dataset.split import ACTION_NAMES
from onepiece_comp.errors import InputError
from onepiece_comp.logs.truths import read_truth
from onepiece_comp.reports.log_sections import iso
from onepiece_comp.reports.log_warnings import percent
from onepiece_comp.reports.page import Section, Table

_SHORT_LIST = 8


def marker_section(title: str, marker: dict) -> Section:
    """The marker of an artefact, or a part of it, value by value."""
    return Section(title, [Table("Marker", ("what", "value"), flat_rows(marker))])


def flat_rows(value: object, name: str = "") -> list[tuple[str, object]]:
    """A JSON value as lines, for example {"a": {"b": [1, 2]}} to [("a.b", "1, 2")]."""
    join = lambda key: f"{name}.{key}" if name else str(key)
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in flat_rows(inner, join(key))]
    if isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        return [row for number, inner in enumerate(value, start=1) for row in flat_rows(inner, join(number))]
    if isinstance(value, list):
        return [(name, ", ".join(map(str, value)) if len(value) <= _SHORT_LIST else f"{len(value):,} values")]
    return [(name, f"{value:,}" if type(value) is int else f"{value:.6g}" if type(value) is float else value)]


def truth_section(path: Path) -> Section:
    """The targets of truth.jsonl; InputError with file and line for what is none."""
    truths = read_truth(path)
    actions = Counter(ACTION_NAMES[one.action] if 0 <= one.action < len(ACTION_NAMES) else "?" for one in truths)
    items, times = Counter(one.item for one in truths), [one.time for one in truths]
    rows = [("users", f"{len(truths):,}"), ("different items", f"{len(items):,}"),
            *((f"targets: {name}", f"{count:,} ({percent(count / len(truths))})") for name, count in actions.items())]
    if truths:
        rows += [("first target", iso(min(times))), ("last target", iso(max(times))),
                 ("targets on the most frequent item", f"{max(items.values()):,}")]
    return Section("Truth", [Table("Targets", ("what", "count"), rows)])


def result_section(path: Path) -> Section:
    """The lists of a result.json; InputError where it has none. `score` checks them strictly."""
    value = read_json(path)
    lists = value.get("top10s") if isinstance(value, dict) else None
    if not isinstance(lists, list) or not all(isinstance(one, list) for one in lists):
        raise InputError(path, found="no lists under top10s", expected="an object with time, top10s and user",
                         do="write the result again with infer")
    lengths = Counter(map(len, lists))
    items = Counter(item for one in lists for item in one if isinstance(item, int))
    shown = max(items.values(), default=0)
    rows = [("users", f"{len(value.get('user') or []):,}"), ("lists", f"{len(lists):,}"),
            ("items per list", ", ".join(f"{length} ({count:,} lists)" for length, count in sorted(lengths.items()))),
            ("lists with an item twice", f"{sum(len(set(map(str, one))) < len(one) for one in lists):,}"),
            ("different items", f"{len(items):,}"),
            ("lists that show the most frequent item", f"{shown:,} ({percent(shown / max(1, len(lists)))})"),
            ("zeros (no item)", f"{items[0]:,}"), ("seconds", value.get("time"))]
    return Section("Result", [Table("Lists", ("what", "count"), rows)])
