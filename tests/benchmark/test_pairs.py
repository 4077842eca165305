"""Differences between rows of a public benchmark by user, against loops, and what is not compared."""

import math

import numpy as np
import pytest

from onepiece_comp.benchmark.full_ranking import Judged
from onepiece_comp.benchmark.pairs import against_baselines, baselines_of, pair_cells, ranks_path, save_ranks

USERS = 400


def _gain(rank):
    return 1 / math.log2(rank + 1) if rank <= 10 else 0.0


def _result(folder, row, seed, rank, users=USERS):
    """A result file of ranks [2, users], and what it holds."""
    path = folder / row / f"seed-{seed}.json"
    save_ranks(path, {"unseen": Judged(rank[0], {}), "all": Judged(rank[1], {})})
    told = {name: {"ndcg@10": sum(map(_gain, row_of)) / len(row_of)} for name, row_of in zip(("unseen", "all"),
        rank.tolist())}
    return path, {"seed": seed, "figures": told, "about": {"users": users, "data_sha256": {"s.txt": "1"}}}


@pytest.fixture
def ranks():
    rng = np.random.default_rng(0)
    return {(row, seed): rng.integers(1, 16, (2, USERS)) for row in ("sasrec-softmax", "ours") for seed in range(3)}


def test_a_difference_is_the_mean_over_users_of_the_mean_over_shared_seeds(tmp_path, ranks):
    rows = {"sasrec-softmax": [_result(tmp_path, "sasrec-softmax", seed, ranks["sasrec-softmax", seed]) for seed in (0,
        1)],
            "ours": [_result(tmp_path, "ours", seed, ranks["ours", seed]) for seed in (1, 2, 0)]}
    [(baseline, pairs)] = against_baselines(rows).items()
    assert baseline == "sasrec-softmax" and set(pairs) == {"ours"} and pairs["ours"]["seeds"] == [0, 1]
    for place, name in enumerate(("unseen", "all")):
        slow = [np.mean([_gain(ranks["ours", seed][place, user]) - _gain(ranks["sasrec-softmax", seed][place, user])
                         for seed in (0, 1)]) for user in range(USERS)]
        pair, spread = pairs["ours"][name], np.std(slow) / USERS ** 0.5
        assert pair["mean"] == pytest.approx(np.mean(slow))
        assert (pair["high"] - pair["low"]) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    [cell] = pair_cells(against_baselines(rows), "ours", "unseen")
    assert cell.startswith(f"{pairs['ours']['unseen']['mean']:+.4f} (") and cell.endswith("2 seeds")
    rows["onepiece-retrieval"] = [_result(tmp_path, "onepiece-retrieval", 1, ranks["ours", 1])]
    compared = against_baselines(rows)
    # nothing stands beside one that was not run
    assert baselines_of(compared) == ("sasrec-softmax", "onepiece-retrieval")
    first, second = pair_cells(compared, "onepiece-retrieval", "unseen")
    assert first.endswith("1 seed") and second == ""


def test_other_data_other_ranks_and_none_are_not_compared(tmp_path, ranks):
    base = {"sasrec-softmax": [_result(tmp_path, "sasrec-softmax", 0, ranks["sasrec-softmax", 0])]}
    same, other = (_result(tmp_path / name, "ours", 0, ranks["ours", 0], users) for name, users in (("a", USERS),
        ("b", 7)))
    assert against_baselines({**base, "ours": [same]})
    assert not against_baselines({**base, "ours": [other]})
    path, found = same
    found["figures"]["all"]["ndcg@10"] += 1e-6  # of another training than the ranks
    assert not against_baselines({**base, "ours": [same]})
    ranks_path(path).unlink()
    assert not against_baselines({**base, "ours": [same]})
