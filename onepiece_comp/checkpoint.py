"""Checkpoints: weights with the configuration and schema that they need, in a folder named as the platform demands.

`global_step{N}.valid_score={x}/` holds `model.pt` (a state dict, read with weights_only=True) and `config.json`.
Inference has no architecture options: it reads them here. Semantic ids are a buffer of the model and the last
popularity counts and projections of embeddings stand beside it, so the folder is all that an evaluation job needs.
"""

import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp import __version__
from onepiece_comp.artefacts import atomic_folder, load_column, read_json, write_json
from onepiece_comp.config import InferConfig, ModelConfig
from onepiece_comp.config_reading import from_dict, to_dict
from onepiece_comp.errors import InputError
from onepiece_comp.features import Schema, check_copied_tables
from onepiece_comp.model import OnePiece
from onepiece_comp.reduction import Projection, copy_projections, load_projections
from onepiece_comp.trend import Trend

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
) -> Path:
    """Write one checkpoint folder under `run` and return its path; of `trend` the end is kept.

    `columns` is the dataset folder, whose projections of embeddings inference needs too.
    """
    folder = Path(run) / f"global_step{step}.valid_score={score:.4f}"
    with atomic_folder(folder, CONFIG) as out:
        save_tensors(model.state_dict(), out / MODEL)
        np.save(out / "trend_counts.npy", trend.tail().counts)
        copy_projections(columns, out, model.schema.embeddings)
        write_json(out / CONFIG, {
            "version": __version__, "model": to_dict(model.config), "schema": model.schema.to_dict(),
            "infer": to_dict(infer), "dataset": dataset, "evaluation": evaluation, "step": step, "valid_score": score})
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


def save_tensors(value: dict, path: Path) -> None:
    """Write what `load_tensors` reads, through a Python file: its OSError tells a full disk, PyTorch's own does not."""
    with open(path, "wb") as file:
        torch.save(value, file)


def load_tensors(path: Path) -> dict:
    """A file of tensors and plain values, never code; InputError when it is cut short or is none."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
        return found
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(path, found=f"no readable weights ({reason})", expected="a whole checkpoint",
                         do="the file may be cut short: copy it again or use an earlier checkpoint") from error


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Rebuild the model of a run or checkpoint folder in evaluation mode on `device`."""
    folder = find_checkpoint(path)
    stored = read_json(folder / CONFIG)
    try:
        config = from_dict(ModelConfig, stored["model"], folder / CONFIG)
        infer = from_dict(InferConfig, stored["infer"], folder / CONFIG)
        schema = Schema.from_dict(stored["schema"], folder / CONFIG)
        dataset, evaluation = stored["dataset"], stored["evaluation"]
    except (KeyError, TypeError) as error:
        raise InputError(folder / CONFIG, found=f"no {error} in it", expected="the fields of a checkpoint",
                         do="train again with this version") from error
    state = load_tensors(folder / MODEL)
    codes = state.get("codes")
    model = OnePiece(config, schema, codes if codes is not None and codes.numel() else None)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            folder / MODEL,
            found=f"weights of another shape ({str(error).splitlines()[1].strip()[:160]})",
            expected=f"those of {CONFIG} beside it",
            do="keep both files of one checkpoint together",
        ) from error
    counts = np.array(load_column(folder, "trend_counts"))
    begin = schema.trend_end_second - (counts.shape[1] - 1) * schema.trend_bucket_seconds
    trend = Trend(counts, begin, schema.trend_bucket_seconds)
    return Checkpoint(model.to(device).eval(), trend, infer, dataset, evaluation, folder,
                      load_projections(folder, schema.embeddings))


def warm_start(model: OnePiece, path: Path) -> list[str]:
    """Copy the weights whose names and shapes match from another run; returns the names of those that are still fresh."""
    folder = find_checkpoint(path)
    source, target = load_tensors(folder / MODEL), model.state_dict()
    matching = {name: value for name, value in source.items()
                if name in target and target[name].shape == value.shape and name != "codes"}
    if not matching:
        raise InputError(path, found="no weights that fit this model", expected="a run of the same width",
                         do="warm-start from a run with the same model settings")
    copied = Schema.from_dict(read_json(folder / CONFIG).get("schema", {}), folder / CONFIG)
    check_copied_tables(path, copied, model.schema, with_ids=bool(model.config.id_width or model.config.hash_sizes))
    model.load_state_dict(matching, strict=False)
    return [name for name in target if name not in matching]
