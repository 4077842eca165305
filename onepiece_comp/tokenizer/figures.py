"""What semantic ids are worth: collisions, use of the codes, error, neighbours kept, before and after resolution.

Stands between `folder.py` and `build.py`. Counts are of all items after, of items with a vector before;
errors and neighbours are of items with a vector. Neighbours: of the ten items nearest to an item by their vectors, the
share that is among its ten nearest by what their ids decode to. Legend: n items with a vector, L levels, C codes.
"""

import numpy as np

from onepiece_comp.tokenizer.collisions import Resolved
from onepiece_comp.tokenizer.id_tree import id_numbers
from onepiece_comp.tokenizer.nearest_words import Codebook
from onepiece_comp.tokenizer.quantisers import Quantiser, Vectors, sample_of

NEIGHBOURS = 10
_ASKED, _AMONG = 2000, 100_000  # items whose neighbours are looked at, and among how many
_ROWS = 1 << 15
_WORDING = {  # figure of an id or a prefix to its row in the table
    "shared": ("items that share it", ".2%"), "collision_rate": ("collision rate (items - unique) / items", ".2%"),
    "unique": ("unique", ","), "largest_group": ("largest group", ","), "codes_in_use": ("codes in use", ","),
    "perplexity": ("perplexity of the code", ",.1f"), "squared_error": ("squared error", ".5f"),
    "relative_error": ("squared error / variance", ".4f"), "neighbours_kept": ("neighbours kept", ".2%")}


def measure(vectors: Vectors, quantiser: Quantiser, before: np.ndarray, resolved: Resolved, codes: np.ndarray,
            *, earlier: dict | None = None) -> dict:
    """Figures per depth of ids `before` int32 [n, L] and of the ids `codes` [items, L] that came of them.

    `earlier` are the figures of another rule on the same ids before, whose part in these is not measured again.
    """
    variance = earlier["variance"] if earlier else _variance(vectors)
    return {"before": earlier["before"] if earlier else _levels(vectors, quantiser, before, before, variance),
            "after": _levels(vectors, quantiser, codes, resolved.codes, variance),
            "moved": resolved.moved, "overflowed": resolved.overflowed, "variance": variance}


def _levels(vectors: Vectors, quantiser: Quantiser, counted: np.ndarray, coded: np.ndarray, variance: float,
            ) -> list[dict]:
    """Figures per depth: counts over `counted` [items, L], errors and neighbours over `coded` [n, L]."""
    depths = len(quantiser.codebooks)
    described = [_describe(counted[:, :depth], _error(vectors, coded, quantiser, depth), variance)
                 for depth in range(1, counted.shape[1] + 1)]
    described[depths - 1]["neighbours_kept"] = neighbours_kept(vectors, coded[:, :depths], quantiser)
    return described


def figure_rows(figures: dict) -> list[tuple[str, str, str]]:
    """(what, before, after) of the figures of each depth, for a table."""
    rows, deepest = [], len(figures["after"])
    for depth in range(1, deepest + 1):
        part = "id" if depth == deepest else f"first {depth} of it"
        before, after = (figures[when][depth - 1] if depth <= len(figures[when]) else {} for when in ("before",
            "after"))
        rows += [(f"{part}: {words}", format(before[key], form) if key in before else "", format(after[key], form))
                 for key, (words, form) in _WORDING.items() if key in after]
    return rows


def neighbours_kept(vectors: Vectors, codes: np.ndarray, quantiser: Quantiser) -> float:
    """Mean share of the ten nearest items that are among the ten nearest by decoded ids; on a sample of many items."""
    generator = np.random.default_rng(0)
    among = np.sort(generator.choice(len(codes), min(len(codes), _AMONG), replace=False))
    asked = np.sort(generator.choice(len(among), min(len(among), _ASKED), replace=False))
    if len(among) <= NEIGHBOURS:
        return 1.0
    true = _nearest(np.asarray(vectors[among], np.float32), asked)
    found = _nearest(np.asarray(quantiser.decode(codes[among]), np.float32), asked)
    return float(np.mean([len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in zip(true, found)]))


def _nearest(points: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The ten nearest other points of each point `asked`."""
    found = Codebook.plain(points).nearest(points[asked], NEIGHBOURS + 1)
    others = found != asked[:, None]
    others[others.all(axis=1), -1] = False  # equal points may hide the item itself
    return found[others].reshape(len(asked), NEIGHBOURS)


def _variance(vectors: Vectors) -> float:
    centre = sample_of(vectors, _AMONG, [0]).mean(axis=0, dtype=np.float64).astype(np.float32)
    total = sum(float(np.square(vectors[start:start + _ROWS] - centre).sum(dtype=np.float64))
                for start in range(0, len(vectors), _ROWS))
    return total / len(vectors)


def _error(vectors: Vectors, codes: np.ndarray, quantiser: Quantiser, depth: int) -> float | None:
    """Mean squared error of the first codes alone; none where a prefix cannot be decoded."""
    if depth > len(quantiser.codebooks):
        return None
    if depth < len(quantiser.codebooks):
        decoded = lambda part: quantiser.decode_prefix(codes[part, :depth])
    else:
        decoded = lambda part: quantiser.decode(codes[part, :depth])
    total = 0.0
    for start in range(0, len(codes), _ROWS):
        part = slice(start, start + _ROWS)
        total += float(np.square(vectors[part] - decoded(part)).sum(dtype=np.float64))
    return total / len(codes)


def _describe(counted: np.ndarray, error: float | None, variance: float) -> dict:
    """Figures of ids or prefixes: groups and use over `counted` [items, depth]."""
    numbers = id_numbers(counted, int(counted.max(initial=0)) + 1)
    groups = np.unique(numbers, return_counts=True)[1]
    use = np.unique(counted[:, -1], return_counts=True)[1] / len(counted)
    items, unique = len(counted), len(groups)
    errors = {} if error is None else {"squared_error": error, "relative_error": error / variance if variance else 0.0}
    return {"shared": (items - np.count_nonzero(groups == 1)) / items, "collision_rate": (items - unique) / items,
            "unique": unique, "largest_group": int(groups.max()), "codes_in_use": len(use),
            "perplexity": float(np.exp(-(use * np.log(use)).sum())), **errors}
