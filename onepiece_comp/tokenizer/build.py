"""Semantic ids: dataset/ and item vectors in, tokenizer/ out (quantiser, one id per item).

A quantiser (`quantisers.py`) is fitted to a sample of the items' vectors and encodes all of them; ids that several
items share are given apart (`collisions.py`); items without a vector get free ids under the emptiest prefixes. Vectors
are used in creative-id order, so that ids do not depend on item rows. With an earlier tokenizer to extend, its ids stay
and new items take free ones. Source: OnePiece (arXiv 2512.07424). Legend: n items with a vector, L levels, C codes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.config_reading import to_dict
from onepiece_comp.console import say, table
from onepiece_comp.errors import InputError
from onepiece_comp.logs.identity import original_text
from onepiece_comp.tokenizer.collisions import Resolved, check_rule, place_new, resolve_collisions
from onepiece_comp.tokenizer.figures import figure_rows, measure
from onepiece_comp.tokenizer.folder import Tokenizer
from onepiece_comp.tokenizer.id_tree import emptiest_ids
from onepiece_comp.tokenizer.item_vectors import ItemVectors, named_sources, places_of
from onepiece_comp.tokenizer.quantisers import (
    Quantiser, Vectors, fit_fsq, fit_nested_kmeans, fit_opq, fit_residual_kmeans, in_blocks, restored_additive,
    restored_nested)
from onepiece_comp.tokenizer.rqvae import fit_rqvae, restored_rqvae

_FEWEST_CODES, _MOST_CODES = 16, 16384
_IDS_PER_ITEM = 4  # room that the chosen codebook size leaves, so that few items must move
_MOST_PREFIXES = 1 << 24  # a count of free ids is held for each


class Method(NamedTuple):
    """How a quantiser is fitted to vectors [n, d] with so many words a level, and made again of its arrays."""

    fit: Callable[[Vectors, int, TokenizerConfig], Quantiser]
    restore: Callable[[dict[str, np.ndarray], int], Quantiser]


QUANTISERS: dict[str, Method] = {
    "residual_kmeans": Method(fit_residual_kmeans, restored_additive),
    "nested_kmeans": Method(fit_nested_kmeans, restored_nested), "opq": Method(fit_opq, restored_additive),
    "fsq": Method(fit_fsq, restored_additive), "rqvae": Method(fit_rqvae, restored_rqvae)}


def named_vectors(vectors: str | None, checkpoint: Path | None) -> list[tuple[str, float]]:
    """Sources and their weights; InputError unless just one of the two is given."""
    if (vectors is None) == (checkpoint is None):
        raise InputError("build-tokenizer", found="neither vectors nor a run" if vectors is None else "both",
                         expected="vectors or a run", do="give --vectors emb_81, --vectors FILE.npy or --ckpt RUN")
    if checkpoint is not None and not Path(checkpoint).is_dir():
        raise InputError(checkpoint, found="no such file", expected="a run's folder", do="check the path")
    return [(str(checkpoint), 1.0)] if checkpoint else named_sources(vectors)


def choose_codes(items: int, config: TokenizerConfig) -> int:
    """Codes per level: as configured, or the least power of two with four ids per item; InputError if not enough.

    >>> choose_codes(1000, TokenizerConfig(levels=2))
    64
    """
    if min(config.levels, config.neighbours, config.iterations, config.points_per_code) < 1 or config.codes < 0:
        raise InputError("tokenizer settings", found=str(to_dict(config)), do="correct the one that is too small",
                         expected="levels, neighbours, iterations, points_per_code of at least 1, codes of at least 0")
    size = config.codes or _FEWEST_CODES
    while not config.codes and size < _MOST_CODES and size ** config.levels < _IDS_PER_ITEM * items:
        size *= 2
    if size ** (config.levels - 1) > _MOST_PREFIXES:
        raise InputError("tokenizer settings", found=f"{config.levels} levels of {size:,} codes",
                         expected=f"at most {_MOST_PREFIXES:,} prefixes, codes ** (levels - 1)", do="lower one of them")
    if items > size ** config.levels:
        raise InputError("tokenizer settings", found=f"{items:,} items for {size ** config.levels:,} ids",
                         expected=f"at least as many ids ({size:,} codes ** {config.levels} levels) as items",
                         do="raise tokenizer.codes or tokenizer.levels")
    return size


def fit_quantiser(vectors: ItemVectors | np.ndarray, size: int, config: TokenizerConfig) -> Quantiser:
    """The quantiser `config.quantiser` fitted to a sample of the vectors; InputError for an unknown one."""
    if config.quantiser not in QUANTISERS:
        raise InputError("tokenizer.quantiser", found=repr(config.quantiser), do="choose one of these",
                         expected=f"one of {', '.join(QUANTISERS)}")
    return QUANTISERS[config.quantiser].fit(vectors, size, config)


def restored_quantiser(tokenizer: Tokenizer) -> Quantiser:
    """The quantiser that a tokenizer folder holds."""
    return QUANTISERS[tokenizer.quantiser].restore(tokenizer.arrays, tokenizer.levels)


def new_ids(vectors: ItemVectors, present: np.ndarray, creative: np.ndarray, original: np.ndarray,
            config: TokenizerConfig) -> tuple[Tokenizer, dict]:
    check_rule(config)  # before hours of fitting, not after
    size = choose_codes(len(present), config)
    quantiser = fit_quantiser(vectors, size, config)
    before = in_blocks(vectors, quantiser.encode, "codes")
    resolved = resolve_collisions(vectors, before, quantiser, config)
    levels, order = resolved.codes.shape[1], np.argsort(creative[1:], kind="stable")
    codes = np.full((len(creative), levels), -1, np.int32)
    codes[1 + order[present]] = resolved.codes
    codes[1 + order[~present]] = ids_without_vector(resolved.codes, config.levels, size, len(present) - len(vectors))
    tokenizer = Tokenizer(codes, creative, levels, size, config.quantiser, quantiser.arrays(), original, original[:0],
                          np.zeros((0, levels), np.int32), to_dict(config), vectors.space)
    return tokenizer, measure(vectors, quantiser, before, resolved, codes[1:])


def ids_without_vector(codes: np.ndarray, levels: int, size: int, count: int) -> np.ndarray:
    """`count` ids under the emptiest prefixes beside `codes` [n, `levels`, and one more with a counter, here 0]."""
    taken = np.unique(codes[:, :levels], axis=0)  # shared ones stand once
    free = emptiest_ids(taken, size, count)
    return np.pad(free, ((0, 0), (0, codes.shape[1] - levels)))


def check_settings(old: Tokenizer, config: TokenizerConfig, place: Path) -> None:
    """InputError for a setting, other than the default and the device,
    that is not the one that `old` was built with.
    """
    default, asked = to_dict(TokenizerConfig()), to_dict(config)
    before = {**asked, **old.config}  # an earlier version may not have had it
    other = [key for key in asked if asked[key] not in (default[key], before[key]) and key != "device"
             and (key, asked[key]) != ("codes", old.codes_per_level)]
    if other:
        raise InputError(place, found=f"a tokenizer of {', '.join(f'{key}={before[key]}' for key in other)}",
                         expected=f"{', '.join(f'{key}={asked[key]}' for key in other)} as asked",
                         do="leave that setting out: extending keeps the words as they were fitted")


def extended_ids(vectors: ItemVectors, present: np.ndarray, creative: np.ndarray, original: np.ndarray, old: Tokenizer,
                 place: Path) -> tuple[Tokenizer, dict]:
    """The ids of `old`, and ids for the dataset's other items; an id once given is not given to another item.

    Items are the same where their original ids are.
    """
    quantiser, size = restored_quantiser(old), old.codes_per_level
    _check_extensible(vectors, quantiser, old, place)
    own, wanted = _keys(creative, original, old, place)
    everyone = np.concatenate([own, old.retired_id.astype(own.dtype)])
    ids_of_all = np.concatenate([old.codes[1:], old.retired_codes])
    taken = np.unique(ids_of_all, axis=0)  # shared ones stand once
    codes = np.full((len(creative), old.levels), -1, np.int32)
    at = places_of(everyone, wanted)
    known = at >= 0
    codes[1:][known] = ids_of_all[at[known]]
    if len(taken) + (~known).sum() > size ** old.levels:
        raise InputError(place, found=f"{len(taken):,} ids in use and {(~known).sum():,} new items",
                         expected=f"at most {size ** old.levels:,} ids", do="build a new tokenizer with more codes")
    if not known.any():
        say(f"note: {place} knows none of the dataset's {len(wanted):,} items, whose first is "
            f"{original_text(wanted[0])}; its own "
            f"first is {original_text(own[0])}: the words are kept, no id is")
    order = np.argsort(creative[1:], kind="stable")
    with_vector, new = order[present], ~known
    before = in_blocks(vectors, quantiser.encode, "codes")
    newcomers = np.flatnonzero(new[with_vector])
    placed = place_new(vectors, newcomers, before, quantiser, taken)
    codes[1 + with_vector[newcomers]] = placed
    bare = order[~present][new[order[~present]]]
    codes[1 + bare] = emptiest_ids(np.concatenate([taken, placed]), size, len(bare))
    final, left = codes[1 + with_vector], ~np.isin(everyone, wanted)
    resolved = Resolved(final, int((final != before).any(axis=1).sum()), 0)
    tokenizer = old._replace(codes=codes, creative_id=creative, original_id=original,
                             retired_id=everyone[left].astype(original.dtype), retired_codes=ids_of_all[left],
                             space=vectors.space)
    return tokenizer, measure(vectors, quantiser, before, resolved, codes[1:])


def _keys(creative: np.ndarray, original: np.ndarray, old: Tokenizer, place: Path) -> tuple[np.ndarray, np.ndarray]:
    """By what the items of `old` and of the dataset are matched: original ids, where both sides have them."""
    if old.original_id.dtype.kind == original.dtype.kind:
        return old.original_id[1:], original[1:]
    if old.original_id.dtype.kind == "S":
        raise InputError(place, found=f"a tokenizer of named items, for example {original_text(old.original_id[1])}",
                         expected=f"items like the dataset's, which have creative ids alone, for example {creative[1]}",
                         do="run preprocess again on a folder that has original_ids.json")
    say(f"note: {place} tells no original ids (an earlier version made it): its items are matched by creative id, "
        f"which a "
        "log that was converted anew may have given to others")
    return old.creative_id[1:], creative[1:]


def _check_extensible(vectors: ItemVectors, quantiser: Quantiser, old: Tokenizer, place: Path) -> None:
    if old.levels != len(quantiser.codebooks):
        raise InputError(place, found="ids that end in a counter", expected="ids that are codes throughout",
                         do="build that tokenizer with another tokenizer.resolve")
    width = quantiser.decode(np.asarray(old.codes[1:2])).shape[1]
    if vectors.shape[1] != width:
        raise InputError(place, found=f"a tokenizer of vectors {width} wide", expected=f"{vectors.shape[1]} wide",
                         do="give vectors from the source that it was built from")


def report_tokenizer(out: Path, title: str, figures: dict) -> None:
    table(f"tokenizer: {title}", ("what", "before", "after"), [*figure_rows(figures), *(
        (key.replace("_", " "), "", f"{figures[key]:,}") for key in (
            "items", "items_without_vector", "retired", "moved", "overflowed", "seconds", "peak_memory_mib"))])
    say(f"wrote {out}")
