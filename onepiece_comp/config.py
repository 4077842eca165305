"""Configuration: one frozen dataclass per stage, each field with its default, its meaning and what it may be.

`config_reading.py` fills them from presets, files and `--set`; `onepiece-comp settings` lists them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple


class Fits(NamedTuple):
    """What a setting may be: in words, and as a test of a value."""

    words: str
    test: Callable[[Any], bool]


def choice(*names: str) -> Fits:
    """One of these words."""
    return Fits(f"one of {', '.join(names)}", lambda value: value in names)


def setting(default: Any, meaning: str, fits: Fits | None = None) -> Any:
    """A field of a configuration; without `fits` the stage that reads it says what it may be, or its type says all."""
    return field(default=default, metadata={"meaning": meaning, "fits": fits})


def _is_device(value: str) -> bool:
    kind, card = value.partition(":")[::2]
    return kind in ("auto", "cpu", "cuda") and (not card or kind == "cuda" and card.isdecimal())


AT_LEAST_1 = Fits("1 or more", lambda value: value >= 1)
NOT_NEGATIVE = Fits("0 or more", lambda value: 0 <= value < inf)
ABOVE_0 = Fits("above 0", lambda value: 0 < value < inf)
BELOW_1 = Fits("from 0 to below 1", lambda value: 0 <= value < 1)
SHARE = Fits("from 0 to 1", lambda value: 0 <= value <= 1)
THREADS = Fits("from 0 to 1,024", lambda value: 0 <= value <= 1024)
SEED = Fits("from 0 to 4,294,967,295", lambda value: 0 <= value < 2**32)
HOURS = Fits("0, or at least a second", lambda value: value == 0 or 1 / 3600 <= value < inf)
DEVICE = Fits("auto, cpu, cuda, or a card as in cuda:1", _is_device)
SIZES = Fits("sizes of 1 or more", lambda sizes: all(size >= 1 for size in sizes))
ACTION_WEIGHTS = Fits("four weights of 0 or more: exposure, click, conversion, unknown",
                      lambda value: len(value) == 4 and min(value) >= 0)


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """The synthetic world; see `world/synthesize.py`."""

    users: int = setting(3000, "the dial of size; items, topics and candidates follow from it", AT_LEAST_1)
    seed: int = setting(0, "another seed is another world", SEED)
    conversion_rate: float = setting(
        0.0, "share of clicks that become conversions: 0 as in the first round, 0.47 in the second", SHARE)
    layout: str = setting(
        "jsonl", "jsonl = the organisers' files | parquet = those of the public release, candidates included",
        choice("jsonl", "parquet"))
    feature_111: bool = setting(True, "write item feature 111, a value per creative; the public release never has it")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which events are targets, which are history; see `split.py`."""

    mode: str = setting(
        "competition", "competition | held_out | leave_one_out", choice("competition", "held_out", "leave_one_out"))
    cut: str = setting(
        "auto", "ISO time (UTC) or Unix seconds of t_begin; auto = the `auto_cut` quantile of event times")
    until: str = setting("", "events at or after this time are dropped everywhere (for a validation cut); empty = none")
    auto_cut: float = setting(0.9, "quantile of event times that cut='auto' stands for")
    held_out: float = setting(0.2, "held_out mode: share of users that training never sees")
    active_days: float = setting(0.0, "candidates seen in this many days before the cut; 0 = all items before the cut")
    cold_share: float = setting(1.0, "share of the items first seen after the cut that join the candidates")
    action_types: bool = setting(
        False, "write user_action_type.json (the target's action, as the second round gave it)")
    seed: int = setting(0, "draws held-out users and cold candidates", SEED)


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How records become columns; see `preprocess.py`."""

    embeddings: tuple[str, ...] = setting(
        ("81", "82", "83", "84", "85", "86"), "feature ids of embeddings to load if present")
    max_embedding_width: int = setting(
        1024, "wider embeddings are left out, with a note; reduced ones count as reduced", AT_LEAST_1)
    reduce_embeddings_to: int = setting(
        0, "wider embeddings become this many principal components; 0 = as they are", NOT_NEGATIVE)
    max_array_values: int = setting(16, "values kept of a list-valued user feature", AT_LEAST_1)
    reader: str = setting(
        "auto", "compiled | plain | auto = compiled (numba) for large files; both give the same columns",
        choice("auto", "compiled", "plain"))
    threads: int = setting(0, "that scan the log; 0 = the cores this process may use", THREADS)
    engine: str = setting(
        "local", "local = this process | dask = a cluster's workers, the users in parts", choice("local", "dask"))
    engine_address: str = setting(
        "", "of a running Dask scheduler, for example tcp://host:8786; empty = workers on this machine")
    engine_workers: int = setting(
        0, "that are started on this machine; 0 = the cores this process may use", NOT_NEGATIVE)
    max_odd_share: float = setting(
        0.2, "rows that may be wrong but harmless (unsorted, repeated, unknown values)", SHARE)
    trend_bucket_hours: float = setting(
        0.0, "resolution of the popularity windows; 0 = the finest that fits the budget", HOURS)
    trend_budget_mib: int = setting(1024, "bound on the size of the popularity columns on disk", AT_LEAST_1)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Semantic ids; see `tokenizer/build.py`."""

    quantiser: str = setting(
        "residual_kmeans", "residual_kmeans | nested_kmeans | opq | fsq | rqvae; see `quantisers.py`")
    resolve: str = setting("assignment", "how collisions are resolved: assignment | greedy | random | counter | none")
    levels: int = setting(2, "codes per item")
    codes: int = setting(0, "codebook size per level; 0 = from the number of items, 16,384 at full size")
    seeding: str = setting("auto", "first words: random | kmeans++ | cells = kmeans++ in cells | auto, by their number")
    search: str = setting("auto", "words that a point looks at in Lloyd's steps: exact | lists | auto; see `kmeans.py`")
    iterations: int = setting(15, "Lloyd iterations per level, at most")
    points_per_code: int = setting(64, "k-means trains on at most this many vectors per code")
    balance: float = setting(
        0.0, "above 0: no word should have more than 1 + 1 / balance times the mean number of items", NOT_NEGATIVE)
    neighbours: int = setting(50, "greedy: last codes tried before any free one when an id is taken")
    whiten: bool = setting(
        True, "several sources: each made white before they are joined, so that none drowns the others")
    rqvae: str = setting("steady", "recipe: steady | tiger; see `tokenizer/rqvae.py`")
    rqvae_steps: int = setting(2000, "training steps of 1,024 vectors")
    device: str = setting("auto", "where nearest words are searched: auto | cpu | cuda", DEVICE)
    seed: int = setting(0, "seeding, samples, random codes", SEED)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture; see `models/recommender.py`. `width` and `layers` are the dials of size."""

    width: int = setting(64, "D, model width", AT_LEAST_1)
    layers: int = setting(2, "blocks", AT_LEAST_1)
    block: str = setting("hstu", "hstu | transformer")
    time_bias: bool = setting(True, "learned attention bias by time gap, beside that by position")
    rotary: bool = setting(False, "rotary position embedding of queries and keys")
    history_relu: bool = setting(True, "ReLU of items in the history, none of candidates (asymmetric activation)")
    heads: int = setting(2, "H, heads of width D / H", AT_LEAST_1)
    max_events: int = setting(100, "history length in events; attention divides by this constant", AT_LEAST_1)
    feature_width: int = setting(16, "width of each sparse feature's embedding", NOT_NEGATIVE)
    id_width: int = setting(32, "width of the item id embedding; 0 = no id", NOT_NEGATIVE)
    hash_sizes: tuple[int, ...] = setting(
        (), "rows of the hashed id tables (the paper's: 2,000,003 and 3,000,017)", SIZES)
    hash_width: int = setting(32, "width of each hashed id embedding", NOT_NEGATIVE)
    embedding_width: int = setting(32, "width that each multi-modal embedding is projected to", NOT_NEGATIVE)
    codes_as_input: bool = setting(False, "add embeddings of the semantic id's codes to the item tower")
    code_truncation: float = setting(
        0.0, "share of items whose finer codes are hidden in a training step, from a drawn level on", BELOW_1)
    latent_steps: int = setting(
        0, "further looks at the history before a state is read out; see `models/encoder.py`", NOT_NEGATIVE)
    experts: int = setting(4, "E, routed experts of the feed-forward sublayer; 0 = no MoE", NOT_NEGATIVE)
    active_experts: int = setting(2, "A, experts per token")
    expert_width: int = setting(64, "hidden width of an expert", AT_LEAST_1)
    balance_weight: float = setting(0.02, "weight of the load-balance loss", NOT_NEGATIVE)
    decoder_layers: int = setting(1, "cross-attention blocks of the semantic-id decoder", AT_LEAST_1)
    conditioned: bool = setting(
        False, "a query that knows the first code, by which the cascade then ranks its survivors")
    dropout: float = setting(0.2, "on the residual branches", BELOW_1)
    id_dropout: float = setting(
        0.1, "share of items whose id is hidden in a training step, so that cold items are no surprise", BELOW_1)
    cosine: bool = setting(True, "logits are cosines over the temperature; False: plain dot products over it")
    temperature: float = setting(0.1, "tau of InfoNCE over cosines", ABOVE_0)
    learned_temperature: bool = setting(False, "start there and learn it")
    similarity_width: int = setting(
        64, "of the space in which candidates are compared with history items; 0 = not compared", NOT_NEGATIVE)
    trend: bool = setting(True, "windowed popularity before the event as an additive logit")
    code_trend: bool = setting(True, "the same for the codes of semantic ids, where there is `trend`")
    code_similarity: bool = setting(
        True, "compare first codes with those of history items, where there is `similarity_width`")
    next_action: bool = setting(True, "condition each position on the action of the event to predict")
    action_fusion: str = setting("add", "how that action joins: add | film | gate")
    time_inputs: tuple[str, ...] = setting(
        ("week_hour",), "of history events: week_hour, gap, calendar, session, moment")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation; see `training/train.py`."""

    epochs: float = setting(2.0, "passes over the users", ABOVE_0)
    warm_start_epochs: float = setting(
        1.0, "the same of a run that starts from another's weights, as the joint stage does", ABOVE_0)
    warm_start_rate: float = setting(
        0.1, "its step size for the weights that are trained already, times the others'", ABOVE_0)
    batch_users: int = setting(16, "users per batch", AT_LEAST_1)
    accumulate: int = setting(1, "batches that a device takes in turn before a step", AT_LEAST_1)
    replicas: int = setting(
        1, "devices of this process that share a step, each with batches of its own; 0 = all visible cards",
        NOT_NEGATIVE)
    loss: str = setting(
        "info_nce", "info_nce | bce: one sampled negative for each target, as in SASRec", choice("info_nce", "bce"))
    sampled_negatives: int = setting(2048, "items drawn from the catalogue, beside the batch's own", NOT_NEGATIVE)
    negative_power: float = setting(0.0, "they are drawn by popularity to this power; 0 = uniformly")
    bank_batches: int = setting(0, "batches before this one whose items are negatives too", NOT_NEGATIVE)
    shared_negatives: bool = setting(False, "the batches of a step, on all devices, have the keys of all as negatives")
    hard_negatives: int = setting(0, "negatives of a row that count, the hardest; 0 = all", NOT_NEGATIVE)
    hard_after: float = setting(0.5, "share of the steps from which on only these count", SHARE)
    duplicate_cosine: float = setting(
        0.0, "items whose vectors are so like the target's are no negatives; 0 = all are", SHARE)
    retrieval_weight: float = setting(1.0, "weight of the retrieval loss; 0 = semantic ids alone", NOT_NEGATIVE)
    semantic_weight: float = setting(0.1, "weight of the semantic-id loss when a tokenizer is given", NOT_NEGATIVE)
    conditioned_weight: float = setting(0.3, "weight of the loss of `model.conditioned`", NOT_NEGATIVE)
    logq: bool = setting(True, "correct sampled and in-batch negatives for how often they are drawn")
    positive_logq: bool = setting(False, "correct the positive by its own LogQ too, as the paper does")
    stochastic_alpha: float = setting(
        2.0, "below 2: long histories lose random events in a step (HSTU's stochastic length)")
    moment_lag_hours: float = setting(
        24.0, "popularity is read up to this long before an event, not before the last one", NOT_NEGATIVE)
    click_lag_hours: float = setting(
        48.0, "clicks are counted as of up to this long before the moment: later ones are targets", NOT_NEGATIVE)
    horizon_days: float = setting(
        3.0, "items first shown later than this after the moment are no negatives", NOT_NEGATIVE)
    action_weights: tuple[float, ...] = setting(
        (1.0, 1.0, 1.0, 1.0), "loss weight of exposure, click, conversion, unknown", ACTION_WEIGHTS)
    muon: bool = setting(True, "Muon on hidden matrices; False: AdamW on all")
    learning_rate: float = setting(0.002, "peak, AdamW", ABOVE_0)
    muon_learning_rate: float = setting(0.02, "peak, Muon on hidden matrices", ABOVE_0)
    table_optimiser: str = setting(
        "adamw", "of item tables: adamw | adam_rows | adagrad_rows; the last two cost touched rows only",
        choice("adamw", "adam_rows", "adagrad_rows"))
    shard_tables: bool = setting(
        False, "under torchrun each rank holds a share of the item tables; else they are whole on each")
    table_precision: str = setting(
        "float32", "of item tables: float32 | bfloat16, rounded at random", choice("float32", "bfloat16"))
    weight_decay: float = setting(0.0001, "AdamW and Muon", NOT_NEGATIVE)
    warmup: float = setting(0.1, "share of steps", SHARE)
    schedule: str = setting("cosine", "of the learning rates after it: cosine | constant", choice("cosine", "constant"))
    clip: float = setting(1.0, "gradient norm; 0 = none", NOT_NEGATIVE)
    average: float = setting(
        0.0, "decay of an average of the weights over steps, which is then judged and kept; 0 = none", BELOW_1)
    validation_users: int = setting(500, "held out of the loss to score checkpoints; 0 = none", NOT_NEGATIVE)
    checkpoints: int = setting(
        4, "how often it is validated, and the checkpoint kept unless an earlier one is clearly better", NOT_NEGATIVE)
    patience: int = setting(
        0, "validations in a row without a better score after which training ends; 0 = at its last step", NOT_NEGATIVE)
    save_minutes: float = setting(
        10.0, "between writings of the state to resume from, beside those at validations", NOT_NEGATIVE)
    log_every: int = setting(20, "steps between log lines", AT_LEAST_1)
    threads: int = setting(0, "CPU threads; 0 = the cores this process may use", THREADS)
    precision: str = setting(
        "auto", "auto | float32 | bfloat16; auto = bfloat16 on GPU only", choice("auto", "float32", "bfloat16"))
    device: str = setting("auto", "auto | cpu | cuda", DEVICE)
    seed: int = setting(0, "weights, order, negatives, dropout", SEED)


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """Ranking; see `cascade.py`."""

    mode: str = setting(
        "auto", "retrieval | beam | cascade; auto = cascade where semantic ids were trained, else retrieval",
        choice("auto", "retrieval", "beam", "cascade"))
    beam: int = setting(20, "B, first codes kept", AT_LEAST_1)
    survivors: int = setting(
        384, "K', items kept by the beam; 0 = no beam, exact neighbours alone ranked by both heads", NOT_NEGATIVE)
    union: int = setting(100, "exact neighbours added to the survivors in cascade mode", NOT_NEGATIVE)
    shortlist: int = setting(
        5000, "best candidates without history similarity, among which the whole logit then ranks", AT_LEAST_1)
    index: str = setting(
        "exact", "exact | hnsw | ivf: who names the candidates that the whole logit ranks in retrieval",
        choice("exact", "hnsw", "ivf"))
    index_fetch: int = setting(1000, "candidates that hnsw or ivf names for each user, besides seen ones", AT_LEAST_1)
    index_effort: float = setting(1.0, "times their usual breadth of search: more is slower and misses less", ABOVE_0)
    cache: bool = setting(
        True, "keep candidate vectors in the checkpoint's folder or, if that cannot be written, the output's")
    semantic_weight: float = setting(0.3, "share of the semantic-id log-probability in the fused score", SHARE)
    ranker: str = setting("", "folder of a ranker that orders the survivors anew (train-ranker); empty = none")
    filter_seen: bool = setting(True, "drop items of the user's history")
    drop_last: bool = setting(False, "leave out the last event of each history, as the organisers' baseline does")
    cold_ids: bool = setting(True, "candidates that training never saw take the semantic id of the nearest that it saw")
    live: bool = setting(
        True, "read popularity after the training log from all users' histories, up to each user's last event")
    filter_cold: bool = setting(False, "drop candidates that training never saw")
    action: str = setting(
        "auto", "asked for where user_action_type.json does not tell: exposure, click, conversion | auto = "
                "training's commonest positive", choice("auto", "exposure", "click", "conversion", "0", "1", "2"))
    batch_users: int = setting(256, "users per step", AT_LEAST_1)
    device: str = setting("auto", "auto | cpu | cuda", DEVICE)
    threads: int = setting(0, "CPU threads; 0 = the cores this process may use", THREADS)


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """The ranker of a cascade's survivors; see `models/ranker.py` and `ranking/train.py`."""

    use: bool = setting(False, "`run` trains one after the joint stage and infers with it")
    kind: str = setting("attention", "attention = HSTU blocks with M-FALCON's mask | din = a weighted sum over events")
    width: int = setting(64, "D of the ranker", AT_LEAST_1)
    heads: int = setting(2, "of its attention", AT_LEAST_1)
    layers: int = setting(1, "of its attention", AT_LEAST_1)
    din_hidden: int = setting(8, "hidden units of DIN's weights")
    dropout: float = setting(0.1, "in the attention's branches and in the head", BELOW_1)
    depth: int = setting(
        200, "survivors that are ranked anew, the first stage's best; the others keep their order below", AT_LEAST_1)
    examples: int = setting(
        4000, "clicks and conversions of training users that it learns from, with half as many exposures", AT_LEAST_1)
    late: int = setting(6, "they are drawn from each user's last so many clicks, and exposures", AT_LEAST_1)
    add_missed: bool = setting(False, "learn from lists that the target did not survive too, the target added")
    epochs: float = setting(3.0, "passes over the lists", ABOVE_0)
    batch_lists: int = setting(16, "lists a step", AT_LEAST_1)
    learning_rate: float = setting(0.001, "peak, AdamW; a cosine to zero", ABOVE_0)
    weight_decay: float = setting(0.01, "AdamW", NOT_NEGATIVE)
    action_weights: tuple[float, ...] = setting(
        (0.0, 1.0, 1.0, 1.0), "of lists with an exposure, click, conversion, unknown as target", ACTION_WEIGHTS)
    binary_weight: float = setting(0.1, "of the losses of the click and conversion heads", NOT_NEGATIVE)
    checkpoints: int = setting(3, "how often it is validated; the best is taken", AT_LEAST_1)
    keep: str = setting(
        "better", "better = applied only if ahead of the first stage by a standard error on validation users | always",
        choice("better", "always"))
    device: str = setting("auto", "auto | cpu | cuda", DEVICE)
    threads: int = setting(0, "CPU threads; 0 = the cores this process may use", THREADS)
    seed: int = setting(0, "weights, examples, order, dropout", SEED)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Judgement; see `evaluation/score.py`."""

    k: int = setting(10, "cut-off", AT_LEAST_1)
    resamples: int = setting(2000, "bootstrap resamples of users", AT_LEAST_1)
    seed: int = setting(0, "bootstrap", SEED)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All stages; each stage takes its own section."""

    synthesize: SynthesizeConfig = field(default_factory=SynthesizeConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    infer: InferConfig = field(default_factory=InferConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
