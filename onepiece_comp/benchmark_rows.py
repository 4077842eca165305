"""Public benchmarks by name: what is asked of whom (a protocol), and the models that answer (rows).

A protocol has a version, which changes with anything that could change a figure. Rows are configurations of shared
parts, so that a difference between two of them is what their settings say.
"""

from dataclasses import dataclass, replace

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

    model: str = "sequence"  # sequence | popularity | item_knn
    block: str = "sasrec"  # sasrec | ligr | hstu
    width: int = 64  # D
    layers: int = 2  # blocks
    heads: int = 1  # H
    hidden: float = 1.0  # width of the feed-forward part over the model's
    dropout: float = 0.2  # of inputs and residual branches
    time: str = "none"  # none | last | next: time gaps of HSTU from the latest event, or from the one to be predicted
    cosine: bool = False  # logits are cosines over the temperature, else dot products
    temperature: float = 0.05  # of cosines
    loss: str = "softmax"  # softmax over all items | sampled | bce | gbce
    negatives: int = 256  # of sampled and gbce, drawn uniformly for each user and step
    calibration: float = 0.75  # t of gbce
    learning_rate: float = 0.001  # Adam
    batch_users: int = 128  # users per step
    epochs: int = 200  # at most
    patience: int = 10  # epochs without a better validation NDCG@10 after which training ends


_SASREC = RowConfig()
_HSTU = RowConfig(block="hstu", cosine=True, loss="sampled", negatives=128)
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
    hstu = replace(_HSTU, **({"width": 50} if films else {"heads": 2, "dropout": 0.5}))
    large = replace(hstu, layers=8, heads=2)
    timed = {} if protocol in ("ml-1m-order",) else {
        "hstu-time": replace(hstu, time="last"), "hstu-time-next": replace(hstu, time="next"),
        "hstu-large-time": replace(large, time="last")}
    return {
        **_BASELINES,
        "sasrec-softmax": sasrec,
        "sasrec-sampled": replace(sasrec, loss="sampled"),
        "sasrec-bce": replace(sasrec, loss="bce"),
        "sasrec-gbce": replace(sasrec, loss="gbce"),
        "esasrec": replace(sasrec, block="ligr", hidden=4.0, loss="sampled",
                           **({"width": 64, "dropout": 0.1} if films else {"layers": 1})),
        "hstu": hstu, "hstu-softmax": replace(hstu, loss="softmax"), "hstu-large": large, **timed}


def chosen(protocol: str, names: str) -> dict[str, RowConfig]:
    """The rows named in a comma-separated list, all for an empty one; InputError for a name that is none."""
    known = rows(protocol)
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    strange = next((name for name in wanted if name not in known), None)
    if strange is not None:
        raise InputError("--models", found=repr(strange), expected=f"of {', '.join(known)}", do="choose among these")
    return {name: known[name] for name in wanted}
