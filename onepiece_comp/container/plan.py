"""What a job of given size needs, before a try is spent on it: memory and hours by preset. Forecasts, not promises.

Weights, gradients, optimiser state and semantic ids are counted from the model itself, built without memory (meta
device); popularity counts and candidate vectors follow from their shapes. Activations are bounded by the parts that
grow: logits of the keys, and what each block keeps of a position. Hours are multiply-adds (`arithmetic.py`) over a rate
that is measured here, or given.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from onepiece_comp.config import Config
from onepiece_comp.config_reading import load_config
from onepiece_comp.console import say, table
from onepiece_comp.errors import InputError
from onepiece_comp.logs.features import Schema, joint_vocabulary
from onepiece_comp.models.recommender import CELLS, OnePiece, size
from onepiece_comp.tokenizer.build import choose_codes
from onepiece_comp.training.arithmetic import Shape, forward_work
from onepiece_comp.training.optimisers import parameter_groups, prepare_tables, row_state_bytes
from onepiece_comp.training.process import choose_device

EVENTS_PER_USER = 91  # mean of the first round
SIZES = ("tiny", "small", "base", "full")
# Numbers of values of the first round's item and user features, and widths of its embeddings (arXiv 2604.04976).
_ITEM_VALUES = {"100": 6, "101": 51, "102": 90_709, "112": 30, "114": 20, "115": 691, "116": 18, "117": 497,
                "118": 1_426,
                "119": 4_191, "120": 3_392, "121": 2_135_891, "122": 90_919}
_USER_VALUES = {"103": 86, "104": 2, "105": 7, "106": 14, "107": 19, "108": 4, "109": 3, "110": 2}
_EMBEDDINGS = {"81": 32}
_KEPT = 34  # numbers of the width that a block keeps of a position for the backward pass, beside attention's own
# times the cells of the logits that are held at once: two kinds of logits, their gradients, exponentials
_LOGIT_ROOMS = 6
_EVENTS_PER_SECOND = 450_000  # preprocess, two cores (benchmarks/results/scale.md: 90 M events in 199 s)
# tokenizer, one core, two levels of 16,384 (benchmarks/results/tokenizer.md: 222 s a million)
_VECTORS_PER_SECOND = 4_500
# of a plain product's rate that a training step reached (benchmarks/results/train_step.md: .31)
_SHARE_OF_MATMUL = 0.25


class Bytes(NamedTuple):
    """GPU memory of training, by part."""

    weights: int
    gradients: int
    optimiser: int
    semantic_ids: int  # the table of codes
    popularity: int  # counts of the candidates' windows, at inference
    candidates: int  # vectors of all candidates, at inference
    activations: int  # an estimate, the only one here

    @property
    def training(self) -> int:
        """At once in a training step."""
        return self.weights + self.gradients + self.optimiser + self.semantic_ids + self.activations

    @property
    def inference(self) -> int:
        """At once while ranking, without the logits of a batch of users."""
        return self.weights + self.semantic_ids + self.popularity + self.candidates


class Scale(NamedTuple):
    """The log and what is asked of it."""

    users: int
    items: int
    candidates: int = 660_000


def schema_of(items: int) -> Schema:
    """A schema as the first round's, at another number of items; feature 121 has a value for about two items."""
    values = {**_ITEM_VALUES, "121": min(_ITEM_VALUES["121"], max(1, items // 2))}
    return Schema(items, joint_vocabulary(values.items()), joint_vocabulary(_USER_VALUES.items()), dict(_EMBEDDINGS),
                  "", 3600, 0)


def model_of(config: Config, schema: Schema, *, semantic: bool = True) -> OnePiece:
    """The model without memory for its weights; `semantic` with a head for ids of the size that the tokenizer
    chooses.
    """
    codes = None
    if semantic:
        codes = torch.full((schema.items + 1, config.tokenizer.levels), -1, dtype=torch.int32)
        codes[-1] = choose_codes(schema.items, config.tokenizer) - 1
    with torch.device("meta"):
        model = OnePiece(config.model, schema, codes)
    prepare_tables(model, optimiser=config.train.table_optimiser, precision=config.train.table_precision)
    return model


def memory(model: OnePiece, config: Config, scale: Scale, *, on_gpu: bool = True) -> Bytes:
    """Bytes by part; the parameters, their gradients and optimiser state exactly."""
    groups = parameter_groups(model)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    dense = sum(parameter.numel() for name in ("muon", "decayed", "plain") for parameter in groups[name])
    muon = sum(parameter.numel() for parameter in groups["muon"]) if config.train.muon else 0
    rows = sum(len(table) * row_state_bytes(config.train.table_optimiser, table.shape[1]) for table in groups["rows"])
    shape, element, settings = shape_of_step(config, scale), 2 if on_gpu else 4, config.model
    kept = shape.cells * (settings.width * element * _KEPT + settings.heads * shape.positions
                          * element) * settings.layers
    logits = min(shape.cells * shape.keys, CELLS["cuda"]) * 4 * _LOGIT_ROOMS
    vectors = scale.candidates * 4 * (settings.width + settings.similarity_width)
    return Bytes(weights, 4 * dense, 4 * muon + 8 * (dense - muon) + rows, model.codes.numel() * 4,
                 scale.candidates * 5 * 2 * 8, vectors, kept + logits)


def shape_of_step(config: Config, scale: Scale) -> Shape:
    """A step's shape: every history at the mean length, a new item for every other event."""
    users, length = config.train.batch_users, min(EVENTS_PER_USER, config.model.max_events)
    rows = users * length
    return Shape(users, config.model.max_events + 1, rows,
                 min(scale.items, rows + config.train.sampled_negatives))


def hours(model: OnePiece, config: Config, scale: Scale, rate: float) -> dict[str, float]:
    """Hours of each stage at `rate` FLOP/s of a training step."""
    steps, shape = scale.users / config.train.batch_users, shape_of_step(config, scale)
    retrieval = forward_work(model, shape, semantic=False).training_flops * steps * config.train.epochs
    joint = forward_work(model, shape, semantic=True, conditioned=config.model.conditioned).training_flops
    width = config.model.width + config.model.similarity_width
    answers = forward_work(model, shape._replace(keys=0), semantic=True).training_flops / 3 * steps
    answers += 2.0 * scale.users * scale.candidates * width
    found = {"preprocess": scale.users * EVENTS_PER_USER / _EVENTS_PER_SECOND, "train retrieval": retrieval / rate,
             "build tokenizer": scale.items / _VECTORS_PER_SECOND,
             "train jointly": joint * steps * config.train.warm_start_epochs / rate, "infer": answers / rate}
    return {stage: seconds / 3600 for stage, seconds in found.items()}


def measured_rate(device: torch.device) -> float:
    """FLOP/s that a training step should reach here: a share of what plain products of matrices reach."""
    on_gpu = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if on_gpu else (768, torch.float32)
    left = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        float((left @ left)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2.0 * side**3 / best * _SHARE_OF_MATMUL


def plan(scale: Scale, *, gpu_memory: str, within_hours: float, presets: Sequence[str] = SIZES, tflops: float = 0.0,
         sets: Sequence[str] = ()) -> list[str]:
    """Print what each preset needs; returns those that fit memory and hours."""
    limit = read_size(gpu_memory)
    rate = tflops * 1e12 or measured_rate(choose_device("auto"))
    say(f"{scale.users:,} users x {EVENTS_PER_USER} events, {scale.items:,} items, {scale.candidates:,} candidates; "
        f"{rate / 1e12:.2f} TFLOP/s in a training step ({'given' if tflops else 'measured here'}). Forecasts, not run.")
    rows, fitting, stages = [], [], {}
    for preset in presets:
        config = load_config(preset, None, sets)
        model = model_of(config, schema_of(scale.items))
        held, stages = memory(model, config, scale), hours(model, config, scale, rate)
        total = sum(stages.values())
        fits = max(held.training, held.inference) <= limit and total <= within_hours
        fitting += [preset] if fits else []
        counted = size(model)
        rows.append((preset, config.train.batch_users, f"{config.train.sampled_negatives:,}",
                     f"{(counted.tables + counted.dense) / 1e6:,.0f}", f"{held.training / 2**30:.1f}",
                     f"{held.inference / 2**30:.1f}", *(f"{value:.1f}" for value in stages.values()), f"{total:.1f}",
                     "yes" if fits else "no"))
    table("plan", ("preset", "batch", "negatives", "M parameters", "GiB training", "GiB inference",
                   *(f"h {stage}" for stage in stages), "h in all", "fits"), rows)
    advice = "none; try --set train.batch_users, train.table_optimiser=adagrad_rows or model.id_width=0"
    say(f"fits {limit / 2**30:g} GiB and {within_hours:g} hours: {', '.join(fitting) or advice}")
    return fitting


def read_size(text: str) -> int:
    """Bytes of a size such as 19GiB or 19GB."""
    for unit, factor in (("GiB", 2**30), ("GB", 10**9), ("MiB", 2**20)):
        if text.endswith(unit) and text[:-len(unit)].strip().replace(".", "", 1).isdecimal():
            return int(float(text[:-len(unit)]) * factor)
    raise InputError("--gpu-memory", found=repr(text), expected="a size as 19GiB", do="write it so")
