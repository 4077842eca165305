"""Files from outside, spoiled in every way that comes to mind: each reader reads them or refuses them with InputError.

Bytes are flipped, cut, doubled and swapped in real lines (of the sample where it is at hand); structures are made up;
pickles are written by hand. Nothing may end in another exception, hang, run code or take memory for a lying length.
"""

import io
import json
import os
import pickle
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from onepiece_comp.artefacts import read_json
from onepiece_comp.columns import load_column
from onepiece_comp.converters.convert import ConvertOptions, detect_log
from onepiece_comp.converters.kuairand import ITEM_COLUMNS, USER_COLUMNS
from onepiece_comp.errors import InputError
from onepiece_comp.logs import json_lines as sequences
from onepiece_comp.logs.embeddings import find_embeddings, read_embedding
from onepiece_comp.logs.features import Feature, ItemFeatures, Profiles
from onepiece_comp.logs.formats import (
    parse_user_line, read_action_types, read_candidates, read_index, read_item_features, read_sequences)
from onepiece_comp.logs.json_lines import fill_item_features, read_sequence_blocks
from onepiece_comp.logs.pickles import load_pickle, save_pickle
from onepiece_comp.logs.truths import read_truth
from onepiece_comp.stages.convert import convert

# the deadline (ms) is against hangs: the first example also waits for the compiler
SETTINGS = settings(max_examples=60, deadline=60_000, derandomize=True, suppress_health_check=list(HealthCheck))
ITEM_FEATURES = [Feature(fid, 100_000, place * 100_000) for place, fid in enumerate(("100", "101", "117", "121"))]
USER_FEATURES = [Feature("103", 90, 0), Feature("106", 15, 90)]


@pytest.fixture(scope="session")
def lines(request, raw_log):
    """Some sequence lines: real ones where they are at hand, shortened to few records."""
    real = Path(os.environ.get("ONEPIECE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    path = real / "tencentgr_1k_sample" / "seq.jsonl"
    path = path if path.is_file() else raw_log / "seq.jsonl"
    texts = path.read_bytes().splitlines()[:6]
    return [json.dumps(json.loads(text)[-6:]).encode() for text in texts]


@st.composite
def spoiled(draw, text: bytes) -> bytes:
    """`text` after one to three accidents."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(text) - 1)))
        accident = draw(st.sampled_from(["flip", "cut", "drop", "double", "swap", "insert"]))
        other = draw(st.integers(0, max(0, len(text) - 1)))
        low, high = sorted((at, other))
        if accident == "flip":
            text = text[:at] + bytes([draw(st.integers(0, 255))]) + text[at + 1:]
        elif accident == "cut":
            text = text[:at]
        elif accident == "drop":
            text = text[:low] + text[high:]
        elif accident == "double":
            text = text[:high] + text[low:]
        elif accident == "swap":
            text = text[low:high] + text[:low] + text[high:]
        else:
            text = text[:at] + draw(st.sampled_from([
                b"null", b"[", b"]", b"{", b"}", b"1e999", b"-1", b"NaN", b'"', b"\n", b"\x00", b"\xff\xfe", b"9" * 40,
                b",",
                b'"\\ud800"', b"[[[[[[[[", b"true", b"0.5", b" "])) + text[at:]
    return text


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10 ** 20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=12)


def only_input_errors(read) -> object:
    """What `read` makes of its input, or the InputError by which it refuses it."""
    try:
        return read()
    except InputError as error:
        assert error.found and error.expected and error.do
        return error


def outcomes(path) -> list:
    """The two readers' answers about a sequence file, in comparable form."""
    found = []
    for reader in ("plain", "compiled") if sequences.compiler_present() else ("plain",):
        matrix, profiles = ItemFeatures(ITEM_FEATURES, 60_000, ignored={"111"}), Profiles(USER_FEATURES, 4)
        answer = only_input_errors(lambda: sequences.joined(list(
            read_sequence_blocks(path, matrix, profiles, most_item=59_999, reader=reader)) or [None]))
        found.append(str(answer) if isinstance(answer, InputError) or answer is None else
                     [column.tolist() for column in answer] + [matrix.values.sum(), dict(+matrix.odd),
                                                               dict(+profiles.odd)])
    return found


@SETTINGS
@given(data=st.data())
def test_spoiled_lines_are_read_alike_by_both_readers_or_refused_alike(data, lines, tmp_path_factory):
    text = b"\n".join(lines[:2]) + b"\n" + data.draw(spoiled(data.draw(st.sampled_from(lines)))) + b"\n" + lines[3]
    path = tmp_path_factory.mktemp("fuzz") / "seq.jsonl"
    path.write_bytes(text)
    found = outcomes(path)
    assert found[0] == found[-1]
    only_input_errors(lambda: list(read_sequences(path)))


@SETTINGS
@given(value=anything)
def test_any_json_value_is_a_line_or_refused(value):
    only_input_errors(lambda: parse_user_line(json.dumps(value), "seq.jsonl:1"))


@SETTINGS
@given(records=st.lists(st.tuples(*[anything] * 6).map(list), min_size=1, max_size=3))
def test_records_of_six_anythings_are_a_line_or_refused(records):
    only_input_errors(lambda: parse_user_line(json.dumps(records), "seq.jsonl:1"))


@SETTINGS
@given(data=st.data())
def test_a_spoiled_dictionary_of_items_is_read_alike_or_refused(data, tmp_path_factory):
    whole = json.dumps({str(row): {"100": row % 7, "111": row, "121": 3 * row} for row in range(1, 12)}).encode()
    path = tmp_path_factory.mktemp("fuzz") / "item_feat_dict.json"
    path.write_bytes(data.draw(spoiled(whole)))
    only_input_errors(lambda: list(read_item_features(path)))
    found = []
    for reader in ("plain", "compiled") if sequences.compiler_present() else ("plain",):
        matrix = ItemFeatures(ITEM_FEATURES, 60, ignored={"111"})
        answer = only_input_errors(lambda: list(fill_item_features(path, matrix, most_item=59, reader=reader))[-1:])
        found.append(str(answer) if isinstance(answer, InputError) else (matrix.values.tolist(),
                                                                         matrix.recorded.tolist()))
    assert found[0] == found[-1]


@pytest.mark.parametrize("name, read, text", [
    ("predict_set.jsonl", lambda path: list(read_candidates(path)),
     b'{"creative_id": 20000000001, "retrieval_id": 0, "features": {"100": 3, "121": "900"}}\n' * 3),
    ("truth.jsonl", read_truth, b'{"user": "user_1", "item": 20000000001, "action": 1, "time": 1748000000}\n'),
    ("user_action_type.json", lambda path: read_action_types(path.parent), b'{"user_1": 1, "user_2": 2}'),
    ("result.json", read_json, b'{"top10s": [[1, 2, 3]], "user": ["user_1"], "time": 1.5}'),
])
@SETTINGS
@given(data=st.data())
def test_the_other_json_files(data, name, read, text, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(data.draw(spoiled(text)))
    only_input_errors(lambda: read(path))


@SETTINGS
@given(data=st.data())
def test_embedding_lines(data, tmp_path_factory):
    data_folder = tmp_path_factory.mktemp("fuzz")
    folder = data_folder / "creative_emb" / "emb_81_4"
    folder.mkdir(parents=True)
    text = b'{"anonymous_cid": "20000000001", "emb": [0.25, -1.5e-3, 3, 0.0]}\n{"anonymous_cid": 7}\n' * 2
    (folder / "part-00000").write_bytes(data.draw(spoiled(text)))
    only_input_errors(lambda: list(read_embedding(find_embeddings(data_folder)["81"])))


@SETTINGS
@given(data=st.data(), protocol=st.integers(0, 5))
def test_spoiled_pickles(data, protocol, tmp_path_factory):
    whole = {"u": {"user_1": 1}, "i": {20_000_000_001: 1, 20_000_000_002: 2}, "f": {"100": {1000000001: 1}},
             "a": {1: 1}}
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "indexer.pkl").write_bytes(data.draw(spoiled(pickle.dumps(whole, protocol))))
    only_input_errors(lambda: read_index(folder / "indexer.pkl"))
    vectors = {20_000_000_001: np.arange(4, dtype=np.float32), 20_000_000_002: np.ones(4)}
    (folder / "creative_emb").mkdir()
    (folder / "creative_emb" / "emb_81_4.pkl").write_bytes(data.draw(spoiled(pickle.dumps(vectors, protocol))))
    only_input_errors(lambda: list(read_embedding(find_embeddings(folder)["81"])))


@SETTINGS
@given(data=st.data())
def test_spoiled_columns(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    np.save(folder / "whole.npy", np.arange(20, dtype=np.int64))
    (folder / "item_row.npy").write_bytes(data.draw(spoiled((folder / "whole.npy").read_bytes())))
    only_input_errors(lambda: np.array(load_column(folder, "item_row")))


def _parquet(**columns: list) -> bytes:
    file = io.BytesIO()
    pd.DataFrame(columns).to_parquet(file)
    return file.getvalue()


LOGS = {  # of each kind of log that can be converted: its files
    "kuairand": {
        "splits_val.parquet": _parquet(user_id=[0, 5], video_id=[3, 0], time_ms=[1_650_000_000_000] * 2,
                                       is_click=[1, 0],
                                       is_like=[0, 0], is_follow=[0, 0], is_comment=[0, 0], is_forward=[0, 1]),
        "user_features_pure.csv": (",".join(["user_id", *USER_COLUMNS]) + "\n5" + ",1" * len(USER_COLUMNS)
                                   + "\n").encode(),
        "video_features_basic_pure.csv": (",".join(["video_id", *ITEM_COLUMNS]) + "\n3,"
                                          + '77,NORMAL,2022-04-10,Web,9,9.0,"39,68",2e4,720.0,1280.0\n').encode()},
    "recbole": {
        "toy.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
                     b"u\tB\t3.5\t1650000005\nv\tA\t4\t1650000009\n",
        "toy.item": b"item_id:token\ttags:token_seq\tprice:float\nA\tx y\t3.5\nB\t\t1\n",
        "toy.user": b"user_id:token\tage:token\nu\t7\n"},
    "movielens": {
        "ratings.dat": b"1::9::5::978300760\n2::1::3::978300761\n1::1::4::978300762\n",
        "users.dat": b"1::F::1::10::48067\n2::M::56::16::70072\n",
        "movies.dat": "1::Toy Story (1995)::Animation|Comedy\n9::Mis\u00e9rables (2000)::Comedy\n".encode("latin-1")},
    "amazon": {
        "reviews_Beauty_5.json": b'{"reviewerID": "A1", "asin": "B0", "overall": 5.0, "unixReviewTime": 1400000000}\n'
        * 2,
        "meta_Beauty.json": b"{'asin': 'B0', 'price': 9.5, 'brand': 'Dove', 'categories': [['Beauty', 'Hair']]}\n"},
    "sequences": {
        "Beauty.txt": b"1 5 6 7\n2 6\n", "Beauty_item2attributes.json": b'{"5": [3, 1], "6": []}',
        "datamaps.json": b'{"id2item": {"5": "a", "6": "b", "7": "c"}, "id2user": {"1": "x", "2": "y"}}'},
    "table": {"log.csv": b'note,item_id,ts,user_id\n"a, b",007,1650000001,1\n,7,1650000002,1\n,8,1650000003,2\n'},
    "parquet": {"log.parquet": _parquet(user_id=["a", "b"], item_id=[1, 2], ts=[1_650_000_000.5, 1_650_000_001.0])},
}


def converted(kind: str, source: Path, out: Path) -> Path:
    """`LOGS[kind]` in `source` as a raw folder."""
    if kind not in ("table", "parquet"):
        return convert(kind, source, out)
    return convert("table", source / next(iter(LOGS[kind])), out, ConvertOptions(user="user_id", item="item_id",
        time="ts"))


@pytest.mark.parametrize("kind", LOGS)
@settings(SETTINGS, max_examples=40)
@given(data=st.data())
def test_spoiled_logs_of_other_forms_are_converted_or_refused_with_nothing_left(kind, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name, text in LOGS[kind].items():
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / name).write_bytes(text)
    spoil = folder / "in" / data.draw(st.sampled_from(sorted(LOGS[kind])))
    spoil.write_bytes(data.draw(spoiled(spoil.read_bytes())))
    answer = only_input_errors(lambda: converted(kind, folder / "in", folder / "raw"))
    only_input_errors(lambda: detect_log(folder / "in"))
    if isinstance(answer, InputError):
        assert sorted(path.name for path in folder.iterdir()) == ["in"]
    else:
        assert list(read_sequences(folder / "raw" / "seq.jsonl")) and read_index(folder / "raw" / "indexer.pkl").items


@pytest.mark.parametrize("kind", LOGS)
def test_the_same_logs_unspoiled_are_converted(kind, tmp_path):
    """Else the test above would pass with converters that refuse everything."""
    for name, text in LOGS[kind].items():
        (tmp_path / name).write_bytes(text)
    converted(kind, tmp_path, tmp_path / "raw")
    assert len(list(read_sequences(tmp_path / "raw" / "seq.jsonl"))) == (1 if kind == "amazon" else 2)


class _Command:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


def _stacked(depth: int) -> bytes:
    """Lists in lists, ten times the one below in each: 10 ** depth numbers in a few bytes."""
    text = pickle.PROTO + b"\x02" + b"]K\x01a" + b"q\x00"
    for level in range(depth):
        text += b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"e" + b"q" + bytes([level
            + 1]) + b"0" * 0
    return text + b"."


def _nested_tuples(depth: int) -> bytes:
    """A tuple of twice the tuple below, 2 ** depth of them to hash, in a few bytes."""
    text = b"K\x01q\x00"
    for level in range(depth):
        text += b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return text


_SEVEN_DEEP = _stacked(7)[2:-1]
HOSTILE = {
    "a text of lists in lists": lambda place: b"\x80\x02cbuiltins\nstr\n" + _SEVEN_DEEP + b"\x85R.",
    "a nested tuple as a key": lambda place: b"\x80\x02}" + _nested_tuples(40) + b"K\x02s.",
    "a nested tuple among keys": lambda place: b"\x80\x02}(K\x01K\x01" + _nested_tuples(40) + b"K\x02u.",
    "a nested tuple as a key of a dict made at once": lambda place: b"\x80\x02(" + _nested_tuples(40) + b"K\x02d.",
    "a nested tuple in pairs of an OrderedDict": lambda place: (
        b"\x80\x02ccollections\nOrderedDict\n]]" + _nested_tuples(40) + b"aK\x02aa\x85R."),
    "a nested tuple in a set": lambda place: b"\x80\x04\x8f(" + _nested_tuples(40) + b"\x90.",
    "a frozen set of a nested tuple": lambda place: b"\x80\x04(" + _nested_tuples(40) + b"\x91.",
    "a set by its name": lambda place: b"\x80\x02cbuiltins\nset\n](" + _nested_tuples(40) + b"e\x85R.",
    "a list of lists by its name": lambda place: b"\x80\x02cbuiltins\nlist\n]\x85R.",
    "the same bytes made a hundred thousand times": lambda place: (
        b"\x80\x02]c_codecs\nencode\nq\x00(X\x00\x00\x10\x00" + b"x" * (1 << 20) + b"X\x06\x00\x00\x00latin1tq\x01Ra"
        + b"h\x00h\x01Ra" * 100_000 + b"."),
    "an array of Python objects": lambda place: pickle.dumps(np.array([[1], "a"], object), 2),
    "a call of os.system": lambda place: pickle.dumps([_Command(place)]),
    "a call by another name": lambda place: b"cposix\nsystem\n(S'touch " + str(place).encode() + b"'\ntR.",
    "eval": lambda place: b"cbuiltins\neval\n(S'__import__(\"os\").system(\"touch " + str(place).encode()
    + b"\")'\ntR.",
    "a class under a module that is admitted": lambda place: b"cnumpy\nload\n(S'x'\ntR.",
    "a name with dots": lambda place: b"\x80\x04\x8c\x05numpy\x8c\x0fcompat.os.system\x93.",
    "lists ten times in each other": lambda place: _stacked(12),
    "a memo that refers to what is not there": lambda place: b"\x80\x02]h\x63.",
    "a list that holds itself": lambda place: b"\x80\x02]q\x00h\x00a.",
    "a text of 2 ** 60 bytes": lambda place: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"abc.",
    "a number of 2 ** 31 bytes": lambda place: b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"\x01.",
    "a frame that promises too much": lambda place: b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"].",
    "a memo index of 2 ** 32": lambda place: b"\x80\x02]r\xff\xff\xff\xff.",
    "a hundred thousand marks": lambda place: b"\x80\x02" + b"(" * 100_000 + b".",
    "lists a hundred thousand deep": lambda place: b"\x80\x02" + b"](" * 100_000 + b"e" * 100_000 + b".",
    "an array that promises 2 ** 40 numbers": lambda place: (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(\x8a\x06\x00\x00\x00\x00\x00\x01t"
        b"U\x01btR."),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pickles_are_refused_without_running_or_growing(what, tmp_path):
    path, place = tmp_path / "indexer.pkl", tmp_path / "touched"
    path.write_bytes(HOSTILE[what](place))
    (tmp_path / "creative_emb").mkdir()
    (tmp_path / "creative_emb" / "emb_81_4.pkl").write_bytes(HOSTILE[what](place))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for read in (lambda: read_index(path), lambda: load_pickle(path, dict),
                 lambda: list(read_embedding(find_embeddings(tmp_path)["81"]))):
        assert isinstance(only_input_errors(read), InputError)
    (tmp_path / "seq.jsonl").write_text('[[1, 1, null, {}, 0, 5]]\n')
    matrix, profiles = ItemFeatures(ITEM_FEATURES, 9), Profiles(USER_FEATURES, 4)
    answer = only_input_errors(lambda: list(read_sequence_blocks(
        tmp_path / "seq.jsonl", matrix, profiles, most_item=8, offsets=path)))
    assert isinstance(answer, InputError)
    assert not place.exists()
    # KiB, s
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000 and time.monotonic() - started < 5


def test_a_plain_pickle_is_admitted(tmp_path):
    """Else the tests above would pass with a reader that refuses everything."""
    save_pickle(tmp_path / "offsets.pkl", [0, 5])
    assert load_pickle(tmp_path / "offsets.pkl", list) == [0, 5]


def test_a_file_without_line_ends_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    from onepiece_comp.logs import formats
    monkeypatch.setattr(formats, "LONGEST_LINE", 1000)
    monkeypatch.setattr(sequences, "LONGEST_LINE", 1000)
    monkeypatch.setattr(sequences, "CHUNK", 400)
    (tmp_path / "seq.jsonl").write_bytes(b"[" * 5000)
    found = outcomes(tmp_path / "seq.jsonl")
    assert "more than" in found[0] and "seq.jsonl:1" in found[0] and "seq.jsonl:1" in found[-1]
