"""Items of a run as sections of a report: their codes as a tree, their neighbours, and what ten users were shown.

Stands between `run_sections.py` and `report.py`. Reads the tokenizer's columns, the run's item vectors, and as many
lines of the histories as ten users need. An item is written as its creative id and semantic id.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np

from onepiece_comp.artefacts import read_json, read_marker
from onepiece_comp.columns import load_column
from onepiece_comp.evaluation.score import ACTION_NAMES
from onepiece_comp.logs.formats import UserLine, read_index, read_sequences
from onepiece_comp.logs.raw_folder import OriginalIds
from onepiece_comp.logs.truths import Truth, read_truth
from onepiece_comp.reports.drawings import code_rings
from onepiece_comp.reports.log_figures import gini
from onepiece_comp.reports.log_sections import duration, iso
from onepiece_comp.reports.page import Drawing, Plot, Section, Table, Text
from onepiece_comp.reports.run_sections import section_or_missing
from onepiece_comp.tokenizer.folder import load_tokenizer

_USERS, _LOOKED_AT, _LAST_EVENTS, _LIST = 10, 300, 8, 10
_ITEMS, _NEIGHBOURS = 8, 5
_DRAWN_RANKS = 200


class CodeNames:
    """The semantic id behind the creative id of each of some items, where they have one: 20001200998 <17 201>."""

    def __init__(self, work: Path, items: Iterable[int]):
        self._code: dict[int, list[int]] = {}
        if (work / "tokenizer" / "tokenizer.json").is_file():
            ids = np.unique(np.fromiter(items, np.int64))
            self._code = dict(zip(ids.tolist(), load_tokenizer(work / "tokenizer").codes_of(ids).tolist()))

    def __call__(self, item: int) -> str:
        code = self._code.get(item)
        return f"{item}" if not code or min(code) < 0 else f"{item} ‹{chr(160).join(map(str, code))}›"


def item_sections(work: Path) -> list[Section]:
    """Codes, neighbours, users."""
    vectors = next((f"{stage}/item_vectors.npy" for stage in ("joint", "retrieval")
                    if (work / stage / "item_vectors.npy").is_file()), "joint/item_vectors.npy")
    return [section_or_missing("Semantic ids", work, ["tokenizer/tokenizer.json"], lambda: _codes(work)),
            section_or_missing("Nearest neighbours", work, [vectors, "dataset/schema.json"],
                               lambda: _neighbours(work, work / vectors)),
            section_or_missing("Ten users", work, ["split/eval/predict_seq.jsonl", "split/truth.jsonl",
                                                   "result/result.json"], lambda: _users(work))]


def usage(codes: np.ndarray, size: int) -> list[dict[str, float]]:
    """Per level of codes [items, L]: codes in use, perplexity (2^entropy: codes if all were alike), Gini, largest."""
    found = []
    for level in codes.T:
        count = np.bincount(level, minlength=size)
        share = count[count > 0] / count.sum()
        found.append({"in_use": int((count > 0).sum()), "perplexity": float(np.exp(-(share * np.log(share)).sum())),
                      "gini": gini(count), "largest": int(count.max())})
    return found


def _codes(work: Path) -> list:
    folder = work / "tokenizer"
    marker, codes = read_marker(folder, "tokenizer"), np.asarray(load_column(folder, "codes"))[1:]
    codes, size = codes[(codes >= 0).all(1)], marker["codes_per_level"]
    rows = [(f"{level}", f"{one['in_use']:,} of {size:,}", f"{one['perplexity']:,.1f}", f"{one['gini']:.3f}",
             f"{one['largest']:,}") for level, one in enumerate(usage(codes, size), 1)]
    ranks = np.unique(np.linspace(1, size, min(size, _DRAWN_RANKS)).astype(int))
    use = {f"level {number}": np.sort(np.bincount(level, minlength=size))[::-1][ranks - 1]
           for number, level in enumerate(codes.T, 1)}
    after = marker["figures"]["after"]
    last = after[-1]
    unique = f"{last['unique']:,} ids for {len(codes):,} items; {last['shared']:.2%} of the items share theirs."
    return [Text(unique), Drawing("Tree of the ids: first codes, and how many second codes under each",
                                  code_rings(codes)),
            Table("Use of the codes", ("level", "in use", "perplexity", "Gini", "items on the largest"), rows),
            Plot("Items on a code", ranks, use, "code, most used first", "items", log="y")]


def _neighbours(work: Path, path: Path) -> list:
    """Of items spread over popularity, the nearest by cosine."""
    vectors = np.load(path, mmap_mode="r")
    ids, count = (np.asarray(load_column(work / "dataset", name)) for name in ("creative_id", "item_count"))
    by_count = np.argsort(-count[1:], kind="stable") + 1
    asked = by_count[np.unique(np.geomspace(1, max(1, (count > 0).sum()), _ITEMS).astype(int)) - 1]
    cosine = np.asarray(vectors[asked], np.float32) @ np.asarray(vectors, np.float32).T
    cosine[:, 0] = -np.inf
    cosine[np.arange(len(asked)), asked] = -np.inf
    near = [[other for other in np.argsort(-row)[:_NEIGHBOURS].tolist() if np.isfinite(row[other])] for row in cosine]
    names = CodeNames(work, ids[np.concatenate([asked, *near]).astype(int)].tolist())
    rows = [(names(int(ids[item])), f"{count[item]:,}",
             *(f"{names(int(ids[other]))}  {row[other]:.2f}" for other in others),
             *[""] * (_NEIGHBOURS - len(others))) for item, row, others in zip(asked, cosine, near)]
    columns = ("item ‹id›", "events", *(f"neighbour {number}" for number in range(1, _NEIGHBOURS + 1)))
    return [Text(f"By the cosine of {path.parent.name}/{path.name}; items from the most to the least popular."),
            Table("Nearest items", columns, rows)]


def _users(work: Path) -> list:
    """Users found and users missed, half and half where there are, from the first lines of the histories."""
    result = read_json(work / "result" / "result.json")
    lists = dict(zip(result["user"], result["top10s"]))
    truths = {truth.user: truth for truth in read_truth(work / "split" / "truth.jsonl")}
    file = work / "split" / "eval" / "predict_seq.jsonl"
    original = OriginalIds(read_index(file.with_name("indexer.pkl")))
    lines = [line for line in map(original.line, islice(read_sequences(file), _LOOKED_AT))
             if line.user in truths and line.user in lists]
    found = [line for line in lines if truths[line.user].item in lists[line.user]]
    missed = [line for line in lines if truths[line.user].item not in lists[line.user]]
    half = max(_USERS // 2, _USERS - len(missed))
    chosen = found[:half] + missed[:_USERS - len(found[:half])]
    if not chosen:
        return [Text("None of the first users is in both the truth and the result.")]
    names = CodeNames(work, chain.from_iterable(
        (truths[line.user].item, *lists[line.user], *(event.item for event in line.events)) for line in chosen))
    return [Text(f"From the first {len(lines)} users: up to {_USERS // 2} whose target is among the ten, then some "
                 f"whose "
                 "target is not. The target stands in brackets [ ] where it was recommended; the same first code means "
                 "alike by the tokenizer."),
                 *(_user(line, truths[line.user], lists[line.user], names) for line in chosen)]


def _user(line: UserLine, truth: Truth, shown: Sequence[int], names: CodeNames) -> Table:
    events = line.events[-_LAST_EVENTS:][::-1]
    when = lambda event: f"{duration(max(0, truth.time - event.time))} before"
    past = [(names(event.item), ACTION_NAMES.get(event.action, "unknown"), when(event)) for event in events]
    ten = [f"[ {names(item)} ]" if item == truth.item else names(item) for item in shown[:_LIST]]
    rows = [(place + 1, *(past[place] if place < len(past) else ("", "", "")), ten[place] if place < len(ten) else "")
            for place in range(max(len(past), len(ten)))]
    rank = shown.index(truth.item) + 1 if truth.item in shown else 0
    title = (f"{line.user}: {len(line.events)} events; target {names(truth.item)}, {ACTION_NAMES[truth.action]} at "
             f"{iso(truth.time)}: " + (f"rank {rank}" if rank else "not among the ten"))
    return Table(title, ("", "last events, latest first", "action", "when", "recommended"), rows)
