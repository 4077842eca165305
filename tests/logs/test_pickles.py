"""The walk over a pickle's opcodes admits what Python writes and stops at lengths and memo indices that lie."""

import pickle

import numpy as np
import pytest

from onepiece_comp.logs import pickles as pickle_opcodes
from onepiece_comp.logs.pickles import walk_opcodes

VALUE = {"u": {"user_1": 1}, "i": {20_000_000_001: 2}, 3: [1.5, None, True, (), -7, "ä" * 300,
                                                                      b"x" * 70_000, 1 << 200],
         "a": np.arange(5), "again": ["user_1"] * 3}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("protocol", range(6))
def test_what_python_writes_passes(protocol, compiled, monkeypatch):
    monkeypatch.setattr(pickle_opcodes, "_WORTH_COMPILING", 0 if compiled else 1 << 60)
    value = VALUE if protocol > 1 else {**VALUE, 3: [1.5, -7, "plain"]}  # text of a long number is refused
    data = pickle.dumps(value, protocol)
    assert walk_opcodes(data).wrong is None
    assert "no end" in walk_opcodes(data[:-1]).wrong


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("data, reason", [
    (b"\x80\x02]r\xff\xff\xff\xff.", "memo"), (b"]p4294967295\n.", "memo"), (b"]q\x02.", "memo"), (b"]pxx\n.", "memo"),
    (b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"abc.", "longer than the file"),
    (b"X\xff\x00\x00\x00a.", "longer"),
    (b"S'no end of line", "longer"), (b"c__main__\nno second line", "longer"), (b"\x95\x01", "longer"),
    (b"I" + b"9" * 50 + b"\n.", "digits"), (b"\x8a\x50" + b"\x01" * 80 + b".", "digits"), (b"\xff.", "no opcode"),
    (b"", "no end")])
def test_what_lies_is_named_with_its_place(data, reason, compiled, monkeypatch):
    monkeypatch.setattr(pickle_opcodes, "_WORTH_COMPILING", 0 if compiled else 1 << 60)
    assert reason in walk_opcodes(data).wrong and "at byte" in walk_opcodes(data).wrong


def test_memo_indices_may_come_again_and_in_order():
    assert walk_opcodes(b"\x80\x02]q\x00]q\x01]q\x02]q\x01.").wrong is None
