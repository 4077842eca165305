"""The synthetic world as arrays: a tree of topics, items that live in bursts, users whose interests drift.

No files here: `impressions.py` lets it happen, `observables.py` gives it features, `synthesize.py` writes its log,
`oracle.py` ranks by it. An impression shows item i to user u at time t with probability proportional to
popularity_i * burst_i(t) * lift_ui(t), where the lift grows with the part of the topic tree that the item shares with
the user's interests; a click follows with probability sigmoid(intercept + propensity_u + match_ui(t) + quality_i +
taste_u . latent_i). Constants are set to the published figures of the challenge (arXiv 2604.04976), not to any model.
Shapes: I items, U users, R periods of a user's interests, K interests at once, D width of taste, E impressions.
"""

from typing import NamedTuple

import numpy as np

END = 1_748_736_000  # 2025-06-01T00:00Z
PERIOD_DAYS, DAY = 140, 86400
BUCKET = DAY // 4  # an item's weight is constant within one
BUCKETS = PERIOD_DAYS * DAY // BUCKET
START = END - PERIOD_DAYS * DAY
LINE = 100  # events that a line keeps, the latest
SELECTION_DAYS = 2.0  # a user is in the log because they clicked in its last days
CLICK_SHARE = 0.0981

ROOTS, INTERESTS, PERIODS, TASTE = 16, 4, 6, 8
ITEMS_PER_USER = 6.9  # born, not all are ever shown
DRIFT_DAYS = 20.0  # mean time between two changes of a user's interests
EXPLORE = 0.8  # lift of every item
SHARES = (0.25, 0.2, 0.12)  # lift of an item in the leaf, middle, root of an interest, times the nodes of that level
CLOSENESS = (1.0, 0.5, 0.2)  # match in the same leaf, middle, root
MATCH_WEIGHT, QUALITY_SD, TASTE_WEIGHT, PROPENSITY_SD = 2.0, 0.6, 0.8, 0.65


class Topics(NamedTuple):
    """A tree of three levels; leaves are numbered in tree order, so that a node is a range of leaves."""

    branch: int  # children of a root and of a middle node

    @property
    def leaves(self) -> int:
        return ROOTS * self.branch ** 2

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Leaves under a leaf, a middle node, a root."""
        return 1, self.branch, self.branch ** 2


class Items(NamedTuple):
    """All items that were ever born, ordered by leaf and advertiser."""

    leaf: np.ndarray  # int32 [I]
    advertiser: np.ndarray  # int32 [I], within one leaf
    popularity: np.ndarray  # float64 [I], Zipf-Mandelbrot, expected impressions up to a factor
    quality: np.ndarray  # float32 [I], logit
    latent: np.ndarray  # float32 [I, D], half of it the advertiser's
    birth: np.ndarray  # int64 [I], Unix seconds
    life_days: np.ndarray  # float32 [I], from birth to death


class Pools(NamedTuple):
    """The items alive in each bucket, sorted by (bucket, leaf), with cumulative weights to draw from."""

    item: np.ndarray  # int32 [entries]
    cumulative: np.ndarray  # float64 [entries + 1]
    start: np.ndarray  # int64 [BUCKETS, leaves + 1], first entry of each leaf in each bucket
    masses: tuple[np.ndarray, ...]  # float64 [BUCKETS, nodes] of the leaves, middle nodes, roots and the whole tree


class World(NamedTuple):
    """Everything that does not belong to one user."""

    topics: Topics
    items: Items
    pools: Pools
    intercept: float  # of the click's logit
    spare: float  # visits drawn per impression kept: the small the world, the more often an item would come again


class Users(NamedTuple):
    """What is true of some users."""

    events: np.ndarray  # int64 [U], length of the line at most
    span_days: np.ndarray  # float64 [U], how far back the line reaches
    leaf: np.ndarray  # int32 [U, R, K], interests
    strength: np.ndarray  # float32 [U, R, K], above 0, at most 1
    since: np.ndarray  # int64 [U, R], start of each period in Unix seconds, ascending
    propensity: np.ndarray  # float32 [U], logit
    taste: np.ndarray  # float32 [U, D]


def build_world(users: int, seed: int) -> World:
    """The world for about `users` users, not yet calibrated; equal arguments, equal world."""
    rng = np.random.default_rng([seed, 0])
    topics = Topics(max(2, round(4 * (users / 3000) ** 0.15)))
    items = _draw_items(topics, max(400, round(users * ITEMS_PER_USER)), rng)
    return World(topics, items, build_pools(topics, items), intercept=0.0, spare=1.5)


def _draw_items(topics: Topics, count: int, rng: np.random.Generator) -> Items:
    leaf_share = rng.dirichlet(np.full(topics.leaves, 2.0))
    leaf = np.sort(rng.choice(topics.leaves, count, p=leaf_share)).astype(np.int32)
    advertisers = max(1, round(count / 50 / topics.leaves))  # per leaf
    advertiser = np.minimum(rng.zipf(1.5, count), advertisers) - 1 + leaf * advertisers
    order = np.argsort(advertiser, kind="stable")
    leaf, advertiser = leaf[order], advertiser[order].astype(np.int32)
    rank = rng.permutation(count) + 1
    popularity = ((rank / count) + 0.007) ** -1.7
    style = rng.normal(size=(topics.leaves * advertisers, TASTE + 1))[advertiser]
    own = rng.normal(size=(count, TASTE + 1))
    mixed = (style + own) / np.sqrt(2)
    life = 0.88 * np.exp(rng.normal(0, 0.35, count)) * (popularity / np.median(popularity)) ** 0.36
    birth = _busy_times(count, rng) - 0.4 * life * DAY
    return Items(leaf, advertiser, popularity, (QUALITY_SD * mixed[:, 0]).astype(np.float32),
                 mixed[:, 1:].astype(np.float32), birth.astype(np.int64), life.astype(np.float32))


def _busy_times(count: int, rng: np.random.Generator) -> np.ndarray:
    """Times distributed as the log's events are, roughly: supply follows demand."""
    spans = _spans(100_000, rng)
    chosen = 1 - np.exp(-CLICK_SHARE * LINE * SELECTION_DAYS / spans)
    return END - rng.choice(spans, count, p=chosen / chosen.sum()) * DAY * rng.random(count)


def _spans(count: int, rng: np.random.Generator) -> np.ndarray:
    """How many days back the latest events of a user reach, before selection."""
    return np.minimum(25 * np.exp(rng.normal(0, 0.65, count)), PERIOD_DAYS - 2)


def build_pools(topics: Topics, items: Items) -> Pools:
    """Each item's weight per bucket: popularity times a burst that rises for 0.3 of its life, then falls to zero."""
    first = (items.birth - START) // BUCKET
    length = np.ceil(items.life_days * DAY / BUCKET).astype(np.int64) + 1
    item = np.repeat(np.arange(len(first), dtype=np.int32), length)
    bucket = np.arange(len(item)) - np.repeat(np.cumsum(length) - length, length) + first[item]
    middle = START + (bucket + 0.5) * BUCKET
    age = (middle - items.birth[item]) / (items.life_days[item] * DAY)
    burst = np.minimum(age / 0.3, (1 - age) / 0.7)
    alive = (burst > 0) & (bucket >= 0) & (bucket < BUCKETS)
    item, bucket, burst = item[alive], bucket[alive].astype(np.int16), burst[alive]
    order = np.argsort(bucket, kind="stable")  # items come sorted by leaf
    item, bucket = item[order], bucket[order]
    weight = items.popularity[item] * burst[order] / items.life_days[item]
    node = bucket.astype(np.int64) * topics.leaves + items.leaf[item]
    edges = np.arange(BUCKETS)[:, None] * topics.leaves + np.arange(topics.leaves + 1)
    cumulative, start = np.concatenate([[0.0], np.cumsum(weight)]), np.searchsorted(node, edges)
    masses = tuple(np.diff(cumulative[start[:, ::size]]) for size in (*topics.sizes, topics.leaves))
    return Pools(item, cumulative, start, masses)


def draw_users(world: World, count: int, rng: np.random.Generator) -> Users:
    """`count` users, not yet selected."""
    events = np.maximum(LINE - rng.gamma(0.6, 15, count).astype(np.int64), 12)
    span = _spans(count, rng)
    wait = rng.exponential(DRIFT_DAYS * DAY, (count, PERIODS - 1))
    begin = END - span * DAY
    since = np.column_stack([np.full(count, START - DAY), (begin[:, None] + np.cumsum(wait, axis=1))]).astype(np.int64)
    leaf = np.empty((count, PERIODS, INTERESTS), np.int32)
    strength = np.empty((count, PERIODS, INTERESTS), np.float32)
    leaf[:, 0] = _interests(world, (count, INTERESTS), rng)
    strength[:, 0] = rng.uniform(0.2, 1, (count, INTERESTS))
    everyone = np.arange(count)
    for period in range(1, PERIODS):  # one interest is replaced, or only its strength changes
        slot, replaced = rng.integers(0, INTERESTS, count), rng.random(count) < 0.7
        leaf[:, period], strength[:, period] = leaf[:, period - 1], strength[:, period - 1]
        leaf[everyone, period, slot] = np.where(replaced, _interests(world, count, rng), leaf[everyone, period, slot])
        strength[everyone, period, slot] = rng.uniform(0.2, 1, count)
    propensity = rng.normal(0, PROPENSITY_SD, count).astype(np.float32)
    return Users(events, span, leaf, strength, since, propensity, rng.normal(size=(count, TASTE)).astype(np.float32))


def _interests(world: World, shape: int | tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Leaves drawn as often as items are born in them: demand follows supply."""
    return world.items.leaf[rng.integers(0, len(world.items.leaf), shape)]


def bucket_of(time: np.ndarray) -> np.ndarray:
    """The bucket of each time (Unix seconds)."""
    return np.clip((time - START) // BUCKET, 0, BUCKETS - 1)


def interests_at(users: Users, user: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(leaf int64 [E, K], strength [E, K]) of each user at each time."""
    period = np.maximum((users.since[user] <= time[:, None]).sum(axis=1) - 1, 0)
    return users.leaf[user, period].astype(np.int64), users.strength[user, period].astype(np.float64)


def exposure_lift(topics: Topics, leaf: np.ndarray, strength: np.ndarray, item_leaf: np.ndarray) -> np.ndarray:
    """How much the policy favours an item of `item_leaf` [...] for interests `leaf`, `strength` [..., K]."""
    lift = np.full(item_leaf.shape, EXPLORE)
    for size, share in zip(topics.sizes, SHARES):
        same = leaf // size == (item_leaf // size)[..., None]
        lift += share * topics.leaves / size * np.where(same, strength, 0).sum(axis=-1)
    return lift


def match_interests(topics: Topics, leaf: np.ndarray, strength: np.ndarray, item_leaf: np.ndarray) -> np.ndarray:
    """How well an item of `item_leaf` [...] meets interests `leaf`, `strength` [..., K]: 0 to 1."""
    best = np.zeros(item_leaf.shape)
    for size, closeness in zip(topics.sizes, CLOSENESS):
        same = leaf // size == (item_leaf // size)[..., None]
        best = np.maximum(best, closeness * np.where(same, strength, 0).max(axis=-1))
    return best


def click_logit(world: World, users: Users, user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The logit of a click on each impression [E]."""
    items = world.items
    leaf, strength = interests_at(users, user, time)
    liking = (users.taste[user] * items.latent[item]).sum(axis=1) / np.sqrt(TASTE)
    matched = match_interests(world.topics, leaf, strength, items.leaf[item])
    return (world.intercept + users.propensity[user] + MATCH_WEIGHT * matched + items.quality[item]
            + TASTE_WEIGHT * liking)


def logistic(logit: np.ndarray) -> np.ndarray:
    """The probability that belongs to a logit."""
    return 1 / (1 + np.exp(-logit))
