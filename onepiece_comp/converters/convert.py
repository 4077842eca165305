"""Other logs into the competition's layout: the kinds that there are, what each takes, and which one fits a path.

The first stage of the flow, beside `world/synthesize.py`; `split.py` reads what it writes. Each kind is a module of its
own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from onepiece_comp import console
from onepiece_comp.converters.amazon import convert_amazon, is_amazon
from onepiece_comp.converters.kuairand import convert_kuairand, is_kuairand
from onepiece_comp.converters.movielens import convert_movielens, is_movielens
from onepiece_comp.converters.recbole import convert_recbole, is_recbole
from onepiece_comp.converters.sequences import convert_sequences, is_sequences
from onepiece_comp.converters.table import convert_table, is_table
from onepiece_comp.errors import InputError
from onepiece_comp.logs.open_log import Log, open_log


class ConvertOptions(NamedTuple):
    """What may be said of a log beside its path; each kind takes some of it (`KINDS`)."""

    interactions: Path | None = None  # the times of sequences: a table of user, item, time
    user: str = ""  # name of a column
    item: str = ""
    time: str = ""
    action: str = ""
    action_map: tuple[str, ...] = ()  # "value=0", "=1" or "=2" for values of the action column
    user_features: Path | None = None  # a table
    item_features: Path | None = None  # a table; for amazon the file of products
    columns: str = ""  # names, between commas, of the columns of texts without a header
    quote: str = ""  # what quotes the fields of texts, or none

    def given(self) -> dict[str, object]:
        """The options that were given."""
        return {name: value for name, value in self._asdict().items() if value not in (None, "", ())}


class Kind(NamedTuple):
    """One kind of log: its converter, the options that it takes, and how it is known."""

    convert: Callable[..., Path]
    options: tuple[str, ...]
    fits: Callable[[Path], bool]
    form: str


KINDS = {  # in the order in which `detect_log` asks: the general forms last
    "kuairand": Kind(convert_kuairand, (), is_kuairand, "a folder with video_features_basic*.csv"),
    "recbole": Kind(convert_recbole, ("user", "item", "time", "action", "action_map"), is_recbole, "NAME.inter"),
    "movielens": Kind(convert_movielens, (), is_movielens, "ratings.dat, u.data or ratings.csv"),
    "amazon": Kind(convert_amazon, ("item_features",), is_amazon, "reviews as .json, .jsonl or .csv"),
    "sequences": Kind(convert_sequences, ("interactions",), is_sequences, "a .txt of user and item numbers"),
    "table": Kind(convert_table, ("user", "item", "time", "action", "action_map", "user_features", "item_features",
                                  "columns", "quote"),
                  is_table, "a .csv, .tsv or .parquet, or a folder of parts"),
}


def open_raw(folder: Path) -> Log:
    """The log of a folder in the competition's layout; InputError that names the converter for one of another kind."""
    try:
        return open_log(folder)
    except InputError as error:
        if kind := detect_log(folder):
            raise InputError(folder, found=f"a log of kind {kind}", expected="the competition's layout",
                             do="convert it first: "
                             f"onepiece-comp convert {kind} {folder} RAW") from error
        raise


def detect_log(path: Path) -> str | None:
    """The kind (a key of KINDS) of the log at a path, told from names and first lines; None where none fits."""
    path = Path(path)
    if not path.exists() or (path / "seq.jsonl").is_file():  # the competition's own layout needs no converter
        return None
    return next((name for name, kind in KINDS.items() if kind.fits(path)), None)


def detected_kind(source: Path) -> str:
    kind = detect_log(source)
    if kind is None:
        forms = "; ".join(f"{name}: {kind.form}" for name, kind in KINDS.items())
        raise InputError(source, found="no log that is known" if source.exists() else "no such file or folder",
                         expected=forms, do="check the path, or name the kind")
    console.say(f"{source}: taken for {kind}")
    return kind


def spelled_kind(name: str) -> str:
    return "--map" if name == "action_map" else f"--{name.replace('_', '-')}"
