"""The figures of a log as sections of a report: the same tables on the terminal and in the HTML, plots in the HTML.

Stands between `log_figures.py` and `describe.py`. Where the challenge's own log is known by a published figure, it
stands beside for comparison: the 1M set, from the challenge's report (arXiv 2604.04976, table 1) and from counts that
participants published of the public release.
"""

from collections.abc import Sequence

import numpy as np

from onepiece_comp.dataset.popularity_counts import DAY
from onepiece_comp.reports.log_figures import (
    LogFigures, action_shares, gap_seconds, gini, histogram_quantile, top_share)
from onepiece_comp.reports.log_warnings import Coverage, Protocol, Warned, percent
from onepiece_comp.reports.page import BARS, Plot, Section, Table, Text

PUBLISHED = {"users": "1,001,845", "events": "90,223,574", "items": "4,783,154", "exposures": "90.2 %",
             "clicks": "9.8 %", "null actions": "0.9 %", "overlap": "below 30 %", "rare": "more than half",
             "candidates": "660,000", "warm": "77.4 %", "cold": "22.6 %"}
_SHARES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
_RARE = 5  # events
_BARS = 60
_PLOTTED_RANKS = 200
_MOST_DAYS_DRAWN = 20_000
_FEWEST_OF_A_DAY = 20  # events; a share of fewer says nothing


def iso(seconds: int) -> str:
    """Unix seconds as an ISO time in UTC, of any year."""
    return f"{np.datetime64(seconds, 's')}Z"


def log_section(title: str, figures: LogFigures, *, extra: Sequence[tuple[str, object]] = ()) -> Section:
    """Counts, distributions and plots of a log; `extra` are further lines of the table of counts."""
    if not figures.events:
        return Section(title, [Table("Counts", ("what", "count"), [("users", figures.counts["users"]), ("events", 0)])])
    return Section(title, [
        Table("Counts", ("what", "count", "TencentGR-1M"), _count_rows(figures, extra)),
        Table("Distributions", ("per", "least", "10 %", "median", "90 %", "99 %", "most", "mean"),
              _distribution_rows(figures)), *_plots(figures)])


def _count_rows(figures: LogFigures, extra: Sequence[tuple[str, object]]) -> list[tuple]:
    counts, seen = figures.counts, figures.item_count[figures.item_count > 0]
    span = figures.last_second - figures.first_second
    rows = [("users", f"{counts['users']:,}", PUBLISHED["users"]),
            ("users without events", f"{counts['users without events']:,}", ""),
            ("events", f"{figures.events:,}", PUBLISHED["events"]),
            ("items numbered", f"{figures.items:,}", PUBLISHED["items"]), ("items with events", f"{len(seen):,}", ""),
            ("first event", iso(figures.first_second), ""), ("last event", iso(figures.last_second), ""),
            ("span, days", f"{span / DAY:,.1f}", ""),
            ("days with events", f"{len(figures.day):,}" if len(figures.day) else "too many to tell apart", "")]
    rows += [(name, percent(share), PUBLISHED.get(name, "")) for name, share in action_shares(counts).items()]
    rows += [("exact duplicates", f"{counts['duplicates']:,}", ""),
             ("events at the time of the one before", percent(figures.share("ties")), ""),
             (f"items with fewer than {_RARE} events", percent(float((seen < _RARE).mean())), PUBLISHED["rare"]),
             ("events on the most popular 1 % of the items", percent(top_share(seen, 0.01)), ""),
             ("Gini coefficient of the items' events", f"{gini(seen):.3f}", "")]
    rows += [(f"items that two days share, {days} day{'s' * (days > 1)} apart (Jaccard)", percent(value),
              PUBLISHED["overlap"] if days == 1 else "") for days, value in figures.overlap.items()]
    if len(figures.day) > 1:
        rows.append(("last day's events on items first seen that day", percent(figures.cold_share()), ""))
    return rows + [(name, value, "") for name, value in extra]


def _distribution_rows(figures: LogFigures) -> list[tuple]:
    seen = figures.item_count[figures.item_count > 0]
    lengths, gaps = figures.users_of_length, figures.gaps_of_bin
    mean_length = figures.events / max(1, figures.counts["users"])
    rows = [("events per user", *(f"{histogram_quantile(lengths, share):,}" for share in _SHARES),
             f"{mean_length:,.1f}"),
            ("events per item", *(f"{int(value):,}" for value in _quantiles(seen)), f"{seen.mean():,.1f}"),
            ("days from an item's first event to its last", *(f"{value / DAY:,.2f}" for value in _quantiles(
                figures.lifetime_seconds)), f"{figures.lifetime_seconds.mean() / DAY:,.2f}")]
    if gaps.any():
        rows.append(("time between a user's events, about",
                     *(duration(gap_seconds(histogram_quantile(gaps, share))) for share in _SHARES), ""))
    return rows


def _quantiles(values: np.ndarray) -> np.ndarray:
    return np.quantile(values, _SHARES, method="inverted_cdf")


def duration(seconds: float) -> str:
    """Seconds for the eye, for example 7200 to 2.0 h."""
    for unit, length in (("d", DAY), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _plots(figures: LogFigures) -> list[Plot]:
    plots = []
    if len(figures.day) > 1:
        days, events, cold = _all_days(figures)
        share = np.where(events >= _FEWEST_OF_A_DAY, 100 * cold / np.maximum(events, 1), np.nan)
        plots = [Plot("Events per day", days, {"events": events}, "day (UTC)", "events"),
                 Plot("Events on items first seen the same day", days[1:], {"share": share[1:]}, "day (UTC)",
                      "% of the day's events")]
    edges, heights = length_bars(figures.users_of_length)
    rank, events = rank_curve(figures.item_count)
    used = np.flatnonzero(figures.gaps_of_bin)
    plots += [Plot("Events per user", edges, {"users": heights}, "events", "users", BARS),
              Plot("Item popularity by rank", rank, {"events": events}, "rank of the item", "events", log="xy")]
    if len(used):
        bins = np.arange(used[0], used[-1] + 1)
        seconds = np.maximum(gap_seconds(bins + 1), 0.5)  # ties stand at half a second: zero has no logarithm
        within = 100 * np.cumsum(figures.gaps_of_bin[bins]) / figures.gaps_of_bin.sum()
        plots.append(Plot("Time between a user's events", seconds / 3600, {"share": within}, "hours, at most",
                          "% of the pairs of events", log="x"))
    values, counts = np.histogram(figures.lifetime_seconds / DAY, bins=min(_BARS, 40))[::-1]
    return [*plots, Plot("Item lifetimes, first event to last", values[:-1], {"items": counts}, "days", "items", BARS,
                         log="y")]


def _all_days(figures: LogFigures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(days as dates, events, events on new items) of every day from the first to the last, empty ones too."""
    days = np.arange(figures.day[0], figures.day[-1] + 1)
    if len(days) > _MOST_DAYS_DRAWN:  # one impossible time makes ages of empty days
        days = figures.day
    events, cold = np.zeros(len(days), np.int64), np.zeros(len(days), np.int64)
    place = np.searchsorted(days, figures.day)
    events[place], cold[place] = figures.events_of_day, figures.cold_events_of_day
    return days.astype("datetime64[D]"), events, cold


def length_bars(users_of_length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(left edges, users) of at most 60 bars of equal width over the lengths 0..longest."""
    width = -(-len(users_of_length) // _BARS)
    edges = np.arange(0, len(users_of_length), width)
    return edges, np.add.reduceat(users_of_length, edges)


def rank_curve(item_count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rank from 1, events) of the items with events at some 200 ranks evenly spaced on a logarithmic scale."""
    counts = np.sort(item_count[item_count > 0])[::-1]
    rank = np.unique(np.geomspace(1, max(1, len(counts)), _PLOTTED_RANKS).astype(np.int64))
    return rank, counts[rank - 1] if len(counts) else np.zeros(len(rank), np.int64)


def coverage_section(title: str, *, item: list[Coverage], user: list[Coverage], embeddings: list[Coverage],
                     notes: Sequence[str] = ()) -> Section:
    """Tables of what is known of items and users; embeddings by the width of their vectors."""
    parts: list[Table | Text] = []
    for caption, covers in (("Item features, of the items with events", item), ("User features, of the users", user)):
        if covers:
            parts.append(Table(caption, ("feature", "coverage", "values that occur", "values numbered"), [
                (cover.name, percent(cover.share), f"{cover.values:,}", f"{cover.known:,}") for cover in covers]))
    if embeddings:
        parts.append(Table("Embeddings, of the items with events", ("table", "coverage", "width"), [
            (cover.name, percent(cover.share), cover.values) for cover in embeddings]))
    return Section(title, [*parts, *map(Text, notes)])


def protocol_section(title: str, asked: Protocol) -> Section:
    """Users (where there are any to serve) and candidates; with a truth, what is known of the targets."""
    of_candidates = lambda count: f"{count:,} ({percent(count / max(1, asked.candidates))})"
    of_targets = lambda count: f"{count:,} ({percent(count / max(1, asked.targets))})"
    served = [("users to serve", f"{asked.users:,}", ""),
              ("users without history", f"{asked.users_without_history:,}", "")]
    rows = [*(served if asked.users else []), ("candidates", f"{asked.candidates:,}", PUBLISHED["candidates"]),
            ("candidates known to training", of_candidates(asked.warm_candidates), PUBLISHED["warm"]),
            ("candidates that are cold", of_candidates(asked.candidates - asked.warm_candidates), PUBLISHED["cold"]),
            ("candidates with feature values that training has not seen",
             of_candidates(asked.candidates_with_unseen_values), "")]
    if asked.targets:
        rows += [("targets", f"{asked.targets:,}", ""),
                 ("targets among the candidates", of_targets(asked.targets_among_candidates), ""),
                 ("cold targets", of_targets(asked.cold_targets), ""),
                 ("targets in the user's history", of_targets(asked.targets_in_history), "")]
    return Section(title, [Table("Candidates and targets", ("what", "count", "TencentGR-1M"), rows)])


def warning_section(warned: Sequence[Warned]) -> Section:
    """Every warning as a paragraph of its own."""
    texts = [Text(one.line(), warning=True) for one in warned]
    return Section("Warnings", texts or [Text("Nothing that is known to hurt was found.")])
