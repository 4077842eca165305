"""Items to codes of a prefix, one each, at the least total cost: shortest augmenting paths over lists of near codes.

Stands before `collisions.py`. An item looks at its nearest codes only; prices of the codes prove that no other code
could lower the total (an unlisted one costs at least as much as the last listed), or tell for which items the list was
too short. Source: Jonker and Volgenant 1987, with candidate lists. Compiled where numba is present, else plain Python.
Legend: M items, K codes listed per item, C codes.
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
def match(cost_MK, code_MK, size):  # noqa: N803
    """(code int64 [M], short bool [M]) at the least total cost, a code of its own for each item.

    `cost_MK` float64 and `code_MK` int64 list each item's codes by rising cost; `size` is C, at least M. `short` marks
    items whose lists are too short to prove that the total is least, or to give a code at all (-1 then); where none is
    marked, the answer is that of all C codes.
    """
    items, listed = cost_MK.shape
    owner, price = np.full(size, -1, np.int64), np.zeros(size)
    code, level = np.full(items, -1, np.int64), np.zeros(items)  # level: what an item pays, its code's price too
    short = np.zeros(items, np.bool_)
    distance, via, closed = np.full(size, np.inf), np.full(size, -1, np.int64), np.zeros(size, np.bool_)
    touched = np.empty(size, np.int64)
    for start in range(items):
        level[start] = np.inf
        for k in range(listed):
            level[start] = min(level[start], cost_MK[start, k] + price[code_MK[start, k]])
        end, count = _shortest_path(start, cost_MK, code_MK, (owner, price, level), (distance, via, closed, touched))
        if end == _NOWHERE:
            short[start] = True
        else:
            total = distance[end]
            for k in range(count):  # codes on the way become dearer, so that no one gains by going back
                to = touched[k]
                if closed[to] and distance[to] < total:
                    price[to] += total - distance[to]
                    level[owner[to]] += total - distance[to]
            level[start] += total
            while end != _NOWHERE:  # each item on the path takes the code that it looked at
                taker = via[end]
                owner[end], end, code[taker] = taker, code[taker], end
        for k in range(count):
            to = touched[k]
            distance[to], via[to], closed[to] = np.inf, -1, False
    if listed < size:
        for item in range(items):
            if level[item] > cost_MK[item, listed - 1] + _SLACK:
                short[item] = True
    return code, short


@_compiled
def _shortest_path(start, cost_MK, code_MK, state, tree):  # noqa: N803
    """(free code at the end or _NOWHERE, number of codes touched).

    From item to code at what the item would pay beyond now, from a code to its owner at nothing: Dijkstra's search.
    """
    owner, price, level = state
    distance, via, closed, touched = tree
    heap = [(0.0, np.int64(-1))]
    heap.pop()
    count, item, base = 0, start, 0.0
    while True:
        for k in range(cost_MK.shape[1]):
            to = code_MK[item, k]
            reach = base + cost_MK[item, k] + price[to] - level[item]
            if not closed[to] and reach < distance[to]:
                if distance[to] == np.inf:
                    touched[count] = to
                    count += 1
                distance[to], via[to] = reach, item
                heapq.heappush(heap, (reach, to))
        end = np.int64(_NOWHERE)
        while len(heap):
            reach, to = heapq.heappop(heap)
            if not closed[to] and reach <= distance[to]:
                end = to
                break
        if end == _NOWHERE or owner[end] < 0:
            return end, count
        closed[end] = True
        item, base = owner[end], distance[end]
