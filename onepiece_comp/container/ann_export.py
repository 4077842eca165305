"""The platform's neighbour search as a stage: vectors out to its files, and its answers back as ranked candidates.

The search knows dot products alone. Popularity is folded in, exactly where the users have few distinct moments; the
similarity to the history and the filter of seen items are left out, so these answers are those of a model without
`model.similarity_width`, or a first look at one with it. Candidates are numbered from 0, as the tool's fault demands
(`ann_files.py`); the creative ids stand under the name that the organisers' own code gives them.
Legend: B users of a batch, M candidates, D width, F folded dimensions, Q queries, K neighbours.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.artefacts import MARKERS, atomic_folder, check_output, read_json, read_marker, write_json
from onepiece_comp.config import InferConfig
from onepiece_comp.config_reading import result_settings
from onepiece_comp.console import progress, say, table
from onepiece_comp.container.ann_files import check_search_files, read_answers, write_ids, write_vectors
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.candidates import FoldedBias, fold_bias
from onepiece_comp.funnel.cascade import Funnel
from onepiece_comp.logs.formats import LIST
from onepiece_comp.training.checkpoint import load_checkpoint
from onepiece_comp.training.process import choose_device, set_threads

VECTORS, IDS, QUERIES, ANSWERS = "embedding.fbin", "id.u64bin", "query.fbin", "id100.u64bin"
CREATIVES, USERS = "retrive_id2creative_id.json", "users.json"  # the first name is the organisers', misspelt
FOLDED = 64  # F at most: popularity at more moments than that is not exact
_ROWS_PER_BLOCK = 1 << 14


class SearchAnswers(NamedTuple):
    """What the search found for each query."""

    users: list[str]
    creative_id: np.ndarray  # int64 [Q, K], best first; 0 where nothing was found, or one candidate again


def export_ann(checkpoint: Path, out: Path, config: InferConfig, *, data: Path) -> Path:
    """Write the folder `out` that the platform's search reads: `embedding.fbin`, `id.u64bin`, `query.fbin`.

    `infer.filter_cold` leaves out cold candidates. Beside them `ann.json` tells what is in the vectors and what is not.
    """
    set_threads(config.threads)
    loaded = load_checkpoint(checkpoint, choose_device(config.device))
    made_of = {"checkpoint": str(loaded.path.resolve()), "data": str(Path(data).resolve()), **result_settings(config)}
    check_output(out, MARKERS["neighbour search"], made_of)
    evaluation = read_evaluation(data, loaded.model.schema, projections=loaded.projections)
    settings = dataclasses.replace(config, mode="retrieval", index="exact")
    ranker = Funnel(loaded, evaluation, settings, next(loaded.model.parameters()).device)
    kept = np.flatnonzero(ranker.candidates.warm_M.cpu().numpy() | (not config.filter_cold))
    bias_RM = ranker.candidates.bias_RM
    folded = None if bias_RM is None else fold_bias(bias_RM, width=FOLDED, scale=ranker.query_scale)
    out = Path(out)
    with atomic_folder(out, MARKERS["neighbour search"], made_of) as folder:
        write_vectors(folder / VECTORS, _candidate_blocks(ranker, folded, kept))
        write_ids(folder / IDS, [np.arange(len(kept))])
        write_vectors(folder / QUERIES, _query_blocks(ranker, folded))
        check_search_files(vectors=folder / VECTORS, ids=folder / IDS, queries=folder / QUERIES)
        creative = evaluation.items.creative_id[evaluation.candidate[kept]].tolist()
        write_json(folder / CREATIVES, dict(enumerate(creative)), indent=None)
        write_json(folder / USERS, evaluation.users, indent=None)
        marker = _marker(ranker, folded, candidates=len(kept))
        write_json(folder / MARKERS["neighbour search"], marker)
    _report(marker, out)
    return out


def read_ann(folder: Path, answers: Path | None = None) -> SearchAnswers:
    """The answers of the search, by default `id100.u64bin`, to the files of `folder`; creative ids, none twice.

    InputError where the folder is not one of ours or the answers are to other queries.
    """
    folder, answers = Path(folder), Path(answers or Path(folder) / ANSWERS)
    marker, users = read_marker(folder, "neighbour search"), read_json(folder / USERS)
    number = read_answers(answers, candidates=marker["candidates"])
    if len(number) != len(users):
        raise InputError(answers, found=f"{len(number):,} answers", expected=f"{len(users):,}, one for each query",
                         do="run the search again on this folder")
    by_number = read_json(folder / CREATIVES)
    creative = np.array([by_number[str(place)] for place in range(marker["candidates"])] + [0], np.int64)
    number[_again(number)] = -1  # which picks the last, 0
    return SearchAnswers(users, creative[number])


def _again(number: np.ndarray) -> np.ndarray:
    """Which entries [Q, K] stood in their row before; [[4, 2, 4]] gives [[False, False, True]]."""
    order = number.argsort(axis=1, kind="stable")
    ordered, again = np.take_along_axis(number, order, 1), np.zeros(number.shape, bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    return again


def _candidate_blocks(ranker: Funnel, folded: FoldedBias | None, kept: np.ndarray) -> Iterator[np.ndarray]:
    unit_MD = ranker.candidates.vectors.unit_ND
    for start in range(0, len(kept), _ROWS_PER_BLOCK):
        rows = torch.from_numpy(kept[start:start + _ROWS_PER_BLOCK]).to(unit_MD.device)
        parts = [unit_MD[rows]] if folded is None else [unit_MD[rows], folded.item_MF[rows]]
        yield torch.cat(parts, 1).cpu().numpy()


def _query_blocks(ranker: Funnel, folded: FoldedBias | None) -> Iterator[np.ndarray]:
    """In the order of the evaluation's users."""
    users, size = np.arange(len(ranker.evaluation.users)), ranker.config.batch_users
    batches = [users[start:start + size] for start in range(0, len(users), size)]
    for batch in progress(batches, total=len(batches), what="queries"):
        query_BD = ranker.queries(batch)
        if folded is not None:
            row_B = torch.from_numpy(ranker.candidates.bias_row[batch]).to(query_BD.device)
            query_BD = torch.cat([query_BD, folded.row_RF[row_B]], 1)
        yield query_BD.cpu().numpy()


def _marker(ranker: Funnel, folded: FoldedBias | None, *, candidates: int) -> dict:
    """What the files hold; `popularity_error` is the root mean square of what is missing of its logits."""
    left_out = ["similarity to the history"] if ranker.model.similarity is not None else []
    return {
        "candidates": candidates, "queries": len(ranker.evaluation.users),
        "vector_width": ranker.candidates.vectors.unit_ND.shape[1],
        "popularity_width": 0 if folded is None else folded.item_MF.shape[1],
        "popularity_moments": 0 if folded is None else len(folded.row_RF),
        "popularity_error": 0.0 if folded is None else folded.error,
        "left_out": [*left_out, "filter of seen items"] if ranker.config.filter_seen else left_out,
    }


def search_command(folder: Path, *, k: int) -> str:
    """The platform's call for `folder`: dot products (metric 0), with the organisers' settings of its graph."""
    return (f"faiss_demo --dataset_vector_file_path={folder / VECTORS} --dataset_id_file_path={folder / IDS} "
            f"--query_vector_file_path={folder / QUERIES} --result_id_file_path={folder / ANSWERS} "
            f"--query_ann_top_k={k} --faiss_M=64 --faiss_ef_construction=1280 --query_ef_search=640 "
            "--faiss_metric_type=0")


def _report(marker: dict, out: Path) -> None:
    rows = [(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.3g}")
            for name, value in marker.items() if isinstance(value, (int, float))]
    table("neighbour search", ("what", "value"), rows)
    for name in marker["left_out"]:
        say(f"not in the vectors: {name}")
    say(f"search with: {search_command(out, k=LIST)}")
    say(f"wrote {out}")
