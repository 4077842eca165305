"""The organisers' files: what is read, what is refused, and that writing is the inverse of reading."""

import json
import os
import pickle
import random

import numpy as np
import pytest

from onepiece_comp.errors import InputError
from onepiece_comp.logs import formats
from onepiece_comp.logs.embeddings import find_embeddings, read_embedding, write_embedding
from onepiece_comp.logs.formats import Candidate, Event, Index, UserLine, parse_user_line
from onepiece_comp.logs.pickles import load_pickle
from onepiece_comp.logs.raw_folder import OriginalIds, to_predict

GOOD = [[7, 3, None, {"100": 2}, 0, 50], [7, None, {"103": 1, "106": [1, 2]}, None, None, 60],
        [7, 4, None, {"100": 1}, None, 70]]


def _line(records):
    return json.dumps(records).encode()


def test_the_profile_record_may_stand_anywhere_and_null_actions_survive():
    line = parse_user_line(_line(GOOD), "x:1")
    assert line.profile == {"103": 1, "106": [1, 2]} and line.profile_place == 1 and line.profile_time == 60
    assert line.events == [Event(3, {"100": 2}, 0, 50), Event(4, {"100": 1}, None, 70)]


@pytest.mark.parametrize(("change", "words"), [
    (lambda r: r[0].pop(), "5 fields"),
    (lambda r: r[0].__setitem__(4, 9), "action 9"),
    (lambda r: r[0].__setitem__(5, "now"), "time 'now'"),
    (lambda r: r[0].__setitem__(1, -4), "item -4"),
    (lambda r: r[2].__setitem__(0, 8), "user 8"),
    (lambda r: r[0].__setitem__(3, [1]), "item features"),
    (lambda r: r.__setitem__(0, "text"), "no array"),
    (lambda r: r.clear(), "no records"),
])
def test_a_wrong_record_is_named_with_file_line_and_what_was_found(change, words):
    records = json.loads(json.dumps(GOOD))
    change(records)
    with pytest.raises(InputError, match="seq.jsonl:12: found") as caught:
        parse_user_line(_line(records), "seq.jsonl:12")
    assert words in str(caught.value)


def test_a_line_cut_short_at_any_byte_is_refused_or_whole():
    line = _line(GOOD)
    for length in range(len(line)):
        with pytest.raises(InputError):
            parse_user_line(line[:length], "seq.jsonl:1")


def test_flipped_bytes_never_escape_as_another_error(data_dir):
    line = open(data_dir / "tencentgr_1k_sample" / "seq.jsonl", "rb").readline()
    draw = random.Random(0)
    for _ in range(300):
        broken = bytearray(line)
        for _ in range(draw.randint(1, 4)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        try:
            parse_user_line(bytes(broken), "seq.jsonl:1")
        except InputError:
            pass


def test_writing_a_log_and_reading_it_gives_it_back(tmp_path):
    lines = [UserLine(1, {"103": 2}, 60, [Event(3, {"100": 2}, 0, 50), Event(4, {}, None, 70)]),
             UserLine(2, {}, None, [Event(1, {}, 1, 5)])]
    with formats.SequenceWriter(tmp_path) as writer:
        for line in lines:
            writer.write(line)
    back = list(formats.read_sequences(tmp_path / "seq.jsonl"))
    assert [line._replace(profile_place=None) for line in back] == lines and back[0].profile_place == 1
    formats.check_offsets(tmp_path / "seq.jsonl", tmp_path / "seq_offsets.pkl")


def test_offsets_that_do_not_match_are_refused_and_missing_ones_are_not(tmp_path):
    (tmp_path / "seq.jsonl").write_bytes(_line(GOOD) + b"\n" + _line(GOOD) + b"\n")
    formats.check_offsets(tmp_path / "seq.jsonl", tmp_path / "none.pkl")
    (tmp_path / "o.pkl").write_bytes(pickle.dumps([0, len(_line(GOOD))]))
    with pytest.raises(InputError, match="line 2"):
        formats.check_offsets(tmp_path / "seq.jsonl", tmp_path / "o.pkl")


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_item_features_stream_to_the_same_as_plain_json(tmp_path, count):
    value = {str(i): {"100": i % 7, "name": "x{}:," * (i % 3)} for i in range(1, count + 1)}
    (tmp_path / "f.json").write_text(json.dumps(value, indent=2 if count == 1 else None))
    assert {str(k): v for k, v in formats.read_item_features(tmp_path / "f.json")} == value
    if count == 5000:
        (tmp_path / "f.json").write_text(json.dumps(value)[:-40])
        with pytest.raises(InputError, match="cut short"):
            list(formats.read_item_features(tmp_path / "f.json"))


def test_unknown_ids_and_values_travel_as_the_organisers_write_them():
    index = Index({"user_1": 1}, {20_000_000_005: 1}, {"100": {7: 1}, "106": {3: 1}})
    line = UserLine("user_9", {"106": [3, 4]}, 9, [Event(20_000_000_005, {"100": 7}, 0, 1),
                                                   Event(20_000_000_099, {"100": 8}, 1, 2)])
    predict = to_predict(line, index)
    assert predict.user == "user_9" and predict.profile == {"106": [1, "4"]}
    assert predict.events == [Event(1, {"100": 1}, 0, 1), Event(20_000_000_099, {"100": "8"}, 1, 2)]
    assert OriginalIds(index).line(predict) == line


def test_the_real_sample_comes_through_original_ids_unchanged(data_dir):
    folder = data_dir / "tencentgr_1k_sample"
    index = formats.read_index(folder / "indexer.pkl")
    original = OriginalIds(index)
    for line in formats.read_sequences(folder / "seq.jsonl"):
        again = to_predict(original.line(line), index)
        assert again == line._replace(profile_place=None)


class _Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/onepiece-was-here",)


@pytest.mark.parametrize("value", [_Evil(), {"u": _Evil()}, [np.array([_Evil()], object)]])
def test_a_pickle_that_names_code_is_refused_and_not_run(tmp_path, value):
    (tmp_path / "indexer.pkl").write_bytes(pickle.dumps(value))
    marker = "/tmp/onepiece-was-here"
    if os.path.exists(marker):
        os.remove(marker)
    with pytest.raises(InputError, match="cannot be admitted|expected"):
        load_pickle(tmp_path / "indexer.pkl", dict)
    assert not os.path.exists(marker)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_containers_and_numeric_arrays_are_admitted_at_every_protocol(tmp_path, protocol):
    from collections import defaultdict
    features = defaultdict(dict)
    features["100"][1] = 2
    value = {"f": features, "e": {5: np.arange(3, dtype=np.float32)}, "n": np.float64(2.5), "l": [1, "x", None, (1, 2)]}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    back = load_pickle(tmp_path / "p.pkl", dict)
    assert back["f"] == value["f"] and back["n"] == 2.5 and back["l"] == value["l"]
    np.testing.assert_array_equal(back["e"][5], value["e"][5])


def test_a_pickle_cut_short_is_refused(tmp_path):
    whole = pickle.dumps({"u": {str(i): i for i in range(50)}})
    for length in range(0, len(whole) - 1, 7):
        (tmp_path / "p.pkl").write_bytes(whole[:length])
        with pytest.raises(InputError):
            load_pickle(tmp_path / "p.pkl", dict)


def test_embeddings_as_json_lines_and_as_pickle_agree(tmp_path):
    vectors = {10: np.array([1.0, 2.0]), 11: None, 12: np.array([3.0, 4.5])}
    write_embedding(tmp_path, "82", iter(vectors.items()), width=2, lines_per_part=2)
    (tmp_path / "creative_emb" / "emb_81_2.pkl").write_bytes(
        pickle.dumps({str(k): None if v is None else v.astype(np.float32) for k, v in vectors.items()}))
    sources = find_embeddings(tmp_path)
    assert list(sources) == ["81", "82"]
    for source in sources.values():
        back = dict(read_embedding(source))
        assert back[11] is None
        np.testing.assert_array_equal(back[12], np.array([3.0, 4.5], np.float32))


@pytest.mark.parametrize("line", ['{"anonymous_cid": "13"}', '{"anonymous_cid": 13, "emb": null}',
                                  '{"anonymous_cid": 13, "emb": []}'])
def test_an_embedding_record_may_lack_its_vector_and_have_its_id_as_text(tmp_path, line):
    folder = tmp_path / "creative_emb" / "emb_81_2"
    folder.mkdir(parents=True)
    (folder / "part-00000").write_text(line)
    assert list(read_embedding(find_embeddings(tmp_path)["81"])) == [(13, None)]


@pytest.mark.parametrize(("second", "words"), [
    ('{"anonymous_cid": 2, "emb": [1, 2, 3]}', "width 3"), ('{"anonymous_cid": 2, "emb": [1, NaN]}', "not finite"),
    ('{"anonymous_cid": 2, "emb": ["a", 1]}', "not numeric"), ('{"emb": [1, 2]}', "no embedding record"),
    ('{"anonymous_cid": 2, "em', "no embedding record")])
def test_an_embedding_that_does_not_fit_is_named_with_file_and_line(tmp_path, second, words):
    folder = tmp_path / "creative_emb" / "emb_81_2"
    folder.mkdir(parents=True)
    (folder / "part-00000").write_text('{"anonymous_cid": 1, "emb": [1, 2]}\n' + second)
    with pytest.raises(InputError, match="part-00000:2") as caught:
        list(read_embedding(find_embeddings(tmp_path)["81"]))
    assert words in str(caught.value)


@pytest.mark.parametrize("wrong", [5.9, 5.0, True, None, "five", "5.0", -0.5])
def test_a_candidate_whose_id_is_no_whole_number_is_refused_and_digits_as_text_are_one(tmp_path, wrong):
    path = tmp_path / "predict_set.jsonl"
    path.write_text('{"creative_id": "20000000001", "retrieval_id": "0", "features": {}}\n')
    assert list(formats.read_candidates(path)) == [Candidate(20_000_000_001, 0, {})]
    for name in ("creative_id", "retrieval_id"):
        path.write_text(json.dumps({"creative_id": 5, "retrieval_id": 0, name: wrong}) + "\n")
        with pytest.raises(InputError, match="predict_set.jsonl:1: .*no whole number"):
            list(formats.read_candidates(path))


def test_candidates_round_trip_and_a_broken_one_is_named(tmp_path):
    candidates = [Candidate(20_000_000_001, 0, {"100": 1, "121": "77"}), Candidate(20_000_000_002, 1, {})]
    formats.write_candidates(tmp_path / "predict_set.jsonl", iter(candidates))
    assert list(formats.read_candidates(tmp_path / "predict_set.jsonl")) == candidates
    with open(tmp_path / "predict_set.jsonl", "a") as file:
        file.write('{"creative_id": 5}\n')
    with pytest.raises(InputError, match="predict_set.jsonl:3"):
        list(formats.read_candidates(tmp_path / "predict_set.jsonl"))
