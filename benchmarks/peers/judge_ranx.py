"""Our judge beside ranx on random scores with ties: prints the largest difference of any user's metric.

python -m pip install ranx; python benchmarks/peers/judge_ranx.py

ranx breaks ties as it likes, so it gets the order that our rule says: a target behind all its equals.
"""

import numpy as np
from ranx import Qrels, Run, evaluate

from onepiece_comp.benchmark.full_ranking import CUTS, Scored, judge
from onepiece_comp.evaluation.metrics import hit_rate, ndcg

USERS, ITEMS, LEVELS = 200, 500, 50


def main() -> None:
    rng = np.random.default_rng(0)
    score = rng.integers(0, LEVELS, (USERS, ITEMS + 1)).astype(np.float32)
    target, seen = rng.integers(1, ITEMS + 1, USERS), rng.integers(0, ITEMS + 1, (USERS, 20))
    judged = judge([Scored(score.copy(), target, seen)], items=ITEMS)
    qrels = Qrels({f"u{user}": {f"i{item}": 1} for user, item in enumerate(target)})
    names = [f"{metric}@{cut}" for cut in CUTS for metric in ("hit_rate", "ndcg")]
    for kind in ("unseen", "all"):
        lists = {}
        for user in range(USERS):
            hidden = set(seen[user].tolist()) - {target[user]} if kind == "unseen" else set()
            order = sorted((i for i in range(1, ITEMS + 1) if i not in hidden),
                           key=lambda i: (-score[user, i], i == target[user]))
            lists[f"u{user}"] = {f"i{item}": float(ITEMS - place) for place, item in enumerate(order)}
        theirs, run = {}, Run(lists)
        evaluate(qrels, run, names)
        for name in names:
            theirs[name] = np.array([run.scores[name][f"u{user}"] for user in range(USERS)])
        ours = {f"{metric}@{cut}": rule(judged[kind].rank, cut) for cut in CUTS for metric, rule in (("hit_rate",
            hit_rate), ("ndcg", ndcg))}
        worst = max(float(np.abs(ours[name] - theirs[name]).max()) for name in names)
        print(f"{kind}: largest difference of any user in {len(names)} metrics: {worst:.2e}")


if __name__ == "__main__":
    main()
