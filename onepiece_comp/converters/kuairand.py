"""KuaiRand, the exposures of a short-video app with clicks, likes, follows, comments and forwards, as a raw folder.

A converter of `convert.py`. Source: Gao et al., KuaiRand, CIKM 2022 (kuairand.com), the standard log of the release
or the Parquet files that others made of it.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from onepiece_comp.converters.event_log import ITEM_OFFSET, Extras, Ids, number_log, write_raw
from onepiece_comp.converters.feature_tables import ITEM_FEATURES_FROM, USER_FEATURES_FROM, FeatureTable, feature_table
from onepiece_comp.converters.files import UNREADABLE, SourceRows, candidates, is_parquet, one_file
from onepiece_comp.converters.tables import delimited, parquet_columns, read_frame
from onepiece_comp.converters.times import Ticks, ticks
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import CLICK, CONVERSION, EXPOSURE

LOG_PATTERNS = ("splits_*.parquet", "*interactions*.parquet", "log_standard*.csv*")
STRONG = ["is_like", "is_follow", "is_comment", "is_forward"]
SIGNALS = ["is_click", *STRONG]
EVENT = ["user_id", "video_id", "time_ms"]
USER_COLUMNS = ["user_active_degree", "is_live_streamer", "is_video_author", "follow_user_num_range",
                "fans_user_num_range", "friend_user_num_range", "register_days_range",
                *(f"onehot_feat{number}" for number in range(12))]
ITEM_COLUMNS = ["author_id", "video_type", "upload_dt", "upload_type", "music_id", "music_type", "tag",
                "video_duration", "server_width", "server_height"]
MISSING_WORDS = ["UNKNOWN", "unknown", "-124"]
DURATION_EDGES_SECONDS = [7, 15, 30, 60, 120, 180, 300]
ASPECT_EDGES = [0.5, 0.6, 0.9, 1.1, 1.6]  # width / height: tall, phone, portrait, square, landscape, wide


def convert_kuairand(source: Path, out: Path) -> Path:
    """KuaiRand's standard log (exposure 0, click 1, like, follow, comment or forward 2) as a raw folder; returns `out`.

    `source` holds the log (`splits_*.parquet`, `*interactions*.parquet` or the release's `log_standard*.csv`), user and
    video features, and optionally `twotower_item_embeddings.npz`: 64-d vectors that others learned on an earlier period
    of the same log, so no content embedding; they become feature 81. Exact repeats (user, video, millisecond) are
    merged into their strongest action. InputError for missing files and columns.
    """
    folder, paths = _log_files(Path(source))
    parts = [_numbers(path, _events(path), SIGNALS) for path in paths]
    rows = pd.concat(parts, ignore_index=True)
    moments = _moments(rows, list(zip(paths, map(len, parts))))
    order = np.argsort(moments.values, kind="stable")
    rows = rows.iloc[order].reset_index(drop=True)
    strong, clicked = ((rows[names].fillna(0) > 0).any(axis=1) for names in (STRONG, ["is_click"]))
    action = np.where(strong, CONVERSION, np.where(clicked, CLICK, EXPOSURE)).astype(np.int8)
    log, _, counts = number_log(_ids(rows["user_id"]), _ids(rows["video_id"]), action=action,
                                ticks=moments.values[order], ticks_per_second=moments.per_second)
    about = {"source": "kuairand", "times": moments.stated,
             "actions": "0 exposure, 1 click, 2 like, follow, comment or forward"}
    return write_raw(Path(out), log, about, Extras(
        _users(folder), _items(folder), vectors=_vectors(folder), counts={"repeats merged": 0, **counts}))


def is_kuairand(source: Path) -> bool:
    """Whether a folder holds a KuaiRand log: the table of videos is what only it has."""
    return any(candidates(folder, "video_features_basic*.csv") for folder in (source, source / "data"))


def _events(path: Path) -> pd.DataFrame:
    if is_parquet(path):
        return parquet_columns(path, [*EVENT, *SIGNALS]).table.to_pandas()
    types = {**dict.fromkeys(EVENT, pa.int64()), **dict.fromkeys(SIGNALS, pa.float64())}
    return delimited(path, types).table.to_pandas()


def _moments(rows: pd.DataFrame, parts: list[tuple[Path, int]]) -> Ticks:
    """The times of the events; InputError with the place of a row without a whole user, video and time."""
    events = SourceRows(pa.Table.from_pandas(rows[EVENT], preserve_index=False), parts)
    events.require(*EVENT)
    for name in EVENT:
        if not pd.api.types.is_integer_dtype(rows[name]):
            raise InputError(parts[0][0], found=f"a column {name} of {rows[name].dtype}", expected="whole numbers",
                             do="copy the log again")
    return ticks(events, "time_ms", unit="milliseconds")


def _ids(column: pd.Series) -> Ids:
    codes, originals = pd.factorize(column)
    return Ids(codes, [str(original) for original in originals])


def _log_files(source: Path) -> tuple[Path, list[Path]]:
    """The folder that holds the data and the log's files: the first layout that is there, never a smoke_* sample."""
    for folder in (source, source / "data"):  # the release packs everything in data/
        for pattern in LOG_PATTERNS:
            paths = sorted(path for path in folder.glob(pattern) if not path.name.startswith("smoke_"))
            if paths:
                return folder, paths
    raise InputError(source, found="no KuaiRand log", do="check the path",
                     expected="splits_*.parquet, *interactions*.parquet or log_standard*.csv")


def _users(folder: Path) -> FeatureTable:
    table = read_frame(one_file(folder, "user_features*.csv"), ["user_id", *USER_COLUMNS], missing_words=MISSING_WORDS)
    return feature_table(table.rename(columns={"user_id": "id"}), first=USER_FEATURES_FROM)


def _items(folder: Path) -> FeatureTable:
    """What was known of a video when it was uploaded; the release's counts of interactions are left out: they leak."""
    path = one_file(folder, "video_features_basic*.csv")
    table = read_frame(path, ["video_id", *ITEM_COLUMNS], missing_words=MISSING_WORDS)
    table = _numbers(path, table, ["music_id", "video_duration", "server_width", "server_height"])
    table = table.rename(columns={"video_id": "id"})
    table["music_id"] = table["music_id"].where(table["music_id"] > 0)
    tags = table.pop("tag").astype("string").str.split(",", expand=True).reindex(columns=[0, 1])
    table["tag"], table["second tag"] = (pd.to_numeric(tags[place], errors="coerce") for place in (0, 1))
    seconds, aspect = table.pop("video_duration") / 1000, table.pop("server_width") / table.pop("server_height")
    for name, values, edges in (("duration bucket", seconds, DURATION_EDGES_SECONDS),
                                ("aspect bucket", aspect, ASPECT_EDGES)):
        table[name] = pd.Series(np.digitize(values, edges), table.index).where(values.notna())
    return feature_table(table, first=ITEM_FEATURES_FROM)


def _numbers(path: Path, table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The table, where these columns hold numbers; InputError for the first that does not."""
    for name in names:
        if not pd.api.types.is_numeric_dtype(table[name]) and not table[name].isna().all():
            wrong = table[name][pd.to_numeric(table[name], errors="coerce").isna() & table[name].notna()]
            raise InputError(path, found=f"{name} {str(wrong.iloc[0]) if len(wrong) else 'as texts'!r:.80}",
                             expected="a column of numbers", do="copy the file again")
    return table


def _vectors(folder: Path) -> dict[int, np.ndarray] | None:
    path = folder / "twotower_item_embeddings.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as held:
            return dict(zip((held["item_ids"] + ITEM_OFFSET).tolist(), held["item_vectors"]))
    except (*UNREADABLE, KeyError) as error:
        raise InputError(path, found=f"no readable vectors ({error})", expected="arrays item_ids and item_vectors",
                         do="copy the file again, or take it away: it is optional") from error
