"""Freed memory stays with the process inside `kept_heap`, and only there."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onepiece_comp.training.process import kept_heap

BLOCK = 8 << 20  # bytes; above what glibc maps by itself at first
PAGE = 4096


def faults(rounds: int) -> int:
    """Pages that the system had to find while blocks were filled and dropped."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        np.full(BLOCK, 1, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_are_used_again_inside_and_given_back_at_the_end():
    with kept_heap():
        faults(2)  # the heap grows to what a round needs
        assert faults(20) < BLOCK // PAGE
        many = [np.full(BLOCK, 1, np.uint8) for _ in range(16)]
        held = resident()  # not what was added: blocks may lie in what earlier tests left free in the heap
        del many
        assert resident() > held - 4 * BLOCK
    assert resident() < held - 12 * BLOCK


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_large_blocks_are_mapped_again_after_an_error_inside():
    """In a process of its own: a block that fits into what earlier tests left free in the heap is not mapped."""
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
            "import test_process; test_process.map_after_an_error()")
    subprocess.run([sys.executable, "-c", code], check=True)


def map_after_an_error():
    with pytest.raises(ZeroDivisionError), kept_heap():
        1 / 0
    large = 64 << 20  # above the usual threshold
    before = resident()
    block = np.full(large, 1, np.uint8)
    assert resident() - before > large // 2
    del block
    assert resident() - before < large // 2


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("a library was opened"))
    with kept_heap():
        assert faults(1) >= 0
