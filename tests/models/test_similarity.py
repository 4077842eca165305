"""The similarity logit: a slow loop gives the same; gradients; nobody depends on padding, batch-mates or the future."""

import math

import numpy as np
import pytest
import torch

from onepiece_comp.config import ModelConfig
from onepiece_comp.models import recommender as model_module
from onepiece_comp.models.histories import History
from onepiece_comp.models.hstu import gap_bucket, gaps
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.models.similarity import _FLOOR, _SHARPNESS, _STEP, HistorySimilarity
from onepiece_comp.training.batches import TrainingBatches


def planted(batch=3, length=5):
    """A similarity with random parameters, item vectors, and histories of several lengths."""
    generator = torch.Generator().manual_seed(0)
    similarity = HistorySimilarity(width=6, metric_width=4)
    for parameter in similarity.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    item_ND = torch.randn(9, 6, generator=generator)
    item = torch.randint(1, 9, (batch, length), generator=generator)
    item[:, 0] = 0
    size = torch.tensor([length, 3, 1])[:batch]
    item[torch.arange(length)[None] >= size[:, None]] = 0
    time = torch.randint(1, 10 ** 6, (batch, length), generator=generator).cumsum(1)
    action = torch.randint(0, 3, (batch, length), generator=generator)
    following = torch.randint(0, 5, (batch, length), generator=generator)
    return similarity, item_ND, History(item, action, following, time, size, torch.zeros(0, dtype=torch.long), size * 0)


def by_loop(similarity, item_ND, history, user, position):
    """Logits of all items at one position, written out event by event."""
    metric = torch.nn.functional.normalize(similarity.project(item_ND), dim=-1)
    sharpness, floor = (start * math.exp(_STEP * float(p.detach())) for start, p in
                        ((_SHARPNESS, similarity.sharpness), (_FLOOR, similarity.floor)))
    mixed, total = torch.zeros(len(item_ND)), 1e-3
    for s in range(position + 1):
        item = int(history.item_BT[user, s])
        if item:
            gap = gap_bucket(history.time_BT[user, position] - history.time_BT[user, s])
            by_action = similarity.action_HC[history.next_action_BT[user, position], history.action_BT[user, s]]
            weight = math.exp(_STEP * float((similarity.time_HC[0, gap] + by_action).detach()))
            total += weight
            mixed = mixed + weight * torch.exp(sharpness * (metric @ metric[item] - 1))
    return torch.exp(_STEP * similarity.scale[history.next_action_BT[user,
                                                                     position]]) * torch.log(mixed / total + floor)


def logits(similarity, item_ND, history):
    metric = similarity.metric(item_ND)
    return similarity(metric[history.item_BT], metric, similarity.weigh(history, gaps(history.time_BT),
                                                                        next_action=True))


def test_a_loop_over_the_events_gives_the_same_logits_and_gradients():
    similarity, item_ND, history = planted()
    fast = logits(similarity, item_ND, history)
    slow = torch.stack([torch.stack([by_loop(similarity, item_ND, history, user, position) for position in range(5)])
                        for user in range(3)])
    valid = torch.arange(5)[None] < history.length_B[:, None]
    torch.testing.assert_close(fast[valid], slow[valid], rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_plain_autograd():
    similarity, item_ND, history = planted()
    item_ND = item_ND.requires_grad_()
    weight = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(1))
    wanted = [item_ND, *similarity.parameters()]
    ours = torch.autograd.grad((logits(similarity, item_ND, history) * weight).sum(), wanted)
    metric = similarity.metric(item_ND)
    weighing = similarity.weigh(history, gaps(history.time_BT), next_action=True)
    kernel = torch.exp(_SHARPNESS * (similarity.sharpness * _STEP).exp() * (metric[history.item_BT] @ metric.T - 1))
    plain = weighing.scale_BT[..., None] * torch.log(weighing.weight_BTS @ kernel + _FLOOR
                                                     * (similarity.floor * _STEP).exp())
    for a, b in zip(ours, torch.autograd.grad((plain * weight).sum(), wanted)):
        assert b.abs().sum() > 0
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_user_alone_without_padding_and_with_own_keys_gets_the_same():
    similarity, item_ND, history = planted()
    with torch.no_grad():
        together = logits(similarity, item_ND, history)
        alone = History(history.item_BT[1:2, :3], history.action_BT[1:2, :3], history.next_action_BT[1:2, :3],
                        history.time_BT[1:2, :3], history.length_B[1:2], history.user_token, history.length_B[1:2] * 0)
        torch.testing.assert_close(logits(similarity, item_ND, alone)[0], together[1, :3], rtol=1e-4, atol=1e-5)
        metric, weighing = similarity.metric(item_ND), similarity.weigh(history, gaps(history.time_BT),
                                                                        next_action=True)
        own = torch.tensor([[4, 2], [1, 1], [8, 3]])
        few = similarity(metric[history.item_BT], metric[own], weighing.last(history))[:, 0]
    for user, last in enumerate(history.length_B - 1):
        torch.testing.assert_close(few[user], together[user, last][own[user]], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("cells", [1 << 24, 20, 1])
def test_the_last_position_in_blocks_has_the_logits_of_all_at_once(monkeypatch, cells):
    monkeypatch.setattr("onepiece_comp.models.similarity._CELLS_AT_ONCE", cells)
    similarity, item_ND, history = planted()
    metric = similarity.metric(item_ND)
    whole = logits(similarity, item_ND, history)[torch.arange(3), history.length_B - 1]
    weighing = similarity.weigh(history, gaps(history.time_BT), next_action=True).last(history)
    torch.testing.assert_close(similarity.of_last(metric[history.item_BT], metric, weighing), whole)
    some = torch.tensor([[1, 8, 3, 3], [0, 2, 4, 6], [7, 6, 5, 1]])
    torch.testing.assert_close(similarity.of_last(metric[history.item_BT], metric, weighing, some),
                               whole.gather(1, some))


def test_an_item_like_the_history_beats_one_unlike_it():
    similarity = HistorySimilarity(width=2, metric_width=2)
    similarity.project.weight.data = torch.eye(2)
    item_ND = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.9, 0.1], [-1.0, 0.3]])
    one = torch.tensor([[0, 1]])
    history = History(one, one * 0, one * 0, one * 0 + 5, torch.tensor([2]), torch.zeros(0, dtype=torch.long),
                      torch.zeros(1))
    after = logits(similarity, item_ND, history)[0]
    assert after[1, 2] > after[1, 3] + 1
    assert torch.allclose(after[0], after[0, :1])  # before any event all are alike


@pytest.mark.parametrize("trend, ids", [(True, False), (False, False), (True, True), (False, True)])
def test_a_loss_taken_some_users_at_a_time_equals_that_of_all_at_once(dataset, monkeypatch, trend, ids):
    config = ModelConfig(width=16, layers=1, heads=2, expert_width=8, dropout=0.0, id_dropout=0.0, similarity_width=8,
                         trend=trend)
    torch.manual_seed(0)
    codes = (torch.randint(0, 9, (dataset.schema.items + 1, 2), generator=torch.Generator().manual_seed(0)) if ids
             else None)
    if ids:
        codes[[0, 3]] = -1
    model = OnePiece(config, dataset.schema, codes)
    batches = TrainingBatches(dataset, stop=np.asarray(dataset.user_start[1:]), batch_users=8, max_events=20,
                              sampled_negatives=30, action_weights=(1.0, 2.0, 1.0, 1.0), moment_lag_seconds=3600,
                              click_lag_seconds=0, horizon_seconds=86400, seed=0,
                              codes=codes.numpy() if ids and trend else None)
    batch, found = next(batches.epoch(0)), []
    for cells in (1 << 24, 1):
        monkeypatch.setattr(model_module, "CELLS", {"cpu": cells})
        model.zero_grad()
        loss = model.losses(batch, semantic_weight=float(ids)).total
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 20
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
