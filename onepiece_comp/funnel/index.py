"""The first stage of retrieval by an approximate index: some candidates of each user, which the whole logit then ranks.

Stands between `candidates.py` and `cascade.py`; needs faiss, on the CPU. Two kinds: a graph of near neighbours (HNSW,
Malkov and Yashunin 2016, arXiv 1603.09320), or lists of the points nearest to each of some means (IVF). Popularity is
folded into a few dimensions more. Both kinds assume a distance, so a last dimension gives all candidates the same
length, and the nearest one is that with the highest dot product (Bachrach et al., RecSys 2014).
Legend: B users, M candidates, D width, F folded dimensions, K candidates of a user.
"""

from collections.abc import Callable
from typing import NamedTuple

import faiss
import numpy as np
import torch

from onepiece_comp.config import InferConfig
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.candidates import Candidates, fold_bias
from onepiece_comp.tokenizer.nearest_words import faiss_settings

_FOLDED = 8  # F at most: popularity at more moments than that is not exact
_LINKS, _BUILD_BREADTH = 32, 80  # HNSW: neighbours of a point, points kept in view while it is inserted
_POINTS_PER_MEAN = 39  # IVF: fewer and faiss warns
_SHARE_OF_LISTS = 1 / 16  # IVF: lists that are looked through


class FirstStage:
    """An index over the candidates; without cold ones where they are filtered.

    `scale` is the length of a query: popularity is brought to the units of the candidates' vectors by it.
    """

    def __init__(self, candidates: Candidates, config: InferConfig, *, scale: float):
        point_MD, self._row_RF = candidates.vectors.unit_ND, None
        if candidates.bias_RM is not None:
            folded = fold_bias(candidates.bias_RM, width=_FOLDED, scale=scale)
            point_MD, self._row_RF = torch.cat([point_MD, folded.item_MF], 1), folded.row_RF
        kept = candidates.warm_M if config.filter_cold else torch.ones_like(candidates.warm_M)
        self._number, self._effort = torch.where(kept)[0].cpu(), config.index_effort
        self._index = MaximumIndex(point_MD[kept].cpu().numpy(), kind=config.index) if len(self._number) else None

    def search(self, query_BD: torch.Tensor, row_B: torch.Tensor, count: int) -> torch.Tensor:
        """int64 [B, K], K at most `count`: candidate numbers, about the best first; -1 where the index finds fewer."""
        if self._index is None:
            return torch.full((len(query_BD), 1), -1, device=query_BD.device)
        if self._row_RF is not None:
            query_BD = torch.cat([query_BD, self._row_RF[row_B]], 1)
        count = min(count, len(self._number))
        place = torch.from_numpy(self._index.search(query_BD.cpu().numpy(), count, effort=self._effort))
        return torch.where(place >= 0, self._number[place.clamp_min(0)], -1).to(query_BD.device)


def _graph(point_MD: np.ndarray) -> faiss.Index:
    index = faiss.IndexHNSWFlat(point_MD.shape[1], _LINKS)
    index.hnsw.efConstruction = _BUILD_BREADTH
    return index


def _widen_graph(index: faiss.Index, count: int, effort: float) -> None:
    index.hnsw.efSearch = max(count, round(effort * count))


def _lists(point_MD: np.ndarray) -> faiss.Index:
    lists = max(1, min(round(4 * len(point_MD) ** 0.5), len(point_MD) // _POINTS_PER_MEAN))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(point_MD.shape[1]), point_MD.shape[1], lists)
    index.cp.max_points_per_centroid = 2 * _POINTS_PER_MEAN
    index.train(point_MD)
    return index


def _widen_lists(index: faiss.Index, count: int, effort: float) -> None:
    index.nprobe = max(1, min(index.nlist, round(effort * _SHARE_OF_LISTS * index.nlist)))


class IndexKind(NamedTuple):
    """How an index over points [M, D] is made, and how its search for `count` points is set to `effort`."""

    make: Callable[[np.ndarray], faiss.Index]
    widen: Callable[[faiss.Index, int, float], None]


INDEXES = {"hnsw": IndexKind(_graph, _widen_graph), "ivf": IndexKind(_lists, _widen_lists)}


class MaximumIndex:
    """Points with about the highest dot products, by `kind`, a name of INDEXES; InputError for another."""

    def __init__(self, point_MD: np.ndarray, *, kind: str):
        if kind not in INDEXES:
            raise InputError("infer.index", found=repr(kind), expected=f"one of {', '.join(('exact', *INDEXES))}",
                             do="choose one of these")
        self._kind = INDEXES[kind]
        point_MD = np.ascontiguousarray(point_MD, np.float32)
        square_M = np.square(point_MD).sum(1)
        point_MD = np.column_stack([point_MD, np.sqrt(square_M.max(initial=0) - square_M)])
        with faiss_settings():
            self._index = self._kind.make(point_MD)
            self._index.add(point_MD)

    def search(self, query_BD: np.ndarray, count: int, *, effort: float = 1.0) -> np.ndarray:
        """int64 [B, count], places of points, -1 where fewer are found; `effort` times the usual breadth of search."""
        query_BD = np.column_stack([query_BD, np.zeros(len(query_BD), np.float32)])
        self._kind.widen(self._index, count, effort)
        with faiss_settings():
            return self._index.search(np.ascontiguousarray(query_BD, np.float32), count)[1]
