"""MovieLens in each of its forms as a raw folder: 1M and 10M (.dat), 100K (u.data), 20M, 25M, 32M and latest (.csv).

A converter of `convert.py`. Every rating is an exposure, a rating of at least LIKED stars a click; tags are left out.
Source: Harper and Konstan, The MovieLens Datasets, 2015, and the README of each set.
"""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from onepiece_comp.converters.actions import liked
from onepiece_comp.converters.event_log import Extras, ids, number_log, write_raw
from onepiece_comp.converters.feature_tables import (
    ITEM_FEATURES_FROM, NO_FEATURES, USER_FEATURES_FROM, FeatureTable, feature_table)
from onepiece_comp.converters.files import SourceRows, candidates, one_file, split_lines
from onepiece_comp.converters.tables import UNQUOTED, delimited, header, read_frame
from onepiece_comp.converters.times import ticks
from onepiece_comp.errors import InputError

RATINGS = {"dat": "ratings*.dat", "100k": "u.data", "csv": "ratings*.csv"}
RATING_TYPES = {"user": pa.int32(), "movie": pa.int32(), "rating": pa.float32(), "time": pa.int64()}
CSV_NAMES = {"userId": "user", "movieId": "movie", "rating": "rating", "timestamp": "time"}
YEAR = r"\((\d{3})\d\)\s*\"?\s*$"  # in the brackets that end a title; the decade's digits


def convert_movielens(source: Path, out: Path) -> Path:
    """A folder of MovieLens (or its ratings file) as a raw folder; returns `out`.

    People and movies stand beside the ratings; a set without people (10M and the .csv sets) has no user features.
    InputError for a missing file or a line that is none.
    """
    form, path = ratings_file(Path(source))
    rows = read_ratings(form, path)
    rows.require(*RATING_TYPES)
    moments, actions = ticks(rows, "time", unit="seconds"), liked(rows, "rating", do="if these are no stars, convert "
                                                                  "it as a table with --action rating and --map")
    log, _, counts = number_log(ids(rows, "user"), ids(rows, "movie"), ticks=moments.values, action=actions.values)
    del rows  # the log is enough: a set may have 32 million ratings
    users, items = {"dat": (_dat_users, _dat_items), "100k": (_100k_users, _100k_items),
                    "csv": (lambda folder: NO_FEATURES, _csv_items)}[form]
    about = {"source": "movielens", "times": moments.stated, "actions": actions.stated}
    return write_raw(Path(out), log, about, Extras(users(path.parent), items(path.parent), counts=counts))


def ratings_file(source: Path) -> tuple[str, Path]:
    """The form and the ratings file of a set; InputError where there is none, or more than one."""
    if source.is_file():
        found = [(form, source) for form, pattern in RATINGS.items()
                 if source.match(pattern) or source.match(f"{pattern}.gz")]
    else:
        found = [(form, path) for form, pattern in RATINGS.items() for path in candidates(source, pattern)]
    if len(found) != 1:
        names = ", ".join(path.name for _, path in found) or "none"
        raise InputError(source, found=f"{len(found)} files of ratings ({names})", do="check the folder",
                         expected="one of ratings*.dat, u.data or ratings*.csv (each may be gzipped)")
    return found[0]


def is_movielens(source: Path) -> bool:
    """Whether a folder or file holds MovieLens' ratings; a ratings.csv must have its columns."""
    try:
        form, path = ratings_file(source)
        return form != "csv" or set(CSV_NAMES) <= set(header(path, ","))
    except InputError:  # not this format; whoever asks tries the next
        return False


def read_ratings(form: str, path: Path) -> SourceRows:
    if form == "csv":
        types = {theirs: RATING_TYPES[ours] for theirs, ours in CSV_NAMES.items()}
        rows = delimited(path, types)
        return rows._replace(table=rows.table.rename_columns(list(RATING_TYPES)))
    if form == "100k":
        return delimited(path, RATING_TYPES, separator="\t", names=list(RATING_TYPES))
    # "::" is two separators with an empty field between them, which Arrow reads at full speed
    names = ["user", "", "movie", " ", "rating", "  ", "time"]
    try:
        rows = delimited(path, {**RATING_TYPES, **dict.fromkeys(["", " ", "  "], pa.null())}, separator=":",
                         names=names, quote=UNQUOTED)
    except InputError as error:
        raise InputError(error.place, found=error.found, expected="UserID::MovieID::Rating::Timestamp in numbers",
                         do=error.do) from error
    return rows._replace(table=rows.table.select(list(RATING_TYPES)))


def _movies(table: pd.DataFrame, genres: pd.DataFrame) -> FeatureTable:
    """First and second genre (the layout has no list-valued item feature) and the decade in the title's brackets."""
    genres = genres.reindex(columns=[0, 1])
    table["genre"], table["second genre"] = genres[0], genres[1]
    table["decade"] = pd.to_numeric(table.pop("title").str.extract(YEAR)[0]) * 10
    return feature_table(table, first=ITEM_FEATURES_FROM, shared=[("genre", "second genre")])


def _dat_users(folder: Path) -> FeatureTable:
    if not candidates(folder, "users*.dat"):
        return NO_FEATURES
    rows = split_lines(one_file(folder, "users*.dat"), "UserID::Gender::Age::Occupation::Zip-code", delimiter="::")
    return _people(pd.DataFrame(rows, columns=["id", "gender", "age", "occupation", "zip"]))


def _dat_items(folder: Path) -> FeatureTable:
    rows = split_lines(one_file(folder, "movies*.dat"), "MovieID::Title::Genres", delimiter="::")
    table = pd.DataFrame(rows, columns=["id", "title", "genres"])
    return _movies(table, table.pop("genres").str.split("|", expand=True))


def _100k_users(folder: Path) -> FeatureTable:
    rows = split_lines(one_file(folder, "u.user"), "user|age|gender|occupation|zip", delimiter="|")
    return _people(pd.DataFrame(rows, columns=["id", "age", "gender", "occupation", "zip"]))


def _people(table: pd.DataFrame) -> FeatureTable:
    table["zip prefix"] = table.pop("zip").str[:2]
    return feature_table(table, first=USER_FEATURES_FROM)


def _100k_items(folder: Path) -> FeatureTable:
    """A movie's genres are flags in the order of `u.genre`, where that is missing of the set's README."""
    path = one_file(folder, "u.item")
    names = [name for name, _ in split_lines(one_file(folder, "u.genre"), "genre|number", delimiter="|")
             ] if candidates(folder, "u.genre") else GENRES_100K
    form = "|".join(["movie", "title", "released", "video", "address", *names])
    rows = split_lines(path, form, delimiter="|")
    table = pd.DataFrame([row[:2] for row in rows], columns=["id", "title"])
    genres = [[name for name, flag in zip(names, row[5:]) if flag == "1" and name != "unknown"] for row in rows]
    return _movies(table, pd.DataFrame([(held + [None, None])[:2] for held in genres]))


GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


def _csv_items(folder: Path) -> FeatureTable:
    table = read_frame(one_file(folder, "movies*.csv"), ["movieId", "title", "genres"], texts=["title", "genres"])
    table = table.rename(columns={"movieId": "id"})
    genres = table.pop("genres").replace("(no genres listed)", None).astype("string").str.split("|", expand=True)
    return _movies(table, genres)
