"""The code prefixes that lead to an item, as levels of a tree: what constrained search walks.

Legend: M items, L levels, P prefixes of a level.
"""

from typing import NamedTuple

import torch


class PrefixTable(NamedTuple):
    """The tree of the ids of M items. Leaves (the last level) are the items that have one."""

    code: list[torch.Tensor]  # per level: int64 [P_l], last code of each prefix, grouped by parent
    first_child: list[torch.Tensor]  # per level but the last: int64 [P_l + 1], children are a range of the next level
    leaf_item: torch.Tensor  # int64 [leaves], item number of each leaf
    leaf_path: torch.Tensor  # int64 [leaves, L], prefix of each leaf at each level
    item_leaf: torch.Tensor  # int64 [M], leaf of each item, -1 without an id


def build_prefix_table(code_ML: torch.Tensor) -> PrefixTable:
    """The tree of the ids of items; a row of `code_ML` with -1 has no id. Two items may share one."""
    levels, device = code_ML.shape[1], code_ML.device
    with_id = torch.where((code_ML >= 0).all(1))[0]
    path = code_ML[with_id].long()
    order = torch.arange(len(with_id), device=device)
    for level in reversed(range(levels)):  # stable sorts from the last level on give lexicographic order
        order = order[path[order, level].argsort(stable=True)]
    leaf_item, path = with_id[order], path[order]
    changed = torch.ones(len(path), dtype=torch.bool, device=device)
    codes, first_child, prefix_of_leaf = [], [], []
    for level in range(levels):
        differs = path[1:, :level + 1] != path[:-1, :level + 1]
        changed[1:] = differs.any(1) if level < levels - 1 else True
        codes.append(path[changed, level])
        prefix_of_leaf.append(changed.cumsum(0) - 1)
    for level in range(levels - 1):
        parent_of_child = prefix_of_leaf[level][first_leaf(prefix_of_leaf[level + 1])]
        counts = torch.bincount(parent_of_child, minlength=len(codes[level]))
        first_child.append(torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
    item_leaf = torch.full((len(code_ML),), -1, dtype=torch.long, device=device)
    item_leaf[leaf_item] = torch.arange(len(leaf_item), device=device)
    return PrefixTable(codes, first_child, leaf_item, torch.stack(prefix_of_leaf, 1), item_leaf)


def first_leaf(prefix_of_leaf: torch.Tensor) -> torch.Tensor:
    """The first leaf of each prefix, in order."""
    new = torch.ones_like(prefix_of_leaf, dtype=torch.bool)
    new[1:] = prefix_of_leaf[1:] != prefix_of_leaf[:-1]
    return torch.where(new)[0]
