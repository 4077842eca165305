"""The synthetic world: its laws hold, its files have the organisers' form and corners, its oracle tells the truth."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from onepiece_comp.artefacts import read_json, read_marker
from onepiece_comp.config import SplitConfig, SynthesizeConfig
from onepiece_comp.errors import InputError
from onepiece_comp.logs.embeddings import find_embeddings, read_embedding
from onepiece_comp.logs.formats import (
    UserLine, check_offsets, read_candidates, read_index, read_item_features, read_sequences)
from onepiece_comp.logs.raw_folder import OriginalIds
from onepiece_comp.logs.truths import read_truth
from onepiece_comp.stages.split import split
from onepiece_comp.stages.synthesize import synthesize
from onepiece_comp.world import oracle as oracle_module
from onepiece_comp.world.arrays import (
    BUCKET, CLOSENESS, DAY, END, EXPLORE, MATCH_WEIGHT, SHARES, START, TASTE, TASTE_WEIGHT, Users, World, build_world,
    draw_users, interests_at)
from onepiece_comp.world.impressions import show
from onepiece_comp.world.oracle import Oracle, ceiling, load_oracle, random_ranking

USERS = 400
OVERALL = {"share click": (0.085, 0.11), "null actions": (0.006, 0.013), "items with < 5 events": (0.5, 0.7),
           "Jaccard of items, adjacent days": (0.2, 0.31), "Jaccard of items, 3 days apart": (0.0, 0.1),
           "events per user, mean": (80, 95), "events per item, mean": (13, 22),
           "embedding 81, share of items": (0.94, 0.98), "embedding 86, share of items": (0.33, 0.42)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("world") / "raw", SynthesizeConfig(users=USERS, seed=3))


@pytest.fixture(scope="module")
def parts(raw: Path) -> Path:
    return split(raw, raw.parent / "parts", SplitConfig())


@pytest.fixture(scope="module")
def lines(raw: Path) -> list[UserLine]:
    return list(read_sequences(raw / "seq.jsonl"))


@pytest.fixture(scope="module")
def oracle(raw: Path) -> Oracle:
    return load_oracle(raw)


def rankings(path: Path) -> dict[str, list[int]]:
    result = read_json(path)
    return dict(zip(result["user"], result["top10s"]))


def hit_rate(top10s: dict[str, list[int]], truth: Path) -> float:
    return float(np.mean([record.item in top10s[record.user] for record in read_truth(truth)]))


def seen_by_user(evaluation: Path) -> dict[str, set[int]]:
    names = OriginalIds(read_index(evaluation / "indexer.pkl"))
    return {names.user(line.user): {names.item(event.item) for event in line.events}
            for line in read_sequences(evaluation / "predict_seq.jsonl")}


@pytest.mark.parametrize("figure", OVERALL)
def test_the_published_figures_hold(raw: Path, figure: str) -> None:
    low, high = OVERALL[figure]
    assert low <= read_marker(raw, "raw")["figures"][figure]["ours"] <= high


def test_equal_configurations_give_equal_logs_and_another_seed_gives_another(tmp_path: Path) -> None:
    logs = [(synthesize(tmp_path / str(i), SynthesizeConfig(users=30, seed=seed)) / "seq.jsonl").read_bytes()
            for i, seed in enumerate((1, 1, 2))]
    assert logs[0] == logs[1] != logs[2]


def test_the_log_has_the_organisers_form(raw: Path, lines: list[UserLine]) -> None:
    check_offsets(raw / "seq.jsonl", raw / "seq_offsets.pkl")
    index = read_index(raw / "indexer.pkl")
    assert [line.user for line in lines] == list(range(1, USERS + 1)) == list(index.users.values())
    assert all(1 <= len(line.events) <= 100 for line in lines)
    for line in lines:
        times = [event.time for event in line.events]
        assert times == sorted(times) and START <= times[0] and times[-1] < END
    assert sorted(index.features) == [str(fid) for fid in range(100, 123) if fid != 113]
    for fid, values in index.features.items():
        assert all(str(value).startswith(fid) and len(str(value)) == 10 for value in values)


def test_the_real_corners_occur(lines: list[UserLine]) -> None:
    middle = np.mean([line.profile_place < len(line.events) for line in lines])
    assert 0.02 < middle < 0.12
    assert any(not line.profile for line in lines)
    assert any(isinstance(line.profile.get("106"), list) and len(line.profile["106"]) > 1 for line in lines)
    assert any(a.time == b.time for line in lines for a, b in zip(line.events, line.events[1:]))
    assert 0.25 < np.mean(["115" in event.features for line in lines for event in line.events]) < 0.4


def test_actions_are_known_in_the_last_days(lines: list[UserLine]) -> None:
    unknown = [event.time for line in lines for event in line.events if event.action is None]
    assert unknown and max(unknown) < END - 10 * DAY


def test_every_user_clicks_in_the_last_days(lines: list[UserLine]) -> None:
    assert all(any(event.action == 1 and event.time >= END - 2 * DAY for event in line.events) for line in lines)


def test_a_records_features_are_usual_at_first_and_sometimes_differ_later(raw: Path, lines: list[UserLine]) -> None:
    usual, met, differs = dict(read_item_features(raw / "item_feat_dict.json")), set(), []
    for event in (event for line in lines for event in line.events):
        if event.item in met:
            differs.append(event.features != usual[event.item])
        else:
            assert event.features == usual[event.item]
        met.add(event.item)
    assert 0.01 < np.mean(differs) < 0.03


def test_clicks_become_conversions_at_the_configured_rate(tmp_path: Path) -> None:
    raw = synthesize(tmp_path / "raw", SynthesizeConfig(users=60, conversion_rate=0.4))
    actions = Counter(event.action for line in read_sequences(raw / "seq.jsonl") for event in line.events)
    assert 0.3 < actions[2] / (actions[1] + actions[2]) < 0.5


def test_interests_are_those_of_the_period(oracle: Oracle) -> None:
    users = draw_users(oracle.world, 1, np.random.default_rng(0))
    users = users._replace(since=np.array([[0, 100, 200, 10 ** 11, 10 ** 11, 10 ** 11]]))
    for time, period in ((99, 0), (100, 1), (199, 1), (200, 2), (END, 2)):
        leaf, strength = interests_at(users, np.array([0]), np.array([time]))
        assert (leaf[0] == users.leaf[0, period]).all() and np.allclose(strength[0], users.strength[0, period])


def loop_lift_and_match(world: World, leaves: list[int], strengths: list[float], item_leaf: int) -> tuple[float, float]:
    lift, best = EXPLORE, 0.0
    for size, share, closeness in zip(world.topics.sizes, SHARES, CLOSENESS):
        for leaf, strength in zip(leaves, strengths):
            if leaf // size == item_leaf // size:
                lift += share * world.topics.leaves / size * strength
                best = max(best, closeness * strength)
    return lift, best


def loop_weight(world: World, row: int, bucket: int) -> float:
    items, life = world.items, float(world.items.life_days[row])
    age = (START + (bucket + 0.5) * BUCKET - int(items.birth[row])) / (life * DAY)
    return max(0.0, float(items.popularity[row]) / life * min(age / 0.3, (1 - age) / 0.7))


def test_the_policy_shows_items_in_proportion_to_weight_times_lift() -> None:
    world, rng = build_world(300, 5)._replace(spare=1.0), np.random.default_rng(0)
    one, copies = draw_users(world, 1, rng), 30_000
    users = Users(*(np.repeat(column, copies, axis=0) for column in one))
    users = users._replace(events=np.ones(copies, np.int64), span_days=np.full(copies, 0.1))
    shown = show(world, users, rng)
    bucket = (END - 1 - START) // BUCKET
    assert len(shown.item) == copies and ((shown.time - START) // BUCKET == bucket).all()
    leaf, strength = interests_at(one, np.array([0]), np.array([END - 1]))
    lift = [loop_lift_and_match(world, leaf[0], strength[0], int(item_leaf))[0] for item_leaf in world.items.leaf]
    mass = np.array([loop_weight(world, row, bucket) for row in range(len(lift))]) * lift
    expected, counts = mass / mass.sum() * copies, np.bincount(shown.item, minlength=len(mass))
    assert counts[expected == 0].sum() == 0
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected) + 3).all()
    assert ((counts - expected) ** 2)[expected > 5].sum() < 2 * expected[expected > 5].sum()


def test_the_oracle_knows_users_and_items_of_the_log_by_name(oracle: Oracle, raw: Path, lines: list[UserLine]) -> None:
    names, users = OriginalIds(read_index(raw / "indexer.pkl")), oracle.users(np.arange(USERS))
    assert names.user(1) == "user_00000001"
    rate = [np.mean([event.action == 1 for event in line.events]) for line in lines]
    assert np.corrcoef(rate, users.propensity)[0, 1] > 0.5
    row = {int(creative): row for row, creative in enumerate(oracle.creative_id)}
    shown = [(row[names.item(event.item)], number, event) for number, line in enumerate(lines) for event in line.events]
    interest = [oracle.world.items.leaf[item] in users.leaf[number] for item, number, _ in shown]
    assert np.mean(interest) > 0.2  # four of 144 leaves would hold 0.03
    quality = np.array([oracle.world.items.quality[item] for item, _, _ in shown])
    clicked = np.array([event.action == 1 for _, _, event in shown])
    assert quality[clicked].mean() > quality[~clicked].mean() + 0.1


def test_the_ceiling_is_the_ranking_of_a_plain_loop(oracle: Oracle, raw: Path, parts: Path) -> None:
    top10s = rankings(ceiling(raw, parts / "eval", parts / "truth.jsonl", raw.parent / "ceiling.json"))
    seen, world = seen_by_user(parts / "eval"), oracle.world
    candidates = {candidate.creative_id for candidate in read_candidates(parts / "eval" / "predict_set.jsonl")}
    rows = [row for row, creative in enumerate(oracle.creative_id.tolist()) if creative in candidates]
    truths = read_truth(parts / "truth.jsonl")
    assert set(top10s) == {truth.user for truth in truths}
    for truth in truths[:12]:
        user = oracle.users(np.array([int(truth.user[5:]) - 1]))
        leaf, strength = interests_at(user, np.array([0]), np.array([truth.time]))
        chance = {}
        for row in rows:
            lift, match = loop_lift_and_match(world, leaf[0], strength[0], int(world.items.leaf[row]))
            liking = float(user.taste[0] @ world.items.latent[row]) / math.sqrt(TASTE)
            logit = (world.intercept + user.propensity[0] + MATCH_WEIGHT * match + world.items.quality[row]
                     + TASTE_WEIGHT * liking)
            weight = loop_weight(world, row, (truth.time - START) // BUCKET)
            chance[int(oracle.creative_id[row])] = weight * lift / (1 + math.exp(-logit))
        unseen = sorted(chance.keys() - seen[truth.user], key=lambda creative: -chance[creative])
        assert top10s[truth.user] == unseen[:10]


def test_the_ceiling_stands_far_above_popularity_and_a_random_ranking(raw: Path, parts: Path) -> None:
    truth, seen = parts / "truth.jsonl", seen_by_user(parts / "eval")
    best = hit_rate(rankings(ceiling(raw, parts / "eval", truth, raw.parent / "best.json")), truth)
    blind = hit_rate(rankings(random_ranking(parts / "eval", truth, raw.parent / "blind.json", 0)), truth)
    names, cut = OriginalIds(read_index(raw / "indexer.pkl")), json.loads((parts / "split.json").read_text())["cut"]
    recent = Counter(names.item(event.item) for line in read_sequences(raw / "seq.jsonl") for event in line.events
                     if cut - DAY <= event.time < cut)
    order = [item for item, _ in recent.most_common()]
    unseen = {user: [item for item in order if item not in items][:10] for user, items in seen.items()}
    popular = hit_rate(unseen, truth)
    assert blind < 0.03 and popular < 0.5 * best and best > 0.3


def test_random_rankings_hold_ten_unseen_candidates_and_follow_the_seed(raw: Path, parts: Path) -> None:
    truth, evaluation = parts / "truth.jsonl", parts / "eval"
    one, same, other = (rankings(random_ranking(evaluation, truth, raw.parent / f"random{i}.json", seed))
                        for i, seed in enumerate((0, 0, 1)))
    assert one == same != other
    candidates = {candidate.creative_id for candidate in read_candidates(evaluation / "predict_set.jsonl")}
    for user, seen in seen_by_user(evaluation).items():
        assert len(set(one[user])) == 10 and candidates.issuperset(one[user]) and not seen & set(one[user])


def test_without_the_filter_the_ceiling_takes_a_seen_item_as_rarely_as_the_policy_and_random_as_any(
        raw: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, out, seen = (parts / "eval", parts / "truth.jsonl"), raw.parent / "kept.json", seen_by_user(parts / "eval")
    shown = lambda lists: sum(not seen[user].isdisjoint(ten) for user, ten in lists.items()) / len(lists)
    assert shown(rankings(random_ranking(*files, out, 0, filter_seen=False))) > 0.2
    rarely = shown(rankings(ceiling(raw, *files, out, filter_seen=False)))
    monkeypatch.setattr(oracle_module, "REPEAT", 1.0)
    assert shown(rankings(ceiling(raw, *files, out))) == 0
    assert rarely < 0.5 < shown(rankings(ceiling(raw, *files, out, filter_seen=False)))


def test_few_candidates_alive_are_filled_up_with_others(raw: Path, parts: Path, tmp_path: Path) -> None:
    for path in (parts / "eval").iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    kept = (parts / "eval" / "predict_set.jsonl").read_text().splitlines(keepends=True)[::200]
    (tmp_path / "predict_set.jsonl").write_text("".join(kept[:10]))
    top10s = rankings(ceiling(raw, tmp_path, parts / "truth.jsonl", tmp_path / "out.json"))
    assert len(kept) >= 10 and all(len(set(ten)) == 10 for ten in top10s.values())
    (tmp_path / "predict_set.jsonl").write_text("".join(kept[:9]))
    for ranking in (lambda: ceiling(raw, tmp_path, parts / "truth.jsonl", tmp_path / "out.json"),
                    lambda: random_ranking(tmp_path, parts / "truth.jsonl", tmp_path / "out.json", 0)):
        with pytest.raises(InputError, match="9 candidates, expected at least 10"):
            ranking()


def test_embedding_81_tells_the_topic_and_83_does_not(raw: Path, oracle: Oracle) -> None:
    leaf = dict(zip(oracle.creative_id.tolist(), oracle.world.items.leaf.tolist()))
    gain = {}
    for feature in ("81", "83"):
        records = read_embedding(find_embeddings(raw)[feature])
        known = [(leaf[creative], vector) for creative, vector in records if vector is not None][:800]
        leaves, vectors = np.array([number for number, _ in known]), np.array([vector for _, vector in known])
        cosine, same = vectors @ vectors.T, leaves[:, None] == leaves
        gain[feature] = cosine[same & ~np.eye(len(leaves), dtype=bool)].mean() - cosine[~same].mean()
    assert gain["81"] > 0.3 and abs(gain["83"]) < 0.05


def test_some_embedding_records_have_no_vector(raw: Path) -> None:
    assert any(vector is None for source in find_embeddings(raw).values() for _, vector in read_embedding(source))


@pytest.mark.parametrize("wrong", [{"users": 3}, {"seed": -1}, {"conversion_rate": 1.5}])
def test_a_setting_out_of_range_is_named(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(InputError, match=f"synthesize.{next(iter(wrong))}"):
        synthesize(tmp_path / "raw", SynthesizeConfig(**wrong))
    assert list(tmp_path.iterdir()) == []


def test_another_log_has_no_ceiling(raw_log: Path, raw: Path, parts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without the truth of a synthetic world"):
        ceiling(raw_log, parts / "eval", parts / "truth.jsonl", tmp_path / "out.json")
    strangers = split(raw_log, tmp_path / "parts", SplitConfig(auto_cut=0.7))
    with pytest.raises(InputError, match="expected an item of this synthetic world"):
        ceiling(raw, strangers / "eval", strangers / "truth.jsonl", tmp_path / "out.json")
