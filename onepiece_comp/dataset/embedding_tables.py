"""Embedding tables of a data folder as float16 matrices by item row, with presence bits.

Stands between the readers (`logs/embedding_blocks.py`) and the datasets of `preprocess.py` and `evaluation_folder.py`.
A table is streamed block by block into a memory-mapped file, so memory holds a block and the item ids, whatever the
table's size. Wide tables can be reduced on the way (`reduction.py`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.columns import create_mapped
from onepiece_comp.config import PreprocessConfig
from onepiece_comp.console import progress, say
from onepiece_comp.dataset.reduction import Projection, fit_projection, sample_vectors
from onepiece_comp.errors import InputError
from onepiece_comp.logs.embedding_blocks import VectorBlock, read_blocks, table_width
from onepiece_comp.logs.embeddings import LARGEST_VALUE, EmbeddingSource, find_embeddings


class RowLookup:
    """Creative ids to item rows by binary search: 16 bytes per item, where a dict takes a hundred."""

    def __init__(self, creative: np.ndarray):
        """`creative` int64 [items + 1] by item row; row 0 is padding and is never found."""
        order = np.argsort(creative[1:], kind="stable")
        self.items = len(order)
        self._row, self._creative = order + 1, np.append(creative[1:][order], -1)  # -1: behind the last, equals no id

    def rows(self, creative_id: np.ndarray) -> np.ndarray:
        """The item row of each id, int64 [n]; 0 where there is none."""
        place = np.searchsorted(self._creative[:-1], creative_id)
        return np.where(self._creative[place] == creative_id, np.append(self._row, 0)[place], 0)


class _Filled(NamedTuple):
    """What came of a table beside its matrix."""

    present: np.ndarray  # bool [items + 1]
    empty: int  # records without a vector
    kept: float | None  # share of the variance of the items' vectors that a projection kept


def write_embedding_tables(train: Path, folder: Path, creative: np.ndarray, config: PreprocessConfig,
                           ) -> tuple[dict[str, int], dict[str, dict]]:
    """Write `emb_{fid}.npy` and `emb_{fid}_present.npy` of each wanted table; widths and coverage by feature id.

    `creative` holds the creative id of each item row, int64 [items + 1]; row 0 is padding. Tables wider than
    `config.reduce_embeddings_to` (0 = off) are reduced to that width, and `emb_{fid}_pca.npy` is written too.
    """
    if config.reduce_embeddings_to < 0:
        raise InputError("preprocess.reduce_embeddings_to", found=str(config.reduce_embeddings_to),
                         expected="a width, or 0 for none", do="correct the value")
    lookup, widths, coverage = RowLookup(creative), {}, {}
    for fid, source in find_embeddings(train).items():
        if fid in config.embeddings:
            raw_width = table_width(source, reader=config.reader) or 1
            width = min(raw_width, config.reduce_embeddings_to or raw_width)
            if width > config.max_embedding_width:
                say(f"embedding {fid}: left out, {width} wide, more than preprocess.max_embedding_width = "
                    f"{config.max_embedding_width}")
                continue
            widths[fid] = width
            coverage[fid] = _write_table(source, folder, lookup, raw_width=raw_width, width=width, config=config)
    return widths, coverage


def _write_table(source: EmbeddingSource, folder: Path, lookup: RowLookup, *, raw_width: int, width: int,
                 config: PreprocessConfig) -> dict:
    """Write one table, reduced where `width` is less than it has; returns its coverage."""
    path, rows = folder / f"emb_{source.feature}.npy", lookup.items + 1
    projection = _fit(source, lookup, raw_width, config) if width < raw_width else None
    create_mapped(path, np.float16, (rows, width))
    filled = _fill(source, lookup, lambda: np.load(path, mmap_mode="r+"), rows=rows, width=raw_width,
                   projection=projection, reader=config.reader)
    np.save(folder / f"emb_{source.feature}_present.npy", filled.present)
    items = int(filled.present.sum())
    coverage = {"items": items, "missing": lookup.items - items, "records_without_emb": filled.empty}
    if projection is not None:
        projection.save(folder, source.feature)
        coverage.update(raw_width=raw_width, variance_kept=round(filled.kept, 4))
    return coverage


def load_embedding(source: EmbeddingSource, creative: np.ndarray, *, width: int, projection: Projection | None = None,
                   ) -> tuple[np.ndarray, np.ndarray]:
    """A float16 matrix [rows, width] in memory for the creative ids of `creative` [rows], and presence bits [rows].

    InputError when the table has not the width that it had in training: `width`, or before `projection` its own.
    """
    matrix = np.zeros((len(creative), width), np.float16)
    filled = _fill(source, RowLookup(creative), lambda: matrix, rows=len(creative), projection=projection,
                   width=width if projection is None else projection.mean.size)
    return matrix, filled.present


def coverage_rows(widths: dict[str, int], coverage: dict[str, dict]) -> list[tuple[str, object]]:
    """The lines of a stage's table that tell of the embedding tables."""
    rows = []
    for fid, cover in coverage.items():
        rows.append((f"emb_{fid}: width", widths[fid]))
        if "variance_kept" in cover:
            rows.append((f"emb_{fid}: share of the variance kept of {cover['raw_width']}", cover["variance_kept"]))
        rows.append((f"emb_{fid}: items without vector", f"{cover['missing']:,}"))
        rows.append((f"emb_{fid}: records without emb", f"{cover['records_without_emb']:,}"))
    return rows


def _fit(source: EmbeddingSource, lookup: RowLookup, width: int, config: PreprocessConfig) -> Projection:
    blocks = sample_vectors(source, lambda ids: lookup.rows(ids) > 0, width=width, reader=config.reader)
    blocks = progress(blocks, total=None, what=f"embedding {source.feature}: sample, blocks")
    return fit_projection(blocks, width=width, components=config.reduce_embeddings_to)


def _fill(source: EmbeddingSource, lookup: RowLookup, open_matrix: Callable[[], np.ndarray], *, rows: int, width: int,
          projection: Projection | None, reader: str = "auto") -> _Filled:
    """Stream a table into a float16 matrix of zeros; of an id that stands twice the last vector counts.

    The matrix is opened anew for every block: a mapping that stays counts every row written as memory.
    """
    present, empty, all_variance, kept_variance = np.zeros(rows, bool), 0, 0.0, 0.0
    blocks = read_blocks(source, reader=reader)
    for block in progress(blocks, total=None, what=f"embedding {source.feature}: blocks"):
        empty += block.empty
        if not len(block.creative_id):
            continue
        _check_width(source, block, width)
        row = lookup.rows(block.creative_id)
        values = block.vectors[row > 0]
        if projection is not None:
            all_variance += float(np.square(values - projection.mean).sum(dtype=np.float64))
            values = projection.apply(values)
            kept_variance += float(np.square(values).sum(dtype=np.float64))
        open_matrix()[row[row > 0]] = _to_float16(values, source, block.creative_id[row > 0])
        present[row[row > 0]] = True
    return _Filled(present, empty, None if projection is None else kept_variance / (all_variance or 1.0))


def _check_width(source: EmbeddingSource, block: VectorBlock, width: int) -> None:
    if block.vectors.shape[1] != width:
        raise InputError(source.path, found=f"embeddings of width {block.vectors.shape[1]}",
                         expected=f"{width}, as in training",
                         do="use the embedding table that the model was trained with")


def _to_float16(values: np.ndarray, source: EmbeddingSource, creative_id: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        worst = np.abs(values).max(1).argmax()
        size = np.abs(values[worst]).max()
        raise InputError(f"{source.path}: id {creative_id[worst]}", found=f"the value {size:.3g}",
                         expected=f"at most {LARGEST_VALUE:,.0f}, as float16 holds",
                         do="scale the table or leave it out")
    return half
