"""Loss against size: a grid of models on one dataset, for InfoNCE alone, semantic ids alone and both; resumable.

GRID.yaml is a ladder (`ablation.py`) with a further part `scaling`: `objectives`, `seeds`, `data` (row to the share of
the users that it trains on, 1 where none is named), `vectors` (what the ids are made from), `held_out` (share of the
users that no row sees), `negatives` (keys of the held-out loss, the same for every row) and `beside` (rows shown but
fitted to no law); `scaling_plan.py` reads it. Held-out users train nothing, but are among the popularity counts.
Under OUT: data/ tokenizer/ runs/ rows/ scaling.json .md .html.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from onepiece_comp import __version__
from onepiece_comp.artefacts import (
    MARKERS, atomic_folder, fingerprint, link_or_copy, make_unless_made, moving_aside, read_json, read_marker,
    write_json)
from onepiece_comp.columns import load_column
from onepiece_comp.config import Config, TokenizerConfig
from onepiece_comp.config_reading import result_settings, to_dict
from onepiece_comp.console import say, table
from onepiece_comp.dataset.preprocess import Dataset, load_dataset
from onepiece_comp.errors import Diverged, InputError
from onepiece_comp.models.recommender import OnePiece, size
from onepiece_comp.reports.page import as_markdown, write_report
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.stages.train import train_or_resume
from onepiece_comp.studies.ablation import read_ladder
from onepiece_comp.studies.scaling_plan import Cell, Plan, read_plan, settings_of
from onepiece_comp.studies.scaling_sections import COLUMNS, Point, scaling_sections
from onepiece_comp.tokenizer.folder import load_tokenizer
from onepiece_comp.tokenizer.item_vectors import named_sources
from onepiece_comp.training.arithmetic import forward_work, shape_of
from onepiece_comp.training.batches import TrainingBatches
from onepiece_comp.training.checkpoint import load_checkpoint
from onepiece_comp.training.validation import hold_out, validate

_FIRST_RATE = 4e9  # FLOP/s that the first estimate supposes
_JUDGED_USERS, _JUDGED_BATCH = 300, 16
_COPIED = ("item_row", "action", "time_seconds", "user_start", "user_token", "user_token_start")


@moving_aside(say)
def scaling(grid: Path, dataset: Path, out: Path, *, hours: float = 3.0) -> Path:
    """Train what is missing of the grid, then OUT/scaling.html and .json; returns the page.
    No row begins after `hours`.
    """
    rows, plan, out = read_ladder(grid, also=("scaling",)), read_plan(grid), Path(out)
    until, dataset = time.monotonic() + 3600 * hours, Path(dataset)
    cells = [Cell(row, objective, seed, plan.data.get(row.name, 1.0))
             for seed in range(plan.seeds) for row in rows for objective in plan.objectives]
    for name, chosen in _shares(dataset, plan).items():
        keep_users(dataset, out / "data" / name, chosen)
    if set(plan.objectives) != {"InfoNCE"}:
        keep_ids(dataset, out / "tokenizer", rows[0].config.tokenizer, plan.vectors)
    points: dict[Cell, Point | None] = {}  # None: its loss diverged
    planner = _Planner(out)
    for cell in cells:
        _one(cell, plan, planner, until, points)
    return _report(Path(grid), out, cells, points, plan)


def _shares(dataset: Path, plan: Plan) -> dict[str, np.ndarray]:
    """Users of each data folder: those held out, and nested shares of the others."""
    order = np.random.default_rng(0).permutation(len(load_dataset(dataset).user_start) - 1)
    held = max(1, round(plan.held_out * len(order)))
    rest = order[held:]
    if not len(rest):
        raise InputError(dataset, found=f"{len(order)} users, of whom {held} are held out",
                         expected="somebody left to train on",
                         do="lower scaling.held_out, or take a dataset of more users")
    return {"held-out": np.sort(order[:held]), **{
        f"share-{share:g}": np.sort(rest[:max(1, round(share * len(rest)))]) for share in {1.0, *plan.data.values()}}}


def keep_users(dataset: Path, out: Path, users: np.ndarray) -> Path:
    """A dataset of some of the users with the same items and popularity; columns of items are links.

    What stands in `out` is left if it is that, and made anew if it is of other users or data.
    """
    marker, held = read_marker(dataset, "dataset"), Path(out) / MARKERS["dataset"]
    made_of = fingerprint(marker["fingerprint"], users)
    if held.is_file() and read_json(held)["fingerprint"] == made_of:
        return out
    column = {name: np.asarray(load_column(dataset, name)) for name in _COPIED}
    with atomic_folder(out, MARKERS["dataset"], {"users": made_of}) as folder:
        for name in sorted(path.stem for path in dataset.glob("*.npy") if path.stem not in _COPIED):
            link_or_copy(dataset / f"{name}.npy", folder / f"{name}.npy")
        for start, names in (("user_start", _COPIED[:3]), ("user_token_start", ("user_token",))):
            lengths = np.diff(column[start])[users]
            inside = np.repeat(column[start][users] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
            np.save(folder / f"{start}.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(column[start].dtype))
            for name in names:
                np.save(folder / f"{name}.npy", column[name][inside])
        write_json(folder / MARKERS["dataset"], {**marker, "fingerprint": made_of})
    return out


def keep_ids(dataset: Path, out: Path, config: TokenizerConfig, vectors: str) -> None:
    """Ids of these vectors under these settings in `out`: left if they are there, made anew if they are of others."""
    sources = [Path(name) for name, _ in named_sources(vectors)]
    files = [file for source in sources for file in (source, source.with_name(f"{source.stem}_ids.npy"),
                                                     source / "item_vectors.npy",
                                                     source / "item_ids.npy") if file.is_file()]
    made_of = fingerprint(__version__, read_marker(dataset, "dataset")["fingerprint"], to_dict(config), vectors, *files)
    make_unless_made(out.with_name(f"{out.name}.made_of.json"), made_of, whole=(out / MARKERS["tokenizer"]).is_file(),
                     make=lambda: build_tokenizer(dataset, out, config, vectors=vectors))


def _one(cell: Cell, plan: Plan, planner: "_Planner", until: float, points: dict[Cell, Point | None]) -> None:
    """Read what a cell reached, or train it if there is time."""
    config, out = settings_of(cell), planner.out
    data = out / "data" / f"share-{cell.share:g}"
    file = out / "rows" / f"{cell.name}.json"
    ids = _ids(cell, out)
    key = fingerprint(__version__, Point._fields, result_settings(config.model), result_settings(config.train),
                      read_marker(data, "dataset")["fingerprint"], plan.negatives,
                      ids and read_marker(ids, "tokenizer")["checksum"])
    done = read_json(file) if file.is_file() else {}
    if done.get("key") != key and time.monotonic() > until:
        return
    planned, events = planner.planned(config, cell, data)
    if done.get("key") != key:
        known = [point for point in points.values() if point and point.seconds > 0]
        rate = sum(p.flops for p in known) / sum(p.seconds for p in known) if known else _FIRST_RATE
        say(f"== {cell.row.name}, {cell.objective}, seed {cell.seed}: {planned:.3g} FLOP, about "
            f"{planned / rate / 60:.1f} min at {rate / 1e9:.1f} GFLOP/s")
        try:
            done = {"key": key, **_run(config, cell, plan, data, out)._asdict()}
        except Diverged as error:  # a finding of its own; the other cells can be trained
            say(f"diverged: {error}")
            done = {"key": key, "came_apart": str(error)}
        write_json(file, done)
    points[cell] = None if "came_apart" in done else Point(**{
        name: done[name] for name in Point._fields})._replace(flops=planned, events=events)


def _ids(cell: Cell, out: Path) -> Path | None:
    return None if cell.objective == "InfoNCE" else out / "tokenizer"


def batches_of(data: Dataset, config: Config, codes: np.ndarray | None, *, negatives: int,
               users: int) -> TrainingBatches:
    """Batches of all users up to their last event, without a share of other negatives or of lost events."""
    train = config.train
    return TrainingBatches(
        data, stop=np.asarray(data.user_start[1:]), batch_users=users, max_events=config.model.max_events,
        sampled_negatives=negatives, action_weights=train.action_weights,
        moment_lag_seconds=train.moment_lag_hours * 3600,
        click_lag_seconds=train.click_lag_hours * 3600, horizon_seconds=train.horizon_days * 86400, seed=0,
        popularity=config.model.trend, codes=codes)


class _Planner:
    """What trainings cost; the shapes of an epoch's batches are counted once for all cells that have the same."""

    def __init__(self, out: Path):
        self.out, self._shapes = out, {}

    def planned(self, config: Config, cell: Cell, data: Path) -> tuple[float, int]:
        """(FLOP, events) of a training: batches are of users of like length, so that no one of them stands for all."""
        opened, ids = load_dataset(data), _ids(cell, self.out)
        codes = None if ids is None else np.array(load_tokenizer(ids, opened.schema.item_space).codes)
        model = OnePiece(config.model, opened.schema, None if codes is None else torch.from_numpy(codes))
        bare = replace(config, model=replace(config.model, trend=False))  # popularity changes no shape
        batches = batches_of(opened, bare, None, negatives=config.train.sampled_negatives,
                             users=config.train.batch_users)
        of = (data, config.model.max_events, config.train.sampled_negatives, config.train.batch_users)
        if of not in self._shapes:
            self._shapes[of] = [shape_of(batch) for batch in batches.epoch(0)]
        works = [forward_work(model, shape, semantic=cell.objective != "InfoNCE") for shape in self._shapes[of]]
        works = works if config.train.retrieval_weight else [work._replace(retrieval=0, similarity=0) for work in works]
        events = np.minimum(batches.events, config.model.max_events).sum()
        return sum(work.training_flops for work in works) * config.train.epochs, round(int(events)
            * config.train.epochs)


def _run(config: Config, cell: Cell, plan: Plan, data: Path, out: Path) -> Point:
    run, ids = out / "runs" / cell.name, _ids(cell, out)
    train_or_resume(data, run, config, **({} if ids is None else {"tokenizer": ids}))
    seconds, model = read_marker(run, "run")["figures"]["seconds"], load_checkpoint(run, torch.device("cpu")).model
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


def _report(grid: Path, out: Path, cells: Sequence[Cell], found: Mapping[Cell, Point | None],
            plan: Plan) -> Path:
    points = {cell: point for cell, point in found.items() if point}
    lines = [(cell.row.name, cell.objective, str(cell.seed), f"{cell.share:g}", *(
        points[cell].cells() if cell in points else ["diverged" if cell in found else "not run"] + [""] * 8))
        for cell in cells]
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
