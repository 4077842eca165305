"""The neighbour search's files: bytes by hand, round trips in blocks, cut and odd files, and the tool's two faults."""

import struct

import numpy as np
import pytest

from onepiece_comp.container import ann_files
from onepiece_comp.container.ann_files import (
    check_search_files, read_answers, read_ids, read_vectors, write_ids, write_vectors)
from onepiece_comp.errors import InputError


def test_the_bytes_of_vectors_and_ids(tmp_path):
    write_vectors(tmp_path / "v.fbin", [np.array([[1.0, -2.0]]), np.array([[0.5, 3.0], [4.0, 0.0]])])
    assert (tmp_path / "v.fbin").read_bytes() == struct.pack("<II6f", 3, 2, 1, -2, 0.5, 3, 4, 0)
    write_ids(tmp_path / "i.u64bin", [np.array([0, 1]), np.array([1 << 40])])
    assert (tmp_path / "i.u64bin").read_bytes() == struct.pack("<IIQQQ", 3, 1, 0, 1, 1 << 40)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_what_is_written_in_blocks_of_any_size_is_read_again(tmp_path, size):
    vectors = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    blocks = lambda values: (values[start:start + size] for start in range(0, 50, size))
    assert write_vectors(tmp_path / "v.fbin", blocks(vectors)) == 50
    assert write_ids(tmp_path / "i.u64bin", blocks(np.arange(50))) == 50
    np.testing.assert_array_equal(read_vectors(tmp_path / "v.fbin"), vectors)
    np.testing.assert_array_equal(read_ids(tmp_path / "i.u64bin"), np.arange(50))


@pytest.mark.parametrize("change, found", [
    (lambda data: data[:-1], "47 bytes"), (lambda data: data + b"\0", "49 bytes"), (lambda data: data[:5], "5 bytes"),
    (lambda data: b"", "0 bytes"), (lambda data: struct.pack("<II", 0, 4), "8 bytes"),
    (lambda data: struct.pack("<II", 6, 2) + data[8:], "48 bytes"),
    (lambda data: struct.pack("<II", 10, 1) + data[8:], "vectors of width 1"),
])
def test_a_file_whose_size_and_header_disagree_is_refused(tmp_path, change, found):
    path = tmp_path / "v.fbin"
    write_vectors(path, [np.ones((5, 2))])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError) as told:
        read_vectors(path)
    assert found in str(told.value) and "v.fbin" in str(told.value)


def test_ids_are_no_vectors_nor_answers_and_a_missing_file_is_named(tmp_path):
    write_ids(tmp_path / "i", [np.arange(6)])
    (tmp_path / "answers").write_bytes(struct.pack("<Ii4q", 2, 2, 0, 1, 2, 3))
    with pytest.raises(InputError, match="2 ids a row"):
        read_ids(tmp_path / "answers")
    with pytest.raises(InputError, match="bytes"):
        read_vectors(tmp_path / "i")
    with pytest.raises(InputError, match="no such file"):
        read_vectors(tmp_path / "none")


def test_answers_that_are_no_candidates_count_as_none(tmp_path):
    """A place without a neighbour may hold anything: -1, or what lies before the tool's ids."""
    (tmp_path / "id100.u64bin").write_bytes(struct.pack("<Ii6q", 2, 3, 4, 0, -1, 5, 1 << 40, 3))
    found = read_answers(tmp_path / "id100.u64bin", candidates=5)
    assert found.dtype == np.int64 and found.tolist() == [[4, 0, -1], [-1, -1, 3]]


def test_what_the_tool_would_count_wrongly_is_not_written(tmp_path, monkeypatch):
    """Its product of count and width has 32 bits."""
    monkeypatch.setattr(ann_files, "_LIMIT", 40)
    write_vectors(tmp_path / "v", [np.ones((13, 3))])
    with pytest.raises(InputError, match="32 bits"):
        write_vectors(tmp_path / "w", [np.ones((13, 3)), np.ones((1, 3))])
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


@pytest.mark.parametrize("blocks, found", [
    ([], "no rows"), ([np.ones((3, 1))], "width 1"),
    ([np.ones((4, 2)), np.array([[1, 2], [3, np.nan]])], "not finite in row 5"),
])
def test_odd_vectors_are_not_written(tmp_path, blocks, found):
    with pytest.raises(InputError, match=found):
        write_vectors(tmp_path / "v", blocks)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ids, width, found", [
    (np.arange(3), 2, "3 ids"), (np.arange(4), 3, "width 3"), (np.array([0, 1, 3, 2]), 2, "id 3 in row 2"),
])
def test_files_that_do_not_go_together_are_refused(tmp_path, monkeypatch, ids, width, found):
    monkeypatch.setattr(ann_files, "_ROWS_PER_BLOCK", 2)
    files = {"vectors": tmp_path / "v", "ids": tmp_path / "i", "queries": tmp_path / "q"}
    write_vectors(files["vectors"], [np.ones((4, 2))])
    write_ids(files["ids"], [np.arange(4)])
    write_vectors(files["queries"], [np.ones((7, 2))])
    check_search_files(**files)
    write_ids(files["ids"], [ids])
    write_vectors(files["queries"], [np.ones((7, width))])
    with pytest.raises(InputError, match=found):
        check_search_files(**files)
