"""The joint model: nobody's score depends on batch-mates, padding or the future; codes and trend act as they should."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from onepiece_comp.config import ModelConfig
from onepiece_comp.dataset.popularity_counts import WINDOW_DAYS, Trend, extended
from onepiece_comp.errors import InputError
from onepiece_comp.models.batch import item_batch
from onepiece_comp.models.encoder import LatentSteps
from onepiece_comp.models.histories import NO_ACTION, build_history, event_columns, last_position
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.training.batches import TrainingBatches
from onepiece_comp.training.optimisers import Muon, Optimisers, orthogonalise, parameter_groups

CONFIG = ModelConfig(width=16, layers=2, heads=2, feature_width=4, id_width=4, embedding_width=4, expert_width=8,
                     dropout=0.0,
                     id_dropout=0.0, hash_sizes=(17,), hash_width=3, latent_steps=2)


def random_codes(items: int, codes: int = 8) -> torch.Tensor:
    """Distinct random pairs of codes, row 0 without an id."""
    pairs = torch.randperm(codes * codes * 4, generator=torch.Generator().manual_seed(0))[:items]
    table = torch.stack([pairs // (4 * codes), pairs % (4 * codes)], 1)
    return torch.cat([torch.full((1, 2), -1), table]).int()


@pytest.fixture(scope="module")
def model(dataset):
    torch.manual_seed(0)
    model = OnePiece(CONFIG, dataset.schema, random_codes(dataset.schema.items))
    for parameter in model.parameters():  # also what starts at zero
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def _hidden(model, dataset, users, *, stop=None):
    users = np.asarray(users)
    start = np.asarray(dataset.user_start[users])
    stop = np.asarray(dataset.user_start[users + 1]) if stop is None else stop
    history, item = build_history(event_columns(dataset), users=users, start=start, stop=stop,
                                  last_action=np.full(len(users), 1))
    rows = np.unique(np.append(item, 0))
    history = history._replace(item_BT=torch.from_numpy(np.searchsorted(rows, item)))
    with torch.no_grad():
        vectors = model.encode_items(item_batch(dataset.items, rows, dataset.schema.item_features))
        encoded = model.encode(history, vectors)
    return encoded.hidden_BTD, last_position(history, encoded.hidden_BTD)


def test_a_users_vector_does_not_depend_on_who_shares_the_batch(model, dataset):
    lengths = np.diff(dataset.user_start)
    users = [int(lengths.argmin()), int(lengths.argmax()), 3]
    _, together = _hidden(model, dataset, users)
    for place, user in enumerate(users):
        torch.testing.assert_close(_hidden(model, dataset, [user])[1][0], together[place], rtol=1e-4, atol=1e-5)


def test_a_position_does_not_see_later_events(model, dataset):
    user = int(np.diff(dataset.user_start).argmax())
    start, stop = int(dataset.user_start[user]), int(dataset.user_start[user + 1])
    whole, _ = _hidden(model, dataset, [user])
    short, _ = _hidden(model, dataset, [user], stop=np.array([stop - 3]))
    kept = stop - start - 3  # the last kept position is conditioned on another next action
    torch.testing.assert_close(short[0, :kept], whole[0, :kept], rtol=1e-4, atol=1e-5)


def test_each_part_of_the_input_reaches_the_output(model, dataset):
    """Take one part away at a time: a part that changes nothing is not connected."""
    users = np.arange(6)
    reference = _hidden(model, dataset, users)[1]
    names = ("inputs.action_table.weight", "inputs.condition.action_table.weight", "inputs.time.week_hour_table.weight",
             "inputs.user_tower.table.weight", "item_tower.id_table.weight",
             "item_tower.hash_tables.0.weight", "item_tower.feature_table.weight", "item_tower.project.81.weight",
             "item_tower.absent.82", "layers.0.block.bias.time_HC", "layers.1.block.bias.position_HC")
    parameters = dict(model.named_parameters())
    for name in names:
        kept = parameters[name].detach().clone()
        parameters[name].data.add_(torch.randn(kept.shape, generator=torch.Generator().manual_seed(1)))
        assert not torch.allclose(_hidden(model, dataset, users)[1], reference, atol=1e-4), name
        parameters[name].data.copy_(kept)


def test_next_action_is_what_follows_and_the_last_is_the_one_asked_for(dataset):
    users, data = np.array([0]), dataset
    start, stop = data.user_start[:1], data.user_start[1:2]
    history, _ = build_history(event_columns(data), users=users, start=start, stop=stop, last_action=np.array([2]))
    events = np.asarray(data.action[start[0]:stop[0]])
    assert history.next_action_BT[0].tolist() == [*events.tolist(), 2]
    assert history.length_B.tolist() == [len(events) + 1]
    assert int(history.time_BT[0, 0]) == int(data.time_seconds[start[0]])


def test_a_user_without_history_is_a_user_token(model, dataset):
    start = np.asarray(dataset.user_start[:1])
    history, item = build_history(event_columns(dataset), users=np.array([0]), start=start, stop=start,
                                  last_action=np.array([NO_ACTION]))
    assert item.tolist() == [[0]] and history.time_BT.tolist() == [[0]]


def _batches(dataset, **changes):
    settings = dict(stop=np.array(dataset.user_start[1:]), batch_users=16, max_events=100, sampled_negatives=20,
                    action_weights=(1.0, 2.0, 3.0, 0.5), moment_lag_seconds=0.0, click_lag_seconds=0.0,
                    horizon_seconds=1e9, seed=0)
    return TrainingBatches(dataset, **{**settings, **changes})


def test_a_batch_holds_every_event_once_as_a_target(dataset):
    seen = np.zeros(dataset.schema.items + 1, np.int64)
    for batch in _batches(dataset).epoch(0):
        key = batch.items.id_row_N[1:].numpy()
        np.add.at(seen, key[batch.target_N.numpy()], 1)
        flat = batch.history.item_BT.flatten()[batch.position_N]
        own = batch.own_BK[batch.user_N, batch.target_N]
        assert own.all() and len(flat) == len(batch.target_N)
    np.testing.assert_array_equal(seen, dataset.item_count)


def test_the_event_after_a_position_is_its_target(dataset):
    batch = next(_batches(dataset).epoch(0))
    key = batch.items.id_row_N.numpy()
    width = batch.history.item_BT.shape[1]
    position, user = batch.position_N.numpy() % width, batch.user_N.numpy()
    for n in range(len(position) - 1):
        if user[n + 1] == user[n]:
            following = batch.history.item_BT[user[n], position[n] + 1]
            assert key[following] == key[batch.target_N[n] + 1] and position[n + 1] == position[n] + 1


def test_the_semantic_loss_is_the_mean_over_targets_with_codes(dataset):
    """Targets without codes may weigh what they like."""
    codes = random_codes(dataset.schema.items)
    codes[::3] = -1
    model, batch = OnePiece(CONFIG, dataset.schema, codes).eval(), next(_batches(dataset, codes=codes.numpy()).epoch(0))
    weight_K = torch.zeros(len(batch.own_BK[0])).index_add_(0, batch.target_N, batch.weight_N)
    torch.testing.assert_close(batch.step_weight_K, weight_K)
    factor_K = torch.where(codes[batch.items.id_row_N[1:], 0] < 0, 5.0, 1.0)
    heavier = batch._replace(weight_N=batch.weight_N * factor_K[batch.target_N], step_weight_K=weight_K * factor_K)
    first, second = (model.losses(some, semantic_weight=1.0) for some in (batch, heavier))
    torch.testing.assert_close(first.semantic, second.semantic)
    assert abs(first.retrieval - second.retrieval) > 1e-4


def test_epochs_differ_in_order_and_a_later_start_sees_the_same_rest(dataset):
    batches = _batches(dataset)
    whole = [batch.target_N for batch in batches.epoch(0)]
    rest = [batch.target_N for batch in batches.epoch(0, first_step=2)]
    assert len(rest) == len(whole) - 2 and all(torch.equal(a, b) for a, b in zip(rest, whole[2:]))
    assert not all(len(a) == len(b) and torch.equal(a, b) for a, b in zip(whole,
                                                                          [b.target_N for b in batches.epoch(1)]))


def _dense(found, items, rows):
    """A lookup's features [R, K, W], zero where a pair is left out."""
    dense = np.zeros((rows, items, found.feature_PW.shape[1]))
    dense[found.row_P, found.item_P] = found.feature_PW
    return dense


def test_popularity_windows_hold_nothing_of_the_moment_itself_or_later(dataset):
    """Count by hand what was shown before the bucket of each moment, clicks up to an earlier bucket."""
    trend = dataset.trend
    times, items = np.asarray(dataset.time_seconds), np.asarray(dataset.item_row)
    clicked = np.asarray(dataset.action) == 1
    bucket = np.unique(trend.bucket_of(times))[::9]
    everything = np.arange(dataset.schema.items + 1)
    found = trend.lookup(everything, bucket=bucket, click_bucket=bucket - 5)
    dense, firsts = np.expm1(_dense(found, len(everything), len(bucket))), 0
    for r, b in enumerate(bucket):
        for item in everything[1::7]:
            for kind, end, which in ((0, b, items == item), (len(WINDOW_DAYS), b - 5, (items == item) & clicked)):
                end_time = trend.first_second + end * trend.bucket_seconds
                for window, days in enumerate(WINDOW_DAYS):
                    begin = end_time - max(1, round(days * 86400 / trend.bucket_seconds)) * trend.bucket_seconds
                    count = (which & (times < end_time) & (times >= begin)).sum()
                    assert abs(dense[r, item, kind + window] - count) < 1e-3
                    if kind == 0:
                        first = bool(count and begin > trend.first_second and not (which & (times < begin)).any())
                        assert np.log1p(dense[r, item, 3 * len(WINDOW_DAYS) + window]) == pytest.approx(float(first),
                            abs=1e-6)
                        firsts += first
            moment = trend.first_second + b * trend.bucket_seconds
            assert found.seen_RK[r, item] == ((items == item) & (times < moment)).any()
    assert firsts > 10


def test_first_buckets_are_those_of_the_first_events(dataset):
    first = dataset.trend.first_bucket(np.arange(1, dataset.schema.items + 1))
    for item in range(1, dataset.schema.items + 1, 5):
        times = np.asarray(dataset.time_seconds)[np.asarray(dataset.item_row) == item]
        assert first[item - 1] == dataset.trend.bucket_of(times.min())


def test_the_tail_of_a_log_shorter_than_the_longest_window_is_the_log(dataset):
    trend = dataset.trend
    short = trend._replace(counts=np.asarray(trend.counts[:, :6 * 86400 // trend.bucket_seconds]))
    everything, moment = np.arange(dataset.schema.items + 1), dict.fromkeys(("bucket", "click_bucket"),
                                                                            np.array([short.buckets]))
    whole, tail = (_dense(part.lookup(everything, **moment), len(everything), 1) for part in (short, short.tail()))
    np.testing.assert_array_equal(whole, tail)
    assert whole.any()


@pytest.mark.parametrize("hours", [96, 384, 768])
def test_the_tail_of_long_buckets_counts_like_the_log(hours):
    counts = np.concatenate([[[0, 0]], np.cumsum(np.full((5, 2), 10), 0)])[None].astype(np.int32)  # ten events a bucket
    trend = Trend(counts, 0, hours * 3600)
    asked = dict.fromkeys(("bucket", "click_bucket"))
    windows = [part.lookup(np.array([0]), **dict.fromkeys(asked, np.array([part.buckets]))).feature_PW
               for part in (trend, trend.tail())]
    np.testing.assert_array_equal(windows[0][:, :-2], windows[1][:, :-2])  # the last two are totals
    assert windows[0][0, 0] == pytest.approx(np.log(11))


def test_an_event_that_cannot_be_true_takes_no_memory():
    tail = Trend(np.zeros((3, 2, 2), np.int32), 0, 3600)
    event = lambda *hours: {"item": np.array([1] * len(hours)), "clicked": np.zeros(len(hours), bool),
                            "time_seconds": np.array(hours) * 3600}
    longer = extended(tail, np.arange(3), **event(2, 5, 2 ** 40 // 3600))
    assert longer.buckets == 1 + 5 and longer.counts[1, -1].tolist() == [2, 0]


def test_the_tail_extended_by_later_events_counts_like_the_whole_log(dataset):
    """Cut the log, keep its tail, add the rest as later events of items in another order: the windows must agree."""
    trend, cut = dataset.trend, dataset.trend.buckets - 30
    shuffle = np.random.default_rng(0).permutation(dataset.schema.items + 1)
    early = Trend(np.asarray(trend.counts[:, :cut + 1]), trend.first_second, trend.bucket_seconds).tail()
    place = np.argsort(shuffle)
    longer = extended(early, shuffle, item=place[np.asarray(dataset.item_row)], clicked=np.asarray(dataset.action) == 1,
                      time_seconds=np.asarray(dataset.time_seconds))
    shift = trend.buckets - longer.buckets
    for bucket in (cut, cut + 7, trend.buckets):
        whole = trend.lookup(shuffle, bucket=np.array([bucket]), click_bucket=np.array([cut]))
        ours = longer.lookup(np.arange(len(shuffle)), bucket=np.array([bucket - shift]),
                             click_bucket=np.array([cut - shift]))
        np.testing.assert_allclose(_dense(ours, len(shuffle), 1), _dense(whole, len(shuffle), 1), atol=1e-6)


def test_items_that_come_much_later_are_no_negatives_but_targets_stay(dataset):
    near, far = _batches(dataset, horizon_seconds=0.0), _batches(dataset, horizon_seconds=1e9)
    assert any(batch.trend.absent_RK.any() for batch in near.epoch(0))
    for batch, other in zip(near.epoch(0), far.epoch(0)):
        assert not other.trend.absent_RK.any()
        assert not batch.trend.absent_RK[batch.trend_row_N, batch.target_N].any()


VARIANTS = [{}, {"block": "transformer"}, {"block": "transformer", "experts": 0, "rotary": True, "time_bias": False},
            {"rotary": True, "history_relu": False}, {"code_trend": False, "code_similarity": False, "latent_steps": 0}]


@pytest.mark.parametrize("muon, variant", [(True, variant) for variant in VARIANTS] + [(False, {})])
def test_training_lowers_both_losses(dataset, muon, variant):
    torch.manual_seed(0)
    model = OnePiece(replace(CONFIG, **variant), dataset.schema, random_codes(dataset.schema.items))
    optimisers = Optimisers(model, learning_rate=0.01, muon_learning_rate=0.02, weight_decay=0.0, warmup_steps=2,
                            total_steps=40, muon=muon)
    batches = _batches(dataset, codes=model.codes.numpy())
    trace = []
    for step in range(40):
        batch = batches.batch(batches.users[:32], np.random.default_rng(step))
        losses = model.losses(batch, semantic_weight=1.0)
        losses.total.backward()
        optimisers.step(step)
        trace.append((float(losses.retrieval), float(losses.semantic)))
    assert trace[-1][0] < trace[0][0] - 0.5 and trace[-1][1] < trace[0][1] - 0.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_has_one_optimiser_group_and_a_gradient(dataset, variant):
    torch.manual_seed(1)
    model = OnePiece(replace(CONFIG, **variant), dataset.schema, random_codes(dataset.schema.items))
    groups = parameter_groups(model)
    assert sum(len(group) for group in groups.values()) == len(list(model.parameters()))
    batches = _batches(dataset, codes=model.codes.numpy())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.losses(batches.batch(batches.users, np.random.default_rng(0)), semantic_weight=1.0).total.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None
               or not parameter.grad.abs().sum()]
    assert without == ["item_tower.absent.81"]  # every item has that embedding


def test_orthogonalise_makes_singular_values_one():
    torch.manual_seed(0)
    for shape in ((6, 6), (8, 3), (3, 8), (2, 5, 4)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(*shape), steps=12))
        assert float(values.min()) > 0.6 and float(values.max()) < 1.4


@pytest.mark.parametrize("shape", [(4, 12), (12, 4), (6, 6), (3, 4, 12)])
def test_muon_steps_a_matrix_behind_its_input_as_the_same_map_before_it(shape):
    """W of x @ W and the weight of an nn.Linear are each other's transposes, and so are their steps."""
    torch.manual_seed(0)
    gradients = torch.randn(3, *shape)

    def trained(first):
        weight = torch.nn.Parameter(torch.zeros(shape if first else torch.zeros(shape).mT.shape))
        muon = Muon([{"params": [weight], "inputs_first": first}], lr=0.1, weight_decay=0.01)
        for gradient in gradients:
            weight.grad = gradient if first else gradient.mT.contiguous()
            muon.step()
        return weight.detach()

    torch.testing.assert_close(trained(True), trained(False).mT)


def test_the_matrices_behind_their_input_are_told_from_the_others(dataset):
    model = OnePiece(CONFIG, dataset.schema, random_codes(dataset.schema.items))
    optimisers = Optimisers(model, learning_rate=0.01, muon_learning_rate=0.02, weight_decay=0.0, warmup_steps=1,
                            total_steps=2)
    behind = {id(p) for group in optimisers.muon.param_groups if group["inputs_first"] for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in behind}
    assert names == {f"layers.{layer}.moe.{matrix}" for layer in range(CONFIG.layers) for matrix in (
        "gate_up_EDF", "down_EFD", "shared_gate_up_DF", "shared_down_FD")}


def test_an_expert_without_tokens_rests(dataset):
    """Its weights and momentum stay as they are; the other experts move as if they were alone."""
    torch.manual_seed(0)
    stack, alone = torch.nn.Parameter(torch.randn(3, 4, 6)), torch.nn.Parameter(torch.zeros(2, 4, 6))
    alone.data.copy_(stack.data[:2])
    together, apart = (Muon([{"params": [weight]}], lr=0.1, weight_decay=0.5) for weight in (stack, alone))
    gradients = torch.randn(4, 3, 4, 6)
    gradients[1:, 2] = 0  # tokens in the first step only
    for step, gradient in enumerate(gradients):
        stack.grad, alone.grad = gradient, gradient[:2]
        together.step(), apart.step()
        first = stack.detach()[2].clone() if step == 0 else first
    assert torch.equal(stack.detach()[2], first)
    torch.testing.assert_close(together.state[stack]["momentum"][2], 0.05 * gradients[0, 2])
    torch.testing.assert_close(stack.detach()[:2], alone.detach())


def test_bfloat16_autocast_gives_nearly_the_same_losses_and_gradients(dataset):
    """What training does on a GPU, with the CPU's autocast: types must fit everywhere."""
    torch.manual_seed(0)
    model = OnePiece(CONFIG, dataset.schema, random_codes(dataset.schema.items))
    batches = _batches(dataset, codes=model.codes.numpy())
    batch = batches.batch(batches.users, np.random.default_rng(0))
    exact = model.losses(batch, semantic_weight=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.losses(batch, semantic_weight=1.0)
    rounded.total.backward()
    assert abs(float(rounded.total.detach()) - float(exact.total.detach())) < 0.02
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_trained_weights_move_at_their_own_rate_and_the_semantic_id_head_at_the_full_one(dataset):
    def moved(rate):
        torch.manual_seed(0)
        model = OnePiece(CONFIG, dataset.schema, random_codes(dataset.schema.items))
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimisers = Optimisers(model, learning_rate=0.01, muon_learning_rate=0.02, weight_decay=0.0, warmup_steps=1,
                                total_steps=4, trained_rate=rate)
        batches = _batches(dataset, codes=model.codes.numpy())
        model.losses(batches.batch(batches.users[:16], np.random.default_rng(0)), semantic_weight=1.0).total.backward()
        assert optimisers.step(0) == pytest.approx(0.01)
        return {name: float((parameter - before[name]).detach().abs().max())
                for name, parameter in model.named_parameters()}

    full, tenth, none = moved(1.0), moved(0.1), moved(0.0)
    for name, distance in full.items():
        share = 1.0 if name.startswith("decoder.") else 0.1
        assert tenth[name] == pytest.approx(share * distance, rel=0.02, abs=1e-7), name
        assert none[name] == (distance if name.startswith("decoder.") else 0), name
    assert max(full[name] for name in full if name.startswith("decoder.")) > 0


def test_an_unknown_block_is_refused(dataset):
    with pytest.raises(InputError, match="model.block.*'lstm'.*hstu, transformer"):
        OnePiece(replace(CONFIG, block="lstm"), dataset.schema)


def test_without_relu_the_history_sees_what_is_below_zero(dataset):
    torch.manual_seed(0)
    batches = _batches(dataset)
    batch = batches.batch(batches.users[:4], np.random.default_rng(0))
    hidden = []
    for relu in (True, False):
        torch.manual_seed(0)
        model = OnePiece(replace(CONFIG, history_relu=relu), dataset.schema).eval()
        item_ND = model.encode_items(batch.items)
        negative = torch.where(item_ND < 0, item_ND * 3, item_ND)  # differs below zero alone
        hidden.append([model.encode(batch.history, vectors).hidden_BTD for vectors in (item_ND, negative)])
    torch.testing.assert_close(*hidden[0])
    assert not torch.allclose(*hidden[1])


def _with(dataset, **changes):
    torch.manual_seed(0)
    return OnePiece(replace(CONFIG, **changes), dataset.schema, random_codes(dataset.schema.items))


def test_a_learned_temperature_starts_as_the_fixed_one_and_stops_at_a_hundredth(dataset):
    model, hidden = _with(dataset, learned_temperature=True, temperature=0.1), torch.randn(3, 16)
    torch.testing.assert_close(model.retrieval_query(hidden).norm(dim=1), torch.full((3,), 10.0))
    model.log_temperature.data.fill_(-50)
    torch.testing.assert_close(model.retrieval_query(hidden).norm(dim=1), torch.full((3,), 100.0))


def test_without_cosines_logits_are_dot_products(dataset):
    model, hidden = _with(dataset, cosine=False, temperature=1.0), torch.randn(3, 16)
    assert torch.equal(model.retrieval_query(hidden), hidden) and torch.equal(model.keys(hidden), hidden)


def test_code_truncation_hides_finer_codes_in_training_only(dataset):
    model = _with(dataset, codes_as_input=True, code_truncation=1.0, id_dropout=0.0)
    tower, row = model.item_tower, torch.arange(1, 9)
    first, second = tower.train()._codes(row)
    assert torch.equal(second, tower.code_tables[1].weight[:1].expand(8, -1))  # row 0: hidden
    assert torch.equal(first, tower.code_tables[0](model.codes[row, 0] + 1))
    assert torch.equal(tower.eval()._codes(row)[1], tower.code_tables[1](model.codes[row, 1] + 1))


def test_the_conditioned_query_of_training_is_that_of_the_cascade_given_the_targets_first_code(dataset):
    """And its loss is the retrieval loss with that query; queries given other codes differ."""
    model = _with(dataset, conditioned=True, similarity_width=8).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batches = _batches(dataset, batch_users=4, popularity=True, codes=model.codes.numpy())
    batch = batches.batch(batches.users[:4], np.random.default_rng(0))
    encoded = model.encode(batch.history, item_ND := model.encode_items(batch.items))
    forced = model.forced(batch, encoded)
    hidden = encoded.hidden_BTD.flatten(0, 1)[batch.position_N]
    trained = model._conditioned_query(hidden, forced.query_ND[1])
    last = torch.stack([torch.where(batch.user_N == user)[0][-1] for user in range(4)])
    steps = torch.arange(batch.history.item_BT.shape[1])
    code = torch.stack([forced.code_NL[last, 0], (forced.code_NL[last, 0] + 1) % 8], 1)
    asked = model.conditioned_query(hidden[last], code, model.decoder.memories(encoded.states),
                                    (steps < batch.history.length_B[:, None])[:, None])
    torch.testing.assert_close(asked[:, 0], trained[last], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(asked[:, 1], trained[last], atol=1e-2)
    losses = model.losses(batch, semantic_weight=0.5, conditioned_weight=2.0)
    alone = model.retrieval_loss(batch, encoded, item_ND, query_ND=trained)
    torch.testing.assert_close(losses.conditioned, alone.detach(), rtol=1e-4, atol=1e-4)
    rest = losses.retrieval + 0.5 * losses.semantic + CONFIG.balance_weight * losses.balance
    torch.testing.assert_close(losses.total.detach(), rest + 2 * losses.conditioned, rtol=1e-4, atol=1e-4)


def test_adamw_takes_the_steps_that_its_formula_has(dataset):
    torch.manual_seed(0)
    model = OnePiece(CONFIG, dataset.schema, random_codes(dataset.schema.items))
    optimisers = Optimisers(model, learning_rate=0.1, muon_learning_rate=0.0, weight_decay=0.5, warmup_steps=1,
                            total_steps=10 ** 9)
    table, head = model.item_tower.id_table.weight, model.decoder.code_LCD  # without and with weight decay
    expected, mean, square = [w.detach().clone() for w in (table, head)], [0.0, 0.0], [0.0, 0.0]
    for step in range(3):
        for place, weight in enumerate((table, head)):
            weight.grad = gradient = torch.randn(weight.shape)
            mean[place] = 0.9 * mean[place] + 0.1 * gradient
            square[place] = 0.98 * square[place] + 0.02 * gradient ** 2
            direction = mean[place] / (1 - 0.9 ** (step + 1)) / (square[place] / (1 - 0.98 ** (step + 1))).sqrt()
            expected[place] = expected[place] * (1 - 0.1 * 0.5 * place) - 0.1 * direction
        optimisers.step(step)
    for weight, formula in zip((table, head), expected):
        torch.testing.assert_close(weight.detach(), formula, rtol=1e-4, atol=1e-4)


def test_latent_steps_read_the_history_and_not_the_future():
    """Without attention's output a step adds its vector; with it, what stands before a position reaches it."""
    torch.manual_seed(0)
    latent = LatentSteps(2, width=8, heads=2, max_length=6, dropout=0.0)
    x = torch.randn(1, 6, 8)
    torch.nn.init.zeros_(latent.block.out.weight)
    torch.nn.init.zeros_(latent.block.out.bias)
    torch.testing.assert_close(latent(x), x + latent.step_table.weight.sum(0))
    torch.nn.init.normal_(latent.block.out.weight)
    other = x.clone()
    other[0, 3] = torch.randn(8)
    changed = (latent(x) - latent(other)).abs().sum(-1)[0] > 1e-6
    assert changed.tolist() == [False] * 3 + [True] * 3
