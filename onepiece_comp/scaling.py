"""Loss against size: a grid of models on one dataset, for InfoNCE alone, semantic ids alone and both; resumable.

GRID.yaml is a ladder (`ablation.py`) with a further part `scaling`: `objectives`, `seeds`, `data` (row to the share of
the users that it trains on, 1 where none is named), `vectors` (what the ids are made from), `held_out` (share of the
users that no row sees), `negatives` (keys of the held-out loss, the same for every row) and `beside` (rows shown but
fitted to no law). The step size of AdamW is the row's times sqrt(64 / width); Muon's scales itself. Held-out users
train nothing, but are among the popularity counts. Under OUT: data/ tokenizer/ runs/ rows/ scaling.json .md .html.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.ablation import Row, read_ladder
from onepiece_comp.arithmetic import forward_work, shape_of
from onepiece_comp.artefacts import MARKERS, atomic_folder, fingerprint, link_or_copy, load_column, read_json, read_marker, write_json
from onepiece_comp.batches import TrainingBatches
from onepiece_comp.checkpoint import load_checkpoint
from onepiece_comp.config import Config
from onepiece_comp.config_reading import read_yaml, to_dict
from onepiece_comp.console import say, table
from onepiece_comp.errors import InputError
from onepiece_comp.flow import train_or_resume
from onepiece_comp.model import OnePiece, size
from onepiece_comp.preprocess import Dataset, load_dataset
from onepiece_comp.report_html import as_markdown, write_report
from onepiece_comp.scaling_sections import COLUMNS, Point, scaling_sections
from onepiece_comp.semantic_ids import load_tokenizer
from onepiece_comp.tokenizer import build_tokenizer
from onepiece_comp.validation import hold_out, validate

OBJECTIVES = {"InfoNCE": (1.0, 0.0), "ids": (0.0, 1.0), "both": (1.0, 1.0)}  # weights of retrieval and ids
_REFERENCE_WIDTH, _FIRST_RATE = 64, 4e9  # FLOP/s that the first estimate supposes
_JUDGED_USERS, _JUDGED_BATCH = 300, 16
_COPIED = ("item_row", "action", "time_seconds", "user_start", "user_token", "user_token_start")


class Plan(NamedTuple):
    """The part `scaling` of a grid."""

    objectives: tuple[str, ...]
    seeds: int
    data: Mapping[str, float]
    vectors: str
    held_out: float
    negatives: int
    beside: tuple[str, ...]  # rows that differ in more than their size


class Cell(NamedTuple):
    """One training of the grid."""

    row: Row
    objective: str
    seed: int
    share: float

    @property
    def name(self) -> str:
        return f"{self.row.folder}-{self.objective.lower()}-seed-{self.seed}"


def scaling(grid: Path, dataset: Path, out: Path, *, hours: float = 3.0) -> Path:
    """Train what is missing of the grid, then OUT/scaling.html and .json; returns the page. No row begins after `hours`."""
    rows, plan, out = read_ladder(grid, also=("scaling",)), read_plan(grid), Path(out)
    until, dataset = time.monotonic() + 3600 * hours, Path(dataset)
    cells = [Cell(row, objective, seed, plan.data.get(row.name, 1.0))
             for seed in range(plan.seeds) for row in rows for objective in plan.objectives]
    users = _shares(dataset, plan)
    for name, chosen in users.items():
        if not (out / "data" / name / MARKERS["dataset"]).is_file():
            keep_users(dataset, out / "data" / name, chosen)
    if not (out / "tokenizer" / MARKERS["tokenizer"]).is_file():
        build_tokenizer(dataset, out / "tokenizer", rows[0].config.tokenizer, vectors=plan.vectors)
    points: dict[Cell, Point] = {}
    for cell in cells:
        _one(cell, plan, out, until, points)
    return _report(Path(grid), out, cells, points, plan)


def read_plan(grid: Path) -> Plan:
    """The part `scaling` of a grid file; InputError for a key or an objective that is none."""
    value = {"objectives": list(OBJECTIVES), "seeds": 1, "data": {}, "vectors": "emb_81", "held_out": 0.1, "negatives": 2048,
             "beside": [], **(read_yaml(Path(grid))[0].get("scaling") or {})}
    strange = sorted(set(value) - set(Plan._fields)) or [one for one in value["objectives"] if one not in OBJECTIVES]
    if strange:
        raise InputError(f"{grid}: scaling", found=repr(strange[0]), do="correct it",
                         expected=f"the keys {', '.join(Plan._fields)}, objectives of {', '.join(OBJECTIVES)}")
    return Plan(**{**value, "objectives": tuple(value["objectives"]), "beside": tuple(value["beside"])})


def _shares(dataset: Path, plan: Plan) -> dict[str, np.ndarray]:
    """Users of each data folder: those held out, and nested shares of the others."""
    order = np.random.default_rng(0).permutation(len(load_dataset(dataset).user_start) - 1)
    held = max(1, round(plan.held_out * len(order)))
    rest = order[held:]
    return {"held-out": np.sort(order[:held]), **{
        f"share-{share:g}": np.sort(rest[:max(1, round(share * len(rest)))]) for share in {1.0, *plan.data.values()}}}


def keep_users(dataset: Path, out: Path, users: np.ndarray) -> Path:
    """A dataset of some of the users with the same items and popularity; columns of items are links."""
    marker = read_marker(dataset, "dataset")
    column = {name: np.asarray(load_column(dataset, name)) for name in _COPIED}
    with atomic_folder(out, MARKERS["dataset"]) as folder:
        for name in sorted(path.stem for path in dataset.glob("*.npy") if path.stem not in _COPIED):
            link_or_copy(dataset / f"{name}.npy", folder / f"{name}.npy")
        for start, names in (("user_start", _COPIED[:3]), ("user_token_start", ("user_token",))):
            lengths = np.diff(column[start])[users]
            inside = np.repeat(column[start][users] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
            np.save(folder / f"{start}.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(column[start].dtype))
            for name in names:
                np.save(folder / f"{name}.npy", column[name][inside])
        write_json(folder / MARKERS["dataset"], {**marker, "fingerprint": fingerprint(marker["fingerprint"], users)})
    return out


def settings_of(cell: Cell) -> Config:
    """The row's configuration under the cell's objective, seed and width's step size."""
    retrieval, semantic = OBJECTIVES[cell.objective]
    config, train = cell.row.config, cell.row.config.train
    rate = train.learning_rate * (_REFERENCE_WIDTH / config.model.width) ** 0.5
    weight = train.semantic_weight if cell.objective == "both" else semantic
    return replace(config, train=replace(train, seed=cell.seed, learning_rate=rate, retrieval_weight=retrieval,
                                         semantic_weight=weight, validation_users=0))


def _one(cell: Cell, plan: Plan, out: Path, until: float, points: dict[Cell, Point]) -> None:
    """Read what a cell reached, or train it if there is time."""
    config, data = settings_of(cell), out / "data" / f"share-{cell.share:g}"
    file = out / "rows" / f"{cell.name}.json"
    key = fingerprint(Point._fields, to_dict(config.model), to_dict(config.train), read_json(data / MARKERS["dataset"]), plan.negatives,
                      read_marker(out / "tokenizer", "tokenizer")["checksum"])
    done = read_json(file) if file.is_file() else {}
    if done.get("key") != key:
        if time.monotonic() > until:
            return
        planned, events = _planned(config, cell, data, out)
        known = [point for point in points.values() if point.seconds > 0]
        rate = sum(p.flops for p in known) / sum(p.seconds for p in known) if known else _FIRST_RATE
        say(f"== {cell.row.name}, {cell.objective}, seed {cell.seed}: {planned:.3g} FLOP, about "
            f"{planned / rate / 60:.1f} min at {rate / 1e9:.1f} GFLOP/s")
        done = {"key": key, **_run(config, cell, plan, data, out)._replace(flops=planned, events=events)._asdict()}
        write_json(file, done)
    points[cell] = Point(**{name: done[name] for name in Point._fields})


def _ids(cell: Cell, out: Path) -> Path | None:
    return None if cell.objective == "InfoNCE" else out / "tokenizer"


def batches_of(data: Dataset, config: Config, codes: np.ndarray | None, *, negatives: int, users: int) -> TrainingBatches:
    """Batches of all users up to their last event, without a share of other negatives or of lost events."""
    train = config.train
    return TrainingBatches(
        data, stop=np.asarray(data.user_start[1:]), batch_users=users, max_events=config.model.max_events,
        sampled_negatives=negatives, action_weights=train.action_weights, moment_lag_seconds=train.moment_lag_hours * 3600,
        click_lag_seconds=train.click_lag_hours * 3600, horizon_seconds=train.horizon_days * 86400, seed=0,
        popularity=config.model.trend, codes=codes)


def _planned(config: Config, cell: Cell, data: Path, out: Path) -> tuple[float, int]:
    """(FLOP, events) of a training, counted on its first batch."""
    opened, ids = load_dataset(data), _ids(cell, out)
    codes = None if ids is None else np.array(load_tokenizer(ids, opened.schema.item_space).codes)
    model = OnePiece(config.model, opened.schema, None if codes is None else torch.from_numpy(codes))
    batches = batches_of(opened, config, codes, negatives=config.train.sampled_negatives, users=config.train.batch_users)
    work = forward_work(model, shape_of(next(iter(batches.epoch(0)))), semantic=cell.objective != "InfoNCE")
    work = work if config.train.retrieval_weight else work._replace(retrieval=0, similarity=0)
    steps = max(1, round(config.train.epochs * batches.steps_per_epoch))
    return work.training_flops * steps, round(int(np.minimum(batches.events, config.model.max_events).sum()) * config.train.epochs)


def _run(config: Config, cell: Cell, plan: Plan, data: Path, out: Path) -> Point:
    run, ids = out / "runs" / cell.name, _ids(cell, out)
    started = time.monotonic()
    train_or_resume(data, run, config, **({} if ids is None else {"tokenizer": ids}))
    seconds, model = time.monotonic() - started, load_checkpoint(run, torch.device("cpu")).model
    held, count = load_dataset(out / "data" / "held-out"), size(model)
    retrieval, codes = held_out_losses(model, held, config, negatives=plan.negatives)
    judged = None
    if cell.objective != "ids":  # a model without InfoNCE has vectors that nothing has trained
        asked = hold_out(held, users=_JUDGED_USERS, seed=0, one_in=1)
        judged = validate(model, held, asked, torch.device("cpu")) if len(asked.user) else None
    figures = [None] * 3 if judged is None else [float(judged.hit.mean()), float(judged.gain.mean()), judged.score]
    return Point(count.dense, count.tables, 0, 0.0, retrieval if cell.objective != "ids" else None,
                 sum(codes) if ids else None, *figures, seconds, codes)


@torch.no_grad()
def held_out_losses(model: OnePiece, data: Dataset, config: Config, *, negatives: int) -> tuple[float, list[float]]:
    """(InfoNCE, cross-entropy of each code) per event of `data`'s users: the same keys for every model, no dropout."""
    model.eval()
    codes = model.codes.numpy() if model.decoder is not None else None
    found, rows = [], []
    for batch in batches_of(data, config, codes, negatives=negatives, users=_JUDGED_BATCH).epoch(0):
        item_ND = model.encode_items(batch.items)
        encoded = model.encode(batch.history, item_ND)
        levels = [] if codes is None else model.code_losses(model.forced(batch, encoded), encoded).tolist()
        found.append([float(model.retrieval_loss(batch, encoded, item_ND)), *levels])
        rows.append(float(batch.step_weight_K.sum()))
    retrieval, *levels = np.average(np.array(found), axis=0, weights=rows).tolist()
    return retrieval, levels


def _report(grid: Path, out: Path, cells: Sequence[Cell], points: Mapping[Cell, Point], plan: Plan) -> Path:
    lines = [(cell.row.name, cell.objective, str(cell.seed), f"{cell.share:g}",
              *(points[cell].cells() if cell in points else ["not run"] + [""] * 8)) for cell in cells]
    table(f"scaling: {grid.name}", COLUMNS, lines)
    write_json(out / "scaling.json", {"grid": str(grid), "rows": [
        {"row": cell.row.name, "objective": cell.objective, "seed": cell.seed, "share": cell.share,
         "beside": cell.row.name in plan.beside, **point._asdict()}
        for cell, point in points.items()]})
    sections = scaling_sections(out / "scaling.json", lines)
    page = write_report(out / "scaling.html", f"Scaling: {grid.stem}", sections)
    (out / "scaling.md").write_text(as_markdown(sections), "utf-8")
    say(f"wrote {page}, scaling.md and scaling.json")
    return page
