"""The losses against slow loops, known answers and what LogQ promises."""

import numpy as np
import torch

from onepiece_comp.models.losses import (
    LossOptions, PairBias, RowBias, LossRows, binary_loss, load_gini, info_nce, load_balance, rows_per_block,
    softmax_loss)

torch.manual_seed(0)
BLOCK = rows_per_block(torch.empty(7, 1))


def _loop(query, key, rows, *biases):
    """The same loss one row at a time, by autograd."""
    total = 0.0
    for n in range(len(query)):
        logits, negatives = [], []
        for k in range(len(key)):
            if rows.hidden_BK is not None and rows.hidden_BK[rows.hidden_row_N[n], k] and k != rows.target_N[n]:
                continue
            value = query[n] @ key[k]
            for bias in biases:
                value = value + bias.bias_RK[bias.row_N[n], k]
            if k == rows.target_N[n]:
                if rows.target_shift_N is not None:
                    value = value + rows.target_shift_N[n]
                positive = value
                logits.append(value)
            elif not rows.duplicate_cosine or key[k] @ key[rows.target_N[n]] < rows.duplicate_cosine:
                negatives.append(value)
        logits += sorted(negatives, key=lambda value: float(value.detach()), reverse=True)[:rows.hardest or None]
        total = total + rows.weight_N[n] * (torch.logsumexp(torch.stack(logits), 0) - positive)
    return total


def _inputs(count):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float32)
    query, key = draw(count, 5).requires_grad_(), draw(7, 5).requires_grad_()
    integers = lambda high: torch.randint(0, high, (count,), generator=generator)
    biases = [RowBias(draw(rows, 7).requires_grad_(), integers(rows)) for rows in (3, 2)]
    rows = LossRows(integers(7), torch.rand(count, generator=generator), draw(count),
                torch.rand(4, 7, generator=generator) < 0.3, integers(4))
    return query, key, rows, biases


def test_loss_and_gradients_equal_a_loop_over_rows_and_keys():
    query, key, rows, biases = _inputs(9)
    wanted = (query, key, *(bias.bias_RK for bias in biases))
    fast = softmax_loss(query, key, rows, *biases)
    gradients = torch.autograd.grad(3 * fast, wanted)
    slow = _loop(query, key, rows, *biases)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    for ours, reference in zip(gradients, torch.autograd.grad(3 * slow, wanted)):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_only_the_hardest_negatives_count_and_none_that_is_like_the_target():
    query, key, rows, biases = _inputs(9)
    key = torch.nn.functional.normalize(key.detach(), dim=1).requires_grad_()
    plain = softmax_loss(query, key, rows, *biases)
    for some in ({"hardest": 2}, {"duplicate_cosine": 0.3}, {"hardest": 1, "duplicate_cosine": 0.3}):
        narrowed = rows._replace(**some)
        fast, slow = softmax_loss(query, key, narrowed, *biases), _loop(query, key, narrowed, *biases)
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(fast, key)[0], torch.autograd.grad(slow, key)[0], rtol=1e-4,
                                   atol=1e-5)
        assert fast < plain - 0.1


def test_rows_beyond_one_block_count_like_those_of_the_first():
    query, key, rows, biases = _inputs(2 * BLOCK + 3)
    whole = softmax_loss(query, key, rows, *biases)
    by_row = ("target_N", "weight_N", "target_shift_N", "hidden_row_N")
    one_by_one = sum(
        softmax_loss(query[n:n + 1], key, rows._replace(**{name: getattr(rows, name)[n:n + 1] for name in by_row}),
                     *(RowBias(bias.bias_RK, bias.row_N[n:n + 1]) for bias in biases))
        for n in range(len(query)))
    torch.testing.assert_close(whole, one_by_one, rtol=1e-4, atol=1e-3)


def test_a_block_has_fewer_rows_where_there_are_more_keys_and_gives_the_same_loss(monkeypatch):
    sizes = [rows_per_block(torch.empty(keys, 1)) for keys in (1, 4096, 4097, 12_101, 2 ** 20 + 1)]
    assert sizes == [256, 256, 128, 64, 64]
    query, key, rows, biases = _inputs(150)
    wanted = (query, key, *(bias.bias_RK for bias in biases))
    whole = torch.autograd.grad(softmax_loss(query, key, rows, *biases), wanted)
    monkeypatch.setattr("onepiece_comp.models.losses._LOGITS_PER_BLOCK", 64 * len(key))
    assert rows_per_block(key) == 64
    torch.testing.assert_close(torch.autograd.grad(softmax_loss(query, key, rows, *biases), wanted), whole)


def test_queries_and_keys_of_half_precision_give_the_loss_and_the_gradients_of_their_type():
    query, key, rows, biases = _inputs(300)
    half = [part.detach().bfloat16().requires_grad_() for part in (query, key)]
    loss = softmax_loss(*half, rows, *biases)
    exact = softmax_loss(query, key, rows, *biases)
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.1)
    for ours, theirs in zip(torch.autograd.grad(loss, half), torch.autograd.grad(exact, (query, key))):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs, rtol=0.1, atol=0.05 * float(theirs.abs().max()))


def test_biases_of_some_pairs_count_as_in_a_matrix_that_is_zero_elsewhere():
    query, key, rows, biases = _inputs(2 * BLOCK + 3)
    some = torch.rand(len(query), 7, generator=torch.Generator().manual_seed(2)) < 0.3
    some[:BLOCK] &= torch.arange(BLOCK)[:, None] % 5 == 0  # rows without any, and at a block's edge
    matrix = (torch.randn(some.shape, generator=torch.Generator().manual_seed(3)) * some).requires_grad_()
    row, key_of = some.nonzero().T
    pairs = matrix.detach()[some].requires_grad_()
    fast = softmax_loss(query, key, rows, *biases, PairBias(pairs, row, key_of))
    slow = softmax_loss(query, key, rows, *biases, RowBias(matrix, torch.arange(len(query))))
    torch.testing.assert_close(fast, slow)
    wanted = (query, key, biases[0].bias_RK)
    ours, theirs = (torch.autograd.grad(loss, (*wanted, bias)) for loss, bias in ((fast, pairs), (slow, matrix)))
    torch.testing.assert_close(ours[:-1], theirs[:-1])
    torch.testing.assert_close(ours[-1], theirs[-1][some])


def test_a_hidden_key_has_no_gradient_unless_it_is_the_target():
    query, key = torch.randn(1, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    rows = LossRows(torch.tensor([1]), torch.ones(1), hidden_BK=torch.tensor([[True, True, False]]),
                    hidden_row_N=torch.tensor([0]))
    softmax_loss(query, key, rows).backward()
    assert key.grad[0].abs().sum() == 0
    assert key.grad[1].abs().sum() > 0 and key.grad[2].abs().sum() > 0


class _Batch:
    """The parts of a TrainBatch that InfoNCE reads."""

    def __init__(self, target, counts, repeats):
        self.target_N = torch.as_tensor(target)
        self.weight_N = torch.ones(len(target))
        self.log_repeats_K = torch.log(torch.as_tensor(repeats, dtype=torch.float32))
        self.log_expected_K = torch.log(torch.as_tensor(counts, dtype=torch.float32))
        self.own_BK = torch.zeros(len(target), len(counts), dtype=torch.bool)
        self.user_N = torch.arange(len(target))
        self.negative_N = torch.zeros(len(target), dtype=torch.long)
        self.trend_row_N = torch.zeros(len(target), dtype=torch.long)


def test_distinct_keys_with_repeats_equal_the_sum_over_draws():
    """Two draws of key 0 and one each of keys 1 and 2, against the positive 1 of one row: written out by hand."""
    query, key = torch.randn(1, 4), torch.randn(3, 4)
    expected = [2.5, 0.5, 1.0]
    batch = _Batch([1], expected, [2, 3, 1])  # the positive's own repeats (3) must not matter
    score = (query @ key.T)[0].double()
    log_q = torch.log(torch.tensor(expected, dtype=torch.float64))
    for both_sides, positive in ((False, score[1]), (True, score[1] - log_q[1])):
        draws = [score[0] - log_q[0], score[0] - log_q[0], positive, score[2] - log_q[2]]
        by_hand = torch.logsumexp(torch.stack(draws), 0) - positive
        ours = info_nce(query, key, batch, options=LossOptions(positive_logq=both_sides)).double()
        torch.testing.assert_close(ours, by_hand, rtol=1e-5, atol=1e-6)


def test_without_logq_every_draw_counts_as_drawn():
    query, key = torch.randn(1, 4), torch.randn(3, 4)
    batch = _Batch([1], [2.5, 0.5, 1.0], [2, 3, 1])
    score = (query @ key.T)[0].double()
    by_hand = torch.logsumexp(score[[0, 0, 1, 2]], 0) - score[1]
    torch.testing.assert_close(info_nce(query, key, batch, options=LossOptions(logq=False)).double(), by_hand,
                               rtol=1e-5, atol=1e-6)


def test_binary_loss_sets_one_sampled_item_against_the_target_unless_the_user_has_it():
    query, key = torch.randn(2, 4), torch.randn(3, 4)
    batch = _Batch([1, 2], [1, 1, 1], [1, 1, 1])
    batch.own_BK[1, 0] = True  # the second row's negative is the user's own
    bias = RowBias(torch.tensor([[0.5, -0.25, 1.0]]), torch.zeros(2, dtype=torch.long))
    score = query @ key.T + bias.bias_RK
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    by_hand = sum(entropy(logit, torch.tensor(wanted)) for logit, wanted in
                  ((score[0, 1], 1.0), (score[0, 0], 0.0), (score[1, 2], 1.0)))
    torch.testing.assert_close(binary_loss(query, key, batch, bias, options=LossOptions(kind="bce")), by_hand)


def test_logq_recovers_the_preference_that_popular_negatives_hide():
    """Targets are drawn 3:1; negatives by a skewed popularity. The corrected scores must differ by log 3."""
    rng = np.random.default_rng(0)
    popularity = np.array([0.9, 0.1])
    key, query = torch.eye(2), torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.SGD([query], lr=0.05)
    for _ in range(1500):
        target = (rng.random(64) < 0.25).astype(np.int64)  # key 0 three times as often as key 1
        repeats = rng.multinomial(64, popularity) + 1e-3
        loss = info_nce(query.expand(64, 2), key, _Batch(target, 64 * popularity, repeats)) / 64
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert abs(float((query[0] - query[1]).detach()) - np.log(3)) < 0.25


def test_keys_of_the_users_own_log_are_no_negatives():
    query, key = torch.randn(1, 4), torch.randn(3, 4)
    batch = _Batch([1], [1, 1, 1], [1, 1, 1])
    batch.own_BK = torch.tensor([[True, True, False]])
    score = (query @ key.T)[0]
    torch.testing.assert_close(info_nce(query, key, batch), torch.logsumexp(score[1:], 0) - score[1])


def test_trend_logits_are_added_by_the_rows_own_bucket():
    query, key, trend = torch.randn(2, 4), torch.randn(3, 4), torch.randn(2, 3)
    batch = _Batch([0, 2], [1, 1, 1], [1, 1, 1])
    score = query @ key.T + trend[[1, 0]]
    loss = info_nce(query, key, batch, RowBias(trend, torch.tensor([1, 0])))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(score, batch.target_N, reduction="sum"))


def test_the_losses_of_some_rows_add_up_to_the_loss_of_all():
    query, key, trend = torch.randn(5, 4), torch.randn(3, 4), torch.randn(2, 3)
    batch, row = _Batch([0, 2, 1, 1, 0], [1, 2, 1], [1, 1, 3]), torch.tensor([1, 0, 0, 1, 1])
    batch.weight_N = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    parts = [info_nce(query[part], key, batch, RowBias(trend, row[part]), rows=part) for part in (slice(0, 2),
        slice(2, 5))]
    torch.testing.assert_close(sum(parts), info_nce(query, key, batch, RowBias(trend, row)))


def test_balance_is_one_when_equal_and_grows_with_concentration():
    equal = load_balance(torch.full((8, 4), 0.25), torch.arange(8)[:, None] % 4)
    assert abs(float(equal) - 1) < 1e-6
    gate = torch.tensor([[0.97, 0.01, 0.01, 0.01]]).expand(8, 4)
    assert float(load_balance(gate, torch.zeros(8, 1, dtype=torch.long))) > 3.8


def test_gini_is_zero_when_equal_and_three_quarters_when_one_of_four_has_all():
    assert abs(load_gini(torch.tensor([5, 5, 5, 5]))) < 1e-9
    assert abs(load_gini(torch.tensor([0, 0, 8, 0])) - 0.75) < 1e-9
