"""The two readers of sequence files give the same blocks, the same item features and the same errors."""

import json
import random
import re

import numpy as np
import pytest

from onepiece_comp.errors import InputError
from onepiece_comp.logs import json_lines as sequences
from onepiece_comp.logs.features import Feature, ItemFeatures, Profiles
from onepiece_comp.logs.json_lines import fill_item_features, read_sequence_blocks
from onepiece_comp.logs.pickles import save_pickle

pytestmark = pytest.mark.skipif(not sequences.compiler_present(), reason="numba is not installed")

ITEM_FEATURES = [Feature("100", 7, 0), Feature("117", 50, 7), Feature("121", 4000, 57)]
USER_FEATURES = [Feature("103", 90, 0), Feature("106", 15, 90)]
MOST_ITEM = 300


def plain_line(rng, user):
    """A line as the organisers write it, with the corners that they have."""
    time, records = rng.randrange(1, 1 << 31), []
    for _ in range(rng.randrange(0, 12)):
        time += rng.choice([0, 1, 3600])
        features = {fid: rng.randrange(0, size + 2) for fid, size, _ in ITEM_FEATURES if rng.random() < 0.8}
        features |= {"111": 5} if rng.random() < 0.5 else {}
        features |= {"999": 1} if rng.random() < 0.1 else {}
        records.append([user, rng.randrange(1, MOST_ITEM + 1), None, rng.choice([features, features, {}, None]),
                        rng.choice([0, 1, 2, None]), time])
    if rng.random() < 0.9 or not records:
        profile = {"103": rng.randrange(0, 95), "106": [rng.randrange(0, 20) for _ in range(rng.randrange(0, 6))]}
        profile |= {"888": rng.choice([3, [1, 2]])} if rng.random() < 0.1 else {}
        place = rng.choice([len(records), len(records), rng.randrange(0, len(records) + 1)])
        records.insert(place, [user, None, rng.choice([profile, profile, {}, None]), None, None,
                               rng.choice([time, None])])
    return records


ODD_LINES = [  # what a JSON reader accepts and a scanner of the usual form does not know
    '[["user_\\u0041", 3, null, {"100": 1}, 0, 5]]',
    '[[5, 3, {"103": 1}, {"100": 1}, 0, 5]]',
    '[[5, 3, null, {"100": "44"}, 0, 5]]',
    '[[5, 3, null, {"100": [4, 5]}, 0, 5]]',
    '[[5, 3, null, {"100": 1, "100": 2}, 0, 5]]',
    '[[5, 4, null, {"100": -1}, 1, 5], [5, null, {"103": "x", "106": [1, "y"]}, null, null, 7]]',
    '[[5, null, {"103": 4}, null, null, 7], [5, null, {"103": 5}, null, null, 8]]',
    '\t[ [5 ,3,null,{ "100" : 1 } ,0, 5 ] ] \r',
    '[[5,3,null,{"100":1},0,5]]',
    '[["user_5", 9, null, {"121": 123456789012345678901}, 0, 5]]',
    "",
    "   ",
]
BAD_LINES = [
    '[[5, 3, null, {"100": 1}, 0, 5]', '[[5, 3, null, {"100": 1}, 0]]', '[[5, 301, null, {}, 0, 5]]', "[]", "[[]]",
    "{}",
    '[[5, 0, null, {}, 0, 5]]', '[[5, 3, null, {}, 3, 5]]', '[[5, 3, null, {}, 0, -5]]', '[[5, 3, null, {}, 0, 05]]',
    '[[5, 3, null, {}, 0, 5], [6, 3, null, {}, 0, 5]]', '[[5, 3, null, {"100" 1}, 0, 5]]', '[[5, 3, null, {}, 0, 5]] x',
    '[[5, 3, null, {}, 0, 1.5]]', '[[5, 3, null, [], 0, 5]]', '[[true, 3, null, {}, 0, 5]]', '[[5, 3, nul, {}, 0, 5]]',
    '[[5, 3, null, {"100": 1,}, 0, 5]]', '[[5, 3, null, {}, 0, 9999999999999]]', '[[5, 3, null, {}, 0, 5],]', "\x00",
    "[[5",
    '[[5, 3, null, {}, true, 5]]', '[["a, 3, null, {}, 0, 5]]', '[[5, null, [], null, null, 7]]', "[[[[[[[[",
]


def both(path, **options):
    """What each reader makes of a file: blocks joined, the features found, the odd things counted; or the error."""
    outcomes = []
    for reader in ("plain", "compiled"):
        matrix = ItemFeatures(ITEM_FEATURES, MOST_ITEM + 1, ignored={"111"})
        profiles = Profiles(USER_FEATURES, 4)
        try:
            blocks = list(read_sequence_blocks(path, matrix, profiles, most_item=MOST_ITEM, reader=reader, **options))
        except InputError as error:
            outcomes.append(str(error))
            continue
        block = sequences.joined(blocks) if blocks else None
        outcomes.append((block, matrix.values, matrix.recorded, +matrix.odd, +profiles.odd))
    return outcomes


def assert_same(plain, compiled):
    if isinstance(plain, str) or isinstance(compiled, str):
        assert plain == compiled
        return
    for name in plain[0]._fields:
        a, b = getattr(plain[0], name), getattr(compiled[0], name)
        assert a.dtype == b.dtype and np.array_equal(a, b), name
    assert np.array_equal(plain[1], compiled[1]) and np.array_equal(plain[2], compiled[2])
    assert plain[3] == compiled[3] and plain[4] == compiled[4]


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_the_usual_form_are_read_alike(tmp_path, separators, end, monkeypatch):
    monkeypatch.setattr(sequences, "CHUNK", 4096)  # many chunks, so that lines cross their borders
    rng = random.Random(0)
    lines = [json.dumps(plain_line(rng, f"user_{i}" if i % 3 == 0 else i + 1), separators=separators)
             for i in range(300)]
    path = tmp_path / "seq.jsonl"
    path.write_bytes((end.join(lines)).encode())
    plain, compiled = both(path, threads=2)
    assert_same(plain, compiled)
    assert len(plain[0].profile_place) == 300 and len(plain[0].item) > 1000 and plain[3] and plain[4]


def test_the_scanner_takes_the_usual_lines_itself(tmp_path):
    """Else the fast way would be the plain one under another name."""
    rng = random.Random(1)
    text = "".join(json.dumps(plain_line(rng, i + 1)) + "\n" for i in range(50)).encode()
    columns = sequences.feature_columns([(f.id, f.size) for f in ITEM_FEATURES], frozenset({"111"}))
    from onepiece_comp.logs.json_kernels import TokenColumns
    users = TokenColumns(sequences.feature_columns([(f.id, f.size) for f in USER_FEATURES]), np.array([0, 90]), 4)
    buffer = np.frombuffer(text + bytes(16), np.uint8)
    chunk = sequences._scan(0, buffer, len(text), MOST_ITEM, columns, users)
    assert [type(piece).__name__ for piece in chunk.pieces] == ["_Scanned"]


def test_lines_of_an_unusual_form_are_left_to_the_plain_parser_between_the_others(tmp_path):
    rng = random.Random(2)
    lines = []
    for odd in ODD_LINES:
        lines += [odd, json.dumps(plain_line(rng, 7))]
    path = tmp_path / "seq.jsonl"
    path.write_text("\n".join(lines) + "\n")
    plain, compiled = both(path)
    assert not isinstance(plain, str), plain
    assert_same(plain, compiled)


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_is_refused_alike_with_its_number(tmp_path, bad):
    rng = random.Random(3)
    path = tmp_path / "seq.jsonl"
    path.write_text("\n".join([json.dumps(plain_line(rng, 1)), "", bad, json.dumps(plain_line(rng, 2))]))
    plain, compiled = both(path)
    assert isinstance(plain, str) and "seq.jsonl:3" in plain
    assert plain == compiled


@pytest.mark.parametrize("stated, line", [([0], 2), ([0, 7, 9], 2), ("whole", None), ([5], 1)])
def test_offsets_must_be_the_starts_of_the_lines(tmp_path, stated, line):
    texts = [json.dumps(plain_line(random.Random(i), i)) + "\n" for i in range(3)]
    (tmp_path / "seq.jsonl").write_text("".join(texts))
    starts = [0, len(texts[0]), len(texts[0]) + len(texts[1])]
    save_pickle(tmp_path / "offsets.pkl", starts if stated == "whole" else stated)
    plain, compiled = both(tmp_path / "seq.jsonl", offsets=tmp_path / "offsets.pkl")
    assert_same(plain, compiled)
    assert isinstance(plain, str) == (line is not None) and (line is None or f"line {line}" in plain)


@pytest.mark.parametrize("tail", ["", ', "9": {"100": "a"}, "10": {"121": 3}', ', "11": {"100": [2]}'])
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_the_dictionary_of_item_features_is_read_alike(tmp_path, tail, chunk, monkeypatch):
    monkeypatch.setattr(sequences, "CHUNK", chunk)
    rng = random.Random(4)
    body = ", ".join(f'"{row}": {{"100": {rng.randrange(0, 9)}, "117": {row % 60}, "111": 4, "998": 1}}'
                     for row in range(20, 60))
    path = tmp_path / "item_feat_dict.json"
    path.write_text("{" + body + tail + "}")
    found = []
    for reader in ("plain", "compiled"):
        matrix = ItemFeatures(ITEM_FEATURES, MOST_ITEM + 1, ignored={"111"})
        done = list(fill_item_features(path, matrix, most_item=MOST_ITEM, reader=reader))
        found.append((matrix.values, matrix.recorded, +matrix.odd, done[-1]))
    assert np.array_equal(found[0][0], found[1][0]) and np.array_equal(found[0][1], found[1][1])
    assert found[0][2:] == found[1][2:] and found[0][1].sum() == 40 + tail.count('": {')


def test_an_unknown_item_in_the_dictionary_is_named_by_both(tmp_path):
    path = tmp_path / "item_feat_dict.json"
    path.write_text('{"1": {"100": 1}, "400": {"100": 1}, "2": {}}')
    for reader in ("plain", "compiled"):
        with pytest.raises(InputError, match="key 400"):
            list(fill_item_features(path, ItemFeatures(ITEM_FEATURES, MOST_ITEM + 1), most_item=MOST_ITEM,
                                    reader=reader))


def _number_or_refused(text: bytes) -> tuple[int, int]:
    """(value, length) of the whole number at the start of `text`; (0, -1) where there is none, or one too long."""
    digits = re.match(rb"[0-9]*", text)[0]
    if not digits or len(digits) > 17 or (len(digits) > 1 and digits.startswith(b"0")):
        return 0, -1
    return int(digits), len(digits)


def test_numbers_of_every_length_and_what_stands_behind_them():
    import numba

    from onepiece_comp.logs.json_kernels import whole_number

    read = numba.njit(lambda buffer, at: whole_number(buffer, at))
    draw = random.Random(0)
    for length in range(19):
        for behind in (b"", b",", b" ", b"}", b'"', b"/", b":", b"\xb5", b"\xff", b".5", b"e3"):
            for lead in "19830":
                text = (lead + "".join(draw.choices("0123456789", k=length)))[:length].encode() + behind
                buffer = np.frombuffer(b"@" + text + bytes(16), np.uint8)
                value, at = read(buffer, 1)
                assert (value, at - 1 if at >= 0 else -1) == _number_or_refused(text), text


@pytest.mark.parametrize("key", [
    '"112": ', '"112":', '"112":  ', '"112" : ', '"7": ', '"12": ', '"4096": ', '"012": ', '"1:2": ', '"11;": ',
    '"1/2": ', '"11a": ', "'112': ", '"112", ', '"": ', '"112: ', '"-12": ', '"999": ', '"100": '])
def test_keys_of_every_form(key):
    import numba

    from onepiece_comp.logs.json_kernels import feature_id

    told = re.fullmatch(r'"([1-9][0-9]*|0)" *: *', key)
    read = numba.njit(lambda buffer, at: feature_id(buffer, at))
    number, at = read(np.frombuffer(b"@" + key.encode() + b"5" + bytes(16), np.uint8), 1)
    assert (at == 1 + len(key) and number == int(told[1])) if told else at == -1
