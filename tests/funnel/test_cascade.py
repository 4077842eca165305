"""Exact retrieval, beam search and the cascade: exhaustive references, filters, and the promise of ten items."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from onepiece_comp.config import InferConfig
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.beam import Prior, beam_search, first_log_prob, item_log_prob
from onepiece_comp.funnel.candidates import with_cold_ids
from onepiece_comp.funnel.cascade import Funnel
from onepiece_comp.funnel.conditioned import conditioned_log_prob
from onepiece_comp.funnel.infer import recommend
from onepiece_comp.funnel.users import asked_actions
from onepiece_comp.logs.truths import Truth, write_truth
from onepiece_comp.models import retrieval
from onepiece_comp.models.batch import item_batch
from onepiece_comp.models.histories import build_history, event_columns
from onepiece_comp.models.prefix_table import build_prefix_table
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.models.retrieval import TILE, target_rank, top_k
from onepiece_comp.training.checkpoint import Checkpoint, asked_action
from small_models import CONFIG

@pytest.fixture(scope="module")
def model(dataset):
    """Random weights; distinct random ids of three levels of five codes for every item but the last four."""
    torch.manual_seed(0)
    number = torch.randperm(125, generator=torch.Generator().manual_seed(3))[:dataset.schema.items]
    codes = torch.cat([torch.full((1, 3), -1), torch.stack([number // 25, number // 5 % 5, number % 5], 1)])
    codes[-4:] = -1
    codes[1] = torch.tensor([4, 4, 4])
    codes[2:-4][(codes[2:-4] == 4).all(1)] = torch.tensor([0, 0, 0])
    model = OnePiece(CONFIG, dataset.schema, codes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def _checkpoint(model, dataset, config=None):
    return Checkpoint(model, dataset.trend.tail(), config, "", None, None)


@pytest.fixture(scope="module")
def encoded(model, dataset):
    users = np.arange(5)
    history, item = build_history(event_columns(dataset), users=users, start=np.asarray(dataset.user_start[users]),
                                  stop=np.asarray(dataset.user_start[users + 1]), last_action=np.ones(5, np.int64))
    rows = np.unique(np.append(item, 0))
    history = history._replace(item_BT=torch.from_numpy(np.searchsorted(rows, item)))
    with torch.no_grad():
        return history, model.encode(history,
                                     model.encode_items(item_batch(dataset.items, rows, dataset.schema.item_features)))


def _by_hand(model, history, encoded, codes, legal, bias=None):
    """log p of each legal id for user 0, level by level over the children that exist, one prefix at a time.

    `bias` tells the additive logit of a prefix.
    """
    decoder, last = model.decoder, int(history.length_B[0]) - 1
    memories = decoder.memories([state[:1, :last + 1] for state in encoded.states])
    hidden = encoded.hidden_BTD[:1, last:last + 1]
    answers = {}
    for path in legal:
        total = 0.0
        for level in range(len(path)):
            children = sorted({other[level] for other in legal if other[:level] == path[:level]})
            prefix = torch.tensor(path[:level]).view(1, 1, -1)
            query = decoder.query(level, hidden, prefix, memories, torch.ones(1, 1, last + 1, dtype=torch.bool))[0, 0]
            logit = decoder.code_LCD[level][children] @ query
            if bias is not None:
                logit = logit + torch.tensor([bias[path[:level] + (child,)] for child in children])
            log_prob = torch.log_softmax(logit, 0)
            total += float(log_prob[children.index(path[level])])
        answers[path] = total
    return answers


@torch.no_grad()
def test_a_wide_beam_is_exhaustive_search(model, encoded):
    history, states = encoded
    candidate = torch.arange(1, len(model.codes))[torch.randperm(len(model.codes) - 1,
                                                                 generator=torch.Generator().manual_seed(1))][:40]
    codes = model.codes[candidate].long()
    table = build_prefix_table(codes)
    found = beam_search(model, table, states, history.length_B, beam=1000, survivors=1000)
    legal = [tuple(row) for row in codes.tolist() if row[0] >= 0]
    by_hand = _by_hand(model, history, states, codes, legal)
    listed = found.log_prob_BK[0] > -torch.inf
    ours = {tuple(codes[i].tolist()): float(p) for i, p in zip(found.index_BK[0][listed], found.log_prob_BK[0][listed])}
    assert ours.keys() == by_hand.keys()
    assert all(abs(ours[path] - by_hand[path]) < 1e-4 for path in by_hand)
    torch.testing.assert_close(found.log_prob_BK.exp().sum(1), torch.ones(5), rtol=1e-4, atol=1e-4)
    assert (found.log_prob_BK.diff(dim=1) <= 1e-6)[found.log_prob_BK[:, 1:] > -torch.inf].all()


@torch.no_grad()
def test_the_popularity_of_prefixes_joins_their_logits(model, encoded):
    history, states = encoded
    codes = model.codes[1:].long()
    codes = codes[~(codes == 0).all(1)]  # the fixture's only shared id
    table, draw = build_prefix_table(codes), np.random.default_rng(4)
    legal = [tuple(row) for row in codes.tolist() if row[0] >= 0]
    bias = {path[:depth]: float(draw.normal()) for path in legal for depth in (1, 2, 3)}
    rows = []
    for level in range(3):
        by_leaf = {int(node): tuple(codes[table.leaf_item[leaf]].tolist())[:level + 1]
                   for leaf, node in enumerate(table.leaf_path[:, level])}
        rows.append([bias[by_leaf[node]] for node in range(len(table.code[level]))])
    # user 0 has row 1, the others a row of zeros
    prior = Prior([torch.tensor([[0.0] * len(row), row]) for row in rows], torch.tensor([1, 0, 0, 0, 0]))
    found = beam_search(model, table, states, history.length_B, beam=1000, survivors=1000, prior=prior)
    by_hand = _by_hand(model, history, states, codes, legal, bias)
    for index, log_prob in zip(found.index_BK[0].tolist(), found.log_prob_BK[0].tolist()):
        assert log_prob == -np.inf or abs(by_hand[tuple(codes[index].tolist())] - log_prob) < 1e-4
    again = item_log_prob(model, table, states, history.length_B, found.index_BK[:, :30], prior)
    torch.testing.assert_close(again, found.log_prob_BK[:, :30], rtol=1e-4, atol=1e-4)
    plain = beam_search(model, table, states, history.length_B, beam=1000, survivors=1000)
    torch.testing.assert_close(found.log_prob_BK[1:], plain.log_prob_BK[1:])


@torch.no_grad()
def test_first_codes_are_compared_with_those_of_the_history(model, encoded, dataset):
    """By hand: the mixture of each event's kernel, an item without an id adding next to nothing."""
    history, states = encoded
    own = np.unique(np.append(dataset.item_row[:int(dataset.user_start[5])], 0))
    id_row = torch.from_numpy(own)[history.item_BT]
    weighing = model.weigh_codes(history, states)
    logits = model.first_code_logits(id_row, weighing)
    similarity, table = model.decoder.similarity, model.decoder.first_code_table.weight[:-1]
    unit = torch.nn.functional.normalize(similarity.project(table), dim=-1)
    weight, scale = similarity.weigh(history, states.gap_BTS, next_action=True)
    sharpness, floor = 8 * (8 * similarity.sharpness).exp(), 0.02 * (8 * similarity.floor).exp()
    for user, at in ((0, 3), (2, 5)):
        for code in range(5):
            mixed = floor.clone()
            for event in range(at + 1):
                first = int(model.codes[id_row[user, event], 0])
                cosine = unit[first] @ unit[code] if first >= 0 else torch.tensor(0.0)
                mixed += weight[user, at, event] * (sharpness * (cosine - 1)).exp()
            torch.testing.assert_close(logits[user, at, code], scale[user, at] * mixed.log(), rtol=1e-4, atol=1e-4)
    last = model.first_code_logits(id_row, weighing.last(history))[:, 0]
    torch.testing.assert_close(last, logits[torch.arange(5), history.length_B - 1])
    prior = Prior(None, torch.zeros(5, dtype=torch.long), last)
    table = build_prefix_table(model.codes[1:].long())
    query = model.decoder.query(0, states.hidden_BTD[torch.arange(5), history.length_B - 1][:, None], None, None, None)
    first = torch.log_softmax((query @ model.decoder.code_LCD[0].T)[:, 0, table.code[0]] + last[:, table.code[0]], 1)
    found = beam_search(model, table, states, history.length_B, beam=1000, survivors=1000, prior=prior)
    mass = torch.zeros(5, 5).scatter_add_(1, model.codes[1:][found.index_BK][..., 0].long().clamp_min(0),
                                          found.log_prob_BK.exp())
    torch.testing.assert_close(mass[:, table.code[0]], first.exp(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_given_items_are_scored_as_the_beam_scores_them(model, encoded):
    history, states = encoded
    table = build_prefix_table(model.codes[1:].long())
    found = beam_search(model, table, states, history.length_B, beam=1000, survivors=30)
    torch.testing.assert_close(item_log_prob(model, table, states, history.length_B, found.index_BK), found.log_prob_BK,
                               rtol=1e-4, atol=1e-4)
    without_id = torch.full((5, 1), len(model.codes) - 2)
    assert (item_log_prob(model, table, states, history.length_B, without_id) == -torch.inf).all()


@torch.no_grad()
def test_a_narrow_beam_finds_only_items_that_exist(model, encoded):
    history, states = encoded
    table = build_prefix_table(model.codes[1:].long())
    found = beam_search(model, table, states, history.length_B, beam=2, survivors=6)
    legal = found.log_prob_BK > -torch.inf
    assert legal.any(1).all() and (model.codes[1:][found.index_BK[legal]] >= 0).all()
    for row, mask in zip(found.index_BK, legal):
        assert len(set(row[mask].tolist())) == int(mask.sum())


def test_top_k_over_tiles_equals_a_full_sort_and_respects_what_is_hidden():
    torch.manual_seed(0)
    query, candidate = torch.randn(3, 4), torch.randn(2 * TILE + 11, 4).round(decimals=1)
    bias = torch.randn(1, len(candidate)).round(decimals=1)
    full = query @ candidate.T + bias
    order = full.sort(dim=1, descending=True, stable=True).indices
    hidden = (torch.tensor([0, 2]), torch.stack([order[0, 0], order[2, 3]]))
    best = top_k(query, candidate, k=20, bias=lambda part: bias[:, part], hidden=hidden)
    full[hidden] = -torch.inf
    torch.testing.assert_close(best.score_BK, full.sort(dim=1, descending=True, stable=True).values[:, :20], rtol=1e-5,
                               atol=1e-5)
    assert order[0, 0] not in best.index_BK[0] and order[2, 3] not in best.index_BK[2]


@pytest.mark.parametrize("k", [1, 10, 70, 500])
def test_top_k_in_many_tiles_gives_each_users_sorted_list_whatever_the_order_of_candidates(monkeypatch, k):
    """Tiles of four groups and a rest; one user's best come first, last, anywhere,
    or where the sample looks or never looks.
    """
    monkeypatch.setattr(retrieval, "TILE", 128)
    draw = torch.Generator().manual_seed(k)
    query, candidate = (torch.randn(rows, 4, generator=draw).mul(16).round() / 16 for rows in (6, 128 * 12 + 40))
    sorted_, places = candidate @ query[0], torch.arange(len(candidate))
    in_sample = torch.empty_like(places)
    in_sample[torch.cat([places[places % 4 == 0], places[places % 4 > 0]])] = sorted_.argsort(descending=True)
    # on a grid that float32 holds, and no two alike: the order is the same however a processor sums
    unlike = torch.stack([torch.randperm(len(candidate), generator=draw) for _ in range(6)])
    bias = torch.randn(6, len(candidate), generator=draw).mul(25).round() / 256 + unlike / 2 ** 19
    for order in (sorted_.argsort(), sorted_.argsort(descending=True), places, in_sample, in_sample.flip(0)):
        keys = candidate[order]
        hidden = torch.tensor([0, 0, 3, 5]), torch.tensor([3, 700, 1570, 200])
        best = top_k(query, keys, k=k, bias=lambda part: bias[:, part], hidden=hidden)
        for user in range(6):
            score = keys @ query[user] + bias[user]
            score[hidden[1][hidden[0] == user]] = -torch.inf
            loop = sorted(range(len(keys)), key=lambda place: -float(score[place]))[:k]
            assert best.index_BK[user].tolist() == loop


def test_top_k_of_a_user_whose_best_are_few_or_all_hidden_has_minus_infinity_behind_them(monkeypatch):
    monkeypatch.setattr(retrieval, "TILE", 128)
    query, candidate = torch.ones(2, 1), torch.arange(1000.0)[:, None]
    hidden = torch.zeros(995, dtype=torch.long), torch.arange(5, 1000)
    best = top_k(query, candidate, k=8, hidden=hidden)
    assert best.index_BK[0, :5].tolist() == [4, 3, 2, 1, 0] and (best.score_BK[0, 5:] == -torch.inf).all()
    assert best.index_BK[1].tolist() == list(range(999, 991, -1))


def test_a_score_that_is_no_number_finds_no_target_and_stands_before_others():
    query, candidate = torch.eye(2), torch.tensor([[torch.nan, 3.0], [2.0, 2.0], [1.0, 1.0]])
    assert target_rank(query, candidate, torch.tensor([0, 0])).tolist() == [4, 4]  # 0 * nan is nan too
    assert target_rank(query, candidate, torch.tensor([1, 2])).tolist() == [2, 3]


def test_target_rank_counts_what_is_better_and_breaks_ties_by_number():
    query, candidate = torch.eye(2), torch.tensor([[1.0, 0], [3, 0], [3, 1], [2, 5]])
    assert target_rank(query, candidate, torch.tensor([2, 3])).tolist() == [2, 1]
    assert target_rank(query, candidate, torch.tensor([2, 3]),
                       hidden=(torch.tensor([0, 1]), torch.tensor([1, 3]))).tolist() == [1, 5]


@pytest.fixture(scope="module")
def evaluation(parts, dataset):
    return read_evaluation(parts / "eval", dataset.schema)


@pytest.mark.parametrize("mode", ["retrieval", "beam", "cascade"])
def test_every_user_gets_ten_distinct_unseen_candidates(model, dataset, evaluation, mode):
    config = InferConfig(mode=mode, beam=3, survivors=12, union=15, batch_users=7)
    submission = recommend(_checkpoint(model, dataset), evaluation, config)
    assert submission.users == evaluation.users
    for user, ten in enumerate(submission.top10s):
        events = slice(evaluation.user_start[user], evaluation.user_start[user + 1])
        history = set(evaluation.items.creative_id[evaluation.item[events]].tolist())
        assert len(set(ten)) == 10 and not history & set(ten)


def test_rankings_do_not_depend_on_the_batch(model, dataset, evaluation):
    answers = [recommend(_checkpoint(model, dataset), evaluation, config).top10s for config in
               (InferConfig(mode="cascade", batch_users=size, beam=4, survivors=20, union=20) for size in (1, 50))]
    assert answers[0] == answers[1]


def test_a_cascade_without_union_and_beam_score_is_the_papers_re_ranking(model, dataset, evaluation):
    """Weight 0 and no union: the beam's survivors ordered by the retrieval logit."""
    config = InferConfig(mode="cascade", beam=3, survivors=30, union=0, semantic_weight=0.0)
    ranker = Funnel(_checkpoint(model, dataset), evaluation, config, torch.device("cpu"))
    ranked = ranker.rank(np.arange(4))
    retrieval = Funnel(_checkpoint(model, dataset), evaluation, dataclasses.replace(config, mode="retrieval"),
                       torch.device("cpu"))
    for user in range(4):
        survivors = set(ranked.stages["beam"][user].tolist())
        order = [c for c in _full_order(retrieval, user) if c in survivors]
        assert ranked.index[user].tolist()[:min(10, len(order))] == order[:10]


def test_without_survivors_exact_neighbours_alone_are_ranked_by_both_heads(model, dataset, evaluation):
    """The beam of all candidates and the union of all candidates are the same set, so the same order."""
    both, every = InferConfig(mode="cascade", semantic_weight=0.4), len(evaluation.candidate)
    exact = recommend(_checkpoint(model, dataset), evaluation, dataclasses.replace(both, survivors=0, union=every))
    beam = recommend(_checkpoint(model, dataset), evaluation, dataclasses.replace(both, beam=every, survivors=every,
        union=0))
    assert exact.top10s == beam.top10s
    assert [step["per_user"] for step in exact.funnel["steps"] if step["step"] == "beam"] == [0]
    for mode in ("beam", "cascade"):
        with pytest.raises(InputError, match="infer.survivors"):
            recommend(_checkpoint(model, dataset), evaluation, InferConfig(mode=mode, survivors=0, union=0))


def test_a_conditioned_candidate_is_judged_among_those_of_its_own_first_code(dataset, evaluation):
    """log p(first code) + log softmax, over the candidates of that code, of the logit with the query that knows it."""
    torch.manual_seed(0)
    number = torch.randperm(25 * 4, generator=torch.Generator().manual_seed(3))[:dataset.schema.items]
    codes = torch.cat([torch.full((1, 2), -1), torch.stack([number // 25, number % 25], 1)])
    model = OnePiece(dataclasses.replace(CONFIG, conditioned=True), dataset.schema, codes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    ranker = Funnel(_checkpoint(model.eval(), dataset), evaluation, InferConfig(mode="cascade", cold_ids=False),
                    torch.device("cpu"))
    with torch.no_grad():
        request, users = ranker._request(np.arange(6), None), torch.arange(6)
        length, prefixes = request.history.length_B, ranker.candidates.prefixes
        allowed = (torch.arange(request.encoded.hidden_BTD.shape[1]) < length[:, None])[:, None]
        index = prefixes.leaf_item[None].expand(6, -1)  # all that have an id
        plain = ranker._logits(request, index)
        twice = torch.cat([index, index[:, ::3]], 1)  # as the beam's survivors among the neighbours: these do not count
        legal = torch.arange(twice.shape[1]).expand(6, -1) < index.shape[1]
        ours = conditioned_log_prob(model, ranker.candidates, request, twice, ranker._logits(request, twice), legal)
        assert (ours[:, index.shape[1]:] == -torch.inf).all()
        ours = ours[:, :index.shape[1]]
        first = first_log_prob(model, prefixes, request.encoded, length, request.prior)
        code = codes[torch.from_numpy(evaluation.items.id_row[evaluation.candidate[index[0]]]).long()][:, 0]
        for user in range(6):
            logit = []
            for place, candidate in enumerate(index[user].tolist()):
                query = model.conditioned_query(request.encoded.hidden_BTD[users, length - 1], code[place].repeat(6, 1),
                                                model.decoder.memories(request.encoded.states), allowed)[user, 0]
                logit.append(plain[user,
                                   place]
                                   + (query - request.query_BD[user]) @ ranker.candidates.vectors.unit_ND[candidate])
            for place in range(0, len(logit), 7):
                siblings = torch.stack([value for value, other in zip(logit, code) if other == code[place]])
                expected = first[user, prefixes.code[0] == code[place]] + logit[place] - siblings.logsumexp(0)
                torch.testing.assert_close(ours[user, place], expected[0], rtol=1e-3, atol=1e-3)
    assert len(code) > 30 and len(code.unique()) == 4


def test_the_order_is_followed_beyond_the_ten_for_the_funnel(model, dataset, evaluation, monkeypatch):
    import onepiece_comp.funnel.cascade as cascade

    monkeypatch.setattr(cascade, "DEPTHS", (12, 20, 5000))
    config = InferConfig(mode="retrieval")
    ranker = Funnel(_checkpoint(model, dataset), evaluation, config, torch.device("cpu"), depth=20)
    ranked, short = ranker.rank(np.arange(3)), Funnel(_checkpoint(model, dataset), evaluation, config,
                                                      torch.device("cpu")).rank(np.arange(3))
    assert (ranked.index == short.index).all() and set(ranked.stages) == {"best 20", "best 12", "ten"}
    for user in range(3):
        order = _full_order(ranker, user)
        assert (ranked.stages["best 20"][user].tolist() == order[:20]
                and ranked.stages["best 12"][user].tolist() == order[:12])


def _full_order(ranker, user):
    """All legal candidates of one user by retrieval logit."""
    import onepiece_comp.funnel.cascade as cascade
    kept, depth = cascade.LIST, ranker.depth
    cascade.LIST = ranker.depth = len(ranker.evaluation.candidate)
    try:
        index = ranker.rank(np.array([user])).index[0]
    finally:
        cascade.LIST, ranker.depth = kept, depth
    warm = ranker.candidates.warm_M.numpy()
    seen = set(ranker._seen(np.array([user]))[1].tolist())
    return [c for c in index.tolist() if warm[c] and c not in seen]


def test_where_filters_leave_too_few_cold_come_back_before_seen(model, dataset, evaluation):
    """Thirteen candidates: five warm unseen, four cold, four seen. All five, all four cold, then one seen."""
    user = 0
    events = slice(evaluation.user_start[user], evaluation.user_start[user + 1])
    seen = np.unique(evaluation.item[events])[:4]
    history = set(evaluation.item[events].tolist())
    others = [row for row in evaluation.candidate if row not in history]
    warm, cold = others[:5], others[5:9]
    id_row = evaluation.items.id_row.copy()
    id_row[cold] = 0
    few = evaluation._replace(candidate=np.array([*seen, *cold, *warm]), items=evaluation.items._replace(id_row=id_row))
    for mode in ("retrieval", "beam", "cascade"):
        ranked = Funnel(_checkpoint(model, dataset), few, InferConfig(mode=mode, filter_cold=True),
                        torch.device("cpu")).rank(np.array([user]))
        ten = few.candidate[ranked.index[0]].tolist()
        assert set(ten[:5]) == set(warm) and set(ten[5:9]) == set(cold) and ten[9] in seen
        assert ranked.filled["cold"] == 4 and ranked.filled["seen"] == 1


def test_the_seen_filter_can_be_switched_off(model, dataset, evaluation):
    config = InferConfig(mode="retrieval", filter_seen=False)
    ranker = Funnel(_checkpoint(model, dataset), evaluation, config, torch.device("cpu"))
    users = np.arange(len(evaluation.users))
    ten = evaluation.candidate[ranker.rank(users).index]
    repeated = [bool(set(evaluation.item[evaluation.user_start[u]:evaluation.user_start[u + 1]].tolist())
                     & set(ten[u].tolist()))
                for u in users]
    assert any(repeated)


def test_the_last_event_can_be_left_out(model, dataset, evaluation):
    """Then it no longer matters what it was."""
    last = evaluation.user_start[1:] - 1
    other = evaluation.item.copy()
    other[last] = np.roll(other[last], 7)
    assert (other != evaluation.item).any()
    chosen = lambda items, drop: Funnel(
        _checkpoint(model, dataset), evaluation._replace(item=items),
        InferConfig(mode="retrieval", drop_last=drop, filter_seen=False, live=False),
        torch.device("cpu")).rank(np.arange(20)).index
    assert (chosen(evaluation.item, True) == chosen(other, True)).all()
    assert (chosen(evaluation.item, False) != chosen(other, False)).any()


def _popularity(model, dataset, evaluation, user, **changes):
    ranker = Funnel(_checkpoint(model, dataset), evaluation, InferConfig(mode="retrieval", **changes),
                    torch.device("cpu"))
    return ranker.candidates.bias_RM[ranker.candidates.bias_row[user]]


def test_live_popularity_reads_others_only_up_to_the_users_own_last_event(model, dataset, evaluation):
    """Events of others after a user's last event change nothing; those before it do, unless `live` is off."""
    end = dataset.trend.first_second + dataset.trend.buckets * dataset.trend.bucket_seconds
    lasts = evaluation.time_seconds[evaluation.user_start[1:] - 1]
    user, other = int(lasts.argmin()), int(lasts.argmax())
    rows = slice(evaluation.user_start[other], evaluation.user_start[other + 1])
    reference = _popularity(model, dataset, evaluation, user)
    later, earlier = evaluation.time_seconds.copy(), evaluation.time_seconds.copy()
    later[rows] = max(end, int(lasts[user])) + 50 * 86400
    torch.testing.assert_close(_popularity(model, dataset, evaluation._replace(time_seconds=later), user), reference)
    own = slice(evaluation.user_start[user], evaluation.user_start[user + 1])
    earlier[own] = end + 30 * 86400
    earlier[rows] = end + 29 * 86400
    moved = evaluation._replace(time_seconds=earlier)
    live, still = (_popularity(model, dataset, moved, user, live=live) for live in (True, False))
    shown = evaluation.item[rows]
    number = np.full(len(evaluation.items.creative_id), -1)
    number[evaluation.candidate] = np.arange(len(evaluation.candidate))
    touched = number[shown][number[shown] >= 0]
    assert len(touched) and not torch.allclose(live[touched], still[touched])


def test_a_users_moment_is_never_before_the_end_of_the_training_log(model, dataset, evaluation):
    early = evaluation._replace(time_seconds=np.full_like(evaluation.time_seconds, 1))
    empty = _popularity(model, dataset, early, 0, live=False)
    torch.testing.assert_close(empty, _popularity(model, dataset, evaluation, 0, live=False))


@pytest.mark.parametrize("mode", ["beam", "cascade"])
def test_where_no_candidate_has_an_id_all_still_get_ten(model, dataset, evaluation, mode):
    codes = model.codes.clone()
    model.codes.fill_(-1)
    try:
        ranker = Funnel(_checkpoint(model, dataset), evaluation, InferConfig(mode=mode), torch.device("cpu"))
        chosen = ranker.rank(np.arange(len(evaluation.users))).index
    finally:
        model.codes.copy_(codes)
    assert not len(ranker.candidates.prefixes.leaf_item)
    assert all(len(set(row)) == 10 for row in chosen.tolist())


@pytest.mark.parametrize("mode", ["retrieval", "cascade"])
def test_a_funnel_does_not_change_the_ten(model, dataset, evaluation, mode):
    config, model = InferConfig(mode=mode, shortlist=12, union=15), copy.deepcopy(model)
    torch.nn.init.constant_(model.similarity.scale, 0.6)  # so that whom it compares matters
    ten, deep = (Funnel(_checkpoint(model, dataset), evaluation, config, torch.device("cpu"),
                        depth=depth).rank(np.arange(8)).index
                 for depth in (10, 1000))
    np.testing.assert_array_equal(ten, deep)


def test_a_funnel_says_which_users_have_no_target_and_refuses_the_truth_of_others(model, dataset, evaluation, tmp_path,
    capsys):
    truth, ask = tmp_path / "truth.jsonl", lambda: recommend(
        _checkpoint(model, dataset), evaluation, InferConfig(mode="retrieval"), truth=tmp_path / "truth.jsonl")
    first, users = evaluation.users[0], len(evaluation.users)
    write_truth(truth, (Truth(user, int(evaluation.items.creative_id[evaluation.candidate[0]]), 1,
                              9) for user in evaluation.users))
    ask()
    assert "funnel:" not in capsys.readouterr().out
    write_truth(truth, iter([Truth(first, 77, 1, 9)]))
    ask()
    printed = capsys.readouterr().out
    assert (f"funnel: {users - 1} of {users} users have no target in {truth}, for example {evaluation.users[1]}"
            in printed)
    assert f"funnel: 1 targets are no candidates, for example 77 of user {first}" in printed
    write_truth(truth, iter([Truth("stranger", 77, 1, 9)]))
    with pytest.raises(InputError, match="truth.jsonl: found none of the users to answer"):
        ask()


@pytest.mark.parametrize(("counts", "action"), [
    ((900, 5, 4, 9), 1), ((900, 4, 5, 9), 2), ((900, 0, 5, 9), 2), ((900, 0, 0, 9), 0), ((0, 0, 0, 9), 3), (None, 1)])
def test_auto_asks_for_the_commonest_positive_of_training(model, dataset, counts, action):
    assert asked_action(_checkpoint(model, dataset)._replace(actions=counts), "auto") == action


def test_an_action_that_training_never_saw_is_refused_with_those_that_it_saw(model, dataset, evaluation):
    checkpoint = _checkpoint(model, dataset)._replace(actions=(900, 0, 5, 9))
    for name in ("click", "1"):
        with pytest.raises(InputError, match="found click, which no event .*exposure \\(900 events\\), conversion "
                                             "\\(5 events\\)"):
            recommend(checkpoint, evaluation, InferConfig(mode="retrieval", action=name))
    assert asked_action(checkpoint, "conversion") == asked_action(checkpoint, "2") == 2


def test_a_told_action_that_training_never_saw_gives_way_and_is_counted(model, dataset, evaluation, capsys):
    """Users 0 and 3 are asked for what they are told, 1 and 2 for a click that there is none of."""
    told = np.full(len(evaluation.users), -1, np.int8)
    told[:4] = (2, 1, 1, 0)
    checkpoint = _checkpoint(model, dataset)._replace(actions=(900, 0, 5, 9))
    asked = asked_actions(checkpoint, evaluation._replace(target_action=told), InferConfig())
    assert asked[:5].tolist() == [2, 2, 2, 0, 2]
    assert ("2 users are asked for an action that no event of the training has, for example click of user "
            f"{evaluation.users[1]}: answered as conversion" in capsys.readouterr().out)


@torch.no_grad()
def test_a_beam_in_blocks_finds_what_one_of_all_beams_finds(model, encoded, monkeypatch):
    table, history, states = build_prefix_table(model.codes[1:].long()), *encoded
    asked = {"beam": 7, "survivors": 30}
    whole = beam_search(model, table, states, history.length_B, **asked)
    monkeypatch.setattr("onepiece_comp.funnel.beam._LOGITS_PER_BLOCK", 2 * len(history.length_B) * model.decoder.codes)
    parts = beam_search(model, table, states, history.length_B, **asked)
    torch.testing.assert_close(parts.log_prob_BK, whole.log_prob_BK)
    for one, other in zip(parts.index_BK, whole.index_BK):
        assert set(one.tolist()) == set(other.tolist())


def test_cold_candidates_take_the_id_of_the_nearest_one_that_has_one():
    """Groups far apart, a first code each: the nearest overall is the nearest within the nearest group."""
    draw = torch.Generator().manual_seed(0)
    group = torch.arange(120) % 6
    vector = torch.nn.functional.normalize(torch.eye(8)[group] + 0.2 * torch.randn(120, 8, generator=draw), dim=1)
    codes = torch.stack([5 - group, torch.arange(120) // 6], 1)
    cold = torch.randperm(120, generator=draw)[:40]
    codes[cold] = -1
    given = with_cold_ids(codes, vector)
    warm = torch.ones(120, dtype=torch.bool)
    warm[cold] = False
    assert torch.equal(given[warm], codes[warm])
    for item in cold.tolist():
        nearest = torch.where(warm)[0][(vector[warm] @ vector[item]).argmax()]
        assert torch.equal(given[item], codes[nearest])
    assert torch.equal(with_cold_ids(torch.full((3, 2), -1), vector[:3]), torch.full((3, 2), -1))


@pytest.mark.parametrize("cold_ids", [True, False])
def test_the_beam_reaches_cold_candidates_only_where_they_take_an_id(model, dataset, parts, cold_ids):
    evaluation = read_evaluation(parts / "eval", model.schema)
    ranker = Funnel(_checkpoint(model, dataset), evaluation, InferConfig(mode="beam", beam=1000, survivors=1000,
                                                                         cold_ids=cold_ids),
                    torch.device("cpu"))
    cold = ~ranker.candidates.warm_M.numpy()
    stages = ranker.rank(np.arange(len(evaluation.users))).stages["beam"]
    assert cold.any() and all(cold[row].any() == cold_ids for row in stages)
