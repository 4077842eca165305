"""Amazon reviews of 2014, 2018 and 2023 as a raw folder, with what the products' own file says of them.

A converter of `convert.py`. 2014 and 2018: reviews_X_5.json.gz, X_5.json.gz (reviewerID, asin, overall,
unixReviewTime); 2023: X.jsonl.gz or X.csv.gz (user_id, parent_asin, rating, timestamp in milliseconds). Products:
meta_X beside them, in 2014 as Python dictionaries. Source: McAuley et al., jmcauley.ucsd.edu/data/amazon and
amazon-reviews-2023.github.io.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as compute

from onepiece_comp import console
from onepiece_comp.converters.actions import liked
from onepiece_comp.converters.event_log import Extras, Ids, ids, number_log, write_raw
from onepiece_comp.converters.feature_tables import (
    FIRST_VALUES, ITEM_FEATURES_FROM, NO_FEATURES, FeatureTable, feature_table, spread)
from onepiece_comp.converters.files import SourceRows, json_columns, json_records
from onepiece_comp.converters.tables import delimited, header
from onepiece_comp.converters.times import ticks
from onepiece_comp.errors import InputError

NAME = re.compile(r"(?:reviews_)?(?P<category>.+?)(?:_5)?\.(?P<kind>jsonl?|csv)(?:\.gz)?$")
_AMOUNT = re.compile(r"\s*(?:from\s+)?\$?\s*(\d[\d,]*(?:\.\d+)?)")
LONGEST_CATEGORY = 80  # characters; longer "categories" of 2018 are descriptions and scraps of HTML


class Edition(NamedTuple):
    """What the fields of a year's reviews are called."""

    name: str
    user: str
    item: str
    rating: str
    time: str
    unit: str
    verified: str


OLD = Edition("2014 or 2018", "reviewerID", "asin", "overall", "unixReviewTime", "seconds", "verified")
NEW = Edition("2023", "user_id", "parent_asin", "rating", "timestamp", "milliseconds", "verified_purchase")
NEW_BY_ASIN = NEW._replace(item="asin")  # without the number that joins a product's variants


def convert_amazon(source: Path, out: Path, *, item_features: Path | None = None) -> Path:
    """A file of reviews (or a folder with one) as a raw folder; returns `out`.

    Every review is an exposure, one of at least LIKED stars a click. Brand or store, categories and price come from
    `item_features`, by default the meta_X file beside the reviews; ranks and counts of ratings are left out, for they
    tell of later reviews. InputError with the line for what is no review.
    """
    path = reviews_file(Path(source))
    edition = _edition(path)
    rows = _rows(path, edition)
    rows.require(edition.rating, edition.time)
    users, items = ids(rows, edition.user), ids(rows, edition.item)
    actions, moments = liked(rows, edition.rating, do="check the ratings"), ticks(rows, edition.time, unit=edition.unit)
    log, original_ids, counts = number_log(users, items, action=actions.values, ticks=moments.values,
                                           ticks_per_second=moments.per_second)
    if edition.verified in rows.table.column_names:
        verified = compute.sum(rows.table.column(edition.verified)).as_py()
        counts |= {"reviews of verified purchases": int(verified)} if verified else {}
    about = {"source": "amazon", "edition": edition.name, "actions": actions.stated, "times": moments.stated}
    meta = Path(item_features) if item_features else _meta_file(path)
    about["items"] = f"features from {meta.name}" if meta else "no features: no meta file beside the reviews"
    features = _items(meta, items) if meta else NO_FEATURES
    return write_raw(Path(out), log, about, Extras(item_features=features, original_ids=original_ids, counts=counts))


def reviews_file(source: Path) -> Path:
    """The file of reviews itself, or the one of a folder; InputError for none or several."""
    if not source.is_dir():
        if source.is_file():
            return source
        raise InputError(source, found="no such file", expected="a file of Amazon reviews", do="check the path")
    paths = [path for path in sorted(source.iterdir())
             if NAME.match(path.name) and not path.name.startswith(".") and is_amazon(path)]
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths) or "none"
        raise InputError(source, found=f"{len(paths)} files of Amazon reviews ({names})",
                         expected="one .json, .jsonl or .csv (each may be gzipped)", do="give the path of the file")
    return paths[0]


def is_amazon(source: Path) -> bool:
    """Whether this is a file of reviews, by its name and first record, or a folder with one."""
    try:
        if source.is_dir():
            return reviews_file(source).is_file()
        return bool(NAME.match(source.name)) and bool(_edition(source))
    except InputError:  # not this format; whoever asks tries the next
        return False


def _edition(path: Path) -> Edition:
    """The edition whose fields the first record has; the csv files of 2023 have the fields of its reviews."""
    name = NAME.match(path.name)
    if name and name["kind"] == "csv":
        fields = header(path, ",")
    else:
        fields = list(next((record for _, record in json_records(path)), {}))
    for edition in (OLD, NEW, NEW_BY_ASIN):
        if {edition.user, edition.item, edition.rating, edition.time} <= set(fields):
            return edition
    raise InputError(path, found=f"the fields {', '.join(fields) or 'none'}",
                     expected=" or ".join(", ".join(edition[1:5]) for edition in (OLD, NEW)),
                     do="check that this is a file of reviews")


def _rows(path: Path, edition: Edition) -> SourceRows:
    types = {edition.user: pa.string(), edition.item: pa.string(), edition.rating: pa.float64(),
             edition.time: pa.int64()}
    name = NAME.match(path.name)
    if name and name["kind"] == "csv":
        return delimited(path, types)
    return json_columns(path, {**types, edition.verified: pa.bool_()})


def _meta_file(path: Path) -> Path | None:
    if not NAME.match(path.name):  # a name of one's own tells no category
        return None
    category = NAME.match(path.name)["category"].removesuffix(".train").removesuffix(".valid").removesuffix(".test")
    paths = [path.with_name(f"meta_{category}.{suffix}") for suffix in ("json.gz", "json", "jsonl.gz", "jsonl")]
    return next((each for each in paths if each.is_file()), None)


def _items(path: Path, held: Ids) -> FeatureTable:
    """Brand or store, the department, the first categories and the price's tenth of the items in the log."""
    wanted, records = set(held.originals), {}
    for place, record in console.progress(json_records(path), total=None, what="products read"):
        original = record.get("parent_asin") or record.get("asin")
        if not isinstance(original, str):
            raise InputError(place, found="no asin", expected="a product with its asin",
                             do="check that this is a file of products")
        if original in wanted and original not in records:
            records[original] = {"brand": _text(record.get("brand") or record.get("store")),
                                 "department": _text(record.get("main_category") or record.get("main_cat")),
                                 "category": _categories(record), "price": _price(record.get("price"))}
    if not records:
        raise InputError(path, found="none of the log's items", expected=f"items such as {held.originals[0]!r}",
                         do="take the products of these reviews")
    table = pd.DataFrame(records.values(), columns=["brand", "department", "category", "price"], index=list(records))
    categories = spread(table.pop("category"), "category")
    table = table.assign(**categories, price=table["price"].astype(np.float64)).rename_axis("id").reset_index()
    empty = [name for name in table if name != "id" and table[name].isna().all()]  # 2014 knows no department
    return feature_table(table.drop(columns=empty), first=ITEM_FEATURES_FROM, binned=["price"],
                         shared=[list(categories)])


def _text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) and len(value) <= LONGEST_CATEGORY else None


def _categories(record: dict) -> list[str]:
    """The first path of categories; its first step where others follow is the whole shop and says nothing.

    >>> _categories({"categories": [["Beauty", "Hair Care", "Shampoo"], ["Beauty", "Gifts"]]})
    ['Hair Care', 'Shampoo']
    """
    held = record.get("categories") or record.get("category") or []
    if isinstance(held, list) and held and isinstance(held[0], list):
        held = held[0]
    texts = [text for text in map(_text, held if isinstance(held, list) else [held]) if text]
    return texts[1:FIRST_VALUES + 1] if len(texts) > 1 else texts


def _price(value: object) -> float | None:
    """Dollars; of a range the lower end.

    >>> _price("$1,012.99 - $2,000"), _price(3), _price(".a-section{...}")
    (1012.99, 3.0, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    amount = _AMOUNT.match(value) if isinstance(value, str) else None
    return float(amount[1].replace(",", "")) if amount else None if isinstance(value, str) else float(value)
