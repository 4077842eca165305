"""RecBole's atomic files keep their events, ratings, order and features."""

import gzip
from pathlib import Path

import pytest
from converted import events, item_features, lines, marker, named, refuses

from onepiece_comp.converters.recbole import convert_recbole

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
TIME = 1_650_000_000


def atomic(folder: Path, inter: str, **others: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "toy.inter").write_text(inter)
    for suffix, text in others.items():
        (folder / f"toy.{suffix}").write_text(text)
    return folder


def test_ratings_become_actions_and_equal_times_keep_the_order_of_the_file(tmp_path):
    source = atomic(
        tmp_path / "in", INTER + f"u\tB\t3.5\t{TIME + 5}\nv\tA\t4\t{TIME}\nu\tA\t4\t{TIME}\nu\tC\t1\t{TIME}\n"
    )
    raw = convert_recbole(source, tmp_path / "raw")
    assert events(raw) == {"u": [("A", 1, TIME), ("C", 0, TIME), ("B", 0, TIME + 5)], "v": [("A", 1, TIME)]}
    assert "guessed" in marker(raw)["times"] and "2022-04-15" in marker(raw)["times"]


def test_a_log_without_times_and_ratings_keeps_the_order_of_its_rows_and_its_repeats(tmp_path):
    source = atomic(tmp_path / "in", "item_id:token\tuser_id:token\n7\t1\n9\t2\n8\t1\n7\t1\n7\t1\n")
    raw = convert_recbole(source, tmp_path / "raw")
    about = marker(raw)
    times = [about["ordinal_start"] + place * about["ordinal_step"] for place in range(4)]
    assert events(raw)["1"] == [("7", 1, times[0]), ("8", 1, times[1]), ("7", 1, times[2]), ("7", 1, times[3])]
    assert events(raw)["2"] == [("9", 1, times[0])] and about["times"] == "order only"


def test_repeats_of_user_item_and_time_are_merged_into_the_strongest_action_and_counted(tmp_path):
    rows = ["u\t9\t2", "u\t1\t2", "u\t1\t5", "u\t1\t2", "u\t9\t2", "u\t1\t2", "v\t1\t2"]
    times = [TIME - 1, TIME, TIME, TIME, TIME, TIME + 1, TIME]
    text = "".join(f"{row}\t{time}\n" for row, time in zip(rows, times))
    raw = convert_recbole(atomic(tmp_path / "in", INTER + text), tmp_path / "raw")
    assert events(raw) == {"u": [("9", 0, TIME - 1), ("1", 1, TIME), ("9", 0, TIME), ("1", 0, TIME + 1)],
                           "v": [("1", 0, TIME)]}
    assert marker(raw)["figures"]["repeats merged"] == 2


def test_fractions_of_a_second_order_the_events_before_they_are_cut_off(tmp_path):
    rows = f"u\t1\t5\t{TIME}.9\nu\t2\t5\t{TIME}.25\nu\t3\t5\t{TIME + 1}\n"
    raw = convert_recbole(atomic(tmp_path / "in", INTER + rows), tmp_path / "raw")
    assert events(raw) == {"u": [("2", 1, TIME), ("1", 1, TIME), ("3", 1, TIME + 1)]}


def test_tokens_sequences_and_numbers_become_features(tmp_path):
    price = "".join(f"p{number}\tx\tg{number} h a b c\t{number}.5\t1 2\n" for number in range(10))
    source = atomic(
        tmp_path / "in",
        INTER + "".join(f"u\tp{number}\t5\t{TIME + number}\n" for number in range(10)) + f"v\tq\t5\t{TIME}\n",
        item="item_id:token\tbrand:token\tgenre:token_seq\tprice:float\tvector:float_seq\n"
        + price
        + "q\t\t\t\t\nunseen\tx\t\t0\t\n",
        user='age:float\tuser_id:token\ttaste:token_seq\n30\tu\t"rock jazz\n\tv\t\n',
    )
    raw = convert_recbole(source, tmp_path / "raw")
    held = item_features(raw)
    assert held["p3"] == {"brand": "x", "genre 1": "g3", "genre 2": "h", "genre 3": "a", "genre 4": "b", "price": 3}
    assert held["q"] == {} and [held[f"p{number}"]["price"] for number in range(10)] == list(range(10))
    users = {user: named(raw, line.profile) for user, line in lines(raw).items()}
    assert users == {"u": {"age": 0, "taste": ['"rock', "jazz"]}, "v": {}}
    about = marker(raw)
    (fid,) = (fid for fid, name in about["features"].items() if name == "price")
    assert about["feature_bins"][fid] == [number + 0.5 for number in range(1, 10)]
    assert "vector" in about["left out of toy.item"]


def test_blocks_of_a_large_file_are_read_as_one(tmp_path, monkeypatch):
    # a block holds a few rows, texts differ in each
    monkeypatch.setattr("onepiece_comp.converters.files.BLOCK_BYTES", 64)
    rows = "".join(f"u{n % 3}\ti{n * 5 % 11}\t5\t{TIME + n}\n" for n in range(40))
    brands = "".join(f"i{n}\tthe maker {n}\n" for n in range(11))
    source = atomic(tmp_path / "in", INTER + rows, item="item_id:token\tbrand:token\n" + brands)
    raw = convert_recbole(source, tmp_path / "raw")
    assert events(raw)["u1"] == [(f"i{n * 5 % 11}", 1, TIME + n) for n in range(1, 40, 3)]
    assert item_features(raw) == {f"i{n}": {"brand": f"the maker {n}"} for n in range(11)}


def test_other_names_are_found_by_their_type_or_given(tmp_path):
    inter = f"uid:token\tsession_id:token\titem_key:token\tclock:float\n5\t1\ta\t{TIME}\n"
    source = atomic(tmp_path / "in", inter)
    raw = convert_recbole(source, tmp_path / "raw")
    assert list(events(raw)) == ["1"] and marker(raw)["fields"] == {"user": "session_id", "item": "item_key"}
    raw = convert_recbole(source / "toy.inter", tmp_path / "named", user="uid", time="clock")
    assert events(raw) == {"5": [("a", 1, TIME)]}
    refuses(
        "fields uid:token, session_id.*expected when:float.*--time",
        convert_recbole,
        source,
        tmp_path / "out",
        time="when",
    )
    refuses(
        "expected user_id:token", convert_recbole, atomic(tmp_path / "none", "a:token\tb:token\n"), tmp_path / "out"
    )


@pytest.mark.parametrize(
    "inter, message",
    [
        (INTER + f"u\t1\t5\t{TIME}\nu\t1\t5\n", "toy.inter:3: .*Expected 4 columns, got 3"),
        (INTER + f"u\t1\t5\t{TIME}\n\t1\t5\t{TIME}\n", "toy.inter:3: found no user_id:token"),
        (INTER + f"u\t1\tfive\t{TIME}\n", "toy.inter:2: .*invalid value 'five'"),
        (INTER + f"u\t1\t\t{TIME}\n", "toy.inter:2: found no rating:float"),
        (INTER + f"u\t1\t5\t{TIME}\nu\t1\t5\t\n", "toy.inter:3: found no timestamp:float"),
        (
            INTER + f"u\t1\t5\t{TIME}\nu\t1\t5\t{TIME}\nu\t1\t5\t{TIME}000\n",
            "toy.inter:4: found .* expected seconds from 1990 to 2100, as in most",
        ),
        ("user_id\titem_id\n", "toy.inter:1: found the field 'user_id', expected name:type"),
        ("a:token\ta:token\n", "'a:token' a second time"),
        ("", "an empty file"),
        (INTER, "without events"),
    ],
)
def test_a_broken_row_is_refused_with_its_line(tmp_path, inter, message):
    refuses(message, convert_recbole, atomic(tmp_path / "in", inter), tmp_path / "raw")


def test_one_inter_file_is_expected(tmp_path):
    source = atomic(tmp_path / "in", INTER)
    (source / "other.inter").write_text(INTER)
    refuses(r"2 files \*.inter \(other.inter, toy.inter\)", convert_recbole, source, tmp_path / "raw")
    refuses("no such file", convert_recbole, tmp_path / "none.inter", tmp_path / "raw")


@pytest.mark.parametrize("field, values, actions", [
    ("rating:token", "5 3 4", [1, 0, 1]), ("stars:float", "5.0 3.5 4.0", [1, 0, 1]),
    ("label:float", "1.0 0.0 1.0", [1, 0, 1]),
    ("label:float", "1 0 0", [1, 0, 0]), ("behavior_type:token", "click buy view", [1, 2, 0]),
    ("behavior_type:token", "1 2 0", [1, 2, 0]), ("is_click:token", "0 1 0", [0, 1, 0])])
def test_an_outcome_is_read_whatever_it_is_called(tmp_path, field, values, actions):
    rows = "".join(f"u\ti{place}\t{value}\t{TIME + place}\n" for place, value in enumerate(values.split()))
    raw = convert_recbole(atomic(tmp_path / "in", INTER.replace("rating:float", field) + rows), tmp_path / "raw")
    assert [action for _, action, _ in events(raw)["u"]] == actions


def test_words_of_behaviour_are_mapped_and_never_guessed_and_two_of_one_second_are_two_events(tmp_path):
    inter = INTER.replace("rating:float", "kind:token") + "".join(
        f"u\ta\t{kind}\t{TIME}\n" for kind in ("pv", "buy", "pv")) + f"u\tb\tfav\t{TIME + 1}\n"
    source = atomic(tmp_path / "in", inter)
    raw = convert_recbole(source, tmp_path / "raw", action="kind", action_map=["pv=0"])
    assert events(raw)["u"] == [("a", 0, TIME), ("a", 2, TIME), ("b", 2, TIME + 1)]
    assert marker(raw)["figures"]["repeats merged"] == 1
    refuses("toy.inter:2: found kind:token 'pv' .*--map pv=0 for an exposure", convert_recbole, source,
            tmp_path / "out", action="kind")
    refuses("--map: found values of actions without --action", convert_recbole, source, tmp_path / "out",
            action_map=["pv=0"])
    refuses("expected knd:token; .*--action", convert_recbole, source, tmp_path / "out", action="knd")


def test_what_is_not_read_is_named_and_two_outcomes_ask_for_one(tmp_path):
    rows = f"u\ta\t5\t{TIME}\t1\t7\n"
    source = atomic(tmp_path / "in", INTER.replace("\n", "\tlabel:float\tprice:float\n") + rows)
    refuses("toy.inter:1: found the outcomes rating, label, expected one; .*--action", convert_recbole, source,
            tmp_path / "out")
    about = marker(convert_recbole(source, tmp_path / "raw", action="label"))
    assert about["not read"] == "rating, price" and about["actions"].startswith("label:float: ")


@pytest.mark.parametrize("field, values", [("rating:float", "0 1"), ("stars:float", "1 3")])
def test_ratings_that_never_reach_a_click_are_refused_with_the_way_to_tell_their_scale(tmp_path, field, values):
    rows = "".join(f"u\ti{value}\t{value}\t{TIME}\n" for value in values.split())
    source = atomic(tmp_path / "in", INTER.replace("rating:float", field) + rows)
    low, high = values.split()
    refuses(f"toy.inter: found {field} from {low} to {high}, and so no click at all, expected one of at least 4; "
            f".*--action",
            convert_recbole, source, tmp_path / "out")


def test_files_of_histories_are_refused_for_a_row_there_is_a_whole_history(tmp_path):
    inter = "user_id:token\titem_id_list:token_seq\titem_id:token\nu\ta b c\td\n"
    refuses(r"toy.inter:1: found a history in each row \(item_id_list:token_seq\), expected an event a row.*sequences",
            convert_recbole, atomic(tmp_path / "in", inter), tmp_path / "out")


@pytest.mark.parametrize("separator, said", [(" ", "spaces"), (",", "commas"), ("\t", None)])
def test_fields_between_commas_or_spaces_are_read_and_said(tmp_path, separator, said):
    text = (INTER + f"u\ta\t5\t{TIME}\nu\tb\t1\t{TIME + 1}\n").replace("\t", separator)
    raw = convert_recbole(atomic(tmp_path / "in", text), tmp_path / "raw")
    assert events(raw) == {"u": [("a", 1, TIME), ("b", 0, TIME + 1)]} and marker(raw).get("separated by") == said


def test_gzipped_files_are_the_same_log_with_the_same_features(tmp_path):
    texts = {"inter": INTER + f"u\ta\t5\t{TIME}\n", "item": "item_id:token\tbrand:token\na\tx\n",
             "user": "user_id:token\tage:token\nu\t30\n"}
    (tmp_path / "in").mkdir()
    for suffix, text in texts.items():
        (tmp_path / "in" / f"toy.{suffix}.gz").write_bytes(gzip.compress(text.encode()))
    for source in (tmp_path / "in", tmp_path / "in" / "toy.inter.gz"):
        raw = convert_recbole(source, tmp_path / source.name / "raw")
        assert events(raw) == {"u": [("a", 1, TIME)]} and item_features(raw) == {"a": {"brand": "x"}}
        assert named(raw, lines(raw)["u"].profile) == {"age": "30"}
    (tmp_path / "in" / "toy.item").write_text(texts["item"])
    refuses("found toy.item and toy.item.gz, expected one", convert_recbole, tmp_path / "in", tmp_path / "out")


def test_feature_files_of_another_name_are_said_and_those_of_other_ids_refused(tmp_path):
    source = atomic(tmp_path / "in", INTER + f"u\ta\t5\t{TIME}\n")
    (source / "other.item").write_text("item_id:token\tbrand:token\na\tx\n")
    assert marker(convert_recbole(source, tmp_path / "raw"))["not read"] == "other.item"
    (source / "toy.item").write_text("item_id:token\tbrand:token\nB\tx\n")
    refuses("toy.item: found none of the log's items: 'B' and 0 others, expected items such as 'a'", convert_recbole,
            source, tmp_path / "out")
