"""docs/benchmarks.md from the result files of `onepiece-comp benchmark` and the figures that others published,
and README's table.

python benchmarks/public_tables.py work/beauty/result.json work/ml-1m-order/result.json work/peers/rectools.json --out
docs/benchmarks.md python benchmarks/public_tables.py benchmarks/results/public/*.json --out docs/benchmarks.md
--summary benchmarks/results/public.md

Several files of one protocol are joined by row and seed, the last file's holds; so do its differences by user. Results
of `benchmarks/peers/beside.py` stand beside our row of the same model. Rows without a result are named as not run.
Nothing in the page is written by hand but the text of this file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onepiece_comp.artefacts import atomic_file, read_json
from onepiece_comp.benchmark.full_ranking import FILTERS
from onepiece_comp.benchmark.pairs import baselines_of, pair_cells
from onepiece_comp.benchmark.rows import PROTOCOLS, rows
from onepiece_comp.benchmark.sections import METRICS
from onepiece_comp.config_reading import read_yaml
from onepiece_comp.console import mean_and_spread

PUBLISHED = Path(__file__).with_name("published.yaml")
MAKE_UP = ("coverage@10", "coverage@50", "popularity@10", "popularity@50")
BESIDE = ("beside", "epochs", "threads", "users", "hr@10", "ndcg@10", "hr@200", "CPU s", "CPU s an epoch", "users/s",
          "peak MiB")
SUMMARY = {"beauty": "Beauty", "ml-1m-order": "MovieLens-1M"}  # protocols of README's table
LABELS = {
    "popularity": "popularity", "item-knn": "item-kNN", "sasrec-bce": "SASRec, binary cross-entropy",
    "tiger": "TIGER without text",
    "liger": "LIGER without text", "cobra": "COBRA without text", "hstu": "HSTU, sampled softmax, no times",
    "sasrec-sampled": "SASRec, sampled softmax", "esasrec": "eSASRec", "sasrec-gbce": "SASRec, gBCE",
    "sasrec-softmax": "SASRec, full softmax", "hstu-softmax": "HSTU, full softmax, no times",
    "hstu-average": "HSTU of four blocks, ranked by a moving average of its weights",
    "onepiece-beam": "OnePiece, beam alone",
    "onepiece-retrieval": "OnePiece, exact retrieval", "onepiece-cascade": "OnePiece, cascade",
    "sasrec-attributes": "SASRec, full softmax, attributes of items",
    "onepiece-attributes": "OnePiece, cascade, on that SASRec with attributes"}
COMMAND = "python benchmarks/public_tables.py benchmarks/results/public/*.json --out docs/benchmarks.md"
HEAD = f"""# Public benchmarks

Written by `{COMMAND}`; the figures come from the result files alone.

    onepiece-comp benchmark beauty --data amazon2014_beauty --out work/beauty --seeds 0,1,2
    onepiece-comp benchmark leave-one-out --data my_events.csv --out work/mine      # columns user, item, time

Protocol of all: last event = test, the one before = validation, the rest trains; weights of the best validation NDCG@10; the whole catalogue is ranked; the test is looked at once (`sasrec-attributes`: three times).
With one target Recall is HR.
A target that ties with other items takes the last place among them.
The judge gives each of 200 users what ranx gives, in 8 metrics under both filters, on random scores with ties (`benchmarks/peers/judge_ranx.py`, [printed](../benchmarks/results/judge_ranx.md)).
`unseen` leaves the items of the whole history out of the list, `all` does not.
`coverage` is the share of the catalogue in any list, `popularity` the mean training count of what is recommended over that of the targets.
Figures are means over seeds, with the standard deviation where there are several.
Minutes are of a clock on a shared machine and include a first stage that other rows share, for each of them again.
Differences to a baseline are paired by user, of the seeds that both rows have, with 95 % intervals of 2,000 bootstraps over users; a row without one was run before ranks were kept.

Rows with semantic ids (`tiger`, `liger`, `cobra`, `onepiece-*`) have no text of items.
Their codes are residual k-means of the item vectors of `sasrec-softmax` (for `onepiece-*` of `hstu-softmax`), trained before under the same seed on the same events.
No two items share an id, but for `cobra`, whose dense vector tells apart what shares one.
Each beam walks the codes that exist; an item that it does not reach is in no list, and as a target takes the last place.
Beams keep 200 prefixes a level and give 1,000 ids (`ml-1m-*`: 1,000 and all), so that lists of 200 are the beam's own; `liger` ranks 100 candidates and the items without training events by its dense score, `cobra` 200 ids (`ml-1m-*`: 1,000).
`onepiece-retrieval`, `onepiece-beam` and `onepiece-cascade` are one training, ranked by the dense head over all items, by the beam, and by both over the beam's items and the 100 of the best dense score.
Training ends after 10 epochs without a better validation figure, of rows with semantic ids after 20: the beam stands still for a while before it learns.
Deviations from the papers stand at the head of `onepiece_comp/benchmark/next_item_codes.py`.

`hstu-average` is no published model: HSTU with full softmax, four blocks and twice the step size, ranked by a moving average of its weights.
Negatives of `sasrec-sampled` and `esasrec` are drawn for each position (on `ml-1m-*` for each user, as those of `sasrec-gbce` and `hstu` are everywhere).
`sasrec-attributes` and `onepiece-attributes`, whose first stage it is, read the attributes of items (`item2attributes.json`) beside their ids; no other row does.
Peers are other people's code on the same split files, judged by our judge (`benchmarks/peers/beside.py`).

Published figures stand beside ours only where the data is the same or nearly so; the last column says what differs, and no row is like for like.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", type=Path, help="where README's table is written")
    asked = parser.parse_args()
    files = [read_json(path) for path in asked.results]
    results = _joined([found for found in files if "peer" not in found])
    peers = [found for found in files if "peer" in found]
    published, _ = read_yaml(PUBLISHED)
    names = [name for name, protocol in PROTOCOLS.items() if protocol.published or name in published or name in results]
    parts = [HEAD, *(_section(name, results.get(name, {"rows": {}, "against": {}}), published.get(name) or [],
                              [peer for peer in peers if peer["protocol"] == name]) for name in names)]
    with atomic_file(asked.out) as temporary:
        temporary.write_text("\n".join(parts), "utf-8")
    print(f"wrote {asked.out}")
    if asked.summary:
        with atomic_file(asked.summary) as temporary:
            temporary.write_text("\n".join(_summary(results)) + "\n", "utf-8")
        print(f"wrote {asked.summary}")


def _summary(results: dict[str, dict]) -> list[str]:
    """Two metrics of each row without seen items, the best NDCG@10 last, as a share of the best of its columns;
    those in bold.
    """
    metrics = ("hr@10", "ndcg@10")
    found = {row: {name: [[one["figures"]["unseen"][metric] for one in results[name]["rows"][row]]
                          for metric in metrics]
                   for name in SUMMARY if row in results[name]["rows"]} for row in LABELS}
    best = {(name, place): max(f"{np.mean(held[name][place]):.4f}" for held in found.values() if name in held)
            for name in SUMMARY for place in range(len(metrics))}

    def cell(row: str, name: str, place: int) -> str:
        if name not in found[row]:
            return ""
        text = mean_and_spread(found[row][name][place])
        return f"**{text}**" if text.startswith(best[name, place]) else text

    share = lambda row: np.mean([np.mean(held[1]) / float(best[name, 1]) for name, held in found[row].items()])
    order = sorted((row for row in LABELS if found[row]), key=share)
    seeds = lambda row: "/".join(str(len(found[row][name][0])) if name in found[row] else "-" for name in SUMMARY)
    return [f"`{COMMAND} --summary benchmarks/results/public.md`", "",
            *_markdown(("row", "seeds",
                        *(f"{label} {metric}" for label in SUMMARY.values() for metric in ("HR@10", "NDCG@10"))), [
        (LABELS[row], seeds(row), *(cell(row, name, place) for name in SUMMARY for place in range(len(metrics))))
        for row in order])]


def _joined(files: Sequence[dict]) -> dict[str, dict]:
    """The result files by protocol; of a row and seed that several hold, that of the last.
    Exits where they differ in data.
    """
    joined, data = {}, {}
    for found in files:
        for result in (one for results in found["rows"].values() for one in results):
            same = [result["about"][name] for name in ("data_sha256", "version", "quick")]
            if data.setdefault(found["protocol"], same) != same:
                raise SystemExit(f"{found['protocol']}: {result['row']}, seed {result['seed']}, is of other data, "
                                 f"another version "
                                 f"or a quick run: {same} beside {data[found['protocol']]}")
        whole = joined.setdefault(found["protocol"], {"rows": {}, "against": {}})
        for baseline, pairs in found.get("against", {}).items():
            whole["against"].setdefault(baseline, {}).update(pairs)
        kept = whole["rows"]
        for row, results in found["rows"].items():
            by_seed = {result["seed"]: result for result in (*kept.get(row, ()), *results)}
            kept[row] = [by_seed[seed] for seed in sorted(by_seed)]
    return joined


def _section(name: str, found: dict, published: Sequence[dict], peers: Sequence[dict]) -> str:
    protocol, any_row = PROTOCOLS[name], next(iter(found["rows"].values()), None)
    about = f"Version {protocol.version}, history of {protocol.max_length}, ties: {protocol.ties}."
    if any_row:
        data = any_row[0]["about"]
        about += f"\n{data['users']:,} users, {data['items']:,} items, {data['events']:,} events."
        about += "\nOf a quick run: these figures say nothing." if data["quick"] else ""
    lines = [line for row in rows(name) if row in found["rows"] for line in _lines(row, found["rows"][row])]
    missing = [f"`{row}`" for row in rows(name) if row not in found["rows"]]
    text = [f"## {name}", about, *([f"Not run: {', '.join(missing) if lines else 'any row'}."] if missing else [])]
    if lines:
        text += ["", *_markdown(("row", "items", "seeds", *METRICS), [line[0] for line in lines]), "",
                 *_markdown(("row", "items", *MAKE_UP, "best epoch", "wall minutes", "users/s"),
                            [line[1] for line in lines])]
    pairs = ([(row, name, *pair_cells(found["against"], row, name)) for row in found["rows"] for name in FILTERS]
             if lines else [])
    if pairs := [pair for pair in pairs if any(pair[2:])]:
        text += ["", *_markdown(("NDCG@10, row -", "items", *baselines_of(found["against"])), pairs)]
    if peers:
        text += ["", *_markdown(BESIDE, _beside(found["rows"].get("sasrec-softmax", []), peers))]
    if published:
        text += ["", *_markdown(("published", "source", *METRICS, "how its protocol differs"), [
            (one["model"], one["source"], *(f"{one[m]:.4f}" if m in one else "" for m in METRICS), one["differs"])
            for one in published])]
    return "\n".join(text) + "\n"


def _lines(row: str, results: Sequence[dict]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Two lines of cells for each filter: metrics, and what the lists are made of."""
    mean = lambda name: float(np.mean([result[name] or 0 for result in results]))
    epoch = "" if results[0]["best_epoch"] is None else f"{mean('best_epoch'):.0f}"
    cost = (epoch, f"{mean('seconds') / 60:.1f}", f"{mean('users_per_second'):,.0f}")
    return [((row, kind, str(len(results)), *(_several(results, kind, name) for name in METRICS)),
             (row, kind, *(_several(results, kind, name) for name in MAKE_UP), *cost)) for kind in FILTERS]


def _beside(ours: Sequence[dict], peers: Sequence[dict]) -> list[tuple[str, ...]]:
    """Other people's code and our row of the same model under its first seed: figures without seen items, and cost."""
    mine = [{**row, "peer": "ours: sasrec-softmax", "epochs": len(row["epochs"]),
             "train_cpu_seconds": row["cpu_seconds"]}
            for row in ours[:1]]
    return [(one["peer"], str(one["epochs"]), str(one["threads"]), f"{one['users']:,}" if "users" in one else "all",
             *(f"{one['figures']['unseen'][name]:.4f}" for name in ("hr@10", "ndcg@10", "hr@200")),
             f"{one['train_cpu_seconds']:,.0f}", f"{one['train_cpu_seconds'] / one['epochs']:.1f}",
             f"{one['users_per_second']:,.0f}", f"{one['peak_memory_mib']:,.0f}") for one in (*mine, *peers)]


def _several(results: Sequence[dict], kind: str, name: str) -> str:
    return mean_and_spread([result["figures"][kind].get(name, float("nan")) for result in results])


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *lines)]


if __name__ == "__main__":
    main()
