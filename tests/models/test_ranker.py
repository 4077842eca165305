"""Target attention: each candidate as if alone, in both forms;
the ranker starts from the first stage's order and learns.
"""

import pytest
import torch

from onepiece_comp.config import RankerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import CLICK, CONVERSION, EXPOSURE, UNKNOWN_ACTION
from onepiece_comp.models.hstu import gaps
from onepiece_comp.models.ranker import PARTS, RankerOutput, RankerInput, TargetRanker, list_losses
from onepiece_comp.models.target_attention import Past, TargetBlock

KINDS = ("attention", "din")
WIDTH, LONGEST = 8, 7


def _random_(module):
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    return module.eval()


def _ranker(kind, layers=2):
    return _random_(TargetRanker(RankerConfig(kind=kind, width=WIDTH, layers=layers, heads=2, dropout=0.0),
                                 state_width=6,
                                 item_width=5, max_length=LONGEST))


def _given(seed=0, *, users=3, candidates=4):
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw)
    time = torch.randint(1, 40_000, (users, 6), generator=draw).cumsum(1)
    return RankerInput(normal(users, 6, 6), normal(users, 6, 5), torch.randint(0, 4, (users, 6), generator=draw),
                       gaps(time),
                       torch.tensor([6, 3, 1])[:users], normal(users, candidates, 5),
                       normal(users, candidates, len(PARTS)), torch.ones(users, candidates, dtype=torch.bool))


def _alone(given, user, candidate, length):
    """One user with one candidate, the padding cut to `length` positions."""
    one, some = slice(user, user + 1), slice(candidate, candidate + 1)
    return RankerInput(given.state_BSV[one, :length], given.item_BSV[one, :length], given.action_BS[one, :length],
                       given.gap_BSS[one, :length, :length], given.length_B[one], given.key_BMV[one, some],
                       given.part_BMF[one, some], given.allowed_BM[one, some])


@torch.no_grad()
def test_a_block_gives_each_candidate_what_it_would_be_as_the_event_after_the_history():
    block = _random_(TargetBlock(width=WIDTH, heads=2, max_length=LONGEST + 1, dropout=0.0))
    draw = torch.Generator().manual_seed(1)
    history, candidates = torch.randn(2, 6, WIDTH, generator=draw), torch.randn(2, 4, WIDTH, generator=draw)
    time, length = torch.randint(1, 40_000, (2, 6), generator=draw).cumsum(1), torch.tensor([6, 4])
    ours, _ = block.forward_with(candidates, Past(history, gaps(time), length))
    for user in range(2):
        own_time = time[user, :length[user]]
        longer = gaps(torch.cat([own_time, own_time[-1:]])[None])
        for number in range(4):
            alone = torch.cat([history[user, :length[user]], candidates[user, number:number + 1]])[None]
            torch.testing.assert_close(ours[user, number], block(alone, longer)[0, -1], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_candidate_is_judged_as_if_alone_whatever_the_padding_and_the_batch_mates(kind):
    ranker, given = _ranker(kind), _given()
    together = ranker(given)
    for user in range(3):
        for candidate in range(4):
            alone = ranker(_alone(given, user, candidate, int(given.length_B[user])))
            for ours, own in zip(together, alone):
                torch.testing.assert_close(ours[user, candidate], own[0, 0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_event_of_the_history_and_its_time_reach_the_candidates(kind):
    ranker, given = _ranker(kind), _given()
    before = ranker(given).logit_BM
    item = given.item_BSV.clone()
    item[0, 2], item[1, 3] = torch.randn(5), torch.randn(5)
    changed = (ranker(given._replace(item_BSV=item)).logit_BM - before).abs()
    assert (changed[0] > 1e-4).all() and (changed[1:] == 0).all()  # position 3 of user 1 is padding
    later = given.gap_BSS.clone()
    later[0, 5, 2] += 9
    assert ((ranker(given._replace(gap_BSS=later)).logit_BM - before).abs()[0] > 1e-5).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_ranker_leaves_the_first_stages_scores_as_they_are(kind):
    ranker = TargetRanker(RankerConfig(kind=kind), state_width=6, item_width=5, max_length=LONGEST).eval()
    given = _given()
    ranker.fit_parts(given.part_BMF.flatten(0, 1))
    given.allowed_BM[1, 2] = False
    expected = given.part_BMF[..., PARTS.index("score")].masked_fill(~given.allowed_BM, -torch.inf)
    assert torch.equal(ranker(given).logit_BM, expected)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="ranker.kind"):
        _ranker("mlp")


def test_the_losses_count_what_is_known_of_each_list():
    """A list of weight 0 is not learned; a click tells of clicks, and only a click tells of conversions."""
    logit = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]]))
    logit[1, 2] = -torch.inf
    place, action = torch.tensor([1, 2, 0, 0]), torch.tensor([CLICK, EXPOSURE, CONVERSION, UNKNOWN_ACTION])
    zero = torch.zeros(4, 3)
    losses = list_losses(RankerOutput(logit, zero + 1.0, zero - 2.0), place, action, torch.tensor([1.0, 0.0, 3.0, 0.0]))
    assert losses.listwise == pytest.approx((1.3862944 + 3 * 1.6094379) / 4)
    positive, negative = 0.3132617, 1.3132617  # of a logit of 1
    assert losses.click == pytest.approx((2 * positive + negative) / 3)
    assert losses.conversion == pytest.approx((0.1269280 + 2.1269280) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranker_learns_what_the_parts_cannot_tell(kind):
    """The target is the candidate that repeats an event's item; the first stage scores all candidates alike."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(2)
    vectors = torch.nn.functional.normalize(torch.randn(12, 16, generator=draw), dim=1)

    def some(users):
        item = torch.stack([torch.randperm(12, generator=draw) for _ in range(users)])
        history, others = item[:, :3], item[:, 3:8]
        place = torch.randint(0, 6, (users,), generator=draw)
        key = torch.where(torch.arange(6) == place[:, None], history[:, 1:2], torch.cat([others, others[:, :1]], 1))
        zero = torch.zeros(users, 3, dtype=torch.long)
        return RankerInput(torch.zeros(users, 3, 4), vectors[history], zero, torch.zeros(users, 3, 3, dtype=torch.long),
                           torch.full((users,), 3), vectors[key], torch.zeros(users, 6, len(PARTS)),
                           torch.ones(users, 6, dtype=torch.bool)), place

    config = RankerConfig(kind=kind, width=16, heads=2, dropout=0.0, din_hidden=8)
    ranker = TargetRanker(config, state_width=4, item_width=16, max_length=3)
    optimiser = torch.optim.AdamW(ranker.parameters(), 0.01)
    for _ in range(100):
        given, place = some(48)
        loss = list_losses(ranker(given), place, torch.full_like(place, CLICK), torch.ones(48)).listwise
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    given, place = some(256)
    assert (ranker(given).logit_BM.argmax(1) == place).float().mean() > 0.8
