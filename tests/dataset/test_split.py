"""The split withholds one target per user and lets nothing from the cut on reach train/."""

import json
from pathlib import Path

import pytest

from onepiece_comp.config import SplitConfig
from onepiece_comp.errors import InputError
from onepiece_comp.logs.embeddings import find_embeddings, read_embedding, write_embedding
from onepiece_comp.logs.formats import (
    Event, UserLine, read_action_types, read_candidates, read_index, read_item_features, read_sequences)
from onepiece_comp.logs.pickles import load_pickle
from onepiece_comp.logs.raw_folder import OriginalIds, RawWriter
from onepiece_comp.logs.truths import read_truth
from onepiece_comp.stages.split import split

CUT = 1_000_000
BASE = 20_000_000_000  # creative ids are larger than any re-id, as in the competition


def user(name: str, *events: tuple, profile: int | None = 1) -> UserLine:
    """A line in original ids from (item number, action, seconds after the cut[, features]) tuples."""
    made = [Event(BASE + e[0], e[3] if len(e) > 3 else {"100": 7}, e[1], CUT + e[2]) for e in events]
    return UserLine(name, {} if profile is None else {"103": profile}, None if profile is None else CUT + 500, made)


def make_raw(folder: Path, *lines: UserLine) -> Path:
    folder.mkdir(parents=True)
    with RawWriter(folder) as writer:
        for line in lines:
            writer.add(line)
    return folder


LOG = (
    user("early", (1, 0, -30), (2, 1, -20)),
    user("clicks", (1, 0, -30), (3, 0, -10), (4, 1, 10, {"100": 99}), (5, 0, 20), (6, 1, 30)),
    user("converts", (2, 0, -25), (5, 1, 5), (7, 0, 8), (8, 2, 15), (1, 2, 40)),
    user("new", (9, 0, 3), (2, 1, 12), profile=66),
    user("looks", (3, 0, 11)),
)


@pytest.mark.parametrize("value", ["null", "[[1]]", '"x"', "{}"])
def test_a_feature_that_is_no_number_is_an_error(tmp_path, value):
    raw = make_raw(tmp_path / "raw", *LOG)
    text = (raw / "seq.jsonl").read_text()
    assert '"100": 1' in text
    (raw / "seq.jsonl").write_text(text.replace('"100": 1', f'"100": {value}', 1))
    (raw / "seq_offsets.pkl").unlink()
    with pytest.raises(InputError, match="feature 100"):
        split(raw, tmp_path / "out", SplitConfig(cut=str(CUT)))


def do_split(tmp_path: Path, lines=LOG, name: str = "out", **settings) -> Path:
    raw = tmp_path / f"raw_{name}"
    make_raw(raw, *lines)
    return split(raw, tmp_path / name, SplitConfig(**{"cut": str(CUT), **settings}))


def targets(out: Path) -> dict[str, int]:
    return {truth.user: truth.item - BASE for truth in read_truth(out / "truth.jsonl")}


def original(path: Path, index: Path) -> dict[str, UserLine]:
    names = OriginalIds(read_index(index))
    return {line.user: line for line in map(names.line, read_sequences(path))}


def trained(out: Path) -> dict[str, UserLine]:
    return original(out / "train" / "seq.jsonl", out / "train" / "indexer.pkl")


def histories(out: Path) -> dict[str, list[int]]:
    lines = original(out / "eval" / "predict_seq.jsonl", out / "eval" / "indexer.pkl")
    return {name: [event.item - BASE for event in line.events] for name, line in lines.items()}


def candidates(out: Path) -> list[int]:
    return [candidate.creative_id - BASE for candidate in read_candidates(out / "eval" / "predict_set.jsonl")]


def figures(out: Path) -> dict:
    return json.loads((out / "split.json").read_text())["figures"]


def test_a_conversion_after_the_cut_beats_an_earlier_click_and_the_first_of_each_counts(tmp_path):
    out = do_split(tmp_path)
    assert targets(out) == {"clicks": 4, "converts": 8, "new": 2}
    assert figures(out)["targets: click"] == 2 and figures(out)["targets: conversion"] == 1


def test_the_history_holds_all_events_before_the_target_also_those_after_the_cut(tmp_path):
    assert histories(do_split(tmp_path)) == {"clicks": [1, 3], "converts": [2, 5, 7], "new": [9]}


def test_an_event_at_the_second_of_the_target_is_no_history_and_one_at_the_cut_no_training(tmp_path):
    lines = [user("a", (1, 0, -1), (2, 0, 0), (3, 0, 5), (4, 1, 5), (5, 0, 5)), user("b", (1, 0, -9), (6, 1, 0))]
    out = do_split(tmp_path, lines)
    assert targets(out) == {"a": 4, "b": 6}
    assert histories(out) == {"a": [1, 2], "b": [1]}
    assert {e.item - BASE for line in trained(out).values() for e in line.events} == {1}


def test_nothing_from_the_cut_on_is_in_train(tmp_path):
    out = do_split(tmp_path)
    index = read_index(out / "train" / "indexer.pkl")
    assert set(index.users) == {"early", "clicks", "converts"}
    assert {creative - BASE for creative in index.items} == {1, 2, 3}
    assert index.features == {"100": {7: 1}, "103": {1: 1}}
    lines = trained(out).values()
    assert max(event.time for line in lines for event in line.events) < CUT
    assert max(line.profile_time for line in lines) < CUT
    stated = dict(read_item_features(out / "train" / "item_feat_dict.json"))
    assert stated == {1: {"100": 1}, 2: {"100": 1}, 3: {"100": 1}}
    assert json.loads((out / "train" / "item_feat_num.json").read_text()) == {"100": 1}


def test_a_later_record_of_an_item_does_not_change_its_features_in_train(tmp_path):
    # The first line of the file has the later record, so that raw's own item_feat_dict.json holds it.
    lines = [user("a", (2, 0, -9), (1, 1, 5, {"100": 99, "101": 98})), user("b", (1, 0, -9), (2, 1, 6))]
    out = do_split(tmp_path, lines)
    index = read_index(out / "train" / "indexer.pkl")
    assert index.features["100"] == {7: 1} and "101" not in index.features


def test_a_feature_missing_in_the_records_comes_from_the_raw_features_of_an_item_not_seen_after_the_cut(tmp_path):
    raw = make_raw(tmp_path / "raw", user("z", (9, 0, -40, {"101": 50})), *LOG)
    written = json.loads((raw / "item_feat_dict.json").read_text())
    reids = read_index(raw / "indexer.pkl").items
    for item in (1, 3, 8):  # item 1 is seen again after the cut, 3 too, 8 is first seen then
        written[str(reids[BASE + item])]["101"] = 1
    written[str(reids[BASE + 9])]["100"] = 1
    written[str(reids[BASE + 2])]["100"] = read_index(raw / "indexer.pkl").features["100"][99]
    (raw / "item_feat_dict.json").write_text(json.dumps(written))
    out = split(raw, tmp_path / "out", SplitConfig(cut=str(CUT), cold_share=0))
    stated = dict(read_item_features(out / "train" / "item_feat_dict.json"))
    index = read_index(out / "train" / "indexer.pkl")
    assert "101" not in stated[index.items[BASE + 1]] and "101" not in stated[index.items[BASE + 3]]
    shown = {c.creative_id - BASE: c.features for c in read_candidates(out / "eval" / "predict_set.jsonl")}
    assert shown[8] == {"100": index.features["100"][7], "101": index.features["101"][50]}
    late = split(raw, tmp_path / "late", SplitConfig(cut=str(CUT + 15), cold_share=0))
    index = read_index(late / "train" / "indexer.pkl")
    stated = dict(read_item_features(late / "train" / "item_feat_dict.json"))
    assert stated[index.items[BASE + 9]] == {"101": 1, "100": 1}
    assert stated[index.items[BASE + 2]] == {"100": index.features["100"][7]}  # the record goes before


def test_a_candidate_has_the_features_of_its_first_record_in_time(tmp_path):
    lines = [user("a", (1, 0, -9), (2, 0, 7, {"100": 98}), (1, 1, 8)), user("b", (1, 0, -9), (2, 1, 6, {"100": 97}))]
    shown = read_candidates(do_split(tmp_path, lines) / "eval" / "predict_set.jsonl")
    assert [candidate.features for candidate in shown] == [{"100": 1}, {"100": "97"}]


def test_a_candidate_has_the_features_that_training_knows_though_raw_values_look_like_re_ids(tmp_path):
    lines = [user("a", (1, 0, -9, {"100": 3}), (2, 0, -8, {"100": 2}), (3, 0, -7, {"100": 1}), (1, 1, 8, {"100": 3})),
             user("b", (3, 0, -9, {"100": 1}), (2, 1, 6, {"100": 2}))]
    out = do_split(tmp_path, lines)
    index, known = read_index(out / "train" / "indexer.pkl"), dict(
        read_item_features(out / "train" / "item_feat_dict.json"))
    shown = {c.creative_id: c.features for c in read_candidates(out / "eval" / "predict_set.jsonl")}
    assert shown == {creative: known[reid] for creative, reid in index.items.items()}
    assert index.features["100"] == {3: 1, 2: 2, 1: 3}


def test_raw_features_may_be_missing(tmp_path):
    raw = make_raw(tmp_path / "raw", *LOG)
    (raw / "item_feat_dict.json").unlink()
    (raw / "seq_offsets.pkl").unlink()
    out = split(raw, tmp_path / "out", SplitConfig(cut=str(CUT)))
    assert targets(out) == {"clicks": 4, "converts": 8, "new": 2}


def test_what_train_does_not_know_is_raw_in_the_evaluation_files(tmp_path):
    out = do_split(tmp_path)
    assert {path.name for path in out.iterdir()} == {"train", "eval", "truth.jsonl", "split.json"}
    lines = list(read_sequences(out / "eval" / "predict_seq.jsonl"))
    assert [line.user for line in lines] == [2, 3, "new"]
    assert lines[2].events[0].item == BASE + 9 and lines[2].profile == {"103": "66"}
    features = {c.creative_id - BASE: c.features for c in read_candidates(out / "eval" / "predict_set.jsonl")}
    assert features[4] == {"100": "99"} and features[1] == {"100": 1}
    assert len(load_pickle(out / "eval" / "predict_seq_offsets.pkl", list)) == 3
    for name in ("indexer.pkl", "item_feat_dict.json"):
        assert (out / "eval" / name).read_bytes() == (out / "train" / name).read_bytes()


def test_the_profile_of_an_evaluation_line_does_not_tell_the_time_of_the_target(tmp_path):
    out = do_split(tmp_path, [*LOG, user("blank", (2, 1, 33)), user("bare", (2, 1, 34), profile=None)])
    times = {line.user: line.profile_time - CUT for line in read_sequences(out / "eval" / "predict_seq.jsonl")}
    assert times == {2: -10, 3: 8, "new": 3, "blank": 0, "bare": 0}
    assert figures(out)["users without history"] == 2


def test_a_user_without_target_and_without_training_events_is_dropped_and_counted(tmp_path):
    out = do_split(tmp_path)
    assert figures(out)["users dropped"] == 1 and figures(out)["users in log"] == 5
    assert "looks" not in read_index(out / "train" / "indexer.pkl").users


def test_candidates_are_items_before_the_cut_and_all_targets_and_the_cold_share_of_the_rest(tmp_path):
    assert candidates(do_split(tmp_path)) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert candidates(do_split(tmp_path, name="none", cold_share=0.0)) == [1, 2, 3, 4, 8]
    half = candidates(do_split(tmp_path, name="half", cold_share=0.5))
    assert set(half) > {1, 2, 3, 4, 8} and len(half) == 7
    assert half != candidates(do_split(tmp_path, name="seed", cold_share=0.5, seed=1))


def test_only_items_active_in_the_days_before_the_cut_are_candidates_if_asked(tmp_path):
    lines = [user("a", (1, 0, -200_000), (2, 0, -80_000), (3, 1, 7)), user("b", (4, 0, -100_000), (1, 1, 9))]
    assert candidates(do_split(tmp_path, lines, active_days=1.0)) == [1, 2, 3]
    assert candidates(do_split(tmp_path, lines, name="two", active_days=2.0)) == [1, 2, 3, 4]
    late = [*lines, user("c", (8, 0, 3))]
    assert candidates(do_split(tmp_path, late, name="ever", active_days=1e6, cold_share=0.0)) == [1, 2, 3, 4]


def test_candidates_are_numbered_in_the_order_of_their_ids_so_that_targets_do_not_stand_out(tmp_path):
    lines = [user("a", (9, 0, -5), (5, 1, 5)), user("b", (1, 0, -5), (7, 1, 5))]
    listed = list(read_candidates(do_split(tmp_path, lines) / "eval" / "predict_set.jsonl"))
    assert [(c.retrieval_id, c.creative_id - BASE) for c in listed] == [(0, 1), (1, 5), (2, 7), (3, 9)]


def test_held_out_users_are_not_in_train_and_only_they_are_evaluated(tmp_path):
    lines = [user(f"u{n}", (n % 7, 0, -50 - n), (n % 5, 1, n)) for n in range(40)] + [user("early", (1, 0, -9))]
    out = do_split(tmp_path, lines, mode="held_out", held_out=0.3)
    evaluated, known = set(targets(out)), set(read_index(out / "train" / "indexer.pkl").users)
    assert 4 <= len(evaluated) <= 22 and "early" in known
    assert evaluated | known == {line.user for line in lines} and not evaluated & known
    assert set(histories(out)) == evaluated and all(len(history) == 1 for history in histories(out).values())
    backwards = do_split(tmp_path, lines[::-1], name="backwards", mode="held_out", held_out=0.3)
    assert set(targets(backwards)) == evaluated
    assert set(targets(do_split(tmp_path, lines, name="seed", mode="held_out", held_out=0.3, seed=1))) != evaluated


def test_leave_one_out_takes_the_last_event_of_the_file_whatever_its_action_and_time(tmp_path):
    lines = [user("a", (1, 1, -3), (2, 0, 9), (3, 0, 4)), user("b", (4, 1, 1)), user("c", (5, 0, 2), (6, None, 2))]
    out = do_split(tmp_path, lines, mode="leave_one_out", action_types=True, until="1970-01-02")
    assert targets(out) == {"a": 3, "c": 6} and histories(out) == {"a": [1, 2], "c": [5]}
    assert {name: len(line.events) for name, line in trained(out).items()} == {"a": 2, "b": 1, "c": 1}
    assert candidates(out) == [1, 2, 3, 4, 5, 6] and figures(out)["cold targets"] == 2
    assert {creative - BASE for creative in read_index(out / "train" / "indexer.pkl").items} == {1, 2, 4, 5}
    assert read_action_types(out / "eval") == {"a": 0}


def test_events_from_until_on_do_not_exist(tmp_path):
    out = do_split(tmp_path, until=str(CUT + 15))
    assert targets(out) == {"clicks": 4, "converts": 5, "new": 2}
    assert candidates(out) == [1, 2, 3, 4, 5, 7, 9]


def test_the_order_of_the_log_changes_neither_targets_nor_candidates(tmp_path):
    one = do_split(tmp_path, cold_share=0.5, cut="auto", auto_cut=0.5)
    two = do_split(tmp_path, LOG[::-1], name="reversed", cold_share=0.5, cut="auto", auto_cut=0.5)
    assert targets(one) == targets(two) and candidates(one) == candidates(two)
    assert list(targets(one)) == ["clicks", "converts", "new"] == list(targets(two))[::-1]


def test_events_of_a_user_out_of_time_order_are_sorted_and_counted(tmp_path):
    lines = [user("a", (4, 1, 20), (1, 0, -5), (3, 1, 10), (2, 0, -8)), user("b", (1, 0, -1), (2, 1, 3))]
    out = do_split(tmp_path, lines)
    assert targets(out) == {"a": 3, "b": 2} and histories(out)["a"] == [2, 1]
    assert figures(out)["users out of time order"] == 1


def test_cold_and_repeated_targets_are_counted_and_repeats_said_with_what_the_filter_does_to_them(tmp_path, capsys):
    lines = [user("a", (1, 0, -5), (1, 1, 5)), user("b", (2, 0, -5), (1, 1, 5)), user("c", (2, 0, -5), (8, 1, 5))]
    found = figures(do_split(tmp_path, lines))
    assert found["targets seen in the history"] == 1 and found["cold targets"] == 1 and found["eval users"] == 3
    assert "1 of 3 targets (33.3%) stand in their user's own history: infer.filter_seen=true" in capsys.readouterr().out
    assert (found["candidates"], found["candidates, warm"], found["candidates, cold"]) == (3, 2, 1)
    assert found["events in train"] == 3 and found["users in train"] == 3


def test_the_automatic_cut_is_the_quantile_of_the_event_times(tmp_path):
    lines = [user(f"u{n}", *((n, 1, 10 * n + k) for k in range(10))) for n in range(10)]
    out = do_split(tmp_path, lines, cut="auto", auto_cut=0.9)
    assert json.loads((out / "split.json").read_text())["cut"] == CUT + 90
    assert targets(out) == {"u9": 9} and figures(out)["events in train"] == 90


@pytest.mark.parametrize("cut", ["1970-01-12T13:46:40Z", "1970-01-12T13:46:40", "1970-01-12T14:46:40+01:00", str(CUT)])
def test_a_cut_is_unix_seconds_or_an_iso_time_in_utc_unless_it_says_otherwise(tmp_path, cut):
    out = do_split(tmp_path, cut=cut)
    assert json.loads((out / "split.json").read_text())["cut_time"] == "1970-01-12T13:46:40Z"


@pytest.mark.parametrize("settings, message", [
    ({"cut": "next tuesday"}, "ISO time"),
    ({"cut": "2030-01-01"}, "no target .*; the log has events .* of action click.*--action"),
    ({"cut": "1970-01-02"}, "no event before"),
    ({"until": "1970-01-12"}, "expected a time after the cut"), ({"mode": "random"}, "one of competition"),
    ({"mode": "held_out", "held_out": 0.0}, "a share above 0"), ({"mode": "held_out", "held_out": 1e-9}, "no target"),
    ({"cold_share": 1.5}, "a share from 0 to 1"), ({"auto_cut": 1.0}, "between 0 and 1"),
    ({"active_days": -1.0}, "days"),
])
def test_a_split_that_cannot_be_is_refused_and_leaves_nothing_behind(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        do_split(tmp_path, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["raw_out"]


def test_users_without_any_training_event_are_refused(tmp_path):
    with pytest.raises(InputError, match="no event to train on"):
        do_split(tmp_path, [user("a", (1, 0, -5), (2, 1, 5))], mode="held_out", held_out=1.0)


def test_offsets_of_another_file_an_item_outside_the_index_and_a_user_on_two_lines_are_refused(tmp_path):
    raw = make_raw(tmp_path / "raw", *LOG)
    lines = (raw / "seq.jsonl").read_text().splitlines(keepends=True)
    (raw / "seq.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(InputError, match="offsets"):
        split(raw, tmp_path / "out", SplitConfig(cut=str(CUT)))
    (raw / "seq_offsets.pkl").unlink()
    (raw / "seq.jsonl").write_text("".join([*lines, lines[0]]))
    with pytest.raises(InputError, match="user 1 on two lines"):
        split(raw, tmp_path / "out", SplitConfig(cut=str(CUT)))
    (raw / "seq.jsonl").write_text('[[1, 77, null, {}, 1, 5]]\n')
    with pytest.raises(InputError, match="item 77"):
        split(raw, tmp_path / "out", SplitConfig(cut=str(CUT)))


def test_both_sides_get_the_embeddings_of_the_raw_folder(tmp_path):
    raw = make_raw(tmp_path / "raw", *LOG)
    write_embedding(raw, "81", iter([(BASE + 1, [0.5, 1.0]), (BASE + 2, None)]), width=2)
    out = split(raw, tmp_path / "out", SplitConfig(cut=str(CUT)))
    for side in ("train", "eval"):
        vectors = dict(read_embedding(find_embeddings(out / side)["81"]))
        assert vectors[BASE + 1].tolist() == [0.5, 1.0] and vectors[BASE + 2] is None


def test_the_action_of_the_target_is_told_only_on_request(tmp_path):
    assert not (do_split(tmp_path) / "eval" / "user_action_type.json").exists()
    out = do_split(tmp_path, name="told", action_types=True)
    assert read_action_types(out / "eval") == {"clicks": 1, "converts": 2, "new": 1}


def test_splitting_twice_gives_the_same_truth(tmp_path):
    marks = [json.loads((do_split(tmp_path, name=name) / "split.json").read_text()) for name in ("one", "two")]
    assert marks[0]["truth_fingerprint"] == marks[1]["truth_fingerprint"] and marks[0]["figures"] == marks[1]["figures"]
    other = json.loads((do_split(tmp_path, name="three", cut=str(CUT + 11)) / "split.json").read_text())
    assert other["truth_fingerprint"] != marks[0]["truth_fingerprint"]


def test_the_competitions_sample_is_split_with_all_its_corners(tmp_path, data_dir):
    out = split(data_dir / "tencentgr_1k_sample", tmp_path / "out", SplitConfig(action_types=True))
    mark, lines = json.loads((out / "split.json").read_text()), trained(out).values()
    assert mark["figures"]["users in log"] == 88 and mark["figures"]["users in train"] == len(lines)
    assert max(event.time for line in lines for event in line.events) < mark["cut"]
    assert any(event.action is None for line in lines for event in line.events)
    assert any(isinstance(value, list) for line in lines for value in line.profile.values())
    told, truths = read_action_types(out / "eval"), read_truth(out / "truth.jsonl")
    assert len(told) == len(truths) == mark["figures"]["eval users"] > 30
    assert len(list((out / "eval" / "creative_emb" / "emb_81_32").iterdir())) == 50
