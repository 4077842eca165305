"""Public benchmarks by name: what is asked of whom (a protocol), and the models that answer (rows).

A protocol has a version, which changes with anything that could change a figure. Rows are configurations of shared
parts, so that a difference between two of them is what their settings say.
"""

from dataclasses import dataclass, fields, replace

from onepiece_comp.config_reading import to_dict
from onepiece_comp.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Leave one out: last event = test, the one before = validation, the rest trains; all items are ranked."""

    version: int = 1
    form: str = "any"  # sequences | ratings | any: what is read of a folder that holds several
    ties: str = "file"  # file | shuffled: events of the same time
    max_length: int = 50  # latest events that a model reads
    published: tuple[int, ...] = ()  # users, items, events of the published data; empty = the user's own


PROTOCOLS = {
    "ml-1m-order": Protocol(form="sequences", max_length=200, published=(6040, 3416, 999611)),
    "ml-1m-time": Protocol(form="ratings", max_length=200),
    "beauty": Protocol(form="sequences", published=(22363, 12101, 198502)),
    "beauty-20": Protocol(form="sequences", max_length=20, published=(22363, 12101, 198502)),
    "beauty-shuffled": Protocol(form="sequences", ties="shuffled", published=(22363, 12101, 198502)),
    "leave-one-out": Protocol(),
    "leave-one-out-200": Protocol(max_length=200),
}


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """A model and its training; see `next_item_model.py`, `next_item_losses.py` and `next_item_training.py`."""

    model: str = "sequence"  # sequence | codes | popularity | item_knn
    block: str = "sasrec"  # sasrec | ligr | hstu
    width: int = 64  # D
    layers: int = 2  # blocks
    heads: int = 1  # H
    hidden: float = 1.0  # width of the feed-forward part over the model's
    dropout: float = 0.2  # of inputs and residual branches
    time: str = "none"  # none | last | next: time gaps of HSTU from the latest event, or from the one to be predicted
    attributes: bool = False  # the mean vector of an item's attributes beside its own; from item2attributes.json
    cosine: bool = False  # logits are cosines over the temperature, else dot products
    temperature: float = 0.05  # of cosines
    loss: str = "softmax"  # softmax over all items | sampled | bce | gbce
    negatives: int = 256  # of sampled and gbce, drawn uniformly at each step ...
    drawn_for: str = "user"  # ... for all positions of a user, or for each: user | position
    calibration: float = 0.75  # t of gbce
    learning_rate: float = 0.001  # Adam
    average: float = 0.0  # decay a step of a moving average of the weights, which is what is judged and kept; 0 = none
    batch_users: int = 128  # users per step
    epochs: int = 200  # at most
    patience: int = 10  # epochs without a better validation NDCG@10 after which training ends


@dataclass(frozen=True, kw_only=True)
class CodeRowConfig(RowConfig):
    """A model with a semantic-id head, and how it ranks; see `next_item_codes.py` and `next_item_ranking.py`."""

    model: str = "codes"
    first: str = "sasrec-softmax"  # row that is trained before, whose item vectors become codes
    first_epochs: int = 200  # of that row, at most
    levels: int = 3  # L, codes of an item
    codes: int = 256  # C, codes per level; 0 = from the number of items
    resolve: str = "assignment"  # how collisions are resolved, or none: ids stay shared; see `collisions.py`
    inputs: str = "codes"  # what the encoder reads of an item: codes | ids | codes+ids | codes+vectors (of `first`)
    # none | last | conditioned: a query among the items from the last state, from that behind the codes
    dense: str = "none"
    code_weight: float = 1.0  # of the codes' cross-entropy, mean over levels, beside the dense loss
    decoder_layers: int = 1  # cross-attention blocks for each code but the first
    valid_beam: int = 20  # prefixes a level where epochs are compared
    # epochs are compared by the mean NDCG@10 of scores with these shares; 0 = no beam
    valid_shares: tuple[float, ...] = (1.0,)
    beam: int = 200  # prefixes a level; 0 = no beam, all items by the dense query
    survivors: int = 1000  # ids that the beam gives
    union: int = 0  # items of the best dense scores that join them
    cold: bool = False  # items without a training event join them, by their dense score
    share: float = 1.0  # of the id's log-probability in the score, the rest is of the dense logit


_RANGES = (
    ("at least 1", lambda value: value >= 1,
     "width layers heads negatives batch_users epochs patience first_epochs levels decoder_layers valid_beam"),
    ("above 0", lambda value: 0 < value < float("inf"), "hidden temperature learning_rate"),
    ("from 0 to below 1", lambda value: 0 <= value < 1, "dropout average"),
    ("from 0 to 1", lambda value: 0 <= value <= 1, "calibration"),
    ("0 or more", lambda value: 0 <= value < float("inf"), "codes code_weight"))


def check_row_ranges(config: RowConfig) -> None:
    """InputError for a setting that no training could have."""
    for expected, fits, names in _RANGES:
        for name in names.split():
            if not fits(value := getattr(config, name, 1)):  # a row without codes has not all of them
                raise InputError(name, found=repr(value), expected=expected, do="correct it")
    if config.width % config.heads:
        raise InputError("heads", found=f"{config.heads} of a width of {config.width}",
                         expected="a divisor of the width",
                         do="choose another of the two")


RANKING = {"beam", "survivors", "union", "cold", "share"}  # settings that training does not read


def told(config: dict) -> dict:
    """What tells results apart: settings that are not the defaults,
    so that a setting that is added leaves others' keys.

    A default that changes changes figures, and so a protocol's version. `config` is a row's as a dict, which a result
    holds.
    """
    usual = to_dict(CodeRowConfig() if config["model"] == "codes" else RowConfig())
    return {"model": config["model"], **{name: value for name, value in config.items() if value != usual.get(name)}}


def training_part(config: RowConfig) -> dict:
    """What tells trained models apart: rows that differ in how they rank share one."""
    return {name: value for name, value in told(to_dict(config)).items() if name not in RANKING}


_SASREC = RowConfig()
_HSTU = RowConfig(block="hstu", cosine=True, loss="sampled", negatives=128)
_SLOW = 20  # epochs of patience: codes stand still at what is popular for a while before they tell users apart
_BASELINES = {"popularity": RowConfig(model="popularity"), "item-knn": RowConfig(model="item_knn")}


def rows(protocol: str) -> dict[str, RowConfig]:
    """The rows of a protocol by name; InputError for an unknown protocol.

    Sizes are those that others chose on the same data: HSTU's of its authors, eSASRec's of its own grid.
    """
    if protocol not in PROTOCOLS:
        raise InputError("benchmark", found=repr(protocol), expected=f"one of {', '.join(PROTOCOLS)}",
                         do="choose one of these")
    films = protocol.startswith("ml-1m")
    sasrec = replace(_SASREC, **({"width": 50} if films else {"batch_users": 256}))
    # as eSASRec's code; with long histories that would take hours
    drawn = {"drawn_for": "position"} if PROTOCOLS[protocol].max_length <= 50 else {}
    hstu = replace(_HSTU, **({"width": 50} if films else {"heads": 2, "dropout": 0.5}))
    large = replace(hstu, layers=8, heads=2)
    timed = {} if protocol in ("ml-1m-order",) else {
        "hstu-time": replace(hstu, time="last"), "hstu-time-next": replace(hstu, time="next"),
        "hstu-large-time": replace(large, time="last")}
    # ours, of ids alone: twice the depth and step size, and the mean of the weights over some epochs; chosen by
    # validation
    ours = ({"hstu-average": replace(hstu, loss="softmax", layers=4, heads=2, learning_rate=0.002, average=0.995)}
            if films else {})
    # of items that have attributes; the dropout is the best of .2 and .3 by validation on Beauty
    attributes = replace(sasrec, attributes=True, dropout=0.3)
    beside = {"sasrec-attributes": attributes} if protocol.startswith("beauty") else {}
    return {
        **_BASELINES,
        "sasrec-softmax": sasrec,
        "sasrec-sampled": replace(sasrec, loss="sampled", **drawn),
        "sasrec-bce": replace(sasrec, loss="bce"),
        "sasrec-gbce": replace(sasrec, loss="gbce"),
        "esasrec": replace(sasrec, block="ligr", hidden=4.0, loss="sampled", **drawn,
                           **({"width": 64, "dropout": 0.1} if films else {"layers": 1})),
        "hstu": hstu, "hstu-softmax": replace(hstu, loss="softmax"), "hstu-large": large, **ours, **timed, **beside,
        **_code_rows(replace(hstu, loss="softmax"), films),
        **({"onepiece-attributes": _joint(attributes, "sasrec-attributes", union=100, share=0.3)} if beside else {})}


def _code_rows(hstu: RowConfig, films: bool) -> dict[str, CodeRowConfig]:
    """Rows with semantic ids: beams wide enough for lists of 200; where films are few and histories long, for all.

    TIGER's and LIGER's width is the authors', the depth half of theirs, COBRA's depth the authors', so that a processor
    gets through. The three of OnePiece are one training of HSTU's size, ranked in three ways.
    """
    wide = {"beam": 1000, "survivors": 4000, "valid_beam": 200} if films else {}
    size = {"width": 128, "layers": 2, "heads": 4, "hidden": 4.0, "batch_users": 128 if films else 256,
            "decoder_layers": 2}
    tiger = CodeRowConfig(**size, patience=_SLOW, **wide)
    cosine = {"cosine": True, "loss": "softmax"}
    # 100 candidates: the upper end of the authors' own sweep; epochs are compared by the dense query, as in their code
    liger = replace(tiger, inputs="codes+vectors", dense="last", **cosine, temperature=0.07, valid_shares=(0.0,),
                    survivors=100, cold=True, share=0.0)
    # cosines times 16 and beams times .9 are shares .9 / 1.9 of the log-probability, the rest of the logit at 1 / 16
    cobra = replace(tiger, width=64, heads=2, decoder_layers=1, inputs="codes+ids", dense="conditioned", **cosine,
                    temperature=1 / 16, codes=32, resolve="none", survivors=wide.get("beam", 200), share=0.9 / 1.9,
                    valid_shares=(0.9 / 1.9,))
    joint = _joint(hstu, "hstu-softmax", **wide)
    return {"tiger": tiger, "liger": liger, "cobra": cobra,
            "onepiece-retrieval": replace(joint, beam=0, share=0.0), "onepiece-beam": joint,
            "onepiece-cascade": replace(joint, union=100, share=0.3)}


def _joint(encoder: RowConfig, first: str, **settings: object) -> CodeRowConfig:
    """OnePiece: an encoder of ids with a dense head and one of codes,
    which are made of the vectors of the row `first`.
    """
    shared = {field.name: getattr(encoder, field.name) for field in fields(RowConfig)}
    return CodeRowConfig(**{**shared, "model": "codes", "patience": _SLOW, **settings}, first=first, levels=2,
                         inputs="ids",
                         dense="last", code_weight=2.0, valid_shares=(0.0, 1.0))


def chosen(protocol: str, names: str) -> dict[str, RowConfig]:
    """The rows named in a comma-separated list, all for an empty one; InputError for a name that is none."""
    known = rows(protocol)
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    strange = next((name for name in wanted if name not in known), None)
    if strange is not None:
        raise InputError("--models", found=repr(strange), expected=f"of {', '.join(known)}", do="choose among these")
    return {name: known[name] for name in wanted}
