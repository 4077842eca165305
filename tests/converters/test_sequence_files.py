"""The corners of what S3-Rec and P5 publish: names before the attributes, maps of numbers, samples of negatives."""

import gzip
import json

import pytest
from converted import events, item_features, marker, refuses

from onepiece_comp.converters.sequences import convert_sequences


def test_a_folder_with_one_file_of_numbers_is_enough(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "README.txt").write_text("Beauty of 2014\n")
    (source / "Beauty_sample.txt").write_text("1 90 91 92\n2 93 94 95\n")
    (source / "Beauty.txt").write_bytes(b"1 5 6\r\n2 6\r\n\n\n")
    (source / "Beauty_item2attributes.json").write_text('{"5": [3, 1], "6": []}')
    raw = convert_sequences(source, tmp_path / "raw")
    assert {user: [item for item, _, _ in held] for user, held in events(raw).items()} == {"1": ["5", "6"], "2": ["6"]}
    assert item_features(raw) == {"5": {"attribute 1": 3, "attribute 2": 1}, "6": {}}
    (source / "more.txt").write_text("1 5\n")
    refuses("2 files of sequences", convert_sequences, source, tmp_path / "out")


def test_p5s_maps_name_the_numbers_of_items_and_users(tmp_path):
    (tmp_path / "sequential_data.txt.gz").write_bytes(gzip.compress(b"1 2 1\n2 1\n"))
    maps = {"id2item": {"1": "B01", "2": "B02", "3": "B03"}, "id2user": {"1": "AX", "9": "AZ"}, "item2id": {"B01": "1"}}
    (tmp_path / "datamaps.json").write_text(json.dumps(maps))
    raw = convert_sequences(tmp_path / "sequential_data.txt.gz", tmp_path / "raw")
    assert json.loads((raw / "original_ids.json").read_text()) == {"items": {"1": "B01", "2": "B02"},
                                                                   "users": {"1": "AX"}}
    assert {user: [item for item, _, _ in held] for user, held in events(raw).items()} == {
        "1": ["B02", "B01"],
        "2": ["B01"],
    }
    for broken, message in (({"id2item": {"1": "B01"}, "id2user": {}}, "no name of item 2"), ([], "no id2item")):
        (tmp_path / "datamaps.json").write_text(json.dumps(broken))
        refuses(message, convert_sequences, tmp_path / "sequential_data.txt.gz", tmp_path / "out")


@pytest.mark.parametrize("text, message", [
    (b"1 5\n\n2 6\n", "log.txt:2: found an empty line"), (b"1 5\n2\n", "log.txt:2: found a line without items"),
    (b"1 5\n1 5 6\n", "log.txt:2: found user '1' a second time"),
    (b"1 5 6\n2 5\n1 5\n", "log.txt:3: found user '1' a second time"), (b"\n\n", "an empty file"),
    (b"1 5\n2 \xff\n", "log.txt:2: found bytes that are no UTF-8")])
def test_a_broken_line_is_refused_with_its_number(tmp_path, text, message):
    (tmp_path / "log.txt").write_bytes(text)
    refuses(message, convert_sequences, tmp_path / "log.txt", tmp_path / "raw")


def test_an_archive_that_is_cut_short_is_refused_with_its_line(tmp_path):
    packed = gzip.compress("".join(f"{n} {n * 7919 % 4001} {n}\n" for n in range(9000)).encode())
    (tmp_path / "log.txt.gz").write_bytes(packed[:len(packed) // 2])
    refuses(r"log.txt.gz:\d{3,}: found no readable text", convert_sequences, tmp_path / "log.txt.gz", tmp_path / "raw")


def test_a_user_and_an_item_in_each_line_are_events_in_order_as_sasrec_publishes_them(tmp_path):
    (tmp_path / "Beauty.txt").write_text("1 5\n2 9\n1 7\n2 5\n1 5\n")
    raw = convert_sequences(tmp_path / "Beauty.txt", tmp_path / "raw")
    assert {user: [item for item, _, _ in held] for user, held in events(raw).items()} == {"1": ["5", "7", "5"],
        "2": ["9", "5"]}
    assert marker(raw)["lines"] == "an event each"
    (tmp_path / "Beauty.txt").write_text("1 5\n2 9\n")  # one event each, whichever of the two it is
    assert {user: len(held) for user, held in events(convert_sequences(tmp_path / "Beauty.txt",
                                                                       tmp_path / "one")).items()} == {
        "1": 1, "2": 1}
