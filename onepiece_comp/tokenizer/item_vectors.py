"""Item vectors for the tokenizer: an embedding, a file, a run's item tower, or several of them joined.

Stands between `id_tree.py` and `build.py`. Sources are named in one text: "emb_81", "vectors.npy", a run's folder,
or several with weights, "emb_81+work/retrieval:2": each is centred, made white and scaled by its weight, then they
stand side by side. Rows are read as they are asked for, so memory is that of a block. Legend: n items, d width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.artefacts import fingerprint
from onepiece_comp.columns import load_column
from onepiece_comp.console import say
from onepiece_comp.errors import InputError
from onepiece_comp.logs.embeddings import LARGEST_VALUE
from onepiece_comp.logs.identity import original_ids, original_text

_ROWS = 1 << 16
_WHITENING_SAMPLE = 1 << 16  # vectors that a whitening is fitted on
_FLAT = 1e-4  # components with less than this share of the strongest one's deviation are not blown up


class Source(NamedTuple):
    """Where item vectors come from."""

    name: str
    matrix: np.ndarray  # [rows, d], memory-mapped
    row: np.ndarray  # int64 [items]: row of `matrix` per item in item-row order, -1 = none


class Frame(NamedTuple):
    """How a source's vectors become its part of a fusion: fitted once, and kept for whoever extends the tokenizer."""

    mean: np.ndarray  # float32 [d]
    axes: np.ndarray  # float32 [d, d], whitening times weight

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Vectors [n, d] of the source in the fusion's space, float32 [n, d]."""
        return (values - self.mean) @ self.axes


class Space(NamedTuple):
    """The space that item vectors stand in; new items must come into that of a tokenizer's words."""

    sources: str  # their text
    # fingerprints of reduced embeddings' projections (`reduction.py`), by name; None: not known
    reductions: dict[str, str] | None
    frames: tuple[Frame, ...]  # of a fusion, one for each source; a source that stands alone with weight 1 has none


class ItemVectors:
    """Vectors of some items, read block by block; indexed by slices and arrays of places."""

    def __init__(self, sources: Sequence[Source], rows: Sequence[np.ndarray], space: Space):
        self._sources, self._rows, self.space = sources, rows, space
        self.shape = (len(rows[0]), sum(source.matrix.shape[1] for source in sources))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        """float32 [places, d]; a part that an item lacks is zero, the mean of a whitened source."""
        made = []
        for number, (source, rows) in enumerate(zip(self._sources, self._rows)):
            row = rows[places]
            values = np.asarray(source.matrix[np.maximum(row, 0)], np.float32)
            if self.space.frames:
                values = self.space.frames[number](values)
            if (row < 0).any():
                values[row < 0] = 0
            made.append(values)
        return made[0] if len(made) == 1 else np.concatenate(made, axis=1)


def open_vectors(dataset: Path, creative: np.ndarray, named: Sequence[tuple[str, float]], *, whiten: bool,
                 space: Space | None = None) -> tuple[ItemVectors, np.ndarray]:
    """(vectors of the items that have one, bool [items] which these are), both in creative-id order.

    `creative` int64 [items + 1] are the dataset's creative ids by row, `named` sources and their weights. An item has a
    vector where any source has one that is not zero. With the `space` of earlier vectors these come into the same, else
    a fusion is fitted to them. InputError for sources that are not there, do not fit the dataset or the space, have a
    vector of no item or hold no finite numbers.
    """
    reduced = _reductions(dataset, named)
    if space is not None:
        _check_space(space, named, reduced)
    sources = [find_source(dataset, creative, name) for name, _ in named]
    order = np.argsort(creative[1:], kind="stable")
    rows = [np.where(_usable(source), source.row, -1)[order] for source in sources]
    for (name, _), row in zip(named, rows):
        if not (row >= 0).any():
            raise InputError(name, found=f"no vector for any of {len(order):,} items", expected="at least one",
                             do="choose other vectors")
    present = np.any([row >= 0 for row in rows], axis=0)
    rows, frames = [row[present] for row in rows], ()
    if space is not None:
        frames = _fitting(space.frames, sources)
    elif _is_fusion(named):
        frames = tuple(_fitted(source, row, weight, whiten) for source, row, (_, weight) in zip(sources, rows, named))
    return ItemVectors(sources, rows, Space(_sources_text(named), reduced, frames)), present


def _is_fusion(named: Sequence[tuple[str, float]]) -> bool:
    """Whether these sources are centred and scaled; one that stands alone with weight 1 is taken as it is."""
    return len(named) > 1 or named[0][1] != 1


def _fitting(frames: tuple[Frame, ...], sources: Sequence[Source]) -> tuple[Frame, ...]:
    """The frames; InputError where a source is of another width."""
    for source, frame in zip(sources, frames):
        if source.matrix.shape[1] != len(frame.mean):
            raise InputError(source.name, found=f"vectors {source.matrix.shape[1]} wide", do="give the earlier source",
                             expected=f"{len(frame.mean)} wide, as in the fusion that is extended")
    return frames


def _check_space(space: Space, named: Sequence[tuple[str, float]], reduced: dict[str, str]) -> None:
    """InputError where `named` are not the sources of a space, or do not come into it."""
    if not same_sources(space.sources, named):
        raise InputError("--vectors", found=_sources_text(named),
                         expected=f"{space.sources}, as in the earlier tokenizer",
                         do="give the vectors that it was built from: its words mean nothing among others")
    if space.reductions not in (None, reduced):
        raise InputError("--vectors", found="embeddings reduced in another way than those of the earlier tokenizer",
                         expected=f"the same projection of {', '.join(sorted({*space.reductions, *reduced}))}",
                         do="preprocess both datasets with preprocess.reduce_embeddings_to=0, or build a new tokenizer")
    if len(space.frames) != (len(named) if _is_fusion(named) else 0):
        raise InputError("--vectors", found="a fusion whose means and axes an earlier version did not keep",
                         expected="a tokenizer with them, so that new items come into its space",
                         do="build it again, or extend one of a single source")


def named_sources(text: str) -> list[tuple[str, float]]:
    """Sources and weights: "emb_81+work/retrieval:2" is [("emb_81", 1.0), ("work/retrieval", 2.0)]."""
    return [_weighted(part) for part in text.split("+")]


def same_sources(earlier: str, named: Sequence[tuple[str, float]]) -> bool:
    """Whether `named` are the sources of the text `earlier`: as many, in its order, with its weights.

    An embedding of a dataset must have its name again. A run or a file may have moved, so any other is taken for it:
    that its vectors are of the same space is for the user to know.
    """
    if _sources_text(named) == earlier:
        return True
    before = named_sources(earlier)
    return len(before) == len(named) and all(
        f"{old_weight:g}" == f"{weight:g}" and (old == new or not (_is_embedding(old) or _is_embedding(new)))
        for (old, old_weight), (new, weight) in zip(before, named))


def _sources_text(named: Sequence[tuple[str, float]]) -> str:
    """The text that `named_sources` reads."""
    return "+".join(f"{name}:{weight:g}" if weight != 1 else name for name, weight in named)


def _reductions(dataset: Path, named: Sequence[tuple[str, float]]) -> dict[str, str]:
    return {name: fingerprint(load_column(dataset, f"{name}_pca")) for name, _ in named
            if _is_embedding(name) and (dataset / f"{name}_pca.npy").is_file()}


def _is_embedding(name: str) -> bool:
    return name.startswith("emb_") and Path(name).name == name and not name.endswith(".npy")


def _weighted(text: str) -> tuple[str, float]:
    name, colon, weight = text.strip().rpartition(":")
    if not colon:
        name, weight = text.strip(), "1"
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not name or not 0 < number < 1e6:
        raise InputError("--vectors", found=repr(text) if text.strip() else "an empty name, which is no source",
                         expected="NAME or NAME:WEIGHT, a weight above 0", do="for example emb_81+work/retrieval:2")
    return name, number


def _usable(source: Source) -> np.ndarray:
    """Which items have a vector that is not zero, bool [items]; InputError for values that no embedding could have."""
    usable = source.row >= 0
    held, bad, worst = np.flatnonzero(usable), 0, 0.0
    for start in range(0, len(held), _ROWS):
        part = held[start:start + _ROWS]
        values = np.asarray(source.matrix[source.row[part]])
        wrong = ~(np.abs(values) <= LARGEST_VALUE)
        if wrong.any():
            bad, worst = bad + int(wrong.any(axis=1).sum()), worst or float(values[wrong][0])
        usable[part] = values.any(axis=1)
    if bad:
        raise InputError(source.name, found=f"{bad:,} vectors with values such as {worst:.3g}",
                         expected=f"finite numbers of at most {LARGEST_VALUE:,.0f}, as of embeddings",
                         do="scale the vectors; for an item without one write zeros: it still gets an id")
    return usable


def _fitted(source: Source, row: np.ndarray, weight: float, whiten: bool) -> Frame:
    """Makes a source's part white (unit variance in all directions), or of unit mean square, times its weight."""
    held = row[row >= 0]
    sample = np.sort(np.random.default_rng(0).choice(held, min(len(held), _WHITENING_SAMPLE), replace=False))
    values = np.asarray(source.matrix[sample], np.float64)
    mean, width = values.mean(0), values.shape[1]
    if not whiten:
        scale = np.sqrt(np.square(values - mean).sum(1).mean()) or 1.0
        return Frame(mean.astype(np.float32), (np.eye(width) * weight / scale).astype(np.float32))
    variance, axes = np.linalg.eigh((values - mean).T @ (values - mean) / len(values))
    deviation = np.sqrt(np.maximum(variance, 0))
    deviation = np.maximum(deviation, _FLAT * deviation.max() or 1.0)
    return Frame(mean.astype(np.float32), (axes / deviation * weight / width ** 0.5).astype(np.float32))


def find_source(dataset: Path, creative: np.ndarray, name: str) -> Source:
    """The source of a name: a run's folder, a .npy file, or an embedding column of the dataset."""
    path = Path(name)
    if path.is_dir():
        source = _align(path / "item_vectors.npy", path / "item_ids.npy", creative, every_item=True)
        _check_names(path, dataset, creative, source)
        return source
    if not name.endswith(".npy"):
        return _embedding_column(dataset, name, len(creative))
    for ids_file in (path.with_name(f"{path.stem}_ids.npy"), path.with_name("item_ids.npy")):
        if ids_file.is_file():
            return _align(path, ids_file, creative, every_item=False)
    matrix = _open_matrix(path)
    if len(matrix) != len(creative):
        raise InputError(path, found=f"{len(matrix):,} rows and no {path.stem}_ids.npy beside it",
                         expected=f"{len(creative):,} rows (items + 1), or creative ids beside the file",
                         do="write the ids, int64, one per row")
    return Source(str(path), matrix, np.arange(1, len(creative)))


def _check_names(run: Path, dataset: Path, creative: np.ndarray, source: Source) -> None:
    """InputError where a run's items have the creative ids of the dataset's and other names."""
    own, wanted = original_ids(run, creative), original_ids(dataset, creative)[1:]
    if own.dtype.kind != wanted.dtype.kind:
        say(f"note: {run}: whether its items are those of {dataset} could not be checked: one of the two tells no "
            f"original ids")
    elif own.dtype.kind == "S" and (other := own[source.row] != wanted).any():
        at = int(other.argmax())
        raise InputError(run, found=f"{original_text(own[source.row[at]])!r} as the item of creative id "
                                    f"{creative[at + 1]}",
                         expected=f"{original_text(wanted[at])!r}, as in {dataset}", do="train a run on this dataset")


def _embedding_column(dataset: Path, name: str, rows: int) -> Source:
    if not (dataset / f"{name}_present.npy").is_file():
        held = sorted(path.name.removesuffix("_present.npy") for path in dataset.glob("emb_*_present.npy"))
        raise InputError(dataset, found=f"no embedding {name}", expected=f"one of: {', '.join(held) or 'none'}",
                         do="name one of these, a .npy file or a run's folder, or preprocess with that embedding")
    present = load_column(dataset, f"{name}_present")
    return Source(name, load_column(dataset, name), np.where(present, np.arange(rows), -1)[1:])


def _open_matrix(file: Path) -> np.ndarray:
    if not file.is_file():
        raise InputError(file, found="no such file", expected="item vectors",
                         do="check the path, or train the run to its end")
    matrix = load_column(file.parent, file.stem)
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or 0 in matrix.shape:
        raise InputError(file, found=f"{matrix.dtype} {list(matrix.shape)}", expected="floats [items, width]",
                         do="write one vector per row")
    return matrix


def _align(file: Path, ids_file: Path, creative: np.ndarray, *, every_item: bool) -> Source:
    """Match vectors to items by creative id; id 0 is padding. With `every_item` the two sets must be the same."""
    matrix, ids = _open_matrix(file), np.asarray(load_column(ids_file.parent, ids_file.stem))
    if ids.shape != matrix.shape[:1] or ids.dtype.kind not in "iu" or len(np.unique(ids)) < len(ids):
        raise InputError(ids_file, found=f"{ids.dtype} {list(ids.shape)}, not one id of its own per vector",
                         expected=f"{len(matrix):,} different creative ids, integers", do="write one id per vector")
    place = places_of(ids, creative[1:])
    matched = place >= 0
    strangers = np.count_nonzero(ids) - matched.sum()
    if not matched.any() or every_item and (strangers or not matched.all()):
        raise InputError(ids_file, expected="the items of this dataset", do="use vectors made from this dataset",
                         found=f"{matched.sum():,} of the dataset's {matched.size:,} items, and {strangers:,} others")
    return Source(str(file), matrix, place)


def places_of(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The place in `ids` (at least one, all different) of each `wanted` id; -1 where it is not among them."""
    by_id = np.argsort(ids, kind="stable")
    place = by_id[np.minimum(np.searchsorted(ids, wanted, sorter=by_id), len(ids) - 1)]
    return np.where(ids[place] == wanted, place, -1)
