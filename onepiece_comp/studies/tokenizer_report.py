"""Tokenizers side by side: a dataset and item vectors in, a page of figures over sources x quantisers x rules out.

Stands after `tokenizer/build.py`, whose steps it takes without writing a tokenizer: a quantiser is fitted and encodes
once, then each rule resolves its collisions. What cannot be, such as a counter that overflows, is a row that says why.
Beside the page lies a .json of the same name with every figure. The waterfall is the share of items that share their id
after one code, two, ..., and after each rule. Legend: n items with a vector, L levels, C codes.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp import __version__
from onepiece_comp.artefacts import peak_memory_mib, read_marker, write_json
from onepiece_comp.columns import load_column
from onepiece_comp.config import TokenizerConfig
from onepiece_comp.config_reading import to_dict
from onepiece_comp.console import say, table
from onepiece_comp.errors import InputError
from onepiece_comp.reports.page import BARS, Plot, Section, Table, Text, can_plot, write_report
from onepiece_comp.tokenizer.build import QUANTISERS, choose_codes, fit_quantiser, ids_without_vector
from onepiece_comp.tokenizer.collisions import RULES, resolve_collisions
from onepiece_comp.tokenizer.figures import measure
from onepiece_comp.tokenizer.item_vectors import ItemVectors, named_sources, open_vectors
from onepiece_comp.tokenizer.nearest_words import searching_on
from onepiece_comp.tokenizer.quantisers import Quantiser, in_blocks

_DRAWN_RANKS = 200  # of the codes in order of use
_COLLISIONS = ("vectors", "quantiser", "rule", "shared before", "shared", "items - unique", "unique", "codes in use",
               "perplexity", "note")
_WORTH = ("vectors", "quantiser", "rule", "error before", "error", "neighbours before", "neighbours", "no vector",
          "moved", "fit s", "encode s", "resolve s", "peak MiB")
_READING = (
    "Shared: items whose id is not theirs alone, before by the nearest words and after the rule; items - unique: the "
    "same as (items - unique ids) / items. Codes in use and perplexity are per level. Error: squared error / variance. "
    "Neighbours: of the ten items nearest to an item, the share that is among its ten nearest by decoded ids. No "
    "vector: items that get a free id. Peak memory is that of the process, while fitting or resolving.")


class _Source(NamedTuple):
    """Item vectors under their name."""

    name: str
    vectors: ItemVectors
    missing: int  # items without a vector


class _Fitted(NamedTuple):
    """A quantiser and what it made of the vectors."""

    quantiser: Quantiser
    before: np.ndarray  # int32 [n, L], codes of the nearest words
    cost: dict[str, float]  # seconds and memory


class _Case(NamedTuple):
    """All rules on one quantiser of one source."""

    name: str
    rows: list[dict]  # of the figures; those that cannot be have the reason under "impossible"
    use: dict[str, np.ndarray]  # per level of the nearest words, items per code [C], most used first
    last_use: dict[str, np.ndarray]  # per rule, the same of the last code


def tokenizer_report(dataset: Path, out: Path, config: TokenizerConfig, *, sources: Sequence[str],
                     quantisers: Sequence[str] = (), rules: Sequence[str] = ()) -> Path:
    """Measure every source x quantiser x rule, print the table, write the page `out` and the figures beside it.

    `sources` are texts as `build_tokenizer` takes for its vectors. Without `quantisers` it is that of `config`, without
    `rules` all of them. InputError for unknown names and for sources that do not fit, before anything is fitted, and
    where no combination is possible.
    """
    dataset, out, started = Path(dataset), Path(out), time.monotonic()
    quantisers, rules = _checked(out, sources, quantisers or (config.quantiser,), rules or tuple(RULES))
    marker, creative = read_marker(dataset, "dataset"), np.asarray(load_column(dataset, "creative_id"))
    size = choose_codes(len(creative) - 1, config)
    opened = [_opened(dataset, creative, name, config) for name in dict.fromkeys(sources)]
    say(f"{len(creative) - 1:,} items, {config.levels} x {size:,} codes: {len(opened)} sources x {len(quantisers)} "
        f"quantisers x {len(rules)} rules = {len(opened) * len(quantisers) * len(rules)} rows")
    with searching_on(config.device):
        cases = [_measured(source, replace(config, quantiser=name), rules, size)
                 for source in opened for name in quantisers]
    rows = [row for case in cases for row in case.rows]
    if all("impossible" in row for row in rows):
        raise InputError(dataset, found=f"nothing to compare: {rows[0]['impossible']}", do="change the settings",
                         expected="at least one combination that is possible")
    write_json(out.with_suffix(".json"), {
        "version": __version__, "config": to_dict(config), "dataset": str(dataset), "item_space": marker["item_space"],
        "items": len(creative) - 1, "levels": config.levels, "codes_per_level": size, "rows": rows,
        "seconds": round(time.monotonic() - started, 2)})
    title = f"Tokenizers of {dataset.name}: {len(creative) - 1:,} items, {config.levels} x {size:,} codes"
    tables = _tables(rows)
    write_report(out, title, [Section("Figures", [Text(_READING), *tables]), *map(_section, cases)])
    for one in tables:
        table(one.title, one.columns, one.rows)
    say(f"wrote {out} and {out.with_suffix('.json').name}"
        + ("" if can_plot() else " (without plots: they need matplotlib)"))
    return out


def _checked(out: Path, sources: Sequence[str], quantisers: Sequence[str], rules: Sequence[str],
             ) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Quantisers and rules, each once."""
    if not sources:
        raise InputError("tokenizer-report", found="no vectors", expected="at least one source",
                         do="give --vectors emb_81, --vectors FILE.npy or --vectors RUN")
    for what, names, known in (("quantiser", quantisers, QUANTISERS), ("rule", rules, RULES)):
        for name in names:
            if name not in known:
                raise InputError(f"tokenizer-report, {what}", found=repr(name), expected=f"one of {', '.join(known)}",
                                 do="choose one of these")
    if out.suffix == ".json" or out.is_dir():
        raise InputError(out, found="a folder" if out.is_dir() else "the name that the figures take",
                         expected="the name of a page, such as tokenizers.html", do="choose another name")
    return tuple(dict.fromkeys(quantisers)), tuple(dict.fromkeys(rules))


def _opened(dataset: Path, creative: np.ndarray, name: str, config: TokenizerConfig) -> _Source:
    vectors, present = open_vectors(dataset, creative, named_sources(name), whiten=config.whiten)
    return _Source(name, vectors, int((~present).sum()))


def _measured(source: _Source, config: TokenizerConfig, rules: Sequence[str], size: int) -> _Case:
    """Fit and encode once, then resolve by each rule."""
    names = {"vectors": source.name, "quantiser": config.quantiser}
    case = _Case(f"{source.name}, {config.quantiser}", [], {}, {})
    try:
        fitted = _fitted(source.vectors, size, config)
    except InputError as error:  # what this quantiser cannot do, others may
        say(f"{case.name}: not possible: {error.found}")
        case.rows.extend({**names, "rule": rule, "impossible": error.found} for rule in rules)
        return case
    for level, codes in enumerate(fitted.before.T, 1):
        case.use[f"level {level}"] = _sorted_counts(codes, size)
    for rule in rules:
        try:
            earlier = next((row for row in case.rows if "before" in row), None)
            figures, codes = _resolved(source, fitted, replace(config, resolve=rule), size, earlier)
        except InputError as error:  # a counter that overflows
            say(f"{case.name}, {rule}: not possible: {error.found}")
            case.rows.append({**names, "rule": rule, "impossible": error.found})
            continue
        case.rows.append({**names, "rule": rule, **figures})
        if codes.shape[1] == fitted.before.shape[1]:  # a counter is no code of the last level
            case.last_use[rule] = _sorted_counts(codes[:, -1], size)
        worth = figures["after"][config.levels - 1]
        say(f"{case.name}, {rule}: {figures['after'][-1]['shared']:.2%} of the items share an id, error "
            f"{worth['relative_error']:.4f}, neighbours kept {worth['neighbours_kept']:.2%}, "
            f"{figures['resolve_seconds']:.1f} s")
    return case


def _fitted(vectors: ItemVectors, size: int, config: TokenizerConfig) -> _Fitted:
    _forget_peak_memory()
    started = time.monotonic()
    quantiser = fit_quantiser(vectors, size, config)
    fitted = time.monotonic()
    before = in_blocks(vectors, quantiser.encode, "codes")
    return _Fitted(quantiser, before, {
        "fit_seconds": round(fitted - started, 2), "encode_seconds": round(time.monotonic() - fitted, 2),
        "peak_memory_mib": round(peak_memory_mib())})


def _resolved(source: _Source, fitted: _Fitted, config: TokenizerConfig, size: int, earlier: dict | None,
              ) -> tuple[dict, np.ndarray]:
    """(figures, ids of all items in no order) by the rule of `config`; `earlier` is the row of another rule."""
    _forget_peak_memory()
    started = time.monotonic()
    resolved = resolve_collisions(source.vectors, fitted.before, fitted.quantiser, config)
    codes, seconds = resolved.codes, time.monotonic() - started
    peak = max(fitted.cost["peak_memory_mib"], round(peak_memory_mib()))
    if source.missing:
        codes = np.concatenate([codes, ids_without_vector(codes, config.levels, size, source.missing)])
    figures = measure(source.vectors, fitted.quantiser, fitted.before, resolved, codes, earlier=earlier)
    return {**figures, "items": len(codes), "items_without_vector": source.missing, **fitted.cost,
            "resolve_seconds": round(seconds, 2), "peak_memory_mib": peak}, codes


def _forget_peak_memory() -> None:
    """Let the kernel measure the peak anew; where it does not, a row's peak is that of all rows so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # another system, or a container that forbids it
        pass


def _sorted_counts(codes: np.ndarray, size: int) -> np.ndarray:
    return np.sort(np.bincount(codes, minlength=size))[::-1]


def _tables(rows: Sequence[dict]) -> list[Table]:
    held = [row for row in rows if "impossible" not in row]
    return [Table("Collisions and use of the codes", _COLLISIONS, [_collision_cells(row) for row in rows]),
            Table("Geometry, time and memory", _WORTH, [_worth_cells(row) for row in held])]


def _collision_cells(row: dict) -> tuple[str, ...]:
    names = (row["vectors"], row["quantiser"], row["rule"])
    if "impossible" in row:
        return (*names, *[""] * (len(_COLLISIONS) - 4), f"not possible: {row['impossible']}")
    before, after = row["before"][-1], row["after"][-1]
    return (*names, f"{before['shared']:.2%}", f"{after['shared']:.2%}", f"{after['collision_rate']:.2%}",
            f"{after['unique']:,}", " ".join(f"{level['codes_in_use']:,}" for level in row["after"]),
            " ".join(f"{level['perplexity']:,.0f}" for level in row["after"]), "")


def _worth_cells(row: dict) -> tuple[str, ...]:
    before = row["before"][-1]
    after = row["after"][len(row["before"]) - 1]  # a counter decodes to nothing
    return (row["vectors"], row["quantiser"], row["rule"], f"{before['relative_error']:.4f}",
            f"{after['relative_error']:.4f}", f"{before['neighbours_kept']:.2%}", f"{after['neighbours_kept']:.2%}",
            f"{row['items_without_vector']:,}", f"{row['moved']:,}", f"{row['fit_seconds']:.1f}",
            f"{row['encode_seconds']:.1f}", f"{row['resolve_seconds']:.1f}", f"{row['peak_memory_mib']:,}")


def _section(case: _Case) -> Section:
    """The plots of a case; where nothing could be measured, why."""
    parts: list[Text | Plot] = [Text(f"{row['rule']} is not possible: {row['impossible']}.", warning=True)
                                for row in case.rows if "impossible" in row]
    if case.use:
        parts.append(_use_plot(f"Use of the codes of nearest words ({case.name})", case.use))
    if case.last_use:
        parts.append(_use_plot(f"Use of the last code after each rule ({case.name})", case.last_use))
    held = [row for row in case.rows if "impossible" not in row]
    if held:
        parts.append(_waterfall(case.name, held))
    return Section(case.name, parts)


def _use_plot(title: str, use: dict[str, np.ndarray]) -> Plot:
    size = len(next(iter(use.values())))
    ranks = np.unique(np.linspace(1, size, min(size, _DRAWN_RANKS)).astype(int))
    return Plot(title, ranks, {name: counts[ranks - 1] for name, counts in use.items()}, "code, most used first",
                "items", log="y")


def _waterfall(name: str, rows: Sequence[dict]) -> Plot:
    """A bar for each depth of the nearest words, then one for each rule."""
    depths = len(rows[0]["before"])
    shares = [level["shared"] for level in rows[0]["before"]] + [row["after"][-1]["shared"] for row in rows]
    rules = ", ".join(f"{depths + place} {row['rule']}" for place, row in enumerate(rows, 1))
    return Plot(f"Items that share their id ({name})", np.arange(1, len(shares) + 1) - 0.5,  # bars start at their x
                {"share": 100 * np.array(shares)},
                f"after 1 to {depths} codes of nearest words;\nthen by rule: {rules}", "% of items", kind=BARS)
