"""Preprocessing by the workers of a cluster gives the columns of the single process, byte for byte."""

import dataclasses
import json
import shutil
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest

from onepiece_comp.config import PreprocessConfig
from onepiece_comp.dataset.event_columns import COLUMNS, bound_odd, join_columns
from onepiece_comp.errors import InputError
from onepiece_comp.logs.features import OUTSIDE_VOCABULARY, Feature, ItemFeatures, Profiles
from onepiece_comp.logs.json_lines import line_spans
from onepiece_comp.logs.open_log import JsonLinesLog
from onepiece_comp.stages.preprocess import preprocess

CLUSTER = PreprocessConfig(engine="dask", engine_workers=2)
needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="dask[distributed] is not installed")


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_spans_cover_a_file_and_begin_with_lines(tmp_path, count):
    path = tmp_path / "seq.jsonl"
    lines = [b"x" * length + b"\n" for length in (3, 40, 1, 1, 200, 7, 9)] + [b"the end"]
    path.write_bytes(b"".join(lines))
    starts = {0, *np.cumsum([len(line) for line in lines]).tolist()}
    spans = line_spans(path, count)
    assert ([start for start, _ in spans] == [0] + [stop for _, stop in spans[:-1]]
            and spans[-1][1] == path.stat().st_size)
    assert {edge for span in spans for edge in span} <= starts and len(spans) <= count
    assert count == 1 or len(spans) > 1


def test_the_columns_of_parts_join_to_those_of_the_whole(tmp_path):
    whole = {"item_row": [5, 6, 7], "action": [0, 1, 3], "time_seconds": [1, 2, 3], "user_start": [0, 2, 2, 3],
             "user_token": [9, 9, 8, 8], "user_token_start": [0, 1, 3, 4]}
    first = {**whole, "item_row": [5, 6], "action": [0, 1], "time_seconds": [1, 2], "user_start": [0, 2, 2],
             "user_token": [9, 9, 8], "user_token_start": [0, 1, 3]}
    second = {"item_row": [7], "action": [3], "time_seconds": [3], "user_start": [0, 1], "user_token": [8],
              "user_token_start": [0, 1]}
    for name, columns in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        for column, values in columns.items():
            np.save(tmp_path / name / f"{column}.npy", np.array(values, COLUMNS[column]))
    join_columns([tmp_path / "a", tmp_path / "b"], tmp_path)
    for column, values in whole.items():
        joined = np.load(tmp_path / f"{column}.npy")
        assert joined.tolist() == values and joined.dtype == COLUMNS[column]


@needs_dask
@pytest.mark.parametrize("records", [True, False])
def test_two_workers_write_the_same_bytes_as_one_process(train_files, tmp_path, records):
    """Also where the items' features must be gathered from the events that the workers saw."""
    if not records:
        (train_files / "item_feat_dict.json").unlink()
    alone = preprocess(train_files, tmp_path / "alone", PreprocessConfig())
    shared = preprocess(train_files, tmp_path / "shared", CLUSTER)
    files = sorted(path.name for path in alone.glob("*.npy"))
    assert files == sorted(path.name for path in shared.glob("*.npy")) and len(files) > 8
    for name in files:
        assert (alone / name).read_bytes() == (shared / name).read_bytes(), name
    marks = [json.loads((folder / "schema.json").read_text()) for folder in (alone, shared)]
    assert marks[0]["corners"]["users"] == marks[1]["corners"]["users"]
    assert np.load(shared / "item_features.npy")[1:].any()


@pytest.mark.parametrize("config", [PreprocessConfig(reader="plain"), PreprocessConfig(reader="compiled"),
                                    pytest.param(CLUSTER, marks=needs_dask)], ids=["plain", "compiled", "cluster"])
@pytest.mark.parametrize("named", [False, True])
def test_a_user_that_stands_twice_is_refused_whoever_reads_the_log(train_files, tmp_path, config, named):
    """Each line alone is right; there are no offsets that could part from the file."""
    lines = [json.loads(line) for line in (train_files / "seq.jsonl").read_text().splitlines()]
    if named:
        lines = [[[f"us\u00e9r {record[0]}", *record[1:]] for record in line] for line in lines]
    again = lines[4][:1] + [record for record in lines[4][1:] if record[1] is not None][:1]
    (train_files / "seq.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, again]))
    (train_files / "seq_offsets.pkl").unlink(missing_ok=True)
    who = repr(lines[4][0][0])
    with pytest.raises(InputError, match=f"seq.jsonl: found user {who} twice, as numbers 5 and {len(lines) + 1} of "
                                         f"its users"):
        preprocess(train_files, tmp_path / "data", config)
    assert not (tmp_path / "data").exists()


@needs_dask
def test_a_bad_line_in_a_workers_part_is_named_by_its_number_in_the_file(train_files, tmp_path):
    lines = (train_files / "seq.jsonl").read_bytes().splitlines(keepends=True)
    lines[40] = b"[[1, 2, 3]]\n"
    (train_files / "seq.jsonl").write_bytes(b"".join(lines))
    (train_files / "seq_offsets.pkl").unlink()
    with pytest.raises(InputError, match="seq.jsonl:41"):
        preprocess(train_files, tmp_path / "out", CLUSTER)
    assert not list(tmp_path.glob("*out*"))


def test_an_engine_that_is_none_and_an_address_where_no_one_answers(train_files, tmp_path):
    for config in (PreprocessConfig(engine="sparkle"),
                   dataclasses.replace(CLUSTER, engine_address="tcp://127.0.0.1:9")):
        if config.engine == "dask" and find_spec("distributed") is None:
            continue
        with pytest.raises(InputError, match="preprocess.engine"):
            preprocess(train_files, tmp_path / "out", config)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize("what, corners, users, items", [
    ("users not in time order", {"users not in time order": 3}, 0, 0),
    ("events that repeat the one before", {"events that repeat the one before": 30}, 0, 0),
    ("user features: value outside the vocabulary", {}, 5, 0), ("item features: value outside the vocabulary", {}, 0,
                                                                8)])
def test_what_is_odd_but_harmless_is_bounded_by_its_share(tmp_path, what, corners, users, items):
    counts = Counter({"users": 10, "events": 100, **corners})
    matrix, profiles = ItemFeatures([Feature("100", 5, 0)], 21), Profiles([], 4)
    matrix.values[1:] = 1  # 20 values that are known
    profiles.odd[OUTSIDE_VOCABULARY], matrix.odd[OUTSIDE_VOCABULARY] = users, items
    log = JsonLinesLog(tmp_path)
    with pytest.raises(InputError, match=what):
        bound_odd(log, counts, matrix, profiles, 0.2)
    bound_odd(log, counts, matrix, profiles, 0.34)
