"""An ablation ladder: rows of settings over one split, each trained, ranked and judged alike; resumable.

LADDER.yaml has `rows`, a name and sections of settings for each (the first is what the others are compared with; one
with `joint: true` is trained with semantic ids too, one with `preset` starts from another, a `note` stands beside the
figures), and optionally `preset` and `config` for all. Every row runs under the first seed; then the first row and the
best `best` others by validation score run under the further seeds.
What does not fit the hours is printed as 'not run'; the same command goes on. Rows that differ in ranking alone share
their training. Under WORK: split/ dataset/ runs/ rows/ ablation.json ablation.md ablation.html.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp import __version__
from onepiece_comp.artefacts import (
    MARKERS, fingerprint, make_unless_made, moving_aside, read_json, read_marker, write_json)
from onepiece_comp.config import Config
from onepiece_comp.config_ranges import check_ranges
from onepiece_comp.config_reading import load_config, merge, read_yaml, result_settings, to_dict
from onepiece_comp.console import mean_and_spread, say, table
from onepiece_comp.errors import Diverged, InputError
from onepiece_comp.logs.open_log import log_fingerprint
from onepiece_comp.reports.page import BARS, Plot, Section, Table, Text, write_report
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.stages.infer import infer
from onepiece_comp.stages.preprocess import preprocess
from onepiece_comp.stages.score import score
from onepiece_comp.stages.split import split
from onepiece_comp.stages.train import train_or_resume

_SHARED = ("synthesize", "split", "preprocess", "score")  # sections that all rows have in common
COLUMNS = ("row", "seeds", "validation", "HR@10", "NDCG@10", "score", "to the first row", "95 % interval", "minutes")


class Row(NamedTuple):
    """A named change of the settings."""

    name: str
    config: Config
    joint: bool
    note: str

    @property
    def folder(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


class RowResult(NamedTuple):
    """What a row reached under one seed."""

    valid: float
    hr: float
    ndcg: float
    score: float
    difference: tuple[float, float, float] | None  # to the first row, and its interval; None for that row itself
    seconds: float


@moving_aside(say)
def ablate(ladder: Path, raw: Path, work: Path, *, hours: float = 2.0, seeds: int = 3, best: int = 3) -> Path:
    """Run what is missing of the ladder, print its table and write WORK/ablation.html and .json; returns the page.

    No row is begun after `hours`. What is of another log or other settings moves aside. InputError for a ladder that is
    none.
    """
    rows, work, until = read_ladder(ladder), Path(work), time.monotonic() + 3600 * hours
    _prepare(Path(raw), work, rows[0].config)
    found: dict[tuple[str, int], RowResult | None] = {}  # None: its loss diverged
    for row in rows:
        _one(row, 0, rows[0], work, until, found)
    ranked = sorted((row for row in rows[1:] if found.get((row.name, 0))), key=lambda row: -found[row.name, 0].valid)
    for seed in range(1, seeds):
        for row in [rows[0], *ranked[:best]]:
            _one(row, seed, rows[0], work, until, found)
    return _report(Path(ladder), work, rows, found)


def read_ladder(path: Path, also: Sequence[str] = ()) -> list[Row]:
    """The rows of a ladder file, in its order; `also` are further parts that it may have."""
    path = Path(path)
    value, _ = read_yaml(path)
    if not isinstance(value, dict) or not isinstance(value.get("rows"), dict) or not value["rows"]:
        raise InputError(path, found="no rows", expected="`rows:` with a name and settings for each",
                         do="see benchmarks/ladder.yaml")
    strange = sorted(set(value) - {"preset", "config", "rows", *also})
    if strange:
        raise InputError(path, found=f"the key {strange[0]!r}", expected="preset, config and rows", do="remove it")
    for place, part in ((f"{path}: config", value.get("config")), *((f"{path}: rows.{name}", row) for name,
                                                                    row in value["rows"].items())):
        if not isinstance(part or {}, dict):
            raise InputError(place, found=repr(part), expected="sections of settings",
                             do="write for example train: {epochs: 2}")
    rows = [_row(path, str(name), dict(settings or {}), value) for name, settings in value["rows"].items()]
    folders = [row.folder for row in rows]
    if len(set(folders)) < len(folders):
        raise InputError(path, found="two rows of nearly the same name", expected="names that differ in letters or "
                         "figures", do="rename one of them")
    return rows


def _row(path: Path, name: str, settings: dict, ladder: dict) -> Row:
    """Preset (the row's own or the ladder's), then the settings for all, then the row's."""
    joint, preset = settings.pop("joint", False), settings.pop("preset", ladder.get("preset", "tiny"))
    common = merge(load_config(str(preset)), ladder.get("config") or {},
                   lambda *keys: f"{path}: config.{'.'.join(keys)}")
    place, note = f"{path}: rows.{name}", str(settings.pop("note", ""))
    if not isinstance(joint, bool) or any(not isinstance(part, dict) for part in settings.values()):
        raise InputError(place, found=str(settings), expected="sections of settings, and joint: true or false",
                         do="write for example model: {experts: 0}")
    shared = next((section for section in settings if section in _SHARED), None)
    if shared:
        raise InputError(place, found=f"the section {shared}", expected="what rows may differ in: "
                         "tokenizer, model, train, infer", do="put it under config: it is the same for all rows")
    config = merge(common, settings, lambda *keys: f"{place}.{'.'.join(keys)}")
    try:
        check_ranges(config)
    except InputError as error:
        raise InputError(f"{place}.{error.place}", found=error.found, expected=error.expected, do=error.do) from error
    return Row(name, config, joint, note)


def _prepare(raw: Path, work: Path, config: Config) -> None:
    """Split and columns, once for all rows; anew where they are of another log or of other settings."""
    def make() -> None:
        split(raw, work / "split", config.split)
        preprocess(work / "split" / "train", work / "dataset", config.preprocess)

    whole = (work / "split" / "truth.jsonl").is_file() and (work / "dataset" / MARKERS["dataset"]).is_file()
    made_of = fingerprint(__version__, log_fingerprint(raw), result_settings(config.split),
                          result_settings(config.preprocess))
    make_unless_made(work / "prepared.json", made_of, whole=whole, make=make)


def _data_of(work: Path) -> str:
    """What trainings are of: the columns, whenever they were made."""
    return read_marker(work / "dataset", "dataset")["fingerprint"]


def _one(row: Row, seed: int, first: Row, work: Path, until: float,
         found: dict[tuple[str, int], RowResult | None]) -> None:
    """Read what a row reached under a seed, or run it if there is time."""
    folder = work / "rows" / row.folder / f"seed-{seed}"
    config = replace(row.config, train=replace(row.config.train, seed=seed),
                     tokenizer=replace(row.config.tokenizer, seed=seed))
    key = fingerprint(__version__, to_dict(config), row.joint, to_dict(first.config), first.joint, _data_of(work))
    done = read_json(folder / "row.json") if (folder / "row.json").is_file() else {}
    if done.get("key") != key:
        if time.monotonic() > until:
            return
        say(f"== {row.name}, seed {seed}")
        try:
            done = {"key": key, **_run(config, row, folder, work, None if row is first else first, seed)}
        except Diverged as error:  # a finding of its own, but for the first row, to which the others are compared
            if row is first:
                raise
            say(f"diverged: {error}")
            done = {"key": key, "came_apart": str(error)}
        write_json(folder / "row.json", done)
    found[row.name, seed] = (None if "came_apart" in done
                             else RowResult(**{name: done[name] for name in RowResult._fields}))


def _run(config: Config, row: Row, folder: Path, work: Path, first: Row | None, seed: int) -> dict:
    started, truth = time.monotonic(), work / "split" / "truth.jsonl"
    run = _trained(config, work, joint=row.joint)
    infer(run, folder, config.infer, data=work / "split" / "eval", truth=truth)
    against = {} if first is None else {"first": work / "rows" / first.folder / f"seed-{seed}" / "result.json"}
    judged = score(folder / "result.json", truth, config.score, against=against)
    difference = judged["against"]["first"]["difference"]["score"] if against else None
    return {"valid": read_json(run / MARKERS["run"])["figures"]["valid_score"],
            **{name: judged[name]["mean"] for name in ("hr", "ndcg", "score")},
            "difference": difference and [difference[name] for name in ("mean", "low", "high")],
            "seconds": time.monotonic() - started}


def _trained(config: Config, work: Path, *, joint: bool) -> Path:
    """The run of these settings, from an earlier row or trained now."""
    data = work / "dataset"
    place = work / "runs" / fingerprint(__version__, result_settings(config.model), result_settings(config.train),
                                        _data_of(work))
    run, ids = place / "retrieval", place / f"ids-{fingerprint(to_dict(config.tokenizer))}"
    if not (run / MARKERS["run"]).is_file():
        train_or_resume(data, run, config)
    if not joint:
        return run
    if not (ids / "tokenizer" / MARKERS["tokenizer"]).is_file():
        build_tokenizer(data, ids / "tokenizer", config.tokenizer, checkpoint=run)
    if not (ids / "joint" / MARKERS["run"]).is_file():
        train_or_resume(data, ids / "joint", config, tokenizer=ids / "tokenizer", warm=run)
    return ids / "joint"


def _report(ladder: Path, work: Path, rows: Sequence[Row], found: dict[tuple[str, int], RowResult | None]) -> Path:
    reached = {row: [value for (name, _), value in found.items() if name == row.name] for row in rows}
    lines = [_line(row, values) for row, values in reached.items()]
    table(f"ablation: {ladder.name}", COLUMNS, lines)
    write_json(work / "ablation.json", {
        "ladder": str(ladder), "rows": {f"{name}, seed {seed}": value._asdict() for (name, seed),
                                        value in found.items() if value}})
    columns, lines = (*COLUMNS, "note"), [(*cells, row.note) for row, cells in zip(rows, lines)]
    markdown = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *lines)]
    (work / "ablation.md").write_text("\n".join(markdown) + "\n", "utf-8")
    means = [np.mean([value.score for value in values if value] or [np.nan]) for values in reached.values()]
    plot = Plot("score on the held-out targets, by row", np.arange(1, len(rows) + 1), {"score": np.array(means)},
                "row of the table", "score", BARS)
    page = write_report(work / "ablation.html", f"Ablation: {ladder.stem}", [Section("Rows", [
        Text("Every row differs from the first in what its name says. Validation: the score by which rows are chosen, "
             "on users held out of training. The other figures are on the targets of the split; differences to the "
             "first row are paired by user, of the first seed, with bootstrap intervals. A row with several seeds has "
             "their mean and standard deviation. Minutes leave out the training that a row shares with one before it."),
             Table(ladder.name, columns, lines), *([plot] if np.isfinite(means).any() else [])])])
    say(f"wrote {page}, ablation.md and ablation.json")
    return page


def _line(row: Row, reached: Sequence[RowResult | None]) -> tuple[str, ...]:
    values = [value for value in reached if value]
    if not values:
        return (row.name, "0", *["diverged" if reached else "not run"] * (len(COLUMNS) - 2))
    several = lambda name: mean_and_spread([getattr(value, name) for value in values])
    difference = ("", "") if values[0].difference is None else (
        f"{values[0].difference[0]:+.4f}", f"{values[0].difference[1]:+.4f} .. {values[0].difference[2]:+.4f}")
    return (row.name, str(len(values)), *map(several, ("valid", "hr", "ndcg", "score")), *difference,
            f"{np.mean([v.seconds for v in values]) / 60:.1f}")
