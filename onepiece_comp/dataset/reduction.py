"""Principal components of wide embedding tables: fitted on a sample, stored beside the columns, applied at inference.

Stands between `logs/embedding_blocks.py` and `embedding_tables.py`. The covariance of the sample is summed block by
block and its eigenvectors are exact: memory is width x width whatever the sample's size, where faiss.PCAMatrix wants
the sample as one array. A projection is one file, `emb_{fid}_pca.npy`, float32 [1 + k, w]: the mean, then the
components.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.columns import load_column
from onepiece_comp.errors import InputError
from onepiece_comp.logs.embedding_blocks import read_blocks
from onepiece_comp.logs.embeddings import EmbeddingSource

SAMPLE = 32768  # vectors that a projection is fitted on: eight per dimension of the widest table
_SEED = 0  # order of the table's files in the sample


class Projection(NamedTuple):
    """A linear map to fewer dimensions: (vector - mean) @ components.T."""

    mean: np.ndarray  # float32 [w]
    components: np.ndarray  # float32 [k, w], orthonormal, by falling variance

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, w] to float32 [n, k]."""
        return (vectors - self.mean) @ self.components.T

    def save(self, folder: Path, fid: str) -> None:
        """Write the projection of feature `fid`."""
        np.save(_path(folder, fid), np.concatenate([self.mean[None], self.components]))


def _path(folder: Path, fid: str) -> Path:
    return Path(folder) / f"emb_{fid}_pca.npy"


def load_projections(folder: Path, widths: dict[str, int]) -> dict[str, Projection]:
    """The projections stored in a dataset or checkpoint folder for the features of `widths` (feature id to k)."""
    projections = {}
    for fid, width in widths.items():
        path = _path(folder, fid)
        if path.is_file():
            stored = np.array(load_column(path.parent, path.stem))
            if stored.ndim != 2 or stored.dtype != np.float32 or len(stored) != width + 1:
                raise InputError(path, found=f"{stored.dtype} {list(stored.shape)}", do="make the artefact again",
                                 expected=f"float32 [{width + 1}, width]: a mean and {width} components")
            projections[fid] = Projection(stored[0], stored[1:])
    return projections


def copy_projections(source: Path, target: Path, widths: dict[str, int]) -> None:
    """Copy the projection files of a dataset folder that the features of `widths` have."""
    for fid in widths:
        if _path(source, fid).is_file():
            shutil.copyfile(_path(source, fid), _path(target, fid))


def sample_vectors(source: EmbeddingSource, wanted: Callable[[np.ndarray], np.ndarray], *, width: int,
                   reader: str = "auto") -> Iterator[np.ndarray]:
    """Blocks float32 [n, width] of about SAMPLE vectors: equal shares from the heads of the table's files.

    `wanted` tells from creative ids [n] which are of the catalogue, bool [n].
    """
    parts = source.parts()
    left = SAMPLE
    for place, number in enumerate(np.random.default_rng(_SEED).permutation(len(parts))):
        share = -(-left // (len(parts) - place))  # what short files leave goes to the later ones
        for block in read_blocks(source, parts=[parts[number]], width=width, reader=reader):
            if len(block.creative_id):
                vectors = block.vectors[wanted(block.creative_id)][:share]
                share, left = share - len(vectors), left - len(vectors)
                yield vectors
            if share <= 0:
                break
        if left <= 0:
            return


def fit_projection(blocks: Iterable[np.ndarray], *, width: int, components: int) -> Projection:
    """The `components` directions of largest variance of the vectors in `blocks` (float32 [n, width] each)."""
    count, shift = 0, None
    total, product = np.zeros(width), np.zeros((width, width))
    for block in blocks:
        if len(block):
            shift = block.mean(0) if shift is None else shift  # a mean far from 0 would swallow the variance
            centred = block - shift
            total += centred.sum(0, dtype=np.float64)
            product += centred.T @ centred
            count += len(block)
    if shift is None:
        return Projection(np.zeros(width, np.float32), np.eye(components, width, dtype=np.float32))
    mean = total / count
    product = product / count - np.outer(mean, mean)
    vectors = np.linalg.eigh(product)[1][:, ::-1][:, :components].T
    largest = vectors[np.arange(components), np.abs(vectors).argmax(1)]
    return Projection((shift + mean).astype(np.float32), (vectors * np.sign(largest)[:, None]).astype(np.float32))
