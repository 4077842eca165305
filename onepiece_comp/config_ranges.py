"""What settings may be, where a stage would fail late, or do something else without a word: checked when they are read.

Stands between `config.py` and `config_reading.py`. Names of rules and models are checked by the stages that know them.
"""

from collections.abc import Callable, Sequence
from math import inf

from onepiece_comp.config import Config
from onepiece_comp.errors import InputError

_CHOICES = {
    "preprocess.reader": ("auto", "compiled", "plain"), "train.loss": ("info_nce", "bce"),
    "train.precision": ("auto", "float32", "bfloat16"), "ranker.keep": ("better", "always"),
    "infer.action": ("auto", "exposure", "click", "conversion", "0", "1", "2")}
_DEVICES = ("train.device", "infer.device", "ranker.device")  # auto, cpu, cuda, or a card as in cuda:1
Range = tuple[str, Callable[[float], bool], str]  # in words, what fits, names of settings
_RANGES: tuple[Range, ...] = (
    ("1 or more", lambda value: value >= 1,
     "synthesize.users preprocess.max_array_values preprocess.max_embedding_width preprocess.trend_budget_mib model.width "
     "model.layers model.heads model.max_events model.decoder_layers train.batch_users train.accumulate train.log_every "
     "infer.beam infer.shortlist infer.index_fetch infer.batch_users ranker.width ranker.heads ranker.layers ranker.depth "
     "ranker.examples ranker.late ranker.batch_lists ranker.checkpoints score.k score.resamples model.expert_width"),
    ("0 or more", lambda value: 0 <= value < inf,
     "preprocess.reduce_embeddings_to preprocess.engine_workers "
     "model.feature_width model.id_width model.hash_width model.embedding_width model.latent_steps model.experts "
     "model.similarity_width train.sampled_negatives train.bank_batches train.hard_negatives train.retrieval_weight "
     "train.semantic_weight train.conditioned_weight train.moment_lag_hours train.click_lag_hours train.horizon_days "
     "train.weight_decay train.clip train.validation_users train.checkpoints train.patience train.save_minutes train.replicas "
     "infer.survivors infer.union ranker.weight_decay ranker.binary_weight model.balance_weight tokenizer.balance"),
    ("from 0 to 1,024", lambda value: 0 <= value <= 1024, "preprocess.threads train.threads infer.threads ranker.threads"),
    ("from 0 to 4,294,967,295", lambda value: 0 <= value < 2**32,
     "synthesize.seed split.seed tokenizer.seed train.seed ranker.seed score.seed"),
    ("above 0", lambda value: 0 < value < inf,
     "model.temperature train.epochs train.warm_start_epochs train.warm_start_rate train.learning_rate train.muon_learning_rate "
     "infer.index_effort ranker.epochs ranker.learning_rate"),
    ("from 0 to below 1", lambda value: 0 <= value < 1,
     "model.dropout model.id_dropout model.code_truncation train.average ranker.dropout"),
    ("from 0 to 1", lambda value: 0 <= value <= 1,
     "train.duplicate_cosine preprocess.max_odd_share train.hard_after train.warmup infer.semantic_weight synthesize.conversion_rate"),
    ("0, or at least a second", lambda value: value == 0 or 1 / 3600 <= value < inf, "preprocess.trend_bucket_hours"),
)


def check_ranges(config: Config) -> None:
    """InputError for the first setting that no stage could work with."""
    for name, valid in _CHOICES.items():
        _require(config, name, lambda value, valid=valid: value in valid, f"one of {', '.join(valid)}")
    for name in _DEVICES:
        kind, card = _value(config, name).partition(":")[::2]
        _require(config, name, lambda value, kind=kind, card=card: kind in ("auto", "cpu", "cuda") and (
            not card or kind == "cuda" and card.isdecimal()), "auto, cpu, cuda, or a card as in cuda:1")
    require_ranges(_RANGES, lambda name: _value(config, name))
    for name in ("train.action_weights", "ranker.action_weights"):
        _require(config, name, lambda value: len(value) == 4 and min(value) >= 0,
                 "four weights of 0 or more: exposure, click, conversion, unknown")
    _require(config, "model.hash_sizes", lambda sizes: all(size >= 1 for size in sizes), "sizes of 1 or more")
    _require(config, "train.sampled_negatives", lambda count: count or config.train.loss != "bce",
             "1 or more with train.loss=bce, which compares a target with one of them")
    model = config.model
    _require(config, "model.heads", lambda heads: model.width % heads == 0, f"a divisor of the width, {model.width}")
    _require(config, "ranker.heads", lambda heads: config.ranker.width % heads == 0, f"a divisor of its width, {config.ranker.width}")
    _require(config, "model.rotary", lambda rotary: not rotary or model.width // model.heads % 2 == 0,
             "false, or heads of an even width")
    _require(config, "model.active_experts", lambda active: not model.experts or 1 <= active <= model.experts,
             f"1 to {model.experts}, the experts")


def _value(config: Config, name: str) -> object:
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


def _require(config: Config, name: str, fits: Callable, expected: str) -> None:
    require_ranges(((expected, fits, name),), lambda name: _value(config, name))


def require_ranges(ranges: Sequence[Range], value_of: Callable[[str], object]) -> None:
    """InputError for the first of the names whose value is out of its range."""
    for expected, fits, names in ranges:
        for name in names.split():
            if not fits(value := value_of(name)):
                raise InputError(name, found=repr(value), expected=expected, do="correct it")
