"""Numbers mean nothing without what they stand for: other items and values under equal numbers are refused
everywhere.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import CREATIVE
from small_models import train_config

from onepiece_comp.artefacts import write_json
from onepiece_comp.config import PreprocessConfig, SplitConfig, TokenizerConfig
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.dataset.preprocess import load_dataset
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import Index, read_index, write_index
from onepiece_comp.logs.identity import ITEMS, Names, Numbering, check_same, numberings, read_names
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.stages.preprocess import preprocess
from onepiece_comp.stages.split import split
from onepiece_comp.stages.train import train
from onepiece_comp.tokenizer.folder import load_tokenizer

NO_NAMES = Names({}, 0, {}, {}, {})


def name_items(folder: Path, letter: str, *, shift: int = 0) -> Path:
    """Give the items of a raw folder names, as a converter does: item n is `letter` and n less `shift`."""
    write_json(folder / "original_ids.json", {"items": {str(n): f"{letter}{n - shift}" for n in range(80)}})
    write_json(folder / "raw.json", {"item_id_offset": CREATIVE})
    return folder


@pytest.fixture(scope="module")
def logs(raw_log, tmp_path_factory):
    """Two logs alike in every number, of other items, split and in columns."""
    place = tmp_path_factory.mktemp("named")
    for letter in "ab":
        raw = name_items(Path(shutil.copytree(raw_log, place / f"{letter}-raw")), letter)
        split(raw, place / letter, SplitConfig(auto_cut=0.7))
        preprocess(place / letter / "train", place / f"{letter}-data", PreprocessConfig())
    return place


def one(values: dict, count: int, names: Names = NO_NAMES) -> Numbering:
    """The numbering of the first values of a feature 100."""
    return numberings(np.zeros(1, np.int64), Index({}, {}, {"100": values}), names, {"100": count})["100"]


def test_a_numbering_that_goes_on_is_the_same_and_a_shifted_one_is_not():
    known = one({50: 1, 60: 2, 70: 3}, 3)
    check_same("here", {"100": one({50: 1, 60: 2, 70: 3, 80: 4}, 3)}, {"100": known}, other="there", do="x")
    for values, message in (({50: 1, 55: 2, 60: 3, 70: 4}, "number 2 is '55', expected '60', as in there"),
                            ({50: 1, 60: 2}, "1 to 2, expected the numbers 1 to 3 of there"),
                            ({50: 1, 60: 2, 80: 3}, "number 3 is '80', expected '70'")):
        with pytest.raises(InputError, match=f"here: found values of feature 100.*{message}"):
            check_same("here", {"100": one(values, 3)}, {"100": known}, other="there", do="x")


def test_values_are_compared_by_their_texts_and_edges_where_a_log_has_them():
    """A category that sorts before all shifts the converter's own numbers alone: what they stand for is the same."""
    first = Names({}, 0, {"100": "genre"}, {"100": {"drama": 1, "war": 2}}, {})
    later = first._replace(values={"100": {"action": 1, "drama": 2, "war": 3}})
    assert one({2: 1, 1: 2}, 2, first) == one({3: 1, 2: 2, 1: 3}, 2, later) != one({2: 1, 1: 2}, 2, later)
    tenths = lambda edge: one({1: 1}, 1, Names({}, 0, {"100": "price"}, {}, {"100": [edge]}))
    assert tenths(2.5).examples == {"1": "price from 2.5 to -"} and tenths(2.5) != tenths(2.0)


def test_long_ids_that_begin_alike_are_told_apart():
    of = lambda end: numberings(np.array([0, 11]), Index({}, {}, {}), Names({"1": "https://shop.example/" * 9 + end},
                                                                            10, {}, {}, {}), {})
    assert of("a") != of("b") and of("a") == of("a") and len(of("a")[ITEMS].examples["1"]) < 80


def test_what_cannot_be_compared_is_said_in_one_line_and_not_refused(capsys):
    named = one({1: 1}, 1, Names({}, 0, {"100": "genre"}, {}, {}))
    for here, there in (({"100": named}, {"100": one({7: 1}, 1)}), ({}, {"100": named}), ({"100": named}, {})):
        check_same("here", here, there, other="there", do="x")
        told = capsys.readouterr().out
        assert told.count("\n") == 1 and "here" in told and "could not be checked" in told


def test_a_split_carries_the_texts_behind_its_ids_to_both_sides(logs):
    for side in ("train", "eval"):
        names = read_names(logs / "a" / side)
        assert names.items["7"] == "a7" and names.offset == CREATIVE
    items = load_dataset(logs / "a-data").schema.numberings[ITEMS]
    creative = int(np.load(logs / "a-data" / "creative_id.npy")[1])
    assert items.named and items.examples["1"] == f"a{creative - CREATIVE} (creative id {creative})"


def test_a_checkpoint_a_tokenizer_and_a_run_are_refused_on_a_log_of_equal_numbers_and_other_items(logs, tmp_path):
    data, other = logs / "a-data", logs / "b-data"
    run = train(data, tmp_path / "run", train_config("train.epochs=1"))
    ids = build_tokenizer(data, tmp_path / "ids", TokenizerConfig(codes=16), vectors="emb_81")
    schema = load_dataset(data).schema
    assert len(read_evaluation(logs / "a" / "eval", schema).users)
    refused = "found items: number 1 is '{}[0-9]+ .creative id [0-9]+.', expected '{}[0-9]+ "
    with pytest.raises(InputError, match="eval/indexer.pkl: " + refused.format("b", "a")):
        read_evaluation(logs / "b" / "eval", schema)
    for inputs, place in (({"tokenizer": ids}, "ids"), ({"warm": run}, "run")):
        with pytest.raises(InputError, match=f"{place}: " + refused.format("a", "b")):
            train(other, tmp_path / "no", train_config(), **inputs)
    with pytest.raises(InputError, match="run: found 'a[0-9]+' as the item of creative id [0-9]+, expected 'b"):
        build_tokenizer(other, tmp_path / "no", TokenizerConfig(codes=16), checkpoint=run)
    assert not list((tmp_path / "no").glob("*"))


def test_an_extended_tokenizer_knows_old_items_by_their_names_whatever_their_numbers_are(logs, raw_log, tmp_path):
    """The names move by three creative ids, as if three rows had come to the front of the log."""
    raw = name_items(Path(shutil.copytree(raw_log, tmp_path / "raw")), "a", shift=3)
    old = build_tokenizer(logs / "a-data", tmp_path / "old", TokenizerConfig(codes=16), vectors="emb_81")
    later = preprocess(raw, tmp_path / "later", PreprocessConfig())
    new = load_tokenizer(build_tokenizer(later, tmp_path / "new", TokenizerConfig(), vectors="emb_81", extend=old))
    before = load_tokenizer(old)
    code = dict(zip(before.original_id[1:].tolist(), before.codes[1:].tolist()))
    now = dict(zip(new.original_id[1:].tolist(), new.codes[1:].tolist()))
    both = code.keys() & now.keys()
    assert len(both) > 60 and b"a-3" in now.keys() - code.keys() and all(now[name] == code[name] for name in both)
    assert set(new.retired_id.tolist()) == code.keys() - now.keys()
    assert not (before.codes_of(new.creative_id[1:]) == new.codes[1:]).all()


def test_an_index_that_goes_on_where_training_ended_is_served_and_what_is_new_in_it_is_cold(parts, dataset, tmp_path):
    folder = Path(shutil.copytree(parts / "eval", tmp_path / "eval"))
    index = read_index(folder / "indexer.pkl")
    plain = read_evaluation(folder, dataset.schema).items
    cold = int(plain.creative_id[plain.id_row == 0][1])  # [0] is padding
    index.items[cold] = dataset.schema.items + 1
    index.features["100"][999] = len(index.features["100"]) + 1
    write_index(folder / "indexer.pkl", index)
    items = read_evaluation(folder, dataset.schema).items
    np.testing.assert_array_equal(items.id_row, plain.id_row)
    np.testing.assert_array_equal(items.creative_id, plain.creative_id)


def test_a_shifted_vocabulary_is_refused_with_a_value_of_each_side(parts, dataset, tmp_path):
    folder = Path(shutil.copytree(parts / "eval", tmp_path / "eval"))
    index = read_index(folder / "indexer.pkl")
    raw = {number: value for value, number in index.features["101"].items()}
    index.features["101"] = {1999: 1} | {value: number + 1 for number, value in raw.items()}
    write_index(folder / "indexer.pkl", index)
    with pytest.raises(InputError, match=f"values of feature 101: number 1 is '1999', expected '{raw[1]}', as in the "
                                         f"checkpoint"):
        read_evaluation(folder, dataset.schema)


def test_artefacts_of_an_earlier_version_are_read_and_the_lack_is_said(logs, tmp_path, capsys):
    data = Path(shutil.copytree(logs / "a-data", tmp_path / "data"))
    marker = json.loads((data / "schema.json").read_text())
    del marker["numberings"]
    (data / "item_name.npy").unlink()
    write_json(data / "schema.json", marker)
    read_evaluation(logs / "a" / "eval", load_dataset(data).schema)
    assert capsys.readouterr().out.count("could not be checked") == 1
    old = build_tokenizer(data, tmp_path / "old", TokenizerConfig(codes=16), vectors="emb_81")
    capsys.readouterr()
    load_tokenizer(old, marker["item_space"], load_dataset(logs / "a-data").schema.numberings)
    assert capsys.readouterr().out.count("could not be checked") == 1
    new = load_tokenizer(build_tokenizer(logs / "a-data", tmp_path / "new", TokenizerConfig(), vectors="emb_81",
                                         extend=old))
    assert "matched by creative id" in capsys.readouterr().out
    np.testing.assert_array_equal(new.codes, load_tokenizer(old).codes)


def test_tables_whose_features_are_cut_otherwise_are_not_copied(parts, dataset, tmp_path):
    """The joint vocabulary has as many rows with one value less of a feature and one more of another."""
    from onepiece_comp.logs.features import check_copied_tables, joint_vocabulary
    schema, sizes = dataset.schema, {f.id: f.size - 1 for f in dataset.schema.item_features}
    other = schema._replace(item_features=joint_vocabulary({**sizes, "100": sizes["100"] + 1,
                                                            "101": sizes["101"] - 1}.items()))
    check_copied_tables("run", schema, schema, with_ids=True)
    with pytest.raises(InputError, match="run: found features 100 of 5 values, 101 of 6 values, expected 100 of 4 "
                                         "values, 101 of 7"):
        check_copied_tables("run", other, schema, with_ids=True)
