"""Nearest words of a codebook, exactly: by faiss on the CPU, by torch on a GPU; the same words up to ties.

Stands before `kmeans.py`. `searching_on(device)` says where; distances are matrix products in float32 either way, some
points at a time. Legend: n points, C words, d width.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

import faiss
import numpy as np

from onepiece_comp.environment import available_cores
from onepiece_comp.errors import InputError

_DISTANCES_AT_ONCE = 1 << 27  # bound on points x words held on a GPU
_device: ContextVar[str] = ContextVar("device", default="cpu")


class Codebook(NamedTuple):
    """Words, and what each adds to the squared distance: zero but for balanced codebooks."""

    words: np.ndarray  # float32 [C, d]
    price: np.ndarray  # float32 [C]

    @classmethod
    def plain(cls, words: np.ndarray) -> "Codebook":
        """Words without prices."""
        return cls(words, np.zeros(len(words), np.float32))

    def nearest(self, points: np.ndarray, count: int = 1) -> np.ndarray:
        """The `count` nearest words of each point, int64 [n, count], nearest first."""
        return self.search(points, count)[1]

    def search(self, points: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(squared distances plus prices, words), both [n, count], nearest first."""
        return Search(self)(points, count)


class Search:
    """Exact nearest words of a codebook, where `searching_on` says."""

    def __init__(self, codebook: Codebook):
        self._find = (_FaissSearch if _device.get() == "cpu" else _TorchSearch)(codebook)

    def __call__(self, points: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """As `Codebook.search`."""
        return self._find(np.ascontiguousarray(points, np.float32), count)


class _FaissSearch:
    """On the CPU; prices are one more dimension."""

    def __init__(self, codebook: Codebook):
        words, self._priced = codebook.words, bool(codebook.price.any())
        self._most, self._lowest = len(words), float(codebook.price.min())
        if self._priced:
            words = np.column_stack([words, np.sqrt(codebook.price - self._lowest)])
        self._index = faiss.IndexFlatL2(words.shape[1])
        with faiss_settings():
            self._index.add(np.ascontiguousarray(words, np.float32))

    def __call__(self, points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        if self._priced:
            points = np.column_stack([points, np.zeros(len(points), np.float32)])
        with faiss_settings():
            distance, word = self._index.search(points, min(count, self._most))
        return distance + np.float32(self._lowest), word


class _TorchSearch:
    """On the device of `searching_on`."""

    def __init__(self, codebook: Codebook):
        import torch

        self._device = torch.device(_device.get())
        self._word_CD = torch.tensor(codebook.words, device=self._device)  # a copy: a stored one cannot be written
        self._offset_C = self._word_CD.square().sum(1) + torch.tensor(codebook.price, device=self._device)

    def __call__(self, points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        count = min(count, len(self._word_CD))
        distance, word = np.empty((len(points), count), np.float32), np.empty((len(points), count), np.int64)
        step = max(1, _DISTANCES_AT_ONCE // len(self._word_CD))
        for start in range(0, len(points), step):
            point_ND = torch.from_numpy(points[start:start + step]).to(self._device)
            found = torch.addmm(self._offset_C, point_ND, self._word_CD.T, alpha=-2).topk(count, dim=1, largest=False)
            distance[start:start + step] = (found.values + point_ND.square().sum(1, keepdim=True)).cpu().numpy()
            word[start:start + step] = found.indices.cpu().numpy()
        return distance, word


@contextlib.contextmanager
def searching_on(device: str) -> Iterator[None]:
    """Search on `device` within the block: cpu, cuda, or auto (a GPU where torch sees one); InputError without one."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError("tokenizer.device", found=repr(device), expected="auto, cpu or cuda", do="choose one of these")
    if device != "cpu":
        device = _found_gpu(device)
    before = _device.set(device)
    try:
        yield
    finally:
        _device.reset(before)


def _found_gpu(device: str) -> str:
    try:
        import torch
    except ImportError:  # a tokenizer can be built without torch
        seen = False
    else:
        seen = torch.cuda.is_available()
    if device == "cuda" and not seen:
        raise InputError("tokenizer.device", found="no CUDA device", expected="one, as cuda asks", do="use cpu or auto")
    return "cuda" if seen else "cpu"


def on_gpu() -> bool:
    """Whether words are searched on a GPU now."""
    return _device.get() != "cpu"


@contextlib.contextmanager
def faiss_settings() -> Iterator[None]:
    """No more threads than this process may use, and matrix products for small batches too; both put back."""
    threads = faiss.omp_get_max_threads()
    threshold = getattr(faiss.cvar, "distance_compute_blas_threshold", None)
    faiss.omp_set_num_threads(min(threads, available_cores()))
    if threshold is not None:
        faiss.cvar.distance_compute_blas_threshold = 20  # faiss 1.15's own is up to eight times slower on CPU
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
        if threshold is not None:
            faiss.cvar.distance_compute_blas_threshold = threshold
