"""Baselines on logs in which one can see who is popular and what goes together."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from onepiece_comp.config import InferConfig
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation import baselines as module
from onepiece_comp.evaluation.baselines import Baskets, CandidateSet, SeenItems, item_neighbours, names, ten
from onepiece_comp.logs.formats import (
    Candidate, Event, Index, SequenceWriter, UserLine, read_index, write_candidates, write_index)
from onepiece_comp.logs.raw_folder import RawWriter, to_predict
from onepiece_comp.stages.baselines import baselines

BASE = 20_000_000_000
DAY = 86400
NAMES = names(InferConfig())  # under the filter of seen items
NOW = 100 * DAY  # time of the last training event
OLD = NOW - 5 * DAY


def user(name: str, *events: tuple) -> UserLine:
    """A line in original ids from (item number, action[, time]) tuples; old where no time is given."""
    made = [Event(BASE + e[0], {"100": 1}, e[1], e[2] if len(e) > 2 else OLD) for e in events]
    return UserLine(name, {}, None, made)


def write_folders(folder: Path, log: list[UserLine], served: list[UserLine],
                  candidates: list[int]) -> tuple[Path, Path]:
    """train/ and eval/ in the organisers' layout; `candidates` are item numbers in retrieval order, last line first."""
    train, evaluation = folder / "train", folder / "eval"
    train.mkdir(parents=True)
    evaluation.mkdir()
    with RawWriter(train) as writer:
        for line in log:
            writer.add(line)
    index = read_index(train / "indexer.pkl")
    write_index(evaluation / "indexer.pkl", index)
    with SequenceWriter(evaluation, "predict_seq") as lines:
        for line in served:
            lines.write(to_predict(line, index))
    write_candidates(evaluation / "predict_set.jsonl",
                     (Candidate(BASE + item, place, {}) for place, item in reversed(list(enumerate(candidates)))))
    return train, evaluation


def run(folder: Path, log: list[UserLine], served: list[UserLine], candidates: list[int], **filters: bool) -> dict[str,
    dict]:
    """Baseline to user to item numbers."""
    paths = baselines(*write_folders(folder, log, served, candidates), folder / "out", InferConfig(**filters))
    assert paths == {name: folder / "out" / f"{name}.json" for name in names(InferConfig(**filters))}
    results = {}
    for name, path in paths.items():
        value = json.loads(path.read_text())
        assert set(value) == {"time", "top10s", "user"} and len(value["user"]) == len(value["top10s"])
        results[name] = {u: [item - BASE for item in items] for u, items in zip(value["user"], value["top10s"])}
    return results


# Item n of 1..12 is clicked by 13 - n users long ago; item 12 is exposed to 30 more and to 5 lately; 9 and 10 are
# clicked lately, and 1 once a second before the last day.
CROWD = ([user(f"c{n}_{i}", (n, 1)) for n in range(1, 13) for i in range(13 - n)]
         + [user(f"e{i}", (12, 0)) for i in range(30)] + [user(f"l{i}", (12, 0, NOW)) for i in range(5)]
         + [user(f"d{i}", (9, 1, NOW - DAY + 1)) for i in range(3)]
         + [user("d", (10, 2, NOW)), user("f", (1, 1, NOW - DAY))])
SERVED = [user("c1_0", (1, 1)), user("new", (3, 0, NOW + 5), (77, 1, NOW + 6), (50, 1, NOW + 7)), user("empty")]
ALL = [50, 51, *range(1, 13)]  # two cold ones stand in front


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[int]]]:
    """What the baselines say for the crowd; `empty` has only a profile."""
    served = [*SERVED[:2], SERVED[2]._replace(profile_time=NOW)]
    return run(tmp_path_factory.mktemp("crowd"), CROWD, served, ALL)


def test_popularity_counts_clicks_of_all_time(crowd):
    assert crowd["popularity"]["empty"] == [1, 2, 3, 4, 5, 6, 9, 7, 8, 10]  # 6 and 9 have 7 each


def test_popularity_day_counts_clicks_of_the_24_hours_before_the_last_event_then_its_events_then_all_time(crowd):
    assert crowd["popularity_day"]["empty"] == [9, 10, 12, 1, 2, 3, 4, 5, 6, 7]


def test_popularity_exposure_counts_every_event(crowd):
    assert crowd["popularity_exposure"]["empty"][:2] == [12, 1]


def test_items_of_the_history_are_left_out_in_whatever_way_they_were_met(crowd):
    for name in NAMES:
        assert 1 not in crowd[name]["c1_0"]
        assert 3 not in crowd[name]["new"] and 50 not in crowd[name]["new"]


def test_every_user_gets_ten_distinct_candidates_under_the_original_id(crowd):
    for name in NAMES:
        assert list(crowd[name]) == ["c1_0", "new", "empty"]
        assert all(len(set(items)) == 10 and set(items) <= set(ALL) for items in crowd[name].values())


def test_equal_clicks_are_ordered_by_events_and_then_by_retrieval_order(tmp_path):
    log = [user("a", (1, 1), (2, 1), (3, 1)), user("b", (3, 0)), *[user(f"u{n}", (n, 0)) for n in range(4, 11)]]
    ranked = run(tmp_path, log, [user("x", (99, 0))], [10, 9, 8, 7, 6, 5, 4, 2, 1, 3])
    assert ranked["popularity"]["x"] == [3, 2, 1, 10, 9, 8, 7, 6, 5, 4]


def test_cold_candidates_come_after_all_that_training_saw(tmp_path):
    log = [user("a", (1, 1), (2, 0), (3, 1))]
    ranked = run(tmp_path, log, [user("x", (99, 0))], [60, 61, 3, 62, 63, 2, 64, 65, 66, 1])
    for name in NAMES:
        assert set(ranked[name]["x"][:3]) == {1, 2, 3}
        assert ranked[name]["x"][3:] == [60, 61, 62, 63, 64, 65, 66]


def test_seen_items_return_at_the_end_where_fewer_than_ten_are_unseen(tmp_path):
    log = [user(f"u{n}_{i}", (n, 1)) for n in range(1, 11) for i in range(n)]
    ranked = run(tmp_path, log, [user("x", (10, 1, NOW), (9, 0, NOW))], list(range(1, 11)))
    for name in NAMES:
        assert ranked[name]["x"] == [8, 7, 6, 5, 4, 3, 2, 1, 10, 9]


FEW = [user(f"u{n}_{i}", (n, 1)) for n in range(1, 13) for i in range(n)]  # item n is clicked by n users


def test_without_the_filter_of_seen_items_the_baselines_show_them_too(tmp_path):
    """Popularity is the same for all users, and item-kNN ranks a seen item by those that were clicked with it."""
    pairs = [user(f"p{i}", (1, 1), (2, 1)) for i in range(40)]
    served = [user("x", (12, 1, NOW - 1), (1, 1, NOW), (2, 1, NOW)), user("new")._replace(profile_time=NOW)]
    ranked = run(tmp_path, FEW + pairs, served, list(range(1, 13)), filter_seen=False)
    for name in ("popularity", "popularity_day", "popularity_exposure"):
        assert ranked[name]["x"] == ranked[name]["new"] and {1, 2} <= set(ranked[name]["x"])
    assert set(ranked["item_knn"]["x"][:2]) == {1, 2}
    kept = run(tmp_path / "filtered", FEW + pairs, served, list(range(1, 13)))
    assert all(kept[name]["x"][-1] in (1, 2, 12) and not {1, 2, 12} & set(kept[name]["x"][:9]) for name in kept)


def test_last_seen_has_the_five_latest_items_of_the_history_latest_first_then_the_popular_ones(tmp_path):
    """Latest by time, whatever the order in the file; an item met twice stands where it was met last."""
    met = [(1, 0, NOW - 9), (2, 1, NOW - 1), (3, 0, NOW - 5), (1, 1, NOW - 2), (4, 0, NOW - 4), (5, 2, NOW - 7),
           (6, 1, NOW - 8)]
    strange = (77, 1, NOW)  # no candidate
    served = [user("x", strange, *met), user("one", (3, 1, NOW)), user("new")._replace(profile_time=NOW)]
    ranked = run(tmp_path, FEW, served, list(range(1, 13)), filter_seen=False)["last_seen"]
    assert ranked["x"] == [2, 1, 4, 3, 5, 12, 11, 10, 9, 8]
    assert ranked["one"] == [3, 12, 11, 10, 9, 8, 7, 6, 5, 4] and ranked["new"] == [12, 11, 10, 9, 8, 7, 6, 5, 4, 3]


def test_where_seen_items_are_dropped_there_is_no_last_seen_nor_an_old_one(tmp_path, capsys):
    folders, out = write_folders(tmp_path, FEW, [user("x", (3, 1, NOW))], list(range(1, 13))), tmp_path / "out"
    assert "last_seen" in baselines(*folders, out, InferConfig(filter_seen=False))
    assert "last_seen" not in baselines(*folders, out) and not (out / "last_seen.json").exists()
    assert "last_seen: none, as infer.filter_seen=true" in capsys.readouterr().out


def test_last_seen_follows_the_filter_of_cold_items(tmp_path):
    served = [user("x", (3, 1, NOW - 1), (50, 1, NOW))]
    for cold, first in ((False, [50, 3]), (True, [3, 12])):
        ranked = run(tmp_path / str(cold), FEW, served, [50, *range(1, 13)], filter_seen=False, filter_cold=cold)
        assert ranked["last_seen"]["x"][:2] == first


def test_item_knn_finds_what_was_clicked_together_before_what_is_popular(tmp_path):
    pairs = [user(f"p{i}", (1, 1), (2, 1)) for i in range(4)] + [user(f"q{i}", (1, 1), (3, 1)) for i in range(2)]
    shown = [user(f"s{i}", (1, 1), (6, 0)) for i in range(9)]  # shown together only
    others = [user(f"o{n}_{i}", (n, 1)) for n in range(5, 13) for i in range(20)]
    served = [user("x", (1, 1, NOW)), user("looked", (1, 0, NOW))]
    ranked = run(tmp_path, pairs + shown + others, served, list(range(1, 13)))
    assert ranked["item_knn"]["x"][:2] == [2, 3]
    assert ranked["item_knn"]["x"][2:] == [item for item in ranked["popularity_day"]["x"] if item not in (2, 3)][:8]
    assert ranked["item_knn"]["looked"] == ranked["popularity_day"]["looked"]


def test_item_knn_sums_over_all_clicked_items_of_the_history(tmp_path):
    log = [user(f"a{i}", (1, 1), (4, 1)) for i in range(3)] + [user(f"b{i}", (2, 1), (4, 1)) for i in range(3)]
    log += [user(f"c{i}", (1, 1), (3, 1)) for i in range(4)]
    log += [user("rest", *((n, 1) for n in range(5, 15)))]
    ranked = run(tmp_path, log, [user("both", (1, 1), (2, 1)), user("one", (1, 1))], list(range(1, 15)))
    assert ranked["item_knn"]["both"][:2] == [4, 3]
    assert ranked["item_knn"]["one"][:2] == [3, 4]


def test_neighbours_equal_a_loop_over_all_pairs_in_blocks_of_any_size(monkeypatch):
    rng, items = np.random.default_rng(0), 30
    users = [rng.choice(np.arange(1, items + 1), rng.integers(0, 8), replace=False) for _ in range(60)]
    start = np.concatenate([[0], np.cumsum([len(basket) for basket in users])])
    baskets = Baskets(np.concatenate(users).astype(np.int32), start)
    rows = np.array([0, 5, 3, 9, 30, 0, 12, 1, 20, 21, 22])  # two cold candidates
    candidates = CandidateSet(BASE + np.arange(len(rows)), rows)
    sets = {item: {u for u, basket in enumerate(users) if item in basket} for item in range(1, items + 1)}
    monkeypatch.setattr(module, "NEIGHBOURS", 4)
    for block in (7, 1 << 22):
        monkeypatch.setattr(module, "_BLOCK_PAIRS", block)
        found = item_neighbours(baskets, candidates, items=items)
        for item in range(1, items + 1):
            others = [(n, sets[other]) for n, other in enumerate(rows.tolist())
                      if other not in (0, item) and sets[item] & sets[other]]
            expected = [(-len(sets[item] & other) / (math.sqrt(len(sets[item]) * len(other)) + module.DAMPING), n)
                        for n, other in others]
            own = slice(found.start[item], found.start[item + 1])
            assert found.number[own].tolist() == [n for _, n in sorted(expected)[:4]]
            assert found.similarity[own] == pytest.approx([-s for s, _ in sorted(expected)[:4]])


def test_a_basket_holds_each_clicked_item_once_and_only_the_latest(tmp_path, monkeypatch):
    log = [user("a", (1, 1), (2, 1), (3, 0), (4, 2), (2, 1)), user("b", (3, 0)), user("c", (1, 1))]
    train, _ = write_folders(tmp_path, log, [], ALL)
    reid = {creative - BASE: reid for creative, reid in read_index(train / "indexer.pkl").items.items()}
    baskets = module.read_train_log(train / "seq.jsonl", items=4).baskets
    assert baskets.item.tolist() == [reid[2], reid[4], reid[1], reid[1]] and baskets.start.tolist() == [0, 3, 3, 4]
    monkeypatch.setattr(module, "LATEST", 2)
    assert module.read_train_log(train / "seq.jsonl", items=4).baskets.item.tolist() == [reid[2], reid[4], reid[1]]


def test_chunks_of_users_do_not_change_a_ranking(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    log = [user(f"u{n:02d}", *((int(item), 1) for item in rng.choice(20, 5, replace=False))) for n in range(40)]
    whole = run(tmp_path / "whole", log, log, list(range(20)))
    monkeypatch.setattr("onepiece_comp.stages.baselines.CHUNK_USERS", 3)
    monkeypatch.setattr(module, "_BLOCK_EVENTS", 11)
    assert run(tmp_path / "parts", log, log, list(range(20))) == whole


def test_a_log_with_hardly_any_clicks_is_counted_by_all_its_events(tmp_path):
    seen = [user(f"u{i}", (1, 0), (2, 0)) for i in range(60)] + [user("u", *((n, 0) for n in range(3, 13)), (12, 1))]
    ranked = run(tmp_path, seen, [user("x", (1, None, NOW))], list(range(1, 13)))
    assert ranked["popularity"]["x"][0] == 2
    assert ranked["item_knn"]["x"][0] == 2


def test_evaluation_re_ids_are_those_of_the_evaluation_folders_own_index(tmp_path):
    log = [user(f"u{n}_{i}", (n, 1)) for n in range(1, 12) for i in range(n)]
    train, evaluation = write_folders(tmp_path, log, [], list(range(1, 12)))
    own = Index({"x": 1}, {BASE + 11: 1}, {})
    write_index(evaluation / "indexer.pkl", own)
    with SequenceWriter(evaluation, "predict_seq") as lines:
        lines.write(to_predict(user("x", (11, 1, NOW)), own))
    paths = baselines(train, evaluation, tmp_path / "out")
    value = json.loads(paths["popularity"].read_text())
    assert value["user"] == ["x"] and [i - BASE for i in value["top10s"][0]] == list(range(10, 0, -1))


def test_ten_takes_its_first_items_then_the_order_without_repeating_one():
    order = np.arange(20)
    assert ten(order, [0, 5], first=[7, 5, 3]) == [7, 3, 1, 2, 4, 6, 8, 9, 10, 11]


def test_similar_items_tie_in_the_fallback_order():
    neighbours = module.Neighbours(np.array([2, 4], np.int32), np.array([0.5, 0.5], np.float32), np.array([0, 0, 2]))
    history = [SeenItems("a", [], [], [1]), SeenItems("b", [4], [], [1]), SeenItems("c", [], [], [])]
    assert module.similar_items(history, neighbours, np.array([4, 3, 2, 1, 0])) == [[4, 2], [2], []]


def test_too_few_candidates_are_refused_and_nothing_is_written(tmp_path):
    folders = write_folders(tmp_path, CROWD, SERVED[:1], list(range(9)))
    with pytest.raises(InputError, match="9 candidates, 9 distinct, expected at least 10"):
        baselines(*folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_line_broken_halfway_leaves_no_result_behind(tmp_path):
    train, evaluation = write_folders(tmp_path, CROWD, SERVED[:2], ALL)
    with open(evaluation / "predict_seq.jsonl", "a") as file:
        file.write('[["u", 1')
    with pytest.raises(InputError, match=r"predict_seq.jsonl:3: found no valid JSON"):
        baselines(train, evaluation, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_user_on_two_lines_is_refused(tmp_path):
    folders = write_folders(tmp_path, CROWD, [*SERVED[:2], SERVED[0]], ALL)
    with pytest.raises(InputError, match="predict_seq.jsonl: found user 1 on two lines"):
        baselines(*folders, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_users_who_have_met_nothing_get_what_is_popular(tmp_path):
    served = [user(name)._replace(profile_time=NOW) for name in ("x", "y")]
    ranked = run(tmp_path, FEW, served, list(range(1, 13)), filter_seen=False)
    assert ranked["item_knn"]["x"] == ranked["last_seen"]["y"] == ranked["popularity"]["x"] == list(range(12, 2, -1))


def test_an_item_beyond_the_index_is_named(tmp_path):
    train, evaluation = write_folders(tmp_path, CROWD, SERVED[:1], ALL)
    with open(train / "seq.jsonl", "a") as file:
        file.write(f"[[1, {BASE}, null, {{}}, 1, 5]]\n")
    with pytest.raises(InputError, match=f"user 1: found item {BASE}, expected 1 to 12"):
        baselines(train, evaluation, tmp_path / "out")


def test_an_evaluation_without_users_is_refused(tmp_path):
    train, evaluation = write_folders(tmp_path, CROWD, [], ALL)
    with pytest.raises(InputError, match="found no users"):
        baselines(train, evaluation, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
