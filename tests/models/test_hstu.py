"""HSTU attention, its biases and the mixture of experts: loops, invariances, limits."""

import math

import pytest
import torch
from torch.nn import functional as F

from onepiece_comp.models.hstu import (
    TIME_BUCKETS, CrossBlock, HSTUBlock, RelativeBias, gap_bucket, gaps, silu_attention)
from onepiece_comp.models.moe import SparseMoE, swiglu
from onepiece_comp.models.transformer import TransformerBlock


def _block(width=8, heads=2, max_length=12):
    torch.manual_seed(0)
    block = HSTUBlock(width=width, heads=heads, max_length=max_length, dropout=0.0).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


def test_attention_equals_a_loop_over_heads_and_positions():
    torch.manual_seed(1)
    query, key, value = (torch.randn(2, 2, 5, 3) for _ in range(3))
    bias = torch.randn(2, 2, 5, 5)
    allowed = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    fast = silu_attention(query, key, value, bias_BHTS=bias, allowed_BTS=allowed, max_length=9)
    for b in range(2):
        for h in range(2):
            for t in range(5):
                slow = sum(F.silu(query[b, h, t] @ key[b, h, s] + bias[b, h, t, s]) / 9 * value[b, h,
                    s] for s in range(t + 1))
                torch.testing.assert_close(fast[b, h, t], slow, rtol=1e-5, atol=1e-6)


def test_output_does_not_depend_on_padding_or_on_how_long_the_batch_is():
    block, x, time = _block(), torch.randn(1, 4, 8), torch.tensor([[10, 700, 5000, 90000]])
    alone = block(x, gaps(time))
    padded = block(torch.cat([x, torch.randn(1, 5, 8)], 1),
                   gaps(torch.cat([time, torch.zeros(1, 5, dtype=torch.long)], 1)))
    torch.testing.assert_close(padded[:, :4], alone, rtol=1e-5, atol=1e-6)


def test_output_does_not_depend_on_the_future():
    block, x, time = _block(), torch.randn(1, 6, 8), torch.arange(6)[None] * 1000
    changed = x.clone()
    changed[:, 3:] = torch.randn(1, 3, 8)
    torch.testing.assert_close(block(x, gaps(time))[:, :3], block(changed, gaps(time))[:, :3])
    assert not torch.allclose(block(x, gaps(time))[:, 3:], block(changed, gaps(time))[:, 3:])


def test_time_gaps_change_the_output():
    block, x = _block(), torch.randn(1, 4, 8)
    near, far = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0, 1, 2, 900000]])
    assert not torch.allclose(block(x, gaps(near))[:, 3], block(x, gaps(far))[:, 3])


def test_gap_buckets_are_logarithmic_and_capped():
    values = gap_bucket(torch.tensor([0, 1, 3600, 86400, 10 ** 12]))
    assert values.tolist() == [0, 0, int(math.log(3600) / 0.301), int(math.log(86400) / 0.301), TIME_BUCKETS - 1]


def test_bias_gradient_equals_plain_indexing():
    bias = RelativeBias(heads=2, max_length=6)
    torch.nn.init.normal_(bias.position_HC)
    torch.nn.init.normal_(bias.time_HC)
    gap, weight = gaps(torch.tensor([[0, 50, 4000], [0, 9, 9]])), torch.randn(2, 2, 3, 3)
    (bias(gap) * weight).sum().backward()
    ours = bias.position_HC.grad.clone(), bias.time_HC.grad.clone()
    bias.zero_grad()
    steps = torch.arange(3)
    plain = bias.position_HC[:, (steps[:, None] - steps[None]).clamp_min(0)][None] + bias.time_HC[:, gap].transpose(0,
        1)
    torch.testing.assert_close(bias(gap), plain)
    (plain * weight).sum().backward()
    torch.testing.assert_close(ours[0], bias.position_HC.grad)
    torch.testing.assert_close(ours[1], bias.time_HC.grad)


def test_cross_attention_reads_only_allowed_states():
    torch.manual_seed(2)
    block = CrossBlock(width=8, heads=2, max_length=9, dropout=0.0).eval()
    query, states = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    allowed = torch.tensor([[[True, True, False, False, False]]]).expand(1, 3, 5)
    changed = states.clone()
    changed[:, 2:] += 1
    torch.testing.assert_close(block(query, block.memory(states), allowed),
                               block(query, block.memory(changed), allowed))


def _moe(experts, active):
    torch.manual_seed(3)
    moe = SparseMoE(width=6, experts=experts, active=active, hidden=5)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return moe


def test_one_expert_is_a_dense_network_beside_the_shared_one():
    moe, x = _moe(1, 1), torch.randn(7, 6)
    dense = swiglu(x, moe.gate_up_EDF[0], moe.down_EFD[0]) + swiglu(x, moe.shared_gate_up_DF, moe.shared_down_FD)
    torch.testing.assert_close(moe(x)[0], dense)


@pytest.mark.parametrize("active", [1, 2, 4])
def test_experts_equal_a_loop_over_tokens(active):
    moe, x = _moe(4, active), torch.randn(11, 6)
    mixed, routing = moe(x)
    gates = torch.softmax(moe.router(x), -1)
    for n in range(11):
        weight, chosen = gates[n].topk(active)
        slow = swiglu(x[n:n + 1], moe.shared_gate_up_DF, moe.shared_down_FD)[0]
        for w, e in zip(weight / weight.sum(), chosen):
            slow = slow + w * swiglu(x[n:n + 1], moe.gate_up_EDF[e], moe.down_EFD[e])[0]
        torch.testing.assert_close(mixed[n], slow, rtol=1e-4, atol=1e-5)
    assert int(routing.load_E.sum()) == 11 * active


def _transformer(**settings):
    torch.manual_seed(0)
    block = TransformerBlock(**{"width": 8, "heads": 2, "max_length": 12, "dropout": 0.0, "hidden": 6,
                                **settings}).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


@pytest.mark.parametrize("rotary, time_bias", [(False, True), (True, False)])
def test_a_transformer_block_equals_a_loop(rotary, time_bias):
    block = _transformer(rotary=rotary, time_bias=time_bias)
    x, time = torch.randn(1, 5, 8), torch.tensor([[0, 50, 900, 90000, 90001]])
    normed = x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    value, query, key = (part.view(5, 2, 4) for part in (normed[0] @ block.uvqk.weight.T).chunk(3, -1))
    mixed = torch.zeros(5, 2, 4)
    for t in range(5):
        for h in range(2):
            scores = []
            for s in range(t + 1):
                turned = [_turned(part[at, h], at) if rotary else part[at, h] for part, at in ((query, t), (key, s))]
                bias = block.bias.position_HC[h, t - s]
                if time_bias:
                    bias = bias + block.bias.time_HC[h, gap_bucket(time[0, t] - time[0, s])]
                scores.append(turned[0] @ turned[1] / 2 + bias)  # sqrt(4) = 2
            mixed[t, h] = (torch.stack(scores).softmax(0)[:, None] * value[:t + 1, h]).sum(0)
    middle = x[0] + mixed.flatten(1) @ block.out.weight.T + block.out.bias
    normed = middle / (middle.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    expected = middle + swiglu(normed, block.gate_up_DF, block.down_FD)
    torch.testing.assert_close(block(x, gaps(time))[0], expected, rtol=1e-4, atol=1e-5)
    assert (block.bias.time_HC is None) == (not time_bias)


def _turned(vector, position):
    """One head's vector turned pair by pair, as complex numbers."""
    half = len(vector) // 2
    pairs = torch.complex(vector[:half], vector[half:])
    angle = position * 10_000.0 ** (-torch.arange(half) / half)
    turned = pairs * torch.complex(angle.cos(), angle.sin())
    return torch.cat([turned.real, turned.imag])


@pytest.mark.parametrize("make", [_transformer, lambda **settings: HSTUBlock(width=8, heads=2, max_length=12,
                                                                             dropout=0.0, **settings)])
def test_rotary_blocks_see_distances_and_neither_padding_nor_the_future(make):
    block, x, time = make(rotary=True).eval(), torch.randn(1, 6, 8), torch.arange(6)[None] * 1000
    changed = x.clone()
    changed[:, 3:] = torch.randn(1, 3, 8)
    torch.testing.assert_close(block(x, gaps(time))[:, :3], block(changed[:, :], gaps(time))[:, :3])
    torch.testing.assert_close(block(x[:, :4], gaps(time[:, :4])), block(x, gaps(time))[:, :4], rtol=1e-5, atol=1e-6)
    one, other = torch.randn(4), torch.randn(4)
    dots = [_turned(one, t) @ _turned(other, t - 3) for t in (3, 4, 9)]
    torch.testing.assert_close(torch.stack(dots), dots[0].expand(3), rtol=1e-4, atol=1e-5)
