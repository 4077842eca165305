"""Amazon reviews of three editions, and products in JSON, JSON lines and Python dictionaries."""

import gzip
import json
from pathlib import Path

import pytest
from converted import events, item_features, marker, refuses

from onepiece_comp.converters.amazon import convert_amazon

DAY = 1_400_000_000


def packed(path: Path, *records: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    text = "".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def old(user: str, item: str, stars: float, time: int, **more: object) -> dict:
    return {
        "reviewerID": user,
        "asin": item,
        "reviewText": "it 'works'\n",
        "overall": stars,
        "unixReviewTime": time,
        **more,
    }


def new(user: str, item: str, stars: float, milliseconds: int, **more: object) -> dict:
    return {"rating": stars, "title": "x", "images": [{"a": [1]}], "asin": f"variant of {item}", "parent_asin": item,
            "user_id": user, "timestamp": milliseconds, **more}


def test_reviews_of_2014_with_products_as_python_dictionaries(tmp_path):
    packed(tmp_path / "in" / "reviews_Beauty_5.json.gz", old("A1", "B0", 5.0, DAY + 86400), old("A1", "0205", 2.0, DAY),
           old("A2", "B0", 4.0, DAY), old("A2", "B0", 4.0, DAY))
    packed(
        tmp_path / "in" / "meta_Beauty.json.gz",
        "{'asin': 'B0', 'title': \"Girl's brush\", 'price': 9.5, 'brand': 'Dove', 'salesRank': {'Beauty': 7}, "
        "'categories': [['Beauty', 'Hair Care', 'Brushes'], ['Gifts']]}\n",
        "{'asin': '0205', 'categories': [['Beauty', 'Brushes']], 'price': 20.0}\n",
        "{'asin': 'other', 'brand': 'none'}\n",
    )
    raw = convert_amazon(tmp_path / "in", tmp_path / "raw")
    assert events(raw) == {"A1": [("0205", 0, DAY), ("B0", 1, DAY + 86400)], "A2": [("B0", 1, DAY)]}
    assert json.loads((raw / "original_ids.json").read_text()) == {"items": {"1": "B0", "2": "0205"}}
    assert item_features(raw) == {
        "B0": {"brand": "Dove", "category 1": "Hair Care", "category 2": "Brushes", "price": 0},
        "0205": {"category 1": "Brushes", "price": 1},
    }
    about = marker(raw)
    assert about["feature_values"]["301"] == {"Dove": 1}  # products outside the log count for nothing
    assert about["figures"]["repeats merged"] == 1 and about["items"] == "features from meta_Beauty.json.gz"
    assert set(about["features"].values()) == {"brand", "category 1", "category 2", "price"}  # no rank: it is later


def test_a_file_of_a_name_of_ones_own_is_read_by_its_lines(tmp_path):
    packed(tmp_path / "mine.txt", old("A1", "B0", 5.0, DAY), old("A1", "0205", 2.0, DAY + 1))
    assert events(convert_amazon(tmp_path / "mine.txt", tmp_path / "raw")) == {"A1": [("B0", 1, DAY),
        ("0205", 0, DAY + 1)]}


def test_reviews_of_2018_with_prices_as_texts(tmp_path):
    packed(
        tmp_path / "in" / "Toys_5.json",
        old("A", "X", 5.0, DAY, verified=True),
        old("A", "Y", 3.0, DAY, verified=False),
        old("A", "Z", 3.0, DAY, style={"Size:": "L"}),
    )
    packed(
        tmp_path / "in" / "meta_Toys.json",
        {
            "asin": "X",
            "brand": "Lego",
            "main_cat": "Toys",
            "price": "$1,012.99 - $9",
            "category": ["Toys", "Bricks", "word " * 40],
        },
        {"asin": "Y", "price": ".a-box-inner{border:1px}", "category": [], "brand": ""},
        {"asin": "Z", "price": "$3"},
    )
    raw = convert_amazon(tmp_path / "in" / "Toys_5.json", tmp_path / "raw")
    assert events(raw) == {"A": [("X", 1, DAY), ("Y", 0, DAY), ("Z", 0, DAY)]}
    assert item_features(raw) == {"X": {"brand": "Lego", "department": "Toys", "category 1": "Bricks", "price": 1},
                                  "Y": {}, "Z": {"price": 0}}
    assert marker(raw)["figures"]["reviews of verified purchases"] == 1


def test_reviews_of_2023_have_milliseconds_and_parents(tmp_path):
    packed(tmp_path / "in" / "Books.jsonl.gz", new("U", "P", 5.0, 1_588_687_728_923, verified_purchase=True),
           new("U", "Q", 1.0, 1_588_687_728_100, verified_purchase=True), new("V", "P", 4.0, 1_588_687_728_923))
    packed(
        tmp_path / "in" / "meta_Books.jsonl.gz",
        {
            "parent_asin": "P",
            "main_category": "Books",
            "store": "Ann (Author)",
            "categories": ["Books", "Novels"],
            "price": None,
            "rating_number": 9,
        },
        {"parent_asin": "Q", "main_category": None, "categories": [], "price": 3.99},
    )
    raw = convert_amazon(tmp_path / "in", tmp_path / "raw")
    assert events(raw) == {"U": [("Q", 0, 1_588_687_728), ("P", 1, 1_588_687_728)], "V": [("P", 1, 1_588_687_728)]}
    assert item_features(raw)["P"] == {"brand": "Ann (Author)", "department": "Books", "category 1": "Novels"}
    assert marker(raw)["figures"]["reviews of verified purchases"] == 2


def test_the_ready_tables_of_2023_and_a_file_of_products_elsewhere(tmp_path):
    source = packed(
        tmp_path / "in" / "Books.train.csv.gz", "user_id,parent_asin,rating,timestamp\nAE,0007,4.0,1588687728923\n"
    )
    raw = convert_amazon(source, tmp_path / "raw")
    assert events(raw) == {"AE": [("0007", 1, 1_588_687_728)]} and "no features" in marker(raw)["items"]
    meta = packed(tmp_path / "else.jsonl", {"parent_asin": "0007", "store": "S"})
    raw = convert_amazon(source, tmp_path / "raw", item_features=meta)
    assert item_features(raw) == {"0007": {"brand": "S"}}
    packed(tmp_path / "in" / "meta_Books.jsonl", {"parent_asin": "0007", "store": "T"})
    assert item_features(convert_amazon(source, tmp_path / "raw")) == {"0007": {"brand": "T"}}


def test_products_never_run_code(tmp_path):
    flag = tmp_path / "flag"
    source = packed(tmp_path / "in" / "X_5.json", old("A", "B", 5.0, DAY))
    packed(tmp_path / "in" / "meta_X.json", f"{{'asin': open({str(flag)!r}, 'w')}}\n")
    refuses("meta_X.json:1: found no record", convert_amazon, source, tmp_path / "raw")
    assert not flag.exists()
    for bomb in ("-" * 300_000 + "1", "[" * 300_000, "1+" * 300_000 + "1", '{"asin":' * 100_000,
                 "{'asin': 'B', 'price': " + "~" * 300_000 + "1}", "{'asin': " + "(" * 5000 + ")" * 5000 + "}"):
        packed(tmp_path / "in" / "meta_X.json", {"asin": "B"}, bomb)
        refuses("meta_X.json:2: found no record", convert_amazon, source, tmp_path / "raw")


def test_signs_of_numbers_and_brackets_in_texts_are_no_formulas(tmp_path):
    source = packed(tmp_path / "in" / "X_5.json", old("A", "B", 5.0, DAY))
    line = ("{'asin': 'B', 'brand': \"it's +1 - \\\"((([[[\" , 'price': -3e-05, 'related': [ +1, 1E+2], "
            "'title': '" + "[" * 99 + "'}\n")
    packed(tmp_path / "in" / "meta_X.json", line)
    assert item_features(convert_amazon(source, tmp_path / "raw"))["B"]["brand"].startswith("it's +1 - ")


def test_a_text_that_only_the_slow_reader_admits_gives_the_same_log(tmp_path, monkeypatch):
    records = [old("A", "B", 5.0, DAY), old("A", "C", 3.0, DAY + 1)]
    with monkeypatch.context() as patched:
        patched.delattr("onepiece_comp.converters.files._json_columns_by_line")
        fast = convert_amazon(packed(tmp_path / "in" / "X_5.json", *records), tmp_path / "fast")
    odd = json.dumps({**records[0], "reviewText": "?"}).replace("?", "\\ud800") + "\n"  # half a surrogate pair
    slow = convert_amazon(packed(tmp_path / "odd" / "X_5.json", odd, records[1]), tmp_path / "slow")
    assert events(slow) == events(fast)


@pytest.mark.parametrize(
    "second, message",
    [
        ('{"reviewerID": "A", "asin": "B", "over', "X_5.json:2: found no record"),
        ("[1]\n", "X_5.json:2: found a list"),
        (json.dumps(old("A", "B", "good", DAY)) + "\n", "X_5.json:2: found overall 'good'"),
        (json.dumps({"reviewerID": "A", "overall": 1.0, "unixReviewTime": DAY}) + "\n", "X_5.json:2: found no asin"),
        (
            json.dumps({"reviewerID": None, "asin": "B", "overall": 1.0, "unixReviewTime": DAY}) + "\n",
            "X_5.json:2: found no rev",
        ),
        (json.dumps({"reviewerID": "A", "asin": "B", "overall": 1.0}) + "\n", "X_5.json:2: found no unixReviewTime"),
    ],
)
def test_a_broken_review_is_refused_with_its_line(tmp_path, second, message):
    source = packed(tmp_path / "in" / "X_5.json", old("A", "B", 5.0, DAY), second)
    refuses(message, convert_amazon, source, tmp_path / "raw")


def test_what_is_no_file_of_reviews_is_refused(tmp_path):
    source = packed(
        tmp_path / "in" / "X_5.json.gz", *(old(f"A{n * 7919 % 5003}", "B", 5.0, DAY + n) for n in range(20_000))
    )
    whole = source.read_bytes()
    source.write_bytes(whole[:len(whole) // 2])
    refuses(r"X_5.json.gz:\d+: found no readable text .*cut short", convert_amazon, source, tmp_path / "raw")
    other = packed(tmp_path / "other.json", {"user": 1, "stars": 5})
    refuses("other.json: found the fields user, stars, expected reviewerID", convert_amazon, other, tmp_path / "raw")
    source.write_bytes(whole)
    packed(tmp_path / "in" / "Y.jsonl", new("U", "P", 5.0, 1))
    refuses(r"2 files of Amazon reviews \(X_5.json.gz, Y.jsonl\)", convert_amazon, tmp_path / "in", tmp_path / "raw")
