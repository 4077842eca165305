"""Item vectors in which items that users click together lie together: dataset/ and vectors in, OUT.npy out.

Stands between `item_vectors.py` and `build.py`, which can read the file. A projection of the content vectors, at
first their principal components, learns by symmetric InfoNCE from items that a user clicked soon after each other. An
anchor holds items where their content puts them; what is learned of content serves items without clicks too. Sources:
GR2 (arXiv 2602.07774), a contrastive loss on co-occurrence before the ids are made, here with LogQ (Yi et al. 2019)
and the positive standing for itself (arXiv 2507.09331). Legend: n items with a vector, d width, k width of the result,
p pairs, B pairs of a batch.
"""

import functools
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onepiece_comp.artefacts import atomic_file, read_marker
from onepiece_comp.columns import create_mapped, load_column
from onepiece_comp.console import progress, say, table
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import CLICK, CONVERSION
from onepiece_comp.tokenizer.item_vectors import ItemVectors, named_sources, open_vectors
from onepiece_comp.tokenizer.quantisers import Vectors, in_blocks, sample_of

if TYPE_CHECKING:
    import torch

_WINDOW = 5  # clicks between which items count as clicked together
_MOST_PAIRS = 4_000_000
_EVENTS = 1 << 20  # read at a time
_MOST_WIDTH = 64  # k
_BATCH, _STEPS, _RATE = 512, 1000, 1e-2
_MOST_OFTEN = 10  # times that a pair is drawn, in the mean, where pairs are few
_TEMPERATURE = 0.2  # at first; learned, because pairs that mean little need a high one
_ANCHOR = 0.3  # weight of the squared distance to where content alone puts an item
_SAMPLE = 1 << 17  # vectors that the principal components are taken from
_ROWS = 1 << 16
_KEPT_OUT = 10_000  # pairs, at most a tenth of them, that tell how well it went


class Alignment(NamedTuple):
    """A linear projection of content vectors, then to the unit sphere."""

    mean: np.ndarray  # float32 [d]
    axes: np.ndarray  # float32 [d, k]

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [n, d] to float32 [n, k] of length 1."""
        return _unit((np.asarray(vectors, np.float32) - self.mean) @ self.axes)


def write_aligned(dataset: Path, source_name: str, out: Path, *, seed: int = 0) -> Path:
    """Align the vectors of `source_name` (as in `item_vectors.py`) with the clicks of `dataset`, write them to `out`.

    `out` is a .npy file, float32 [items + 1, k] by item row, zeros for the padding and items without a vector; beside
    it FILE_ids.npy has the creative ids. InputError when no two items with a vector are clicked together.
    """
    dataset, out = Path(dataset), Path(out)
    _check_output(out)
    read_marker(dataset, "dataset")
    creative = np.asarray(load_column(dataset, "creative_id"))
    vectors, present = open_vectors(dataset, creative, named_sources(source_name), whiten=True)
    row = 1 + np.argsort(creative[1:], kind="stable")[present]
    place = np.full(len(creative), -1)
    place[row] = np.arange(len(row))
    pairs = place[co_occurrences(dataset, window=_WINDOW, seed=seed)]
    pairs = np.random.default_rng([seed, 1]).permutation(pairs[(pairs >= 0).all(axis=1)])
    kept_out = min(_KEPT_OUT, len(pairs) // 10)
    alignment = fit_alignment(vectors, pairs[kept_out:], seed=seed)
    _write_pair(vectors, alignment, row, creative, out)
    _report(f"alignment of {source_name}", vectors, alignment, pairs, kept_out)
    say(f"wrote {out}")
    return out


def _check_output(out: Path) -> None:
    """InputError for a name of another ending and for one that a folder has, the ids' name too."""
    if out.suffix != ".npy":
        raise InputError(out, found="another ending", expected="a name that ends in .npy", do="rename the output")
    for file in (out, _ids_file(out)):
        if file.is_dir():
            raise InputError(file, found="a folder", expected="a new file or an earlier output",
                             do="choose another output or move that one away")


def _ids_file(out: Path) -> Path:
    return out.with_name(f"{out.stem}_ids.npy")


def co_occurrences(dataset: Path, *, window: int, seed: int = 0, most: int = _MOST_PAIRS) -> np.ndarray:
    """Pairs of item rows, int64 [p, 2], earlier first: different items at most `window` of a user's clicks apart.

    A click is an event with action 1 or 2 of an item of the dataset. More than `most` pairs are a sample, all pairs
    equally likely. Memory is that of a block of events and twice the sample.
    """
    item, action, user_start = (load_column(Path(dataset), name) for name in ("item_row", "action", "user_start"))
    user_start, generator = np.asarray(user_start), np.random.default_rng(seed)
    kept, key = np.zeros((0, 2), np.int64), np.zeros(0)
    bounds = np.unique(np.append(np.searchsorted(user_start, np.arange(0, len(item), _EVENTS)), len(user_start) - 1))
    for first, last in progress(list(pairwise(bounds)), total=len(bounds) - 1, what="clicks"):
        events = slice(user_start[first], user_start[last])
        user = np.repeat(np.arange(last - first), np.diff(user_start[first:last + 1]))
        clicked = np.isin(action[events], (CLICK, CONVERSION)) & (item[events] > 0)
        found = _pairs_within(np.asarray(item[events])[clicked].astype(np.int64), user[clicked], window)
        kept, key = np.concatenate([kept, found]), np.concatenate([key, generator.random(len(found))])
        if len(kept) > most:
            chosen = np.sort(np.argpartition(key, most)[:most])
            kept, key = kept[chosen], key[chosen]
    return kept


def _pairs_within(item: np.ndarray, user: np.ndarray, window: int) -> np.ndarray:
    found = [np.zeros((0, 2), np.int64)]
    for apart in range(1, min(window, len(item) - 1) + 1):
        fits = (user[:-apart] == user[apart:]) & (item[:-apart] != item[apart:])
        found.append(np.column_stack([item[:-apart][fits], item[apart:][fits]]))
    return np.concatenate(found)


def aligned_vectors(vectors: Vectors, pairs: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Vectors [n, d] as float32 [n, k] of length 1, aligned with `pairs` [p, 2] of places; k is d, at most 64."""
    return in_blocks(vectors, fit_alignment(vectors, pairs, seed=seed), "aligned vectors")


def fit_alignment(vectors: Vectors, pairs: np.ndarray, *, seed: int = 0) -> Alignment:
    """The projection that brings `pairs` [p, 2] of places in `vectors` [n, d] together; InputError without pairs."""
    import torch

    if len(pairs) == 0:
        raise InputError("alignment", found="no two items with a vector that one user clicked", expected="some",
                         do="use the vectors as they are")
    start, generator = _principal(vectors, seed), np.random.default_rng([seed, 2])
    tensor = functools.partial(torch.tensor, device="cuda" if torch.cuda.is_available() else "cpu")
    content, axes = tensor(start.axes), tensor(start.axes).requires_grad_()
    log_scale = tensor(-np.log(_TEMPERATURE), dtype=torch.float32).requires_grad_()
    log_expected = [tensor(_log_expected(pairs[:, side], len(vectors))) for side in (0, 1)]
    optimiser = torch.optim.AdamW([axes, log_scale], lr=_RATE)
    steps = min(_STEPS, -(-_MOST_OFTEN * len(pairs) // _BATCH))
    for step in progress(range(steps), total=steps, what="alignment"):
        drawn = pairs[generator.integers(len(pairs), size=_BATCH)]
        places = np.concatenate([drawn[:, 0], drawn[:, 1], generator.integers(len(vectors), size=_BATCH)])
        x = tensor(np.asarray(vectors[places], np.float32) - start.mean)
        left_item, right_item, _ = tensor(places).split(_BATCH)
        unit, by_content = (torch.nn.functional.normalize(x @ projection, dim=1) for projection in (axes, content))
        left, right, _ = (unit * (log_scale / 2).exp()).split(_BATCH)
        loss = (pair_loss(left, right, left_item, right_item, log_expected[1][right_item])
                + pair_loss(right, left, right_item, left_item, log_expected[0][left_item])) / 2
        loss = loss + _ANCHOR * (unit - by_content)[2 * _BATCH:].square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = _RATE * (1 - step / steps)
        optimiser.step()
    return Alignment(start.mean, axes.detach().cpu().numpy())


def pair_loss(query: "torch.Tensor", key: "torch.Tensor", query_item: "torch.Tensor", key_item: "torch.Tensor",
              log_expected: "torch.Tensor") -> "torch.Tensor":
    """Mean loss of queries [B, k], each against its key of [B, k] and the others'; dot products are the logits.

    A key that `log_expected` [B] says is drawn m times a batch stands for 1 / m items, so that popular items are not
    pushed away for being met often. Further draws of the positive or of the query's own item are no negatives.
    """
    import torch

    logit = query @ key.T
    positive = logit.diagonal()
    hidden = (key_item[None] == key_item[:, None]) | (key_item[None] == query_item[:, None])
    negatives = (logit - log_expected).masked_fill(hidden, -torch.inf)
    return (torch.cat([positive[:, None], negatives], 1).logsumexp(1) - positive).mean()


def _log_expected(items: np.ndarray, count: int) -> np.ndarray:
    """Log of how often a batch of draws from `items` is expected to hold each of `count` items, float32."""
    return np.log(np.maximum(np.bincount(items, minlength=count), 1) * (_BATCH / len(items))).astype(np.float32)


def _principal(vectors: Vectors, seed: int) -> Alignment:
    """The projection before training: principal components of vectors brought to unit mean square."""
    sample = sample_of(vectors, _SAMPLE, [seed, 0])
    mean = sample.mean(0, dtype=np.float64).astype(np.float32)
    centred = (sample - mean).astype(np.float64)
    scale = np.sqrt(np.square(centred).mean()) or 1.0
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :_MOST_WIDTH]
    return Alignment(mean, np.ascontiguousarray(axes / scale, np.float32))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))


def _write_pair(vectors: ItemVectors, alignment: Alignment, row: np.ndarray, creative: np.ndarray, out: Path) -> None:
    """Write vectors and ids; the vectors appear last, and earlier ones go before,
    so that none stand beside other ids.
    """
    with atomic_file(out) as rows_file, atomic_file(_ids_file(out)) as ids_file:
        written = create_mapped(rows_file, np.float32, (len(creative), alignment.axes.shape[1]))
        for start in progress(range(0, len(row), _ROWS), total=-(-len(row) // _ROWS), what="aligned vectors"):
            written[row[start:start + _ROWS]] = alignment(vectors[start:start + _ROWS])
        written.flush()
        with open(ids_file, "wb") as file:
            np.save(file, creative)
        out.unlink(missing_ok=True)


def _report(title: str, vectors: ItemVectors, alignment: Alignment, pairs: np.ndarray, kept_out: int) -> None:
    """Before and after: how often the items of a pair kept out are nearer to each other than to the next pair's."""
    nearer, before = ["", ""], lambda block: _unit(block - alignment.mean)
    for when, work in enumerate((before, alignment)) if kept_out > 1 else ():
        left, right = (work(vectors[pairs[:kept_out, side]]) for side in (0, 1))
        nearer[when] = f"{np.mean((left * right).sum(1) > (left * np.roll(right, 1, axis=0)).sum(1)):.2%}"
    table(title, ("what", "before", "after"), [
        ("items with a vector", "", f"{len(vectors):,}"), ("pairs learned from", "", f"{len(pairs) - kept_out:,}"),
        ("width", f"{vectors.shape[1]}", f"{alignment.axes.shape[1]}"),
        ("pairs kept out nearer than chance partners", *nearer)])
