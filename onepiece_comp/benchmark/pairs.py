"""Rows of a public benchmark beside the baselines, user by user: how much of a difference the choice of users explains.

Stands between `full_ranking.py` and `run.py`. `seed-S.ranks.npy` beside a result has the places of the targets,
int32 [filters, users]. A row's NDCG@10 of a user is the mean over the seeds that both rows have; users are drawn anew.
What seeds alone change is in an interval only as far as that mean holds it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onepiece_comp.artefacts import atomic_file
from onepiece_comp.benchmark.full_ranking import FILTERS, Judged
from onepiece_comp.evaluation.metrics import bootstrap_difference, bootstrap_mean, ndcg

# the last tells what its ids add to the same weights
BASELINES = ("sasrec-softmax", "hstu-softmax", "onepiece-retrieval")
_RESAMPLES, _CUT = 2000, 10
# of `about`: rows that differ in these are not compared
_DATA = ("data_sha256", "users", "ties", "max_length", "quick")


def ranks_path(result: Path) -> Path:
    """Where the ranks of a result stand: seed-0.json has them in seed-0.ranks.npy."""
    return result.with_suffix(".ranks.npy")


def save_ranks(result: Path, judged: Mapping[str, Judged]) -> None:
    """Write the ranks of a result that is to be written."""
    with atomic_file(ranks_path(result)) as temporary, open(temporary, "wb") as file:
        np.save(file, np.stack([judged[name].rank for name in FILTERS]).astype(np.int32))


def against_baselines(rows: Mapping[str, Sequence[tuple[Path, dict]]]) -> dict[str, dict]:
    """{baseline: {row: {"seeds": those of both, filter: mean, low and high of row - baseline in NDCG@10}}}.

    `rows` has the files of each row and what they hold. Results without ranks, as earlier versions wrote them, are left
    out.
    """
    gains = {row: {found["seed"]: (_data(found), gain) for path, found in results
                   if (gain := _gains(path, found)) is not None} for row, results in rows.items()}
    compared: dict[str, dict] = {}
    for baseline in BASELINES:
        for row, mine in gains.items():
            theirs = gains.get(baseline, {})
            seeds = sorted(seed for seed in mine if seed in theirs and mine[seed][0] == theirs[seed][0])
            if row != baseline and seeds:
                ours, other = (np.mean([of[seed][1] for seed in seeds], axis=0) for of in (mine, theirs))
                compared.setdefault(baseline, {})[row] = {"seeds": seeds, **{
                    name: bootstrap_difference(ours[place], other[place], resamples=_RESAMPLES, seed=0)._asdict()
                    for place, name in enumerate(FILTERS)}}
    return compared


def own_interval(results: Sequence[tuple[Path, dict]], name: str) -> tuple[float, float, float]:
    """NDCG@10 of a row under a filter, mean over its seeds, with its interval over users:
    none where ranks are missing.
    """
    gains = [gain[FILTERS.index(name)] for path, found in results if (gain := _gains(path, found)) is not None]
    if len(gains) < len(results):
        return (float(np.mean([found["figures"][name][f"ndcg@{_CUT}"] for _, found in results])),) * 3
    return tuple(bootstrap_mean(np.mean(gains, axis=0), resamples=_RESAMPLES, seed=0))


def _data(found: dict) -> list:
    return [found["about"].get(name) for name in _DATA]


def _gains(path: Path, found: dict) -> np.ndarray | None:
    """NDCG@10 [filters, users] of a result's ranks; None where there are none, or they are another's."""
    if not ranks_path(path).is_file():
        return None
    gain = ndcg(np.load(ranks_path(path)), _CUT)
    told = [found["figures"][name][f"ndcg@{_CUT}"] for name in FILTERS]
    return gain if np.allclose(gain.mean(1), told, rtol=0, atol=1e-9) else None


def baselines_of(compared: Mapping[str, dict]) -> tuple[str, ...]:
    """Those that some row is compared with."""
    return tuple(baseline for baseline in BASELINES if baseline in compared)


def pair_cells(compared: Mapping[str, dict], row: str, name: str) -> tuple[str, ...]:
    """A cell for each of `baselines_of`: row - baseline with its 95 % interval under a filter, and the seeds."""
    cells = []
    for baseline in baselines_of(compared):
        pair = compared[baseline].get(row)
        cells.append(f"{pair[name]['mean']:+.4f} ({pair[name]['low']:+.4f} .. {pair[name]['high']:+.4f}), "
                     f"{_seeds(pair)}"
                     if pair else "")
    return tuple(cells)


def _seeds(pair: dict) -> str:
    return f"{len(pair['seeds'])} seed" + "s" * (len(pair["seeds"]) > 1)
