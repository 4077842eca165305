"""Items to codes of a prefix, one each, at the least total cost: shortest augmenting paths over lists of near codes.

Stands before `collisions.py`. An item looks at its nearest codes only; prices of the codes prove that no other code
could lower the total (an unlisted one costs at least as much as the last listed), or tell for which items the list was
too short. Equal items share a row of the lists, and a path looks at a row once, however many items it has. Source:
Jonker and Volgenant 1987, with candidate lists. Compiled where numba is present, else plain Python. Legend: R rows, M
items, K codes listed per row, C codes.
"""

import heapq
from importlib.util import find_spec

import numpy as np

if find_spec("numba"):
    import numba

    _compiled = numba.njit(nogil=True, cache=True)
else:  # the same in plain Python: some hundred times slower, and only items in collision take time
    _compiled = lambda function: function

_NOWHERE = -1
_SLACK = 1e-9  # of costs, against rounding


@_compiled
def match_codes(cost_RK, code_RK, size, items_R=None):  # noqa: N803
    """(code int64 [M], short bool [R]) at the least total cost, a code of its own for each item.

    `cost_RK` and `code_RK` int64 list each row's codes by rising cost; `size` is C, at least M. `items_R` int64 are the
    items of each row, one by default; items stand in the order of their rows. `short` marks rows whose lists are too
    short to prove that the total is least, or to give all their items a code (-1 for those without); where none is
    marked, the answer is that of all C codes.
    """
    rows, listed = cost_RK.shape
    first = np.arange(rows + 1)  # item of each row, and one past the last
    if items_R is not None:
        first[1:] = np.cumsum(items_R)
    code, level = np.full(first[-1], -1, np.int64), np.zeros(rows)  # level: what a row's items pay, codes' prices too
    short = first[1:] - first[:-1] > listed
    if short.any():
        return code, short
    price, owner, holder = np.zeros(size), np.full(size, -1, np.int64), np.full(size, -1, np.int64)  # row, item of it
    distance, via = np.full(size, np.inf), np.full(size, -1, np.int64)
    touched, reached = np.empty(size, np.int64), np.full(rows, np.inf)
    expanded, entry = np.empty(rows, np.int64), np.full(rows, -1, np.int64)
    for start in range(rows):
        level[start] = _least(cost_RK[start], code_RK[start], price)
        for item in range(first[start], first[start + 1]):
            end, count, looked = _shortest_path(start, cost_RK, code_RK, (owner, price, level),
                                                (distance, via, touched, reached, expanded, entry))
            if end == _NOWHERE:
                short[start] = True
            else:
                _raise(distance[end], expanded[:looked], reached, (price, level), code, first)
                _take(end, item, (via, entry), (owner, holder, code))
            for k in range(count):
                distance[touched[k]], via[touched[k]] = np.inf, -1
            for k in range(looked):
                reached[expanded[k]] = np.inf
            if short[start]:
                break
    if listed < size:
        for row in range(rows):
            if level[row] > float(cost_RK[row, listed - 1]) + _SLACK:
                short[row] = True
    return code, short


@_compiled
def _least(cost_K, code_K, price):  # noqa: N803
    """The least cost with its code's price; prices are at least zero, so a dearer code ends the look."""
    least = np.inf
    for k in range(len(cost_K)):
        if float(cost_K[k]) >= least:
            break
        least = min(least, float(cost_K[k]) + price[code_K[k]])
    return least


@_compiled
def _raise(total, expanded, reached, state, code, first):
    """Codes and rows on the way become dearer, so that no one gains by going back."""
    price, level = state
    for row in expanded:
        for item in range(first[row], first[row + 1]):
            if code[item] >= 0:
                price[code[item]] += total - reached[row]
        level[row] += total - reached[row]


@_compiled
def _take(end, item, path, state):
    """Each row on the path takes the code that it looked at, for the one that it was met by; `item` had none."""
    via, entry = path
    owner, holder, code = state
    while end != _NOWHERE:
        row = via[end]
        given = entry[row]
        taker = item if given == _NOWHERE else holder[given]
        owner[end], holder[end], code[taker] = row, taker, end
        end = given


@_compiled
def _shortest_path(start, cost_RK, code_RK, state, tree):  # noqa: N803
    """(free code at the end or _NOWHERE, number of codes touched, number of rows looked at).

    From row to code at what its items would pay beyond now, from a code to its owner at nothing: Dijkstra's search. A
    code further than the nearest free one is not looked at, nor one whose owner has been: it leads to nothing nearer.
    """
    owner, price, level = state
    distance, via, touched, reached, expanded, entry = tree
    heap = [(0.0, np.int64(-1))]
    heap.pop()
    count, looked, row, base, nearest = 0, 0, start, 0.0, np.inf
    entry[start] = _NOWHERE
    while True:
        reached[row], expanded[looked] = base, row
        looked += 1
        for k in range(cost_RK.shape[1]):
            cost, to = base + float(cost_RK[row, k]), code_RK[row, k]
            if cost - level[row] > nearest:
                break
            reach = cost + price[to] - level[row]
            if reach > nearest or reach >= distance[to] or owner[to] >= 0 and reached[owner[to]] < np.inf:
                continue
            if distance[to] == np.inf:
                touched[count] = to
                count += 1
            distance[to], via[to] = reach, row
            heapq.heappush(heap, (reach, to))
            if owner[to] < 0:
                nearest = reach
        end = np.int64(_NOWHERE)
        while len(heap):
            reach, to = heapq.heappop(heap)
            if reach <= distance[to] and not (owner[to] >= 0 and reached[owner[to]] < np.inf):
                end = to
                break
        if end == _NOWHERE or owner[end] < 0:
            return end, count, looked
        row, base = owner[end], distance[end]
        entry[row] = end
