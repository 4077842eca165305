"""The judge on results whose figures one can see, and on files that are not whole."""

import json
import math
import re
from pathlib import Path

import pytest

from onepiece_comp.artefacts import fingerprint
from onepiece_comp.config import ScoreConfig
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation.score import bucket
from onepiece_comp.logs.formats import (
    CLICK, CONVERSION, UNKNOWN_ACTION, Candidate, Event, Index, SequenceWriter, UserLine, write_candidates, write_index)
from onepiece_comp.logs.truths import Truth, write_truth
from onepiece_comp.stages.score import score

CONFIG = ScoreConfig(resamples=200)
TARGETS = {"a": CLICK, "b": CONVERSION, "c": CLICK, "d": CLICK}  # of item 5 each


def ranked(place: int) -> list[int]:
    """Ten items with item 5 at `place`; place 0 lacks it."""
    others = [item for item in range(100, 110)]
    return others if place == 0 else [*others[:place - 1], 5, *others[place - 1:9]]


def write_result(path: Path, places: dict[str, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"time": 1.5, "top10s": [ranked(p) for p in places.values()], "user": list(places)}))
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    path = tmp_path / "split" / "truth.jsonl"
    path.parent.mkdir()
    write_truth(path, (Truth(user, 5, action, 99) for user, action in TARGETS.items()))
    return path


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return write_result(tmp_path / "mine" / "result.json", {"d": 0, "a": 1, "b": 3, "c": 0})


def write_sides(folder: Path) -> None:
    """eval/ with histories of 0, 4, 5 and no line, and train/ without item 5."""
    for name in ("eval", "train"):
        (folder / name).mkdir(parents=True)
    events = [Event(1, {}, 0, time) for time in range(5)]
    write_index(folder / "eval" / "indexer.pkl", Index({"b": 1, "c": 2}, {1: 1}, {}))
    write_index(folder / "train" / "indexer.pkl", Index({"b": 1, "c": 2}, {1: 1}, {}))
    with SequenceWriter(folder / "eval", "predict_seq") as lines:
        lines.write(UserLine("a", {}, 9, []))
        lines.write(UserLine(1, {}, None, events[:4]))
        lines.write(UserLine(2, {}, None, events))


def test_the_figures_are_means_over_the_users_of_the_truth(truth, result):
    report = score(result, truth, CONFIG)
    assert report["users"] == 4 and report["missing_users"] == report["ignored_users"] == 0
    assert report["hr"]["mean"] == pytest.approx(0.5)
    assert report["ndcg"]["mean"] == pytest.approx(1.5 / 4)
    assert report["score"]["mean"] == pytest.approx(0.31 * 0.5 + 0.69 * 0.375)
    assert report["score"]["low"] < report["score"]["mean"] < report["score"]["high"]


def test_k_cuts_the_list(truth, result):
    assert score(result, truth, ScoreConfig(k=2, resamples=10))["hr"]["mean"] == 0.25


def test_the_report_is_written_beside_the_result_or_where_it_is_wanted(truth, result, tmp_path, capsys):
    report = score(result, truth, CONFIG)
    assert json.loads((result.parent / "score.json").read_text()) == report
    assert report["truth_fingerprint"] == fingerprint(truth)
    score(result, truth, CONFIG, out=tmp_path / "other.json")
    assert json.loads((tmp_path / "other.json").read_text()) == report
    assert f"wrote {tmp_path / 'other.json'}" in capsys.readouterr().out


def test_a_user_that_the_result_lacks_is_a_miss_and_one_that_the_truth_lacks_is_ignored(truth, tmp_path, capsys):
    partial = write_result(tmp_path / "partial.json", {"a": 1, "x": 1, "y": 1})
    report = score(partial, truth, CONFIG)
    assert report["hr"]["mean"] == 0.25
    assert report["missing_users"] == 3 and report["ignored_users"] == 2
    assert ("ours: 3 users of the truth are missing (counted as misses), 2 users that the truth lacks were ignored, "
            "for example b and x") in capsys.readouterr().out


def write_candidates_beside(truth: Path, items: list[int]) -> None:
    (truth.parent / "eval").mkdir(exist_ok=True)
    write_candidates(truth.parent / "eval" / "predict_set.jsonl",
                     (Candidate(item, n, {}) for n, item in enumerate(items)))


def test_targets_and_answers_that_are_no_candidates_are_counted_and_one_of_each_is_said(truth, result, capsys):
    report = score(result, truth, CONFIG)  # without the candidate set nothing is known
    assert report["lists_with_no_candidates"] is None and "no candidates" not in capsys.readouterr().out
    write_candidates_beside(truth, [5, *range(100, 110)])
    assert (score(result, truth, CONFIG)["lists_with_no_candidates"] == 0
            and "no candidates" not in capsys.readouterr().out)
    write_candidates_beside(truth, list(range(101, 110)))
    assert score(result, truth, CONFIG)["lists_with_no_candidates"] == 4
    printed = capsys.readouterr().out
    assert "ours: the lists of 4 users hold items that are no candidates, for example 5 for user a" in printed
    assert "4 of 4 targets are no candidates, for example 5 of user a: nobody can hit them" in printed


def test_where_a_list_holds_every_candidate_that_is_said(truth, result, capsys):
    for items, said in ((range(100, 110), True), (range(100, 111), False)):
        write_candidates_beside(truth, list(items))
        score(result, truth, CONFIG)
        assert ("10 candidates: a list of 10 holds them all, so HR@10 tells nothing" in capsys.readouterr().out) == said


def write_repeats(folder: Path) -> None:
    """eval/ in which a had met its target 5, b had met 100, and c has no line."""
    (folder / "eval").mkdir()
    write_index(folder / "eval" / "indexer.pkl", Index({"b": 1}, {100: 1}, {}))
    with SequenceWriter(folder / "eval", "predict_seq") as lines:
        lines.write(UserLine("a", {}, None, [Event(7, {}, 1, 1), Event(5, {}, 0, 2)]))
        lines.write(UserLine(1, {}, None, [Event(1, {}, 1, 1)]))


def test_repeated_targets_are_a_slice_of_their_own_and_a_ranking_under_another_filter_is_named(truth, tmp_path, capsys):
    write_repeats(truth.parent)
    ours = write_result(tmp_path / "ours.json", {"a": 1, "b": 0, "c": 1, "d": 0})  # b is shown 100
    like = write_result(tmp_path / "like.json", {"a": 0, "b": 0, "c": 0, "d": 0})
    unlike = tmp_path / "unlike.json"  # lists without a seen item
    unlike.write_text(json.dumps({"time": 1, "top10s": [list(range(200, 210))], "user": ["a"]}))
    report = score(ours, truth, CONFIG, against={"like": like, "unlike": unlike})
    assert report["repeated_targets"] == 1 and report["lists_with_seen_items"] == 2
    assert [report["against"][name]["lists_with_seen_items"] for name in ("like", "unlike")] == [1, 0]
    assert {label: (row["users"], row["hr"]["mean"]) for label, row in report["slices"]["repeat"].items()} == {
        "yes": (1, 1), "no": (1, 0), "not in the file": (2, 0.5)}
    printed = capsys.readouterr().out
    assert "1 of 4 targets (25.0%) stand in their user's own history" in printed
    assert "ours shows seen items to 2 users, unlike unlike: another filter (infer.filter_seen)" in printed
    score(unlike, truth, CONFIG, against={"like": like})
    assert "ours shows nobody a seen item, unlike like: another filter" in capsys.readouterr().out


def test_a_history_on_two_lines_is_refused(truth, result):
    write_repeats(truth.parent)
    path = truth.parent / "eval" / "predict_seq.jsonl"
    path.write_text(2 * path.read_text())
    with pytest.raises(InputError, match="predict_seq.jsonl: found user a on two lines"):
        score(result, truth, CONFIG)


@pytest.mark.parametrize("change, message", [
    ({"item": "5"}, "the item '5', expected a creative id, a whole number"), ({"item": None}, "the item None"),
    ({"item": 5.0}, "the item 5.0"), ({"item": True}, "the item True"),
    ({"item": 1 << 63}, "the item 9223372036854775808"),
    ({"user": 7}, "the user 7, expected an original id as text"), ({"user": None}, "the user None"),
    ({"action": "1"}, "the action '1'"), ({"action": True}, "the action True"), ({"time": None}, "the time None"),
])
def test_a_truth_of_another_type_is_refused_with_its_line_instead_of_being_a_miss(truth, result, change, message):
    line = json.dumps({"user": "z", "item": 5, "action": 1, "time": 9, **change})
    truth.write_text(truth.read_text() + line + "\n")
    with pytest.raises(InputError, match=f"truth.jsonl:5: found {re.escape(message)}"):
        score(result, truth, CONFIG)


def test_the_action_weight_cancels_per_user_and_counts_over_all_users(truth, result):
    weighted = score(result, truth, CONFIG)["weighted"]
    assert weighted["per_user"]["hr"]["mean"] == pytest.approx(0.5) and weighted["per_user"]["users"] == 4
    assert weighted["global"]["hr"]["mean"] == pytest.approx(3.5 / 5.5)
    assert weighted["global"]["ndcg"]["mean"] == pytest.approx((1 + 2.5 / 2) / 5.5)


def test_targets_without_relevance_have_no_weighted_form(truth, result):
    write_truth(truth, (Truth(user, 5, UNKNOWN_ACTION, 99) for user in TARGETS))
    report = score(result, truth, CONFIG)
    assert report["weighted"] == {"per_user": None, "global": None}
    assert list(report["slices"]["action"]) == ["unknown"] and not math.isnan(report["score"]["mean"])


def test_slices_by_action_history_length_and_warmth_come_from_the_folders_beside_the_truth(truth, result):
    assert list(score(result, truth, CONFIG)["slices"]) == ["action"]
    write_sides(truth.parent)
    slices = score(result, truth, CONFIG)["slices"]
    assert {label: (row["users"], row["hr"]["mean"]) for label, row in slices["history"].items()} == {
        "0": (1, 1), "1-4": (1, 1), "5-9": (1, 0), "not in the file": (1, 0)}
    assert {label: row["users"] for label, row in slices["target"].items()} == {"cold": 4}
    assert slices["action"]["click"]["ndcg"]["mean"] == pytest.approx(1 / 3)
    assert slices["action"]["conversion"]["ndcg"]["mean"] == pytest.approx(0.5)


def test_history_and_index_may_be_given_by_path(truth, result, tmp_path):
    write_sides(tmp_path / "elsewhere")
    write_index(tmp_path / "indexer.pkl", Index({}, {5: 1}, {}))
    report = score(result, truth, CONFIG, history=tmp_path / "elsewhere" / "eval" / "predict_seq.jsonl",
                   train_index=tmp_path / "indexer.pkl")
    assert report["slices"]["history"]["5-9"]["users"] == 1
    assert list(report["slices"]["target"]) == ["warm"]


def test_history_lengths_fall_into_the_buckets_of_their_label():
    expected = {0: "0", 1: "1-4", 4: "1-4", 5: "5-9", 9: "5-9", 10: "10-19", 19: "10-19", 20: "20-49", 49: "20-49",
                50: "50+", 100: "50+", 2000: "50+", None: "not in the file"}
    assert {length: bucket(length) for length in expected} == expected


def test_another_result_gets_its_own_figures_and_the_paired_difference(tmp_path):
    truth = tmp_path / "truth.jsonl"
    write_truth(truth, (Truth(f"u{i}", 5, CLICK, 9) for i in range(100)))
    mine = write_result(tmp_path / "mine.json", {f"u{i}": int(i < 60) for i in range(100)})
    worse = write_result(tmp_path / "worse.json", {f"u{i}": int(i < 40) for i in reversed(range(100))})
    near = write_result(tmp_path / "near.json", {f"u{i}": int(i < 59) for i in range(100)})
    against = score(mine, truth, CONFIG, against={"worse": worse, "near": near, "same": mine})["against"]
    assert against["worse"]["hr"]["mean"] == pytest.approx(0.4)
    difference = against["worse"]["difference"]["score"]
    assert difference["mean"] == pytest.approx(0.2) and difference["low"] > 0 and difference["excludes_zero"]
    assert not against["near"]["difference"]["score"]["excludes_zero"]
    assert against["same"]["difference"]["score"] == {"mean": 0, "low": 0, "high": 0, "excludes_zero": False}
    backwards = score(worse, truth, CONFIG, against={"mine": mine})["against"]["mine"]["difference"]["score"]
    assert backwards["mean"] == pytest.approx(-0.2) and backwards["excludes_zero"]


def test_one_user_has_no_interval_and_differs_from_nobody(tmp_path, capsys):
    write_truth(tmp_path / "truth.jsonl", iter([Truth("a", 5, CLICK, 9)]))
    mine, other = (write_result(tmp_path / f"{name}.json", {"a": place}) for name, place in (("mine", 1), ("other", 0)))
    difference = score(mine, tmp_path / "truth.jsonl", CONFIG,
                       against={"other": other})["against"]["other"]["difference"]
    assert difference["score"] == {"mean": 1, "low": 0, "high": 1, "excludes_zero": False}
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["ours", "1", "1.00000", "1.00000", "1.00000", "one", "user"] in rows


def test_the_same_seed_gives_the_same_report(truth, result):
    assert score(result, truth, CONFIG) == score(result, truth, CONFIG)


def as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


GOOD = ranked(1)


@pytest.mark.parametrize("content, message", [
    ({"top10s": [GOOD], "user": ["a"]}, r"found the keys \['top10s', 'user'\], expected an object with time"),
    ([GOOD], "found a list, expected an object"),
    ({"time": 1, "top10s": [GOOD], "user": ["a", "b"]}, r"lengths \[1, 2\], expected lists of equal length"),
    ({"time": 1, "top10s": [GOOD[:9]], "user": ["a"]}, "user a: found 9 items, 9 distinct, expected 10 distinct"),
    ({"time": 1, "top10s": [GOOD[:9] + [5]], "user": ["a"]}, "user a: found 10 items, 9 distinct"),
    ({"time": 1, "top10s": [[str(i) for i in GOOD]], "user": ["a"]}, "user a: found items .*expected whole numbers"),
    ({"time": 1, "top10s": [[True, *GOOD[1:]]], "user": ["a"]}, "expected whole numbers"),
    ({"time": 1, "top10s": [7], "user": ["a"]}, "expected whole numbers"),
    ({"time": 1, "top10s": [[*GOOD[:9], 1 << 63]], "user": ["a"]}, "expected whole numbers"),
    ({"time": 1, "top10s": [[*GOOD[:9], -1]], "user": ["a"]}, "expected whole numbers"),
    ({"time": 1, "top10s": [GOOD], "user": [1]}, "found the user 1, expected original ids as text"),
    ({"time": 1, "top10s": [GOOD, GOOD], "user": ["a", "a"]}, "found the user 'a' twice"),
    ({"time": 1, "top10s": [GOOD], "user": ["z"]}, "found none of the users of the truth"),
    ({"time": 1, "top10s": [], "user": []}, "found none of the users of the truth"),
    ('{"time": 1, "top10s": [[1, 2', "found no valid JSON"),
])
def test_a_file_that_is_no_whole_result_is_refused_and_nothing_is_written(truth, tmp_path, content, message):
    path = tmp_path / "bad" / "result.json"
    path.parent.mkdir()
    path.write_text(as_text(content))
    with pytest.raises(InputError, match=message):
        score(path, truth, CONFIG)
    assert list(path.parent.iterdir()) == [path]


def test_missing_files_are_named(truth, result, tmp_path):
    with pytest.raises(InputError, match="nowhere.json: found no such file"):
        score(tmp_path / "nowhere.json", truth, CONFIG)
    with pytest.raises(InputError, match="none.jsonl: found no such file"):
        score(result, tmp_path / "none.jsonl", CONFIG)
    with pytest.raises(InputError, match="other.json: found no such file"):
        score(result, truth, CONFIG, against={"other": tmp_path / "other.json"})
    with pytest.raises(InputError, match="indexer.pkl: found no such file"):
        score(result, truth, CONFIG, train_index=tmp_path / "indexer.pkl")


def test_an_empty_truth_or_one_of_strange_actions_is_refused(truth, result):
    truth.write_text("")
    with pytest.raises(InputError, match="found no users"):
        score(result, truth, CONFIG)
    write_truth(truth, iter([Truth("a", 5, 7, 9)]))
    with pytest.raises(InputError, match="user a: found action 7"):
        score(result, truth, CONFIG)


@pytest.mark.parametrize("config", [ScoreConfig(k=11), ScoreConfig(k=0), ScoreConfig(resamples=0)])
def test_settings_that_cannot_be_judged_by_are_refused(truth, result, config):
    with pytest.raises(InputError, match="expected k from 1 to 10, at least one resample"):
        score(result, truth, config)
