"""`item_feat_dict.json` into a matrix of item features: scanned by compiled code where it can be, else read plainly.

The file is one object of near a gigabyte at the real size, so both ways stream it. Stands beside `sequences.py`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from onepiece_comp.errors import InputError
from onepiece_comp.features import ItemFeatures
from onepiece_comp.formats import read_item_features
from onepiece_comp.sequences import CHUNK, SLACK, compiler_wanted, feature_columns, scannable


def fill_item_features(path: Path, matrix: ItemFeatures, *, most_item: int, reader: str = "auto") -> Iterator[int]:
    """Read `item_feat_dict.json` into `matrix`, yielding how many items are done; InputError for an unknown item."""
    start, done = 0, 0
    if compiler_wanted(path, reader):
        for start, done in _scan_item_features(path, matrix, most_item):
            yield done
    for row, record in read_item_features(path, start):
        if not 1 <= row <= most_item:
            raise InputError(f"{path}: key {row}", found="an item outside indexer.pkl", expected=f"1 to {most_item}",
                             do="use the files of one release together")
        matrix.add(row, record)
        done += 1
        yield done


def _scan_item_features(path: Path, matrix: ItemFeatures, most_item: int) -> Iterator[tuple[int, int]]:
    """(bytes, items) scanned so far, until something is not recognised: the plain reader goes on from there."""
    from onepiece_comp.line_kernels import scan_item_features

    if not scannable(*matrix.columns(), *matrix.ignored):
        return
    columns, odd = feature_columns(list(matrix.columns().items()), matrix.ignored), np.zeros(2, np.int64)
    with open(path, "rb") as file:
        left, position, done = file.read(1), 1, 0
        if left != b"{":
            return
        left = b""
        while data := file.read(CHUNK):
            data = left + data
            buffer = np.frombuffer(data + bytes(SLACK), np.uint8)
            at, entries = scan_item_features(buffer, len(data) - len(data.lstrip(b" ")), len(data), most_item, columns,
                                             matrix.values, matrix.recorded, odd)
            matrix.count_odd(odd)
            odd[:] = 0
            position, done, left = position + at, done + entries, data[at:]
            yield position, done
            if not entries:
                return
