"""Checkpoints: weights with the configuration and schema that they need, in a folder named as the platform demands.

`global_step{N}.valid_score={x}/` holds `model.pt` (a state dict, read with weights_only=True) and `config.json`.
Inference has no architecture options: it reads them here. Semantic ids are a buffer of the model and the last
popularity counts and projections of embeddings stand beside it, so the folder is all that an evaluation job needs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp import __version__
from onepiece_comp.artefacts import atomic_folder, read_json, write_json
from onepiece_comp.columns import load_column
from onepiece_comp.config import Config, InferConfig, ModelConfig
from onepiece_comp.config_ranges import check_ranges
from onepiece_comp.config_reading import from_dict, to_dict
from onepiece_comp.dataset.popularity_counts import Trend
from onepiece_comp.dataset.reduction import Projection, copy_projections, load_projections
from onepiece_comp.errors import InputError
from onepiece_comp.logs.features import Schema, check_copied_tables
from onepiece_comp.logs.formats import ACTIONS, ACTION_NAMES, CLICK, CONVERSION, EXPOSURE, UNKNOWN_ACTION
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.training.weights import load_tensors, load_weights, require_finite, save_tensors

MODEL, CONFIG = "model.pt", "config.json"


class Checkpoint(NamedTuple):
    """A model ready to run, and what it was trained on."""

    model: OnePiece
    trend: Trend  # popularity at the end of the training log
    infer: InferConfig
    dataset: str  # fingerprint
    evaluation: str | None  # the evaluation folder beside the training data, where there was one
    path: Path
    projections: dict[str, Projection] | None = None  # of the embeddings that the dataset reduced, by feature id
    actions: tuple[int, ...] | None = None  # events of each action that were trained on; None where nobody counted


def save_checkpoint(
    run: Path,
    model: OnePiece,
    trend: Trend,
    *,
    step: int,
    score: float,
    infer: InferConfig,
    dataset: str,
    evaluation: str | None,
    columns: Path,
    actions: Sequence[int] | None = None,
) -> Path:
    """Write one checkpoint folder under `run` and return its path; of `trend` the end is kept.

    `columns` is the dataset folder, whose projections of embeddings inference needs too; `actions` are the counts of
    the events trained on.
    """
    folder = Path(run) / f"global_step{step}.valid_score={score:.4f}"
    with atomic_folder(folder, CONFIG) as out:
        save_tensors(model.state_dict(), out / MODEL)
        np.save(out / "trend_counts.npy", trend.tail().counts)
        copy_projections(columns, out, model.schema.embeddings)
        write_json(out / CONFIG, {
            "version": __version__, "model": to_dict(model.config), "schema": model.schema.to_dict(),
            "infer": to_dict(infer), "dataset": dataset, "evaluation": evaluation, "step": step, "valid_score": score,
            "actions": None if actions is None else list(map(int, actions))})
    return folder


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that `path` is or, for a run, the one its run.json names (else the latest)."""
    path = Path(path)
    if (path / MODEL).is_file():
        return path
    if (path / "run.json").is_file():
        named = path / str(read_json(path / "run.json").get("checkpoint"))
        if (named / MODEL).is_file():
            return named
    steps = sorted(path.glob("global_step*"), key=lambda folder: int("0" + folder.name[11:].split(".")[0]))
    whole = [folder for folder in steps if (folder / MODEL).is_file()]
    if not whole:
        raise InputError(
            path,
            found="no checkpoint" if path.exists() else "no such folder",
            expected=f"a run or a checkpoint folder with {MODEL}",
            do="give the run folder that train wrote",
        )
    return whole[-1]


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Rebuild the model of a run or checkpoint folder in evaluation mode on `device`."""
    folder = find_checkpoint(path)
    stored = _described(folder / CONFIG)
    config, schema = stored.model, stored.schema
    parts = config.layers + len(config.hash_sizes)
    model = load_weights(folder / MODEL, lambda state: OnePiece(config, schema, _codes(state, schema, folder / MODEL)),
                         parts=parts,
                         described=folder / CONFIG)
    counts = _popularity_counts(folder, schema)
    begin = schema.trend_end_second - (counts.shape[1] - 1) * schema.trend_bucket_seconds
    trend = Trend(counts, begin, schema.trend_bucket_seconds)
    return Checkpoint(model.to(device).eval(), trend, stored.infer, stored.dataset, stored.evaluation, folder,
                      load_projections(folder, schema.embeddings), stored.actions)


class _Description(NamedTuple):
    """What config.json says, as far as it can be held against itself."""

    model: ModelConfig
    infer: InferConfig
    schema: Schema
    dataset: str
    evaluation: str | None
    actions: tuple[int, ...] | None


def _described(path: Path) -> _Description:
    """A checkpoint's configuration, types and ranges checked; InputError names the file."""
    stored = read_json(path)
    again = {"expected": "the fields of a checkpoint",
             "do": "train again with this version, or copy the checkpoint again"}
    if not isinstance(stored, dict):
        raise InputError(path, found=f"a {type(stored).__name__}", **again)
    try:
        config, infer = (from_dict(kind, stored[name], path) for kind,
                         name in ((ModelConfig, "model"), (InferConfig, "infer")))
        schema = Schema.from_dict(stored["schema"], path)
        dataset, evaluation, actions = stored["dataset"], stored["evaluation"], stored.get("actions")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(path, found=f"no {error} in it", **again) from error
    try:
        check_ranges(Config(model=config, infer=infer))
    except InputError as error:
        raise InputError(f"{path}: {error.place}", found=error.found, expected=error.expected, do=error.do) from error
    whole = actions is None or isinstance(actions, list) and len(actions) == ACTIONS and all(
        type(count) is int and count >= 0 for count in actions)
    for name, fits in (("dataset", isinstance(dataset, str)),
                       ("evaluation", evaluation is None or isinstance(evaluation, str)),
                       ("actions", whole)):
        if not fits:
            raise InputError(f"{path}: {name}", found=str(stored[name])[:80], **again)
    return _Description(config, infer, schema, dataset, evaluation, None if actions is None else tuple(actions))


def _codes(state: dict, schema: Schema, path: Path) -> torch.Tensor | None:
    """The semantic ids among a checkpoint's tensors, None where it has none;
    InputError when they are none of this catalogue.
    """
    codes = state.get("codes")
    if not isinstance(codes, torch.Tensor) or codes.dim() != 2 or codes.dtype != torch.int32:
        raise InputError(path, found="no codes [items + 1, levels] of int32", expected="the tensors of a checkpoint",
                         do="copy the checkpoint again")
    if not codes.numel():
        return None
    if len(codes) != schema.items + 1 or int(codes.min()) < -1 or int(codes.max()) < 0 or int(codes[0].max()) != -1:
        raise InputError(path, found=f"codes {list(codes.shape)} from {int(codes.min())} to {int(codes.max())}",
                         expected=f"[{schema.items + 1}, levels] from 0 up, -1 in row 0 and where an item has none",
                         do="copy the checkpoint again")
    return codes


def _popularity_counts(folder: Path, schema: Schema) -> np.ndarray:
    """Cumulative counts [items + 1, buckets + 1, 2] of the log's end; InputError when they are others."""
    counts = np.array(load_column(folder, "trend_counts"))
    if counts.ndim != 3 or counts.shape[::2] != (schema.items + 1,
                                                 2) or not counts.shape[1] or counts.dtype.kind not in "iu" \
            or counts.size and counts.min() < 0:
        raise InputError(folder / "trend_counts.npy", found=f"{counts.dtype} {list(counts.shape)}",
                         expected=f"whole numbers from 0 up [{schema.items + 1}, buckets + 1, 2]",
                         do="copy the checkpoint again")
    return counts


def asked_action(checkpoint: Checkpoint, name: str) -> int:
    """The action that users are asked for: what `infer.action` names, or `auto`, the commonest positive of training.

    Without a positive in training that is exposure, without any known action unknown. An embedding and popularity
    weights of an action that training never saw have had no gradient: InputError for one that is named.
    """
    counts = checkpoint.actions
    if name == "auto":
        if counts is None:
            return CLICK
        groups = ((CLICK, CONVERSION), (EXPOSURE,), (UNKNOWN_ACTION,))
        return next((max(group, key=lambda action: counts[action]) for group in groups
                     if any(counts[action] for action in group)),
                    UNKNOWN_ACTION)
    action = ACTION_NAMES.index(name) if name in ACTION_NAMES else int(name)
    if counts is not None and checkpoint.model.config.next_action and not counts[action]:
        known = ", ".join(f"{other} ({count:,} events)" for other, count in zip(ACTION_NAMES, counts) if count)
        raise InputError("infer.action", found=f"{ACTION_NAMES[action]}, which no event of the training has",
                         expected=f"auto, or an action that it has: {known}", do="ask for one of these")
    return action


def warm_start(model: OnePiece, path: Path) -> list[str]:
    """Copy the weights whose names and shapes match from another run;
    returns the names of those that are still fresh.
    """
    folder = find_checkpoint(path)
    source, target = load_tensors(folder / MODEL), model.state_dict()
    matching = {name: value for name, value in source.items()
                if name in target and isinstance(value, torch.Tensor) and target[name].shape == value.shape
                and name != "codes"}
    if not matching:
        raise InputError(path, found="no weights that fit this model", expected="a run of the same width",
                         do="warm-start from a run with the same model settings")
    require_finite(matching, folder / MODEL)
    check_copied_tables(path, _described(folder / CONFIG).schema, model.schema,
                        with_ids=bool(model.config.id_width or model.config.hash_sizes))
    model.load_state_dict(matching, strict=False)
    return [name for name in target if name not in matching]
