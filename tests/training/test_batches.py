"""Histories and batches: packed and padded say the same, ranks share an epoch out, a run goes on where it stopped."""

import threading

import numpy as np
import pytest
import torch

from onepiece_comp.config import ModelConfig
from onepiece_comp.dataset.popularity_counts import WINDOW_DAYS, Trend
from onepiece_comp.errors import InputError
from onepiece_comp.models.histories import (
    NO_ACTION, Columns, build_history, cells, event_columns, pack_history, packed_history, unpack_history)
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.training.batches import TrainingBatches, ahead

HAND = Columns(item=np.array([7, 5, 9, 5], np.int32), action=np.array([0, 1, 3, 0], np.int8),
               time_seconds=np.array([100, 160, 20, 30]), user_token=np.array([4, 6, 2], np.int32),
               user_token_start=np.array([0, 2, 2, 3]))


def _batches(dataset, kind=TrainingBatches, **changes):
    settings = dict(stop=np.array(dataset.user_start[1:]), batch_users=8, max_events=9, sampled_negatives=20,
                    action_weights=(1.0, 2.0, 3.0, 0.5), moment_lag_seconds=7200.0, click_lag_seconds=3600.0,
                    horizon_seconds=1e5, seed=3)
    return kind(dataset, **{**settings, **changes})


class _Users(TrainingBatches):
    """An epoch of the users of each batch in the place of their tensors."""

    def batch(self, users, rng, *, bank=(), others=()):
        return users.tolist()


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in (value.values() if isinstance(value, dict) else value) for tensor in _tensors(part)]


def _same(first, second):
    first, second = _tensors(first), _tensors(second)
    return len(first) == len(second) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first, second))


def _some_users(dataset, count):
    """The ends of the users' events when only the first `count` users have any."""
    return np.where(np.arange(len(dataset.user_start) - 1) < count, dataset.user_start[1:], dataset.user_start[:-1])


def test_packed_and_padded_histories_of_a_log_written_by_hand():
    """User 0 saw items 7 and 5, user 1 nothing, user 2 items 9 and 5; user 1 has no tokens."""
    packed = packed_history(HAND, users=np.arange(3), start=np.array([0, 2, 2]), stop=np.array([2, 2, 4]),
                            last_action=np.array([2, NO_ACTION, 1]))
    assert packed.item_N.tolist() == [0, 7, 5, 0, 0, 9, 5]
    assert packed.action_N.tolist() == [0, 0, 1, 0, 0, 3, 0]
    assert packed.next_action_N.tolist() == [0, 1, 2, NO_ACTION, 3, 0, 1]
    assert packed.time_N.tolist() == [100, 100, 160, 0, 20, 20, 30]
    assert packed.position_N.tolist() == [0, 1, 2, 0, 0, 1, 2] and packed.start_B.tolist() == [0, 3, 4, 7]
    assert packed.user_token.tolist() == [4, 6, 2] and packed.user_token_start_B.tolist() == [0, 2, 2]
    padded = unpack_history(packed)
    assert padded.item_BT.tolist() == [[0, 7, 5], [0, 0, 0], [0, 9, 5]]
    assert padded.next_action_BT.tolist() == [[0, 1, 2], [NO_ACTION] * 3, [3, 0, 1]]
    assert padded.time_BT.tolist() == [[100, 100, 160], [0, 0, 0], [20, 20, 30]]
    assert padded.length_B.tolist() == [3, 1, 3] and cells(packed).tolist() == [0, 1, 2, 3, 6, 7, 8]


def _windows(dataset, rng, users):
    begin, end = dataset.user_start[users], dataset.user_start[users + 1]
    start = rng.integers(begin, end + 1)
    return dict(users=users, start=start, stop=rng.integers(start, end + 1), last_action=rng.integers(0, 5, len(users)))


def _slow_rows(columns, *, users, start, stop, last_action):
    """Each user's positions as (item, action, next action, time), by loops; and the user's tokens."""
    for user, begin, end, last in zip(users, start, stop, last_action):
        events = [(columns.item[e], columns.action[e], columns.time_seconds[e]) for e in range(begin, end)]
        rows = [(0, 0, events[0][2] if events else 0)] + events
        following = [action for _, action, _ in events] + [last]
        tokens = columns.user_token[columns.user_token_start[user]:columns.user_token_start[user + 1]]
        yield [(item, action, after, time) for (item, action, time), after in zip(rows, following)], list(tokens)


@pytest.mark.parametrize("seed", range(4))
def test_any_windows_equal_a_loop_over_users_and_events(dataset, seed):
    rng, columns = np.random.default_rng(seed), event_columns(dataset)
    windows = _windows(dataset, rng, rng.permutation(len(dataset.user_start) - 1)[:20])
    packed = packed_history(columns, **windows)
    history, item = build_history(columns, **windows)
    for b, (rows, tokens) in enumerate(_slow_rows(columns, **windows)):
        span = slice(packed.start_B[b], packed.start_B[b + 1])
        assert [tuple(row) for row in torch.stack(packed[:4], 1)[span].tolist()] == rows
        assert packed.position_N[span].tolist() == list(range(len(rows)))
        padded = torch.stack(history[:4], 2)[b].tolist()
        assert [tuple(row) for row in padded[:len(rows)]] == rows and item[b].tolist() == [row[0] for row in padded]
        assert all(row == [0, 0, NO_ACTION, 0] for row in padded[len(rows):])
        assert history.user_token[history.user_token_start_B[b]:][:len(tokens)].tolist() == tokens


@pytest.mark.parametrize("seed", range(4))
def test_packing_and_unpacking_undo_each_other(dataset, seed):
    rng = np.random.default_rng(seed)
    users = rng.permutation(len(dataset.user_start) - 1)[:1 + 7 * seed]
    packed = packed_history(event_columns(dataset), **_windows(dataset, rng, users))
    history = unpack_history(packed)
    assert _same(pack_history(history), packed) and _same(unpack_history(pack_history(history)), history)
    valid = torch.arange(history.item_BT.shape[1]) < history.length_B[:, None]
    assert torch.equal(valid.flatten().nonzero()[:, 0], cells(packed))


def test_a_users_history_does_not_depend_on_batch_mates(dataset):
    columns, windows = event_columns(dataset), _windows(dataset, np.random.default_rng(5), np.arange(12))
    whole = packed_history(columns, **windows)
    for user in range(12):
        alone = packed_history(columns, **{name: values[user:user + 1] for name, values in windows.items()})
        span = slice(whole.start_B[user], whole.start_B[user + 1])
        assert all(torch.equal(mine, every[span]) for mine, every in zip(alone[:5], whole[:5]))


@pytest.mark.parametrize(("users", "batch_users", "ranks"), [
    (57, 8, 3), (57, 8, 2), (56, 8, 3), (58, 7, 4), (41, 2, 4), (7, 1, 3), (9, 2, 5), (5, 8, 3), (3, 1, 3), (57, 1, 7)])
def test_ranks_see_every_user_once_in_equally_many_steps(dataset, users, batch_users, ranks):
    settings = dict(batch_users=batch_users, ranks=ranks, stop=_some_users(dataset, users))
    for epoch in range(3):
        shares = [_batches(dataset, _Users, rank=rank, **settings) for rank in range(ranks)]
        seen = [list(share.epoch(epoch)) for share in shares]
        assert sorted(user for share in seen for batch in share for user in batch) == list(range(users))
        assert {len(share) for share in seen} == {share.steps_per_epoch for share in shares}
        assert all(batch and len(batch) <= max(2, batch_users) for share in seen for batch in share)


def test_ranks_take_turns_with_the_batches_that_one_rank_would_see(dataset):
    alone = list(_batches(dataset).epoch(1))  # 8 batches; of 3 ranks the last 5 batches are shared out anew
    shares = [_batches(dataset, rank=rank, ranks=3).epoch(1) for rank in range(3)]
    assert all(_same(next(share), batch) for share, batch in zip(shares, alone))
    for rank, share in enumerate(_batches(dataset, rank=rank, ranks=2) for rank in range(2)):
        assert all(_same(mine, batch) for mine, batch in zip(share.epoch(1), alone[rank::2], strict=True))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_rank_that_goes_on_mid_epoch_sees_the_rest_of_its_batches(dataset, ranks):
    for rank in range(ranks):
        whole = list(_batches(dataset, rank=rank, ranks=ranks).epoch(2))
        for first in range(len(whole) + 1):
            rest = list(_batches(dataset, rank=rank, ranks=ranks).epoch(2, first_step=first))
            assert len(rest) == len(whole) - first and all(map(_same, rest, whole[first:]))


def test_more_ranks_than_users_and_a_rank_out_of_range_are_refused(dataset):
    for rank, ranks in ((0, 6), (3, 3), (-1, 3)):
        with pytest.raises(InputError, match="rank"):
            _batches(dataset, rank=rank, ranks=ranks, stop=_some_users(dataset, 5))


def test_a_position_holds_the_target_of_the_position_before_it(dataset):
    for batch in _batches(dataset).epoch(0):
        packed = pack_history(batch.history)
        before = torch.where(packed.position_N > 0, batch.target_N.roll(1) + 1, 0)
        assert torch.equal(packed.item_N, before) and torch.equal(cells(packed), batch.position_N)


@pytest.mark.parametrize("max_events", [9, 100])
def test_the_padding_share_is_that_of_the_tensors_and_falls_when_like_lengths_meet(dataset, max_events):
    batches = _batches(dataset, max_events=max_events, batch_users=4)
    cells_held = [(batch.history.item_BT.numel(), int(batch.history.length_B.sum())) for batch in batches.epoch(1)]
    held, valid = np.sum(cells_held, axis=0)
    assert batches.padding_share(1) == pytest.approx(1 - valid / held)
    assert batches.padding_share(1) < batches.padding_share(1, bucketed=False) / 2


def _short_lives(rng, items=40, buckets=300):
    """A trend of items that are shown for some days and never again; the first one never is."""
    counts = np.zeros((items, buckets + 1, 2), np.int32)
    for item in range(1, items):
        life = slice(birth := int(rng.integers(1, buckets)), birth + int(rng.integers(1, 12)))
        counts[item, life] = np.sort(rng.integers(0, 3, counts[item, life].shape))[:, ::-1]  # clicks are events too
    return Trend(counts.cumsum(1, dtype=np.int32), 0, 6 * 3600)


def test_popularity_of_a_row_does_not_depend_on_the_other_rows_or_their_order():
    rng = np.random.default_rng(0)
    trend, item = _short_lives(rng), rng.permutation(40)
    bucket = rng.integers(0, trend.buckets + 1, 30)
    click = np.clip(bucket - rng.integers(-3, 60, 30), -40, trend.buckets)
    found = trend.lookup(item, bucket=bucket, click_bucket=click)
    events, clicks = np.moveaxis(np.asarray(trend.counts), 2, 0)
    lengths = [max(1, round(days * 86400 / trend.bucket_seconds)) for days in WINDOW_DAYS]
    pairs = []
    for place, row in ((place, row) for place in range(len(item)) for row in range(30)):
        e, c, now, known = events[item[place]], clicks[item[place]], bucket[row], max(click[row], 0)
        if e[now] == e[max(min(bucket[row], click[row]) - lengths[-1], 0)]:
            continue
        shown = [e[now] - e[max(now - size, 0)] for size in lengths]
        clicked = [c[known] - c[max(known - size, 0)] for size in lengths]
        logs = np.log1p(np.array([*shown, *clicked, e[now], c[known]], np.float32))
        new = [n > 0 and now > size and not e[now - size] for n, size in zip(shown, lengths)]
        pairs.append((row, place, [*logs[:-2], *(n > 0 for n in shown), *new, *logs[-2:]]))
    order = np.lexsort((found.row_P, found.item_P))
    assert list(zip(found.row_P[order], found.item_P[order])) == [pair[:2] for pair in pairs]
    np.testing.assert_array_equal(found.feature_PW[order], np.array([feature for _, _, feature in pairs], np.float32))
    np.testing.assert_array_equal(found.seen_RK, events[item][:, bucket].T > 0)
    first = [next((b for b, n in enumerate(row[1:]) if n), trend.buckets) for row in events[item]]
    np.testing.assert_array_equal(trend.first_bucket(item), first)


def test_a_model_without_popularity_has_the_same_loss_without_its_windows(dataset):
    torch.manual_seed(0)
    model = OnePiece(ModelConfig(width=16, feature_width=4, id_width=4, embedding_width=4, expert_width=8, trend=False),
                     dataset.schema).eval()
    with_windows, without = (next(_batches(dataset, popularity=popularity).epoch(0)) for popularity in (True, False))
    assert _same(with_windows[:-3], without[:-3]) and len(with_windows.trend.row_P) and not len(without.trend.row_P)
    losses = [model.losses(batch, semantic_weight=0.0).total for batch in (with_windows, without)]
    assert torch.equal(*losses)


def test_batches_made_ahead_are_the_same_and_their_errors_arrive_in_their_place(dataset):
    batches = _batches(dataset)
    assert all(map(_same, ahead(batches.epoch(0)), batches.epoch(0)))
    assert len(list(ahead(batches.epoch(0)))) == batches.steps_per_epoch

    def failing():
        yield "first"
        raise InputError("a column", found="nothing", expected="something", do="look")
    made = ahead(failing())
    assert next(made) == "first"
    with pytest.raises(InputError, match="a column"):
        next(made)


def test_making_ahead_makes_one_batch_at_most_and_leaves_no_thread_behind():
    asked, threads = [], threading.active_count()

    def endless():
        while True:
            asked.append(len(asked))
            yield asked[-1]
    made = ahead(endless())
    assert [next(made), next(made)] == [0, 1]
    made.close()
    assert len(asked) <= 3 and threading.active_count() == threads


@pytest.mark.parametrize("changes", [{}, {"negative_power": 0.75}, {"bank_batches": 3},
                                     {"negative_power": 1.0, "bank_batches": 1},
                                     {"ranks": 2, "shared_negatives": True, "negative_power": 0.5}])
def test_what_logq_expects_is_how_often_keys_are_drawn(dataset, changes):
    """Rare and common items apart, over many steps; steps in which an item is no key count as well."""
    count = np.asarray(dataset.item_count)
    batches = _batches(dataset, popularity=False, sampled_negatives=300, **changes)
    drawn, expected = np.zeros(len(count)), np.zeros(len(count))
    for epoch in range(40):
        for batch in batches.epoch(epoch):
            row = batch.items.id_row_N[1:].numpy()
            drawn[row] += batch.log_repeats_K.exp().numpy()
            sharing = batches.ranks if batches.shared_negatives else 1
            events = int(round(float(batch.log_repeats_K.exp().sum()))) - sharing * batches.sampled
            hoped = batches._expected(np.arange(len(count)), events, batches=sharing)
            np.testing.assert_allclose(batch.log_expected_K.exp().numpy(), hoped[row], rtol=1e-4)
            expected += hoped
    for part in np.array_split(1 + np.argsort(count[1:]), 3):
        assert abs(drawn[part].sum() / expected[part].sum() - 1) < 0.1


def test_actions_that_are_trained_on_are_those_before_the_held_out_that_have_weight(dataset):
    # every other user's last event is held out
    stop = dataset.user_start[1:] - (np.arange(len(dataset.user_start) - 1) % 2)
    action = np.concatenate([dataset.action[start:end] for start, end in zip(dataset.user_start, stop)])
    hoped = np.bincount(action, minlength=4)
    assert _batches(dataset, stop=stop).trained_actions().tolist() == hoped.tolist()
    light = _batches(dataset, stop=stop, action_weights=(0.0, 1.0, 1.0, 1.0)).trained_actions()
    assert light.tolist() == [0, *hoped[1:]]


@pytest.mark.parametrize("alpha", [2.0, 1.0])
def test_what_logq_expects_of_targets_counts_windows_and_not_the_log(dataset, alpha):
    """Each item's share, against the windows that are drawn: a window of three events of a history of some eighty."""
    batches = _batches(dataset, popularity=False, max_events=5, stochastic_alpha=alpha)
    drawn, rng = np.zeros(dataset.schema.items + 1), np.random.default_rng(5)
    for _ in range(300):
        np.add.at(drawn, batches.columns.item[batches._pick(batches.users, rng).event], 1)
    common = np.argsort(drawn)[-20:]
    share, of_the_log = batches.target_share[common], np.asarray(dataset.item_count)[common] / dataset.item_count.sum()
    share_drawn = drawn[common] / drawn.sum()
    assert abs(batches.target_share.sum() - 1) < 1e-9
    assert np.abs(np.log(share / share_drawn)).max() < 0.1 < np.abs(np.log(of_the_log / share_drawn)).max()


def test_what_logq_expects_by_hand(dataset):
    """Windows of two of the events a b c stand at a b and b c: b is in both. The ends of a history are drawn less."""
    user = int(np.argmax(np.diff(dataset.user_start)))
    start = int(dataset.user_start[user])
    stop = np.where(np.arange(len(dataset.user_start) - 1) == user, start + 3, dataset.user_start[:-1])
    batches = _batches(dataset, popularity=False, stop=stop, max_events=2)
    expected = np.zeros(dataset.schema.items + 1)
    np.add.at(expected, batches.columns.item[start:start + 3], [0.25, 0.5, 0.25])
    np.testing.assert_allclose(batches.target_share, expected)


def test_negatives_by_popularity_follow_its_power(dataset):
    count = np.asarray(dataset.item_count).astype(float)
    batches = _batches(dataset, popularity=False, sampled_negatives=20_000, negative_power=0.5)
    batches.sampled = 20_000  # beyond the catalogue, for the statistic's sake
    share = np.bincount(batches._sample(np.random.default_rng(0)), minlength=len(count)) / 20_000
    hoped = np.where(count > 0, np.sqrt(count), 0)
    assert np.abs(share - hoped / hoped.sum()).max() < 0.005 and share[0] == 0


def test_a_bank_adds_the_items_of_the_batches_before_and_changes_nothing_else(dataset):
    plain, banked = (list(_batches(dataset, popularity=False, bank_batches=bank).epoch(1)) for bank in (0, 2))
    for number, (alone, more) in enumerate(zip(plain, banked)):
        row = lambda batch: set(batch.items.id_row_N[1:].tolist())
        earlier = [set(batch.items.id_row_N[1:][batch.target_N].tolist()) for batch in plain[max(0, number - 2):number]]
        assert row(more) == row(alone).union(*earlier)
        targets = lambda batch: batch.items.id_row_N[1:][batch.target_N].tolist()
        assert targets(more) == targets(alone) and torch.equal(more.history.time_BT, alone.history.time_BT)


def test_shared_negatives_are_the_targets_and_samples_of_all_ranks_of_a_step(dataset):
    """A rank's rows stay its own; the same batches come of each rank alone and of one that takes all in turn."""
    alone, shared = ([list(_batches(dataset, rank=rank, ranks=3, shared_negatives=share, stochastic_alpha=1.5).epoch(1))
                      for rank in range(3)] for share in (False, True))
    row = lambda batch: batch.items.id_row_N[1:]
    for step, turn in enumerate(zip(*shared)):
        draws = torch.zeros(dataset.schema.items + 1)
        for rank in range(3):
            own = alone[rank][step]
            draws.index_add_(0, row(own), own.log_repeats_K.exp())
            assert torch.equal(row(turn[rank])[turn[rank].target_N], row(own)[own.target_N])
        for batch in turn:
            assert torch.equal(row(batch), draws.nonzero()[:, 0])
            torch.testing.assert_close(batch.log_repeats_K.exp(), draws[row(batch)])
    in_turn = _batches(dataset, ranks=3, shared_negatives=True, stochastic_alpha=1.5).epoch(1, count=3)
    assert all(_same(next(in_turn), batch) for turn in zip(*shared) for batch in turn)


def test_a_binary_losss_negatives_are_sampled_items(dataset):
    batch = next(_batches(dataset, sampled_negatives=5).epoch(0))
    assert len(batch.negative_N.unique()) <= 5 and len(batch.negative_N) == len(batch.target_N)


def test_stochastic_length_thins_long_histories_only_and_keeps_their_order(dataset):
    batches = _batches(dataset, max_events=16, stochastic_alpha=1.0, popularity=False)  # 4 events are short
    rng, count = np.random.default_rng(0), np.array([3, 8, 4, 16])
    event = np.arange(100, 100 + count.sum())
    kept = [batches._thinned(event, count, rng) for _ in range(2000)]
    owner = np.repeat(np.arange(4), count)
    for left, counts in kept[:50]:
        assert (np.diff(left) > 0).all() and counts.sum() == len(left) and counts[0] == 3 and counts[2] == 4
        assert np.bincount(owner[left - 100], minlength=4).tolist() == counts.tolist()
    lengths = np.stack([counts for _, counts in kept])
    assert set(lengths[:, 1]) == {4, 8} and set(lengths[:, 3]) == {4, 16}
    assert abs((lengths[:, 1] == 8).mean() - 1 / 4) < 0.04 and abs((lengths[:, 3] == 16).mean() - 1 / 16) < 0.02
    often = np.bincount(np.concatenate([left for left, _ in kept]) - 100, minlength=count.sum())
    assert np.ptp(often[7 - 4:3 + 8]) < 250  # no place of the second history is favoured
    batch = next(batches.epoch(0))
    own = [batch.target_N[batch.user_N == user].tolist() for user in range(8)]
    for user in range(8):  # a position's event is the target of the position before
        assert (batch.history.item_BT[user, 1:len(own[user])] - 1).tolist() == own[user][:-1]
