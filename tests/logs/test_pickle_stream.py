"""A pickled dict handed out entry by entry: as strict as the plain reader, in the memory of a stretch of the file."""

import collections
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from embedding_forms import FIRST_ID, as_pickle, item_vectors

from onepiece_comp.errors import InputError
from onepiece_comp.logs.pickle_stream import stream_dict


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", [int, str, np.int64])
def test_a_pickle_streams_to_its_own_entries_at_every_protocol(tmp_path, protocol, key):
    vectors = item_vectors(2500)
    path = as_pickle(tmp_path, vectors, protocol=protocol, key=key).path
    streamed = list(stream_dict(path))
    assert [int(k) for k, _ in streamed] == list(vectors)
    assert all((a is None) == (b is None) and (a is None or a.tobytes() == b.tobytes())
               for (_, a), b in zip(streamed, vectors.values()))


def test_a_pickle_of_numpy_1_streams_too(tmp_path):
    path = as_pickle(tmp_path, item_vectors(), protocol=2).path
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(new, old) if new in whole else whole.replace(old, new))
    assert path.read_bytes() != whole and len(list(stream_dict(path))) == 40


def test_containers_within_entries_stay_whole_and_other_dict_types_stream(tmp_path):
    nested = {i: {"a": {i: [1, (2, {"b": 3})]}} for i in range(5)}
    for value in (nested, collections.OrderedDict(nested), {7: {"a": 1}}, {7: [{"a": 1}, {"b": 2, "c": 3}]}, {}):
        (tmp_path / "p.pkl").write_bytes(pickle.dumps(value))
        assert dict(stream_dict(tmp_path / "p.pkl")) == value
    (tmp_path / "p.pkl").write_bytes(b"(K\x01K\x02d.")  # the opcode that makes a dict at once
    assert list(stream_dict(tmp_path / "p.pkl")) == [(1, 2)]


@pytest.mark.parametrize(("value", "words"), [
    ({1: [np.zeros(2), os.system]}, "system"), ([1, 2], "a pickled list"), ({1: {2: os.system}}, "system")])
def test_streaming_refuses_what_a_plain_pickle_may_not_name(tmp_path, value, words):
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match="cannot be admitted") as caught:
        list(stream_dict(tmp_path / "p.pkl"))
    assert words in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_cut_short_anywhere_is_refused(tmp_path, protocol):
    path = as_pickle(tmp_path, item_vectors(6), protocol=protocol).path
    whole = path.read_bytes()
    for length in range(0, len(whole), 2):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cannot be admitted"):
            list(stream_dict(path))


@pytest.mark.parametrize("body", [
    b"}B" + struct.pack("<I", 1 << 31),  # bytes of a length beyond the file
    b"\x95" + struct.pack("<Q", 1 << 40),  # a frame of a length beyond the file
    b"}h\x05K\x01s.",  # an entry of the memo that was never stored
    b"}(K\x01K\x02K\x03u.",  # a key without a value
    b"}K\x01K\x02s0}.",  # entries given to a dict that is thrown away
])
def test_lengths_and_memo_that_lie_are_refused_at_once(tmp_path, body):
    (tmp_path / "p.pkl").write_bytes(b"\x80\x04" + body)
    with pytest.raises(InputError, match="cannot be admitted"):
        list(stream_dict(tmp_path / "p.pkl"))


def test_streaming_a_pickle_keeps_a_stretch_of_it_in_memory_and_not_the_dict(tmp_path, monkeypatch):
    monkeypatch.setattr("onepiece_comp.logs.pickle_stream._MEMO_ENTRIES", 200)
    source = as_pickle(tmp_path, {FIRST_ID + i: np.full(500, i, np.float32) for i in range(3000)})
    tracemalloc.start()
    try:
        assert [vector[0] for _, vector in stream_dict(source.path)] == list(range(3000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.6 * source.path.stat().st_size  # a batch of 1,000 entries leaves at once


def test_a_value_used_again_is_known_for_good_and_one_of_long_ago_is_refused(tmp_path, monkeypatch):
    zero, one = np.zeros(3), np.ones(3)
    near = {i: zero if i % 7 == 0 else np.full(3, i) for i in range(4000)}
    (tmp_path / "near.pkl").write_bytes(pickle.dumps(near))
    (tmp_path / "far.pkl").write_bytes(pickle.dumps({0: one, **{i: np.full(3, i) for i in range(1, 4000)}, 4000: one}))
    monkeypatch.setattr("onepiece_comp.logs.pickle_stream._MEMO_ENTRIES", 300)
    assert all((vector == (zero if key % 7 == 0 else key)).all() for key, vector in stream_dict(tmp_path / "near.pkl"))
    with pytest.raises(InputError, match="long ago"):
        list(stream_dict(tmp_path / "far.pkl"))
