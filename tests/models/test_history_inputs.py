"""The encoder's inputs: fusions of the action to predict, and what is told of time."""

import numpy as np
import pytest
import torch

from onepiece_comp.errors import InputError
from onepiece_comp.models.history_inputs import ActionFusion, TimeInputs, calendar_waves, place_in_session

torch.manual_seed(0)
DAY = 86400


def test_place_in_session_starts_anew_after_half_an_hour():
    gaps = torch.tensor([[0, 5, 9, 4000, 2], [0, 1800, 1801, 0, 0]])
    assert place_in_session(gaps).tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert place_in_session(torch.zeros(1, 50, dtype=torch.int64)).max() == 31


def test_calendar_waves_come_again_after_a_week_but_for_the_year():
    now = 1_746_000_000
    waves = calendar_waves(torch.tensor([[now, now + 7 * DAY, now + 7 * DAY + 1, now + DAY]]))[0]
    periodic = [column for column in range(14) if column % 7 != 6]
    torch.testing.assert_close(waves[0, periodic], waves[1, periodic], atol=1e-5, rtol=0)
    assert not torch.allclose(waves[0, periodic], waves[3, periodic], atol=1e-2)
    assert 0 < float((waves[2, 0] - waves[1, 0]).abs()) < 1e-4  # a second is not lost to rounding
    assert not torch.allclose(waves[0, [6, 13]], waves[1, [6, 13]], atol=1e-2)


@pytest.mark.parametrize("kind", ["add", "film", "gate"])
def test_fusions_are_as_their_formulas_say(kind):
    fusion, x, action = ActionFusion(4, kind), torch.randn(2, 3, 4), torch.tensor([[0, 1, 2], [3, 4, 1]])
    table = fusion.action_table.weight
    for b in range(2):
        for t in range(3):
            row, told = x[b, t], table[action[b, t]]
            if kind == "add":
                expected = row + told
            elif kind == "film":
                expected = row * (1 + told[:4]) + told[4:]
            else:
                expected = row + torch.sigmoid(fusion.gate(torch.cat([row, told]))) * told
            torch.testing.assert_close(fusion(x, action)[b, t], expected)


@pytest.mark.parametrize("kind", ["week_hour", "gap", "calendar", "session", "moment"])
def test_each_time_input_tells_apart_what_it_knows_and_nothing_else(kind):
    """Two histories which differ in just that: hour of the week, gap, season, session, stretch of the log."""
    start = 1_746_000_000 // (7 * DAY) * 7 * DAY
    base = start + torch.tensor([[0, 3600, 7200]])
    other = {"week_hour": base + 5 * 3600, "gap": start + torch.tensor([[0, 60, 7200]]), "calendar": base + 90 * DAY,
             "session": start + torch.tensor([[0, 60, 120]]), "moment": base + 20 * DAY}[kind]
    inputs = TimeInputs(8, (kind,)).eval()
    inputs.fit(np.arange(start, start + 30 * DAY, 100))
    zero = torch.zeros(1, 3, 8)
    assert torch.equal(TimeInputs(8, ())(zero, base), zero)
    assert not torch.allclose(inputs(zero, base), inputs(zero, other))
    assert torch.equal(inputs(zero, base), inputs(zero, base.clone()))
    if kind in ("week_hour", "gap", "session"):  # these come again after a week
        torch.testing.assert_close(inputs(zero, base), inputs(zero, base + 7 * DAY))


def test_moments_are_stretches_of_equally_many_events_and_half_are_hidden_in_training():
    times = np.concatenate([np.arange(8192 * 4), 10 ** 6 + np.arange(8192 * 12) * 1000])
    inputs = TimeInputs(2, ("moment",))
    inputs.fit(times)
    row = 1 + torch.bucketize(torch.from_numpy(times), inputs.moment_edges, right=True)
    counts = torch.bincount(row, minlength=8193)
    assert counts[0] == 0 and counts[1:].min() >= 15 and counts[1:].max() <= 17
    inputs.moment_table.weight.data.copy_(torch.arange(8193)[:, None].expand(-1, 2).float())
    seen = inputs.train()(torch.zeros(1, len(times), 2), torch.from_numpy(times)[None])[0, :, 0]
    assert 0.48 < float((seen == 0).float().mean()) < 0.52
    assert torch.equal(seen[seen > 0], row[seen > 0].float())


@pytest.mark.parametrize("make", [lambda: TimeInputs(4, ("week_hour", "sesion"))])
def test_an_unknown_time_input_is_named(make):
    with pytest.raises(InputError, match="sesion"):
        make()
