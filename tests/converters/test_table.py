"""A table of events: named columns, units of time told by size, words of actions looked up and never guessed."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from converted import events, item_features, lines, marker, named, refuses

from onepiece_comp.converters.actions import KNOWN_WORDS
from onepiece_comp.converters.files import SourceRows
from onepiece_comp.converters.table import convert_table
from onepiece_comp.converters.times import ticks
from onepiece_comp.errors import InputError

NAMES = {"user": "who", "item": "what", "time": "ts"}
TIME = 1_650_000_000


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_a_table_of_texts_keeps_ids_as_they_are_written(tmp_path):
    source = written(tmp_path / "log.csv", f'note,what,ts,who\n"a, b",007,{TIME + 1},01\n,7,{TIME},1\n,NA,{TIME},01\n')
    raw = convert_table(source, tmp_path / "raw", **NAMES)
    assert events(raw) == {"01": [("NA", 1, TIME), ("007", 1, TIME + 1)], "1": [("7", 1, TIME)]}
    assert "no column of actions" in marker(raw)["actions"]


@pytest.mark.parametrize("name", ["log.csv.gz", "log.tsv", "log.tsv.gz", "log.parquet", "parts/", "pieces/"])
def test_every_form_of_a_table_gives_the_same_log(tmp_path, name):
    table = pd.DataFrame({"who": [5, 5, 6, 5], "what": [10, 11, 10, 12], "ts": [TIME + 3, TIME, TIME, TIME]})
    source = tmp_path / name
    if name == "parts/":
        source.mkdir()
        (source / "_SUCCESS").touch()
        table[:1].to_parquet(source / "part-0.parquet")
        table[1:].astype({"what": "int32"}).to_parquet(source / "part-1.parquet")
    elif name == "pieces/":
        written(source / "a.csv", table[:3].to_csv(index=False))
        written(source / "b.csv.gz", table[3:].to_csv(index=False))
    elif name == "log.parquet":
        table.to_parquet(source)
    else:
        written(source, table.to_csv(index=False, sep="\t" if "tsv" in name else ","))
    raw = convert_table(source, tmp_path / "raw", **NAMES)
    assert events(raw) == {"5": [("11", 1, TIME), ("12", 1, TIME), ("10", 1, TIME + 3)], "6": [("10", 1, TIME)]}
    assert not (raw / "original_ids.json").exists()


def test_blocks_of_a_large_file_are_read_as_one(tmp_path, monkeypatch):
    # a block holds a few rows, texts differ in each
    monkeypatch.setattr("onepiece_comp.converters.files.BLOCK_BYTES", 64)
    rows = [(f"u{n % 7}", f"i{n * 5 % 11}", TIME + n) for n in range(60)]
    text = "".join(f'{user},{item},{time},"a note\nof two lines"\n' for user, item, time in rows)
    raw = convert_table(written(tmp_path / "log.csv", "who,what,ts,note\n" + text), tmp_path / "raw", **NAMES)
    assert events(raw) == {f"u{n}": [(item, 1, time) for user, item, time in rows if user == f"u{n}"] for n in range(7)}


def of_times(values: object) -> SourceRows:
    table = pa.table({"ts": pa.array(values)})
    return SourceRows(table, [(Path("log.csv"), table.num_rows)])


@pytest.mark.parametrize(
    "values, unit, per_second",
    [
        ([TIME, TIME + 4e8], "seconds", 1),
        ([TIME * 1000 + 7], "milliseconds", 1000),
        ([TIME * 10**6], "microseconds", 10**6),
        ([TIME * 10**9], "nanoseconds", 10**9),
        ([TIME + 0.5], "seconds", 10**9),
        ([TIME * 1e3 + 0.5], "milliseconds", 10**9),
        ([float(TIME)], "seconds", 1),
        (["2022-04-15T05:20:00Z"], "ISO", 10**9),
        (["2022-04-15 07:20:00+02:00"], "ISO", 10**9),
        (["2022-04-15 05:20"], "ISO", 10**9),
        (["2022-04-15 05:20:00 UTC"], "ISO", 10**9),
        (["2022-04-15 05:20:00.250 GMT"], "ISO", 10**9),
        (["2022-04-15 05:20:00,250"], "ISO", 10**9),
        (np.array([TIME * 1000], "datetime64[ms]"), "timestamp", 10**9),
        ([str(TIME), f"{TIME}.0"], "seconds", 1),
    ],
)
def test_the_unit_of_times_is_told_by_their_size_and_said_with_the_range(values, unit, per_second):
    found = ticks(of_times(values), "ts")
    assert found.values[0] // found.per_second == TIME and found.per_second == per_second
    assert unit in found.stated and "2022-04-15 05:20:00" in found.stated


@pytest.mark.parametrize("values, message", [
    ([TIME, TIME * 1000, TIME], r"log.csv:3: found ts 1650000000000.*expected seconds from 1990 to 2100, as in most"),
    ([TIME * 1000, TIME * 1000, TIME], "log.csv:4: found ts 1650000000,* expected milliseconds"),
    ([TIME, -5], "log.csv:3: found ts -5, expected seconds from 1990"), ([TIME, None], "log.csv:3: found no ts"),
    ([TIME, 0], "log.csv:3: found ts 0, expected a time in every row: zero is a missing one"),
    (["1970-01-01T00:00:00Z"], "log.csv:2: found ts '1970-01-01.*missing"),
    ([TIME + 0.5, float("inf")], "log.csv:3"),
    ([str(TIME), "x", str(TIME)], "log.csv:3: found ts 'x', expected a number"),
    (["2022-04-15", "yesterday"], "log.csv:3: found ts 'yesterday', expected Unix time or ISO"),
    (["2022-04-15", "now"], "log.csv:3: found ts 'now'"), (["2022-04-15", ""], "log.csv:3: found ts"),
    (["2022-04-15", "9999-12-31"], "log.csv:3: found ts '9999-12-31', expected a time from 1970 to 2100"),
    (["1969-12-31T00:00:00"], "from 1970"), ([True], "a column ts of bool")])
def test_a_time_that_is_none_or_of_another_unit_is_refused_with_its_row(values, message):
    with pytest.raises(InputError, match=message):
        ticks(of_times(values), "ts")


@pytest.mark.parametrize("values, message", [
    ([20200901], r"log.csv:2: found ts 20200901, expected .*seconds \(1598918400\) or milliseconds.*if it is the date "
                 r"2020-09-01, write"),
    ([0, 20200901112743, 20200901112744],
     "log.csv:3: found ts 20200901112743, .*the date 2020-09-01T11:27:43, write it so"),
    ([2020090111, 2020090112], "log.csv:2: found ts 2020090111, .*the date 2020-09-01T11:00:00"),
    (["20200901", "20200902"], "log.csv:2: found ts 20200901, .*2020-09-01"),
    ([829], "log.csv:2: found ts 829, .*write it in one of these forms"),
    ([1.5, 2.5, 3.0], "log.csv:2: found ts 1.5, ")])
def test_whole_numbers_that_are_dates_or_counts_are_no_unix_time_and_the_forms_that_would_fit_are_named(values,
    message):
    with pytest.raises(InputError, match=message):
        ticks(of_times(values), "ts", gaps=True)


def test_a_row_that_may_lack_its_time_gets_zero_and_the_others_keep_every_digit():
    nanoseconds = TIME * 10**9 + 7
    assert ticks(of_times([None, nanoseconds, 0]), "ts", gaps=True).values.tolist() == [0, nanoseconds, 0]
    found = ticks(of_times(["", "2022-04-15T05:20:00.000000007Z", None]), "ts", gaps=True)
    assert found.values.tolist() == [0, nanoseconds, 0] and "2022-04-15 05:20:00 to 2022-04-15" in found.stated


def test_times_that_differ_in_their_last_digit_keep_their_order():
    start = TIME + 0.5
    values = [start, np.nextafter(start, 0), np.nextafter(start, TIME + 1)]
    for held in (values, (np.array([2, 1, 3]) + TIME * 10**9).astype("datetime64[ns]")):
        assert np.argsort(ticks(of_times(held), "ts").values).tolist() == [1, 0, 2]


def test_milliseconds_order_the_events_of_one_second(tmp_path, capsys):
    rows = "".join(f"u,{item},{TIME}{999 - item}\n" for item in range(100, 140))
    raw = convert_table(written(tmp_path / "log.csv", "who,what,ts\n" + rows), tmp_path / "raw", **NAMES)
    assert [item for item, _, _ in events(raw)["u"]] == [str(item) for item in range(139, 99, -1)]
    assert {time for _, _, time in events(raw)["u"]} == {TIME}
    printed = capsys.readouterr().out
    assert "milliseconds, guessed from the size of the numbers: 2022-04-15 05:20:00" in printed


def test_words_of_actions_are_known_or_mapped(tmp_path):
    words = ["Impression", "add_to_cart", "CLICK", "purchase", "0", "2", "pv", "view"]
    text = "who,what,ts,kind\n" + "".join(f"u,{place},{TIME + place},{word}\n" for place, word in enumerate(words))
    source = written(tmp_path / "log.csv", text)
    raw = convert_table(source, tmp_path / "raw", **NAMES, action="kind", action_map=["pv=1", "view=1"])
    assert [action for _, action, _ in events(raw)["u"]] == [0, 2, 1, 2, 0, 2, 1, 1]
    assert "pv = 1" in marker(raw)["actions"] and "Impression = 0" in marker(raw)["actions"]
    out = tmp_path / "out"
    refuses(
        "log.csv:8: found kind 'pv' .*'Impression' 1, 'add_to_cart' 1.*--map pv=0 for an exposure", convert_table,
        source, out, **NAMES, action="kind"
    )
    refuses("no kind 'pw' .*'pv' 1", convert_table, source, out, **NAMES, action="kind", action_map=["pw=1"])
    for broken in ("pv", "pv=3", "pv=", "pv=-1"):
        refuses(f"--map {broken}: found no VALUE=ACTION", convert_table, source, out, **NAMES, action="kind",
                action_map=[broken])
    refuses("without --action", convert_table, source, out, **NAMES, action_map=["pv=1"])


def test_numbers_of_actions_are_as_they_are(tmp_path):
    table = pd.DataFrame({"who": "u", "what": ["a", "b", "c"], "ts": [TIME, TIME + 1, TIME + 2],
                          "kind": [2.0, 0.0, 1.0]})
    table.to_parquet(tmp_path / "log.parquet")
    raw = convert_table(tmp_path / "log.parquet", tmp_path / "raw", **NAMES, action="kind")
    assert [action for _, action, _ in events(raw)["u"]] == [2, 0, 1]
    table.assign(kind=[1, 3, 0]).to_parquet(tmp_path / "log.parquet")
    refuses("kind '3'", convert_table, tmp_path / "log.parquet", tmp_path / "out", **NAMES, action="kind")


def test_the_known_words_are_one_action_each():
    assert all(KNOWN_WORDS[word] == action for word, action in (
        ("exposure", 0), ("impression", 0), ("view", 0), ("show", 0), ("click", 1), ("conversion", 2), ("purchase", 2),
        ("buy", 2), ("order", 2), ("cart", 2), ("like", 2)))


def test_only_rows_that_are_the_same_in_all_are_merged(tmp_path):
    rows = [("u", 9, "click"), ("u", 9, "buy"), ("u", 9, "click"), ("u", 9, "click"), ("u", 8, "click"),
            ("v", 9, "click")]
    text = "".join(f"{user},a,{TIME + second},{word}\n" for user, second, word in rows)
    source = written(tmp_path / "log.csv", "who,what,ts,kind\n" + text)
    raw = convert_table(source, tmp_path / "raw", **NAMES, action="kind")
    assert events(raw) == {"u": [("a", 1, TIME + 8), ("a", 1, TIME + 9), ("a", 2, TIME + 9)],
                           "v": [("a", 1, TIME + 9)]}
    assert marker(raw)["figures"]["repeats merged"] == 2


def test_feature_tables_give_numbers_texts_tenths_and_lists(tmp_path):
    source = written(tmp_path / "log.csv", "who,what,ts\n" + "".join(f"{n},i{n},{TIME}\n" for n in range(10)))
    users = "who,age,city,note\n" + "".join(f"{n},{20 + n},Oslo,\n" for n in range(9)) + "77,1,x,y\n"
    items = pd.DataFrame(
        {
            "what": [f"i{n}" for n in range(10)],
            "price": [n + 0.5 for n in range(10)],
            "tags": [["a", "b"], ["c"], *[[]] * 8],
            "count": [None, float("inf"), *range(1, 9)],
            "seen": pd.Timestamp("2022"),
        }
    )
    items.to_parquet(tmp_path / "items.parquet")
    raw = convert_table(source, tmp_path / "raw", **NAMES, user_features=written(tmp_path / "users.csv", users),
                        item_features=tmp_path / "items.parquet")
    assert named(raw, lines(raw)["3"].profile) == {"age": 23, "city": "Oslo"} and lines(raw)["9"].profile == {}
    held = item_features(raw)
    assert held["i0"] == {"price": 0, "tags 1": "a", "tags 2": "b"}
    assert held["i1"] == {"price": 1, "tags 1": "c"} and held["i9"] == {"price": 9, "count": 8}
    about = marker(raw)
    assert about["figures"]["users without features"] == 1 and about["figures"]["items without features"] == 0
    assert "seen" in about["left out of items.parquet"]
    refuses(r"users.csv: found no column what \(but who", convert_table, source, tmp_path / "out", **NAMES,
            item_features=tmp_path / "users.csv")
    refuses("who '1' a second time", convert_table, source, tmp_path / "out", **NAMES,
            user_features=written(tmp_path / "twice.csv", "who,x\n1,2\n1,3\n"))


def test_lists_of_users_stay_lists(tmp_path):
    pd.DataFrame({"who": [1, None], "likes": [["x", "y"], []]}).to_parquet(tmp_path / "users.parquet")
    source = written(tmp_path / "log.csv", f"who,what,ts\n1,a,{TIME}\n")
    raw = convert_table(source, tmp_path / "raw", **NAMES, user_features=tmp_path / "users.parquet")
    assert named(raw, lines(raw)["1"].profile) == {"likes": ["x", "y"]}


@pytest.mark.parametrize(
    "text, message",
    [
        ("who,what\n1,2\n", r"log.csv: found no column ts \(but who, what\), expected who, what, ts"),
        ("who,what,ts\n1,2,3\n1,2\n", "log.csv:3: .*Expected 3 columns, got 2"),
        ("who,what,ts\n1,2,3\n1,2,3,4\n", "log.csv:3: .*Expected 3 columns, got 4"),
        ("who,what,ts\n1,2,3\n,2,3\n", "log.csv:3: found no who"),
        ("who,what,ts\n1,2,3\n1,,3\n", "log.csv:3: found no what"),
        ("who,what,ts\n1,2,3\n1,2,\n", "log.csv:3: found no ts"),
        ("who,what,ts\n1,2,3\n1,2,x\n1,2,3\n", "log.csv:3: found ts 'x'"),
        ("", "an empty file"),
        ("w" * 200_000, "log.csv:1: found no header"),
        ("who,what,ts\n", "without events"),
        ('who,what,ts\n1,"2,3\n', "log.csv:2"),
    ],
)
def test_a_broken_row_is_refused_with_its_line(tmp_path, text, message):
    refuses(message, convert_table, written(tmp_path / "log.csv", text), tmp_path / "raw", **NAMES)


def test_rows_of_parts_are_named_by_their_part(tmp_path):
    written(tmp_path / "in" / "a.csv", "who,what,ts\n1,2,3\n1,2,4\n")
    written(tmp_path / "in" / "b.csv", "who,what,ts\n,2,4\n1,2,3\n")
    refuses("in/b.csv:2: found no who", convert_table, tmp_path / "in", tmp_path / "raw", **NAMES)
    (tmp_path / "in" / "b.csv").unlink()
    pd.DataFrame({"who": ["a", None], "what": 1, "ts": 2}).to_parquet(tmp_path / "log.parquet")
    refuses("log.parquet: row 2: found no who", convert_table, tmp_path / "log.parquet", tmp_path / "raw", **NAMES)
    written(tmp_path / "in" / "c.tsv", "who\twhat\tts\n")
    refuses(
        "the files a.csv, c.tsv, expected parts of one table", convert_table, tmp_path / "in", tmp_path / "raw", **NAMES
    )


def test_what_is_no_table_or_lacks_its_columns_is_refused(tmp_path):
    source = written(tmp_path / "log.csv", "who,what,ts\n1,2,3\n")
    refuses(
        "the columns who, what, ts, expected a column each for --user",
        convert_table,
        source,
        tmp_path / "raw",
        user="who",
    )
    refuses("one column for two things", convert_table, source, tmp_path / "raw", user="who", item="who", time="ts")
    refuses("a file of another kind", convert_table, written(tmp_path / "log.txt", "x"), tmp_path / "raw", **NAMES)
    refuses("no such file", convert_table, tmp_path / "none.csv", tmp_path / "raw", **NAMES)
    pd.DataFrame({"who": [1.5], "what": 1, "ts": 2}).to_parquet(tmp_path / "log.parquet")
    refuses("log.parquet: row 1: found who 1.5, expected ids", convert_table, tmp_path / "log.parquet",
            tmp_path / "raw", **NAMES)
    whole = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "log.parquet").write_bytes(whole[:-20])
    refuses("log.parquet: found no readable table", convert_table, tmp_path / "log.parquet", tmp_path / "raw", **NAMES)
    packed = gzip.compress("".join(f"{n},{n * 7919 % 4001},3\n" for n in range(30_000)).encode())
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"who,what,ts\n") + packed[:len(packed) // 2])
    refuses("cut.csv.gz:[0-9]+: .*cut short", convert_table, tmp_path / "cut.csv.gz", tmp_path / "raw", **NAMES)
