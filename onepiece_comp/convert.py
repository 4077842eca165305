"""Other logs into the competition's layout: KuaiRand, MovieLens, and plain sequences of items.

The first stage of the flow, beside `synthetic.py`; `split.py` reads what it writes, `event_log.py` writes it. A log is
sorted in memory: these converters are for some ten million events.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet

from onepiece_comp.errors import InputError
from onepiece_comp.event_log import (
    ITEM_FEATURES_FROM, ITEM_OFFSET, USER_FEATURES_FROM, Extras, FeatureTable, Log, feature_table, number_items,
    write_raw)
from onepiece_comp.formats import CLICK, CONVERSION, EXPOSURE

KUAIRAND_STRONG = ["is_like", "is_follow", "is_comment", "is_forward"]
KUAIRAND_LOG = ["user_id", "video_id", "time_ms", "is_click", *KUAIRAND_STRONG]
KUAIRAND_USER = ["user_active_degree", "is_live_streamer", "is_video_author", "follow_user_num_range",
                 "fans_user_num_range", "friend_user_num_range", "register_days_range",
                 *(f"onehot_feat{number}" for number in range(12))]
KUAIRAND_ITEM = ["author_id", "video_type", "upload_dt", "upload_type", "music_id", "music_type", "tag",
                 "video_duration", "server_width", "server_height"]
KUAIRAND_MISSING = ["UNKNOWN", "unknown", "-124"]
DURATION_EDGES_SECONDS = [7, 15, 30, 60, 120, 180, 300]
ASPECT_EDGES = [0.5, 0.6, 0.9, 1.1, 1.6]  # width / height: tall, phone, portrait, square, landscape, wide
LIKED = 4  # stars from which a rating counts as a click
ATTRIBUTES = 4  # attributes kept of an item
ORDINAL_START, ORDINAL_STEP = 1_000_000_000, 3600  # seconds, for logs that tell the order alone

UNREADABLE = (ValueError, OSError, EOFError, zlib.error)  # what broken tables, archives and texts raise


def convert(kind: str, source: Path, out: Path, *, interactions: Path | None = None) -> Path:
    """Write `source`, a log of `kind` kuairand, movielens or sequences, as a raw folder; returns `out`."""
    if kind == "sequences":
        return convert_sequences(source, out, interactions)
    kinds = {"kuairand": convert_kuairand, "movielens": convert_movielens}
    if kind not in kinds or interactions is not None:
        found = repr(kind) if kind not in kinds else f"interactions for {kind}"
        raise InputError("convert", found=found, do="correct the command",
                         expected="kuairand, movielens or sequences, the last with interactions")
    return kinds[kind](source, out)


def convert_kuairand(source: Path, out: Path) -> Path:
    """KuaiRand's standard log (exposure 0, click 1, like, follow, comment or forward 2) as a raw folder; returns `out`.

    `source` holds the log (`splits_*.parquet`, `*interactions*.parquet` or the release's `log_standard*.csv`), user and
    video features, and optionally `twotower_item_embeddings.npz`: 64-d vectors that others learned on an earlier period
    of the same log, so no content embedding; they become feature 81. Exact repeats (user, video, millisecond) are
    merged into their strongest action. InputError for missing files and columns.
    """
    folder, paths = _kuairand_log_files(Path(source))
    rows = pd.concat([_read_table(path, KUAIRAND_LOG) for path in paths], ignore_index=True)
    event = ["user_id", "video_id", "time_ms"]
    if not all(pd.api.types.is_integer_dtype(rows[name]) for name in event) or rows[event].isna().any(axis=None):
        raise InputError(folder, found="events without a whole user, video or time", expected=f"numbers in {event}",
                         do="copy the log again")
    strong, clicked = ((rows[names].fillna(0) > 0).any(axis=1) for names in (KUAIRAND_STRONG, ["is_click"]))
    rows["action"] = np.where(strong, CONVERSION, np.where(clicked, CLICK, EXPOSURE))
    rows = rows.sort_values("time_ms", kind="stable")
    rows["action"] = rows.groupby(event)["action"].transform("max")
    merged = rows.drop_duplicates(event)
    user, users = pd.factorize(merged["user_id"])
    log = Log([str(original) for original in users], user, merged["video_id"].to_numpy(np.int64) + ITEM_OFFSET,
              merged["action"].to_numpy(), merged["time_ms"].to_numpy(np.int64) // 1000)
    about = {"source": "kuairand", "times": "seconds, cut from milliseconds",
             "actions": "0 exposure, 1 click, 2 like, follow, comment or forward"}
    return write_raw(Path(out), log, about, Extras(
        _kuairand_users(folder), _kuairand_items(folder), vectors=_kuairand_vectors(folder),
        counts={"repeats merged": len(rows) - len(merged)}))


def convert_movielens(source: Path, out: Path) -> Path:
    """MovieLens' ratings, users and movies (.dat, each may be gzipped) as a raw folder; returns `out`.

    Every rating is an exposure, a rating of at least 4 a click. InputError for a missing file or a line that is none.
    """
    path = _one_file(Path(source), "ratings*.dat")
    rows = _double_colon_rows(path, "UserID::MovieID::Rating::Timestamp")
    try:
        table = pd.DataFrame(rows, columns=["user", "movie", "stars", "time"]).astype(
            {"user": np.int64, "movie": np.int64, "stars": np.float64, "time": np.int64})
    except ValueError as error:
        raise InputError(path, found=f"a field that is no number ({error})", do="copy the file again",
                         expected="UserID::MovieID::Rating::Timestamp in numbers") from error
    user, users = pd.factorize(table["user"])
    log = Log([str(original) for original in users], user, table["movie"].to_numpy() + ITEM_OFFSET,
              np.where(table["stars"] >= LIKED, CLICK, EXPOSURE), table["time"].to_numpy())
    about = {"source": "movielens", "times": "seconds", "actions": f"0 any rating, 1 a rating of at least {LIKED}"}
    return write_raw(Path(out), log, about, Extras(_movielens_users(Path(source)), _movielens_items(Path(source))))


def convert_sequences(source: Path, out: Path, interactions: Path | None = None) -> Path:
    """A text file (may be gzipped), a line = a user then items in order, as a raw folder; returns `out`.

    Every event is a click. `interactions` (Parquet or CSV with user, item, time in Unix seconds) gives the times; its
    items of each user must be the line's, in order, and a null time takes the one before it. Without it positions
    stand for times. `item2attributes.json(.gz)` beside `source` gives features. InputError for what does not fit.
    """
    source = Path(source)
    sequences = _read_sequence_lines(source)
    items = [item for line in sequences.values() for item in line]
    creative_ids, original_ids = number_items(items)
    lengths = [len(line) for line in sequences.values()]
    user = np.repeat(np.arange(len(lengths)), lengths)
    times = ORDINAL_START + ORDINAL_STEP * np.concatenate([np.arange(length) for length in lengths])
    about, counts = {"source": "sequences", "actions": "1, all", "times": "order only",
                     "ordinal_start": ORDINAL_START, "ordinal_step": ORDINAL_STEP}, {}
    if interactions is not None:
        times, counts = _join_times(Path(interactions), sequences, ordinal=times)
        about["times"] = "seconds, from the interactions"
    log = Log(list(sequences), user, creative_ids, np.full(len(user), CLICK), times)
    return write_raw(Path(out), log, about, Extras(
        item_features=_item_attributes(source.parent), original_ids=original_ids, counts=counts))


def _kuairand_log_files(source: Path) -> tuple[Path, list[Path]]:
    """The folder that holds the data and the log's files: the first layout that is there, never a smoke_* sample."""
    for folder in (source, source / "data"):  # the release packs everything in data/
        for pattern in ("splits_*.parquet", "*interactions*.parquet", "log_standard*.csv*"):
            paths = sorted(path for path in folder.glob(pattern) if not path.name.startswith("smoke_"))
            if paths:
                return folder, paths
    raise InputError(source, found="no KuaiRand log", do="check the path",
                     expected="splits_*.parquet, *interactions*.parquet or log_standard*.csv")


def _kuairand_users(folder: Path) -> FeatureTable:
    table = _read_table(_one_file(folder, "user_features*.csv"), ["user_id", *KUAIRAND_USER],
                        missing_words=KUAIRAND_MISSING)
    return feature_table(table.rename(columns={"user_id": "id"}), first=USER_FEATURES_FROM)


def _kuairand_items(folder: Path) -> FeatureTable:
    """What was known of a video when it was uploaded; the release's counts of interactions are left out: they leak."""
    table = _read_table(_one_file(folder, "video_features_basic*.csv"), ["video_id", *KUAIRAND_ITEM],
                        missing_words=KUAIRAND_MISSING)
    table = table.rename(columns={"video_id": "id"})
    table["music_id"] = table["music_id"].where(table["music_id"] > 0)
    tags = table.pop("tag").astype("string").str.split(",", expand=True).reindex(columns=[0, 1])
    table["tag"], table["second tag"] = (pd.to_numeric(tags[place], errors="coerce") for place in (0, 1))
    seconds, aspect = table.pop("video_duration") / 1000, table.pop("server_width") / table.pop("server_height")
    for name, values, edges in (("duration bucket", seconds, DURATION_EDGES_SECONDS),
                                ("aspect bucket", aspect, ASPECT_EDGES)):
        table[name] = pd.Series(np.digitize(values, edges), table.index).where(values.notna())
    return feature_table(table, first=ITEM_FEATURES_FROM)


def _kuairand_vectors(folder: Path) -> dict[int, np.ndarray] | None:
    path = folder / "twotower_item_embeddings.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as held:
            return dict(zip((held["item_ids"] + ITEM_OFFSET).tolist(), held["item_vectors"]))
    except (*UNREADABLE, KeyError) as error:
        raise InputError(path, found=f"no readable vectors ({error})", expected="arrays item_ids and item_vectors",
                         do="copy the file again, or take it away: it is optional") from error


def _movielens_users(folder: Path) -> FeatureTable:
    rows = _double_colon_rows(_one_file(folder, "users*.dat"), "UserID::Gender::Age::Occupation::Zip-code")
    table = pd.DataFrame(rows, columns=["id", "gender", "age", "occupation", "zip prefix"])
    table["zip prefix"] = table["zip prefix"].str[:2]
    return feature_table(table, first=USER_FEATURES_FROM)


def _movielens_items(folder: Path) -> FeatureTable:
    """First and second genre (the layout has no list-valued item feature) and the decade in the title's brackets."""
    rows = _double_colon_rows(_one_file(folder, "movies*.dat"), "MovieID::Title::Genres")
    table = pd.DataFrame(rows, columns=["id", "title", "genres"])
    genres = table.pop("genres").str.split("|", expand=True).reindex(columns=[0, 1])
    table["genre"], table["second genre"] = genres[0], genres[1]
    table["decade"] = pd.to_numeric(table.pop("title").str.extract(r"\((\d{3})\d\)\s*$")[0]) * 10
    return feature_table(table, first=ITEM_FEATURES_FROM, shared=("genre", "second genre"))


def _item_attributes(folder: Path) -> FeatureTable:
    """The first attributes of each item, one feature per place; none where the file is missing."""
    paths = [folder / name for name in ("item2attributes.json", "item2attributes.json.gz") if (folder / name).is_file()]
    if not paths:
        return FeatureTable({}, {}, {})
    form = '{"item id": [attribute numbers], ...}'
    try:
        lists = json.loads("".join(_text_lines(paths[0])))
        columns = {f"attribute {place + 1}": [held[place] if len(held) > place else None for held in lists.values()]
                   for place in range(ATTRIBUTES)}
        table = pd.DataFrame(columns, dtype="Int64").assign(id=list(lists))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(paths[0], found=f"no attributes ({error})", expected=form, do="copy the file again") from error
    return feature_table(table, first=ITEM_FEATURES_FROM)


def _read_sequence_lines(path: Path) -> dict[str, list[str]]:
    """Items by user, in the order of the file."""
    sequences: dict[str, list[str]] = {}
    for number, line in enumerate(_text_lines(path), start=1):
        user, *items = line.split() or [""]
        if not items or user in sequences:
            found = f"user {user!r} a second time" if items else "a line without items"
            raise InputError(f"{path}:{number}", found=found, expected="a user and then items, each user once",
                             do="correct the line")
        sequences[user] = items
    if not sequences:
        raise InputError(path, found="an empty file", expected="a line per user", do="check the path")
    return sequences


def _join_times(path: Path, sequences: dict[str, list[str]], *,
                ordinal: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """The time of each event in the order of the lines, and how many had none.

    A null time takes the one before it of the same user, at the start the one after it; a user without any time keeps
    the ordinal ones.
    """
    table = _read_table(path, ["user", "item", "time"])
    place = {user: number for number, user in enumerate(sequences)}
    table["place"] = table["user"].astype(str).map(place)
    strange = table["user"][table["place"].isna()]
    if len(strange):
        raise InputError(path, found=f"user {strange.iloc[0]}", expected="the users of the sequence file",
                         do="check both files")
    table = table.sort_values("place", kind="stable", ignore_index=True)
    expected = [(number, item) for number, items in enumerate(sequences.values()) for item in items]
    for got, wanted in zip_longest(zip(table["place"].astype(int), table["item"].astype(str)), expected):
        if got != wanted:
            user = list(sequences)[min(pair[0] for pair in (got, wanted) if pair)]
            raise InputError(f"{path}: user {user}", found=f"item {got[1] if got else 'missing'}",
                             expected=f"{wanted[1] if wanted else 'no more items'}, as in the sequence file",
                             do="bring both files into one order")
    try:
        seconds = pd.to_numeric(table["time"]).astype("Float64")
    except ValueError as error:
        raise InputError(path, found=f"a time that is no number ({error})", expected="Unix seconds or null",
                         do="correct the times") from error
    known = seconds.groupby(table["place"]).ffill()
    known = known.groupby(table["place"]).bfill()
    timeless = known.isna().to_numpy()
    counts = {"times filled in": int(seconds.isna().sum()),
              "users without any time": table["place"][timeless].nunique()}
    return np.where(timeless, ordinal, known.fillna(0).to_numpy(np.int64)), counts


def _one_file(folder: Path, pattern: str) -> Path:
    """The one file of this name, plain or gzipped."""
    paths = sorted([*folder.glob(pattern), *folder.glob(f"{pattern}.gz")])
    if len(paths) != 1:
        raise InputError(folder, found=f"{len(paths)} files {pattern}(.gz)", expected="one", do="check the folder")
    return paths[0]


def _text_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text file, gzipped if its name ends in .gz."""
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a text file", do="check the path")
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding=encoding) as file:
            yield from file
    except UNREADABLE as error:
        raise InputError(path, found=f"no readable text ({error})", expected=f"{encoding} text",
                         do="the file may be cut short: copy it again") from error


def _double_colon_rows(path: Path, form: str) -> list[list[str]]:
    """The fields of a .dat file; `form` is what a line must look like."""
    rows = [line.rstrip("\r\n").split("::") for line in _text_lines(path, "latin-1")]
    for number, row in enumerate(rows, start=1):
        if len(row) != form.count("::") + 1:
            raise InputError(f"{path}:{number}", found=f"{len(row)} fields", expected=form, do="copy the file again")
    return rows


def _read_table(path: Path, columns: list[str], *, missing_words: Sequence[str] = ()) -> pd.DataFrame:
    """These columns of a Parquet or CSV file; in the latter `missing_words` stand for missing values too."""
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a Parquet or CSV file", do="check the path")
    try:
        is_parquet = path.suffix == ".parquet"
        present = parquet.read_schema(path).names if is_parquet else list(pd.read_csv(path, nrows=0).columns)
        missing = [name for name in columns if name not in present]
        if not missing:
            return pd.read_parquet(path, columns=columns) if is_parquet else pd.read_csv(
                path, usecols=columns, na_values=list(missing_words), dtype=dict.fromkeys(("tag", "user", "item"), str))
    except UNREADABLE as error:
        raise InputError(path, found=f"no readable table ({error})", expected="a Parquet or CSV file",
                         do="the file may be cut short: copy it again") from error
    raise InputError(path, found=f"no column {', '.join(missing)} (but {', '.join(present)})",
                     expected=", ".join(columns), do="check that this is the right file")
