"""Items to codes of a prefix, one each, at the least total cost: shortest augmenting paths over lists of near codes.

Stands before `collisions.py`. An item looks at its nearest codes only; prices of the codes prove that no other code
could lower the total (an unlisted one costs at least as much as the last listed), or tell for which items the list was
too short. Source: Jonker and Volgenant 1987, with candidate lists. Compiled where numba is present, else plain Python.
Legend: m items, K codes listed per item, C codes.
"""

import heapq
from importlib.util import find_spec

import numpy as np

if find_spec("numba"):
    import numba

    _compiled = numba.njit(nogil=True, cache=True)
else:  # the same in plain Python: some hundred times slower, and only items in collision take time
    _compiled = lambda function: function

OUTSIDE = -1  # no code: what is cheaper stands outside
_SLACK = 1e-9  # of costs, against rounding


@_compiled
def match(cost_MK, code_MK, outside_M, size):  # noqa: N803
    """(code int64 [m], short bool [m]) at the least total cost.

    `cost_MK` float64 and `code_MK` int64 list each item's codes by rising cost; `outside_M` is what it costs an item to
    get none (inf: it must get one). `short` marks items whose lists are too short to prove that the total is least, or
    to give a code at all (OUTSIDE then); where none is marked, the answer is that of all C codes. `size` is C.
    """
    items, listed = cost_MK.shape
    owner, price = np.full(size, -1, np.int64), np.zeros(size)
    code, level = np.full(items, OUTSIDE, np.int64), np.zeros(items)  # level: what the item pays, with its code's price
    short = np.zeros(items, np.bool_)
    distance, via, closed = np.full(size, np.inf), np.full(size, -1, np.int64), np.zeros(size, np.bool_)
    touched = np.empty(size, np.int64)
    for start in range(items):
        heap = [(0.0, np.int64(-1))]
        heap.pop()
        count, item, base, end = 0, start, 0.0, np.int64(-2)
        best_outside, leaver = np.inf, np.int64(-1)
        level[start] = outside_M[start]
        for k in range(listed):
            level[start] = min(level[start], cost_MK[start, k] + price[code_MK[start, k]])
        total = np.inf
        while True:
            for k in range(listed):  # an item may go to any of its codes, at what it would pay beyond now
                to = code_MK[item, k]
                if not closed[to]:
                    reach = base + cost_MK[item, k] + price[to] - level[item]
                    if reach < distance[to]:
                        if distance[to] == np.inf:
                            touched[count] = to
                            count += 1
                        distance[to], via[to] = reach, item
                        heapq.heappush(heap, (reach, to))
            if base + outside_M[item] - level[item] < best_outside:
                best_outside, leaver = base + outside_M[item] - level[item], item
            end = np.int64(-2)
            while len(heap):
                reach, to = heapq.heappop(heap)
                if not closed[to] and reach <= distance[to]:
                    end = to
                    break
            if end == -2 or best_outside <= distance[end]:
                end, total = np.int64(-1), best_outside
                break
            if owner[end] < 0:
                total = distance[end]
                break
            closed[end] = True
            item, base = owner[end], distance[end]
        if total < np.inf:
            for k in range(count):
                to = touched[k]
                if closed[to] and distance[to] < total:
                    price[to] += total - distance[to]
                    level[owner[to]] += total - distance[to]
            level[start] += total
            if end < 0:  # someone leaves; the codes behind them shift towards the start
                mover, place = leaver, code[leaver]
                code[mover] = OUTSIDE
            else:
                mover, place = via[end], code[via[end]]
                code[mover], owner[end] = end, mover
            while mover != start:
                taker = via[place]
                owner[place], place, code[taker], mover = taker, code[taker], place, taker
        else:
            short[start] = True
        for k in range(count):
            to = touched[k]
            distance[to], via[to], closed[to] = np.inf, -1, False
    if listed < size:
        for item in range(items):
            if min(level[item], outside_M[item]) > cost_MK[item, listed - 1] + _SLACK:
                short[item] = True
    return code, short
