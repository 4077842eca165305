"""The figures of a log against a slow loop, whatever the blocks; measures at known answers."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from onepiece_comp.logs.user_blocks import EventBlock, starts_of
from onepiece_comp.reports.log_figures import DAY, LogTally, gini, histogram_quantile, top_share
from onepiece_comp.reports.log_sections import duration, length_bars, rank_curve

NOON = 20_000 * DAY + 43_200


def block_of(users):
    """A block of (item, action, time) lists."""
    events = [event for one in users for event in one]
    column = lambda place, dtype: np.array([event[place] for event in events], dtype)
    return EventBlock(starts_of(map(len, users)), column(0, np.int64), column(1, np.int8), column(2, np.int64),
                      np.zeros(len(users) + 1, np.int64), np.empty(0, np.int32), np.full(len(users), -1))


def random_users(seed, users=40):
    rng = np.random.default_rng(seed)
    users = [[(int(rng.integers(1, 31)), int(rng.integers(0, 4)), NOON + int(rng.integers(0, 40)) * 20_000)
              for _ in range(int(rng.integers(0, 30)))] for _ in range(users)]
    return [events + events[:number % 3] for number, events in enumerate(users)]


def test_the_figures_of_a_log_are_those_of_a_slow_loop_whatever_the_blocks():
    users, tally = random_users(3), LogTally(30, cut=NOON + 3 * DAY)
    for begin, end in ((0, 1), (1, 17), (17, 40)):
        tally.add(block_of(users[begin:end]))
    figures, slow, first, last, of_day = tally.figures(), Counter(), {}, {}, defaultdict(list)
    for events in users:
        ordered = sorted(events, key=lambda event: event[2])
        slow["ties"] += sum(a[2] == b[2] for a, b in zip(ordered, ordered[1:]))
        slow["duplicates"] += len(events) - len(set(events))
        slow["users not in time order"] += events != ordered
        slow["events after the cut"] += sum(event[2] >= NOON + 3 * DAY for event in events)
        for item, _, time in events:
            first[item], last[item] = min(first.get(item, time), time), max(last.get(item, time), time)
            of_day[time // DAY].append(item)
    assert slow["duplicates"] and slow["ties"] and slow["events after the cut"]
    assert {name: figures.counts[name] for name in slow} == slow
    days = sorted(of_day)
    assert figures.day.tolist() == days and figures.events_of_day.tolist() == [len(of_day[day]) for day in days]
    cold = [sum(first[item] // DAY == day for item in of_day[day]) for day in days]
    assert figures.cold_events_of_day.tolist() == cold and sum(cold)
    jaccard = [len(set(of_day[a]) & set(of_day[b])) / len(set(of_day[a]) | set(of_day[b]))
               for a, b in zip(days, days[1:]) if b == a + 1]
    assert figures.overlap[1] == pytest.approx(np.mean(jaccard))
    assert sorted(figures.lifetime_seconds) == sorted(last[item] - first[item] for item in first)
    of_length = figures.users_of_length
    assert np.repeat(np.arange(len(of_length)), of_length).tolist() == sorted(map(len, users))
    assert figures.item_count.tolist() == [sum(day.count(item) for day in of_day.values()) for item in range(31)]


def test_items_and_days_beyond_what_was_announced_make_room():
    small, large = LogTally(3), LogTally(30)
    users = [[(item, 1, NOON + day * DAY)] for day in range(200) for item in (1, 29)]
    for tally in (small, large):
        tally.add(block_of(users[:7]))
        tally.add(block_of(users[7:]))
    one, other = small.figures(), large.figures()
    assert one.item_count[[1, 29]].tolist() == [200, 200] and len(one.day) == 200
    assert one.overlap == other.overlap and one.cold_events_of_day.tolist() == other.cold_events_of_day.tolist()


def test_times_of_more_days_than_a_log_can_have_leave_the_days_out_and_nothing_else():
    tally = LogTally(3)
    tally.add(block_of([[(1, 1, day * DAY) for day in range(25_000)], [(2, 0, NOON)]]))
    figures = tally.figures()
    assert figures.events == 25_001 and not len(figures.day) and figures.overlap == {} and figures.cold_share() == 0


def test_measures_of_inequality_and_quantiles_at_known_answers():
    assert gini(np.array([5, 5, 5, 5])) == pytest.approx(0) and gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert top_share(np.array([90] + [1] * 99), 0.01) == pytest.approx(90 / 189)
    assert [histogram_quantile(np.array([0, 3, 1]), share) for share in (0, 0.5, 0.75, 0.76, 1)] == [1, 1, 1, 2, 2]
    assert [duration(seconds) for seconds in (0, 59, 90, 7200, 172_800)] == ["0 s", "59 s", "1.5 min", "2.0 h", "2.0 d"]
    edges, heights = length_bars(np.arange(130))
    assert len(edges) <= 60 and heights.sum() == np.arange(130).sum() and heights[0] == 0 + 1 + 2
    rank, events = rank_curve(np.array([0, 4, 9, 0, 1]))
    assert rank.tolist() == [1, 2, 3] and events.tolist() == [9, 4, 1]
