"""What happens in the synthetic world: visits, what the policy shows, clicks, and who enters the log.

Stands between `arrays.py` and `synthesize.py`; arrays only. Users are drawn in blocks and kept when they clicked in the
log's last days, as the organisers chose theirs. Shapes: see `arrays.py`.
"""

from typing import NamedTuple

import numpy as np

from onepiece_comp.world.arrays import (
    CLICK_SHARE, DAY, END, EXPLORE, INTERESTS, PERIOD_DAYS, SELECTION_DAYS, SHARES, START, Users, World, bucket_of,
    click_logit, draw_users, interests_at, logistic)

REPEAT = 0.02  # chance that the policy lets a seen item through again
SESSION_START = 0.7  # chance that a visit opens a session


class Impressions(NamedTuple):
    """Who saw what and when, ordered by (user, time)."""

    user: np.ndarray  # int64 [E], row in Users
    item: np.ndarray  # int64 [E], row in Items
    time: np.ndarray  # int64 [E], Unix seconds
    logit: np.ndarray  # float64 [E], of a click


def calibrate_world(world: World, seed: int) -> World:
    """The intercept at which the selected users click as often as published, by bisection over a pilot; and `spare`."""
    rng = np.random.default_rng([seed, 3])
    users = draw_users(world, 1500, rng)
    visitor, time = _visits(users, world.spare, rng)
    unique = len(_without_repeats(world, users, visitor, time, rng)[0])
    world = world._replace(spare=1.05 * len(visitor) / unique)
    shown = show(world, users, rng)
    late = shown.time >= END - SELECTION_DAYS * DAY
    low, high = -12.0, 4.0
    for _ in range(40):
        middle = (low + high) / 2
        click = logistic(shown.logit + middle)
        total = lambda values: np.bincount(shown.user, values, len(users.events))
        selected = 1 - np.exp(total(np.where(late, np.log1p(-click), 0)))
        clicks = (selected * total(np.where(late, 0, click)) + total(np.where(late, click, 0))).sum()
        share = clicks / (selected * total(np.ones(len(click)))).sum()
        low, high = (middle, high) if share < CLICK_SHARE else (low, middle)
    return world._replace(intercept=middle)


def show(world: World, users: Users, rng: np.random.Generator) -> Impressions:
    """What the policy shows to each user: the latest `events` impressions, seen items only rarely again."""
    user, time = _visits(users, world.spare, rng)
    user, time, item = _without_repeats(world, users, user, time, rng)
    from_end = np.searchsorted(user, user, side="right") - np.arange(len(user))
    kept = from_end <= users.events[user]
    user, time, item = user[kept], time[kept], item[kept]
    return Impressions(user, item, time, click_logit(world, users, user, item, time))


def _visits(users: Users, spare: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(user, time) of every visit, in order: sessions all over the span, a few visits in each."""
    everyone = np.arange(len(users.events))
    user = np.repeat(everyone, np.ceil(users.events * spare).astype(np.int64))
    opens = rng.random(len(user)) < SESSION_START
    opens[np.searchsorted(user, everyone)] = True
    session = np.cumsum(opens) - 1
    reach = np.minimum(users.span_days[user[opens]] * spare, PERIOD_DAYS) * DAY - 1800
    begin = END - 1800 - rng.random(len(reach)) * reach
    running = np.cumsum(np.where(opens, 0, rng.gamma(0.6, 330, len(user))))
    time = np.minimum((begin[session] + running - running[opens][session]).astype(np.int64), END - 1)
    key = np.sort(user * (END - START) + time - START)
    return user, key - user * (END - START) + START


def _without_repeats(world: World, users: Users, user: np.ndarray, time: np.ndarray,
                     rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(user, time, item) of the visits at which there was an item to show; one seen before is mostly held back."""
    item, any_alive = _draw_shown(world, users, user, time, rng)
    key = user * len(world.items.leaf) + item
    order = np.argsort(key, kind="stable")
    again = np.zeros(len(user), bool)
    again[order[1:]] = key[order[1:]] == key[order[:-1]]
    kept = any_alive & (~again | (rng.random(len(user)) < REPEAT))
    return user[kept], time[kept], item[kept]


def _draw_shown(world: World, users: Users, user: np.ndarray, time: np.ndarray,
                rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An item for each visit, and whether there was one to show.

    First the part of the policy that shows it (an interest at one level of the tree, or exploration), by its mass,
    then an item within the part's range of leaves, by its weight.
    """
    pools, topics, bucket = world.pools, world.topics, bucket_of(time)
    leaf, strength = interests_at(users, user, time)
    mass = [pools.masses[level][bucket[:, None], leaf // size] * strength * (share * topics.leaves / size)
            for level, (size, share) in enumerate(zip(topics.sizes, SHARES))]
    running = np.cumsum(np.concatenate([*mass, EXPLORE * pools.masses[-1][bucket]], axis=1), axis=1)
    point = rng.random(len(user)) * running[:, -1]
    part = np.minimum((running <= point[:, None]).sum(axis=1), running.shape[1] - 1)
    size = np.array([*np.repeat(topics.sizes, INTERESTS), topics.leaves])[part]
    low = leaf[np.arange(len(user)), part % INTERESTS] // size * size
    begin, end = pools.start[bucket, low], pools.start[bucket, low + size]
    weight = pools.cumulative[begin] + rng.random(len(user)) * (pools.cumulative[end] - pools.cumulative[begin])
    entry = np.clip(np.searchsorted(pools.cumulative, weight, side="right") - 1, begin, np.maximum(end - 1, begin))
    return pools.item[np.minimum(entry, len(pools.item) - 1)].astype(np.int64), running[:, -1] > 0


def draw_clicks(shown: Impressions, rng: np.random.Generator) -> np.ndarray:
    """Whether each impression is clicked [E]."""
    return rng.random(len(shown.logit)) < logistic(shown.logit)


def selected_users(users: Users, shown: Impressions, clicked: np.ndarray) -> np.ndarray:
    """Rows of the users who clicked in the log's last days: those whom the organisers' rule lets in."""
    late = clicked & (shown.time >= END - SELECTION_DAYS * DAY)
    return np.flatnonzero(np.bincount(shown.user[late], minlength=len(users.events)))
