"""Configuration: one frozen dataclass per stage; `config_reading.py` fills them from presets, files and `--set`."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """The synthetic world; see `synthetic.py`."""

    users: int = 3000  # the dial of size; items, topics and candidates follow from it
    seed: int = 0  # another seed is another world
    conversion_rate: float = 0.0  # share of clicks that become conversions: 0 as in the first round, 0.47 in the second
    layout: str = "jsonl"  # jsonl = the organisers' files | parquet = those of the public release, candidates included
    feature_111: bool = True  # write item feature 111, a value per creative; the public release never has it


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which events are targets, which are history; see `split.py`."""

    mode: str = "competition"  # competition | held_out | leave_one_out
    cut: str = "auto"  # ISO time (UTC) or Unix seconds of t_begin; auto = the `auto_cut` quantile of event times
    until: str = ""  # events at or after this time are dropped everywhere (for a validation cut); empty = none
    auto_cut: float = 0.9  # quantile of event times that cut="auto" stands for
    held_out: float = 0.2  # held_out mode: share of users that training never sees
    active_days: float = 0.0  # candidates seen in this many days before the cut; 0 = all items before the cut
    cold_share: float = 1.0  # share of the items first seen after the cut that join the candidates
    action_types: bool = False  # write user_action_type.json (the target's action, as the second round gave it)
    seed: int = 0  # draws held-out users and cold candidates


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How records become columns; see `preprocess.py`."""

    embeddings: tuple[str, ...] = ("81", "82", "83", "84", "85", "86")  # feature ids of embeddings to load if present
    max_embedding_width: int = 1024  # wider embeddings are left out, with a note; reduced ones count as reduced
    reduce_embeddings_to: int = 0  # wider embeddings become this many principal components; 0 = as they are
    max_array_values: int = 16  # values kept of a list-valued user feature
    reader: str = "auto"  # compiled | plain | auto = compiled (numba) for large files; both give the same columns
    threads: int = 0  # that scan the log; 0 = the cores this process may use
    engine: str = "local"  # local = this process | dask = a cluster's workers, the users in parts
    engine_address: str = ""  # of a running Dask scheduler, for example tcp://host:8786; empty = workers on this machine
    engine_workers: int = 0  # that are started on this machine; 0 = the cores this process may use
    max_odd_share: float = 0.2  # rows that may be wrong but harmless (unsorted, repeated, unknown values)
    trend_bucket_hours: float = 0.0  # resolution of the popularity windows; 0 = the finest that fits the budget
    trend_budget_mib: int = 1024  # bound on the size of the popularity columns on disk


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Semantic ids; see `tokenizer.py`."""

    quantiser: str = "residual_kmeans"  # residual_kmeans | nested_kmeans | opq | fsq | rqvae; see `quantisers.py`
    resolve: str = "assignment"  # how shared ids come apart: assignment | greedy | random | counter | none
    levels: int = 2  # codes per item
    codes: int = 0  # codebook size per level; 0 = from the number of items, 16,384 at full size
    seeding: str = "auto"  # first words: random | kmeans++ | cells = kmeans++ in cells | auto, by their number
    search: str = "auto"  # words that a point looks at in Lloyd's steps: exact | lists | auto; see `kmeans.py`
    iterations: int = 15  # Lloyd iterations per level, at most
    points_per_code: int = 64  # k-means trains on at most this many vectors per code
    balance: float = 0.0  # above 0: no word should have more than 1 + 1 / balance times the mean number of items
    neighbours: int = 50  # greedy: last codes tried before any free one when an id is taken
    whiten: bool = True  # several sources: each made white before they are joined, so that none drowns the others
    rqvae: str = "steady"  # recipe: steady | tiger; see learned_quantisers.py
    rqvae_steps: int = 2000  # training steps of 1,024 vectors
    device: str = "auto"  # where nearest words are searched: auto | cpu | cuda
    seed: int = 0  # seeding, samples, random codes


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture; see `model.py`. `width` and `layers` are the dials of size."""

    width: int = 64  # D, model width
    layers: int = 2  # blocks
    block: str = "hstu"  # hstu | transformer
    time_bias: bool = True  # learned attention bias by time gap, beside that by position
    rotary: bool = False  # rotary position embedding of queries and keys
    history_relu: bool = True  # ReLU of items in the history, none of candidates (asymmetric activation)
    heads: int = 2  # H, heads of width D / H
    max_events: int = 100  # history length in events; attention divides by this constant
    feature_width: int = 16  # width of each sparse feature's embedding
    id_width: int = 32  # width of the item id embedding; 0 = no id
    hash_sizes: tuple[int, ...] = ()  # rows of the hashed id tables (the paper's: 2,000,003 and 3,000,017)
    hash_width: int = 32  # width of each hashed id embedding
    embedding_width: int = 32  # width that each multi-modal embedding is projected to
    codes_as_input: bool = False  # add embeddings of the semantic id's codes to the item tower
    code_truncation: float = 0.0  # share of items whose finer codes are hidden in a training step, from a drawn level on
    latent_steps: int = 0  # further looks at the history before a state is read out; see `latent_steps.py`
    experts: int = 4  # E, routed experts of the feed-forward sublayer; 0 = no MoE
    active_experts: int = 2  # A, experts per token
    expert_width: int = 64  # hidden width of an expert
    balance_weight: float = 0.02  # weight of the load-balance loss
    decoder_layers: int = 1  # cross-attention blocks of the semantic-id decoder
    conditioned: bool = False  # a query that knows the first code, by which the cascade then ranks its survivors
    dropout: float = 0.2  # on the residual branches
    id_dropout: float = 0.1  # share of items whose id is hidden in a training step, so that cold items are no surprise
    cosine: bool = True  # logits are cosines over the temperature; False: plain dot products over it
    temperature: float = 0.1  # tau of InfoNCE over cosines
    learned_temperature: bool = False  # start there and learn it
    similarity_width: int = 64  # of the space in which candidates are compared with history items; 0 = not compared
    trend: bool = True  # windowed popularity before the event as an additive logit
    code_trend: bool = True  # the same for the codes of semantic ids, where there is `trend`
    code_similarity: bool = True  # compare first codes with those of history items, where there is `similarity_width`
    next_action: bool = True  # condition each position on the action of the event to predict
    action_fusion: str = "add"  # how that action joins: add | film | gate
    time_inputs: tuple[str, ...] = ("week_hour",)  # of history events: week_hour, gap, calendar, session, moment


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation; see `training.py`."""

    epochs: float = 2.0  # passes over the users
    warm_start_epochs: float = 1.0  # the same of a run that starts from another's weights, as the joint stage does
    warm_start_rate: float = 0.1  # its step size for the weights that are trained already, times the others'
    batch_users: int = 16  # users per batch
    accumulate: int = 1  # batches that a device takes in turn before a step
    replicas: int = 1  # devices of this process that share a step, each with batches of its own; 0 = all visible cards
    loss: str = "info_nce"  # info_nce | bce: one sampled negative for each target, as in SASRec
    sampled_negatives: int = 2048  # items drawn from the catalogue, beside the batch's own
    negative_power: float = 0.0  # they are drawn by popularity to this power; 0 = uniformly
    bank_batches: int = 0  # batches before this one whose items are negatives too
    shared_negatives: bool = False  # the batches of a step, on all devices, have the keys of all as negatives
    hard_negatives: int = 0  # negatives of a row that count, the hardest; 0 = all
    hard_after: float = 0.5  # share of the steps from which on only these count
    duplicate_cosine: float = 0.0  # items whose vectors are so like the target's are no negatives; 0 = all are
    retrieval_weight: float = 1.0  # weight of the retrieval loss; 0 = semantic ids alone
    semantic_weight: float = 0.1  # weight of the semantic-id loss when a tokenizer is given
    conditioned_weight: float = 0.3  # weight of the loss of `model.conditioned`
    logq: bool = True  # correct sampled and in-batch negatives for how often they are drawn
    positive_logq: bool = False  # correct the positive by its own LogQ too, as the paper does
    stochastic_alpha: float = 2.0  # below 2: long histories lose random events in a step (HSTU's stochastic length)
    moment_lag_hours: float = 24.0  # popularity is read up to this long before an event, not before the last one
    click_lag_hours: float = 48.0  # clicks are counted as of up to this long before the moment: later ones are targets
    horizon_days: float = 3.0  # items first shown later than this after the moment are no negatives
    action_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)  # loss weight of exposure, click, conversion, unknown
    muon: bool = True  # Muon on hidden matrices; False: AdamW on all
    learning_rate: float = 0.002  # peak, AdamW
    muon_learning_rate: float = 0.02  # peak, Muon on hidden matrices
    table_optimiser: str = "adamw"  # of item tables: adamw | adam_rows | adagrad_rows; the last two cost touched rows only
    shard_tables: bool = False  # under torchrun each rank holds a share of the item tables; else they are whole on each
    table_precision: str = "float32"  # of item tables: float32 | bfloat16, rounded at random
    weight_decay: float = 0.0001  # AdamW and Muon
    warmup: float = 0.1  # share of steps
    schedule: str = "cosine"  # of the learning rates after it: cosine | constant
    clip: float = 1.0  # gradient norm; 0 = none
    average: float = 0.0  # decay of an average of the weights over steps, which is then judged and kept; 0 = none
    validation_users: int = 500  # held out of the loss to score checkpoints; 0 = none
    checkpoints: int = 4  # how often it is validated, and the checkpoint kept unless an earlier one is clearly better
    patience: int = 0  # validations in a row without a better score after which training ends; 0 = at its last step
    save_minutes: float = 10.0  # between writings of the state to resume from, beside those at validations
    log_every: int = 20  # steps between log lines
    threads: int = 0  # CPU threads; 0 = the cores this process may use
    precision: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on GPU only
    device: str = "auto"  # auto | cpu | cuda
    seed: int = 0  # weights, order, negatives, dropout


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """Ranking; see `cascade.py`."""

    mode: str = "auto"  # retrieval | beam | cascade; auto = cascade where semantic ids were trained, else retrieval
    beam: int = 20  # B, first codes kept
    survivors: int = 384  # K', items kept by the beam; 0 = no beam, exact neighbours alone ranked by both heads
    union: int = 100  # exact neighbours added to the survivors in cascade mode
    shortlist: int = 5000  # best candidates without history similarity, among which the whole logit then ranks
    index: str = "exact"  # exact | hnsw | ivf: who names the candidates that the whole logit ranks in retrieval
    index_fetch: int = 1000  # candidates that hnsw or ivf names for each user, besides seen ones
    index_effort: float = 1.0  # times their usual breadth of search: more is slower and misses less
    cache: bool = True  # keep candidate vectors in the checkpoint's folder or, if that cannot be written, the output's
    semantic_weight: float = 0.3  # share of the semantic-id log-probability in the fused score
    ranker: str = ""  # folder of a ranker that orders the survivors anew (train-ranker); empty = none
    filter_seen: bool = True  # drop items of the user's history
    drop_last: bool = False  # leave out the last event of each history, as the organisers' baseline does
    cold_ids: bool = True  # candidates that training never saw take the semantic id of the nearest that it saw
    live: bool = True  # read popularity after the training log from all users' histories, up to each user's last event
    filter_cold: bool = False  # drop candidates that training never saw
    action: str = "auto"  # asked for where user_action_type.json does not tell: exposure, click, conversion | auto = training's commonest positive
    batch_users: int = 256  # users per step
    device: str = "auto"  # auto | cpu | cuda
    threads: int = 0  # CPU threads; 0 = the cores this process may use


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """The ranker of a cascade's survivors; see `target_ranker.py` and `ranker_training.py`."""

    use: bool = False  # `run` trains one after the joint stage and infers with it
    kind: str = "attention"  # attention = HSTU blocks with M-FALCON's mask | din = a weighted sum over events
    width: int = 64  # D of the ranker
    heads: int = 2  # of its attention
    layers: int = 1  # of its attention
    din_hidden: int = 8  # hidden units of DIN's weights
    dropout: float = 0.1  # in the attention's branches and in the head
    depth: int = 200  # survivors that are ranked anew, the first stage's best; the others keep their order below
    examples: int = 4000  # clicks and conversions of training users that it learns from, with half as many exposures
    late: int = 6  # they are drawn from each user's last so many clicks, and exposures
    add_missed: bool = False  # learn from lists that the target did not survive too, the target added
    epochs: float = 3.0  # passes over the lists
    batch_lists: int = 16  # lists a step
    learning_rate: float = 0.001  # peak, AdamW; a cosine to zero
    weight_decay: float = 0.01  # AdamW
    action_weights: tuple[float, ...] = (0.0, 1.0, 1.0, 1.0)  # of lists with an exposure, click, conversion, unknown as target
    binary_weight: float = 0.1  # of the losses of the click and conversion heads
    checkpoints: int = 3  # how often it is validated; the best is taken
    keep: str = "better"  # better = applied only if ahead of the first stage by a standard error on validation users | always
    device: str = "auto"  # auto | cpu | cuda
    threads: int = 0  # CPU threads; 0 = the cores this process may use
    seed: int = 0  # weights, examples, order, dropout


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Judgement; see `scoring.py`."""

    k: int = 10  # cut-off
    resamples: int = 2000  # bootstrap resamples of users
    seed: int = 0  # bootstrap


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
