"""The page over runs: whole from part of the files, runs in pairs, drawings that say what they stand for,
a browser's view.
"""

import json
import shutil
import subprocess
import tracemalloc
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from onepiece_comp.artefacts import names_apart, write_json
from onepiece_comp.config import ScoreConfig
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation.metrics import sign_flip_test
from onepiece_comp.logs.truths import Truth, write_truth
from onepiece_comp.reports import run_sections
from onepiece_comp.reports.drawings import code_rings, funnel_chart, interval_chart
from onepiece_comp.reports.item_sections import CodeNames, item_sections, usage
from onepiece_comp.reports.page import Section, Table, write_report
from onepiece_comp.stages.score import score
from onepiece_comp.studies.report import _comparison, report
from onepiece_comp.tokenizer.folder import Tokenizer, write_tokenizer_columns
from onepiece_comp.tokenizer.item_vectors import Space


def work(folder, shift):
    """A work folder with a log, a funnel and a result that finds user u at place u + 1 + shift."""
    for name in ("retrieval", "result", "split"):
        (folder / name).mkdir(parents=True)
    lines = [{"global_step": 10 * n, "Loss/retrieval": 5.0 - n, "gradient_norm": 1.0,
              "expert_gini": 0.1} for n in range(1, 4)]
    (folder / "retrieval" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"global_st')
    steps = [{"step": "candidates", "per_user": 500.0}, {"step": "best 100", "per_user": 100.0, "targets": 0.75}]
    (folder / "result" / "funnel.json").write_text(json.dumps({
        "mode": "retrieval", "users_per_second": 3, "filled": {},
        "steps": [*steps, {"step": "ten", "per_user": 10.0, "targets": 0.5}]}))
    truth = [{"user": f"u{n}", "item": 7, "action": 1, "time": 9} for n in range(8)]
    (folder / "split" / "truth.jsonl").write_text("".join(json.dumps(one) + "\n" for one in truth))
    ten = lambda place: [*range(100, 100 + place), 7, *range(200, 209 - place)]
    (folder / "result" / "result.json").write_text(json.dumps({
        "time": 1, "user": [f"u{n}" for n in range(8)], "top10s": [ten(n + shift) for n in range(8)]}))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    return report([work(place / "better", 0), work(place / "worse", 2)], place / "page.html")


def test_a_page_over_half_made_runs_is_whole_and_names_the_commands_for_the_rest(page):
    text = "".join(ElementTree.parse(page).getroot().itertext())
    for command in ("build-tokenizer", "onepiece-comp preprocess", "onepiece-comp train"):
        assert command in text
    assert "recall at 10075.0 %" in text and "recall at 1000not told" in text
    assert page.stat().st_size < 1_500_000


def test_figures_bear_the_cut_that_they_were_scored_at_and_those_of_other_cuts_stand_apart(tmp_path, monkeypatch):
    places = {"five": work(tmp_path / "five", 0), "ten": work(tmp_path / "ten", 0)}
    for k, place in zip((5, 10), places.values()):
        score(place / "result" / "result.json", place / "split" / "truth.jsonl", ScoreConfig(k=k, resamples=10))
    text = report([places["five"]], tmp_path / "one.html").read_text()
    assert "HR@5" in text and "score@5" in text and "HR@10" not in text
    drawn = []
    monkeypatch.setattr("onepiece_comp.studies.report.interval_chart",
                        lambda rows, **more: drawn.extend(rows) or interval_chart(rows, **more))
    both = report(list(places.values()), tmp_path / "both.html").read_text()
    assert [list(values) for label, values in drawn if "5" in label] == [["five"]] * 3
    assert [list(values) for label, values in drawn if "10" in label or label == "score"] == [["ten"]] * 3
    assert all(label in both for label in ("HR@5", "HR@10", "score@5", "Paired differences of the score<"))
    for place in places.values():
        score(place / "result" / "result.json", place / "split" / "truth.jsonl", ScoreConfig(k=5, resamples=10))
    assert "Paired differences of the score@5<" in report(list(places.values()), tmp_path / "alike.html").read_text()


def test_nothing_on_the_page_comes_from_elsewhere(page):
    assert not [one for one in ElementTree.parse(page).getroot().iter() if one.tag.endswith(("script", "link", "img",
        "iframe"))]


def test_runs_that_answered_the_same_truth_are_compared_user_by_user(page):
    text = "".join(ElementTree.parse(page).getroot().itertext())
    gain = np.mean([0.69 * (1 / np.log2(n + 2) - 1 / np.log2(n + 4)) for n in range(8)])
    assert f"{gain:+.5f}" in text and "yes" in text


def test_a_sign_flip_test_counts_the_signs_as_extreme_as_those_seen():
    assert sign_flip_test(np.ones(4), np.ones(4), resamples=10, seed=0) == 1.0
    found = sign_flip_test(np.arange(1.0, 6.0), np.zeros(5), resamples=40_000, seed=0)
    assert found == pytest.approx(2 / 32, abs=0.01)  # all plus and all minus of 2^5


def test_codes_in_use_are_those_that_some_item_has():
    even, one = usage(np.array([[0, 2], [1, 2], [2, 2], [3, 2]]), 4)
    assert even == {"in_use": 4, "perplexity": pytest.approx(4), "gini": pytest.approx(0), "largest": 1}
    assert one["in_use"] == 1 and one["perplexity"] == pytest.approx(1) and one["gini"] == pytest.approx(0.75)


def test_drawings_are_well_formed_and_say_their_figures():
    hostile = "<b> & co"
    drawn = interval_chart([(hostile, {hostile: (0.1, 0.05, 0.2), "b": (0.3, 0.2, 0.4)})])
    assert hostile in "".join(ElementTree.fromstring(drawn).itertext()) and "0.3000" in drawn
    assert "25.0 % of the targets" in funnel_chart([("ten", 10, 0.25)])
    rings = "".join(ElementTree.fromstring(code_rings(np.array([[0, 0], [0, 1], [5, 0]]))).itertext())
    assert "2 codes" in rings and "0: 2 items" in rings


def test_runs_are_named_by_what_tells_them_apart_and_a_strange_folder_is_refused(tmp_path):
    assert names_apart([Path("/a/x/run"), Path("/b/y/run")], "report") == ["x/run", "y/run"]
    with pytest.raises(InputError, match="no work folder"):
        report([tmp_path], tmp_path / "page.html")


def test_a_browser_shows_the_page_without_looking_elsewhere(page, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on this machine")
    made = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=1000",
                           f"--user-data-dir={tmp_path}", "--dump-dom", page.as_uri()], capture_output=True, text=True,
                           timeout=120)
    assert "Paired differences" in made.stdout and made.stdout.count("<svg") >= 4


def score_of(folder, name="score.json"):
    return score(folder / "result" / "result.json", folder / "split" / "truth.jsonl", ScoreConfig(resamples=20),
                 out=folder / name)


def test_a_page_shows_the_score_that_the_stage_wrote_and_none_of_another_result(tmp_path):
    folder, text = work(tmp_path / "run", 0), lambda page: "".join(ElementTree.parse(page).getroot().itertext())
    assert "onepiece-comp score" in text(report([folder], tmp_path / "page.html"))
    mean = score_of(folder, "result/score.json")["score"]["mean"]
    assert f"{mean:.4f}" in text(report([folder], tmp_path / "page.html"))
    shutil.copy(work(tmp_path / "other", 2) / "result" / "result.json", folder / "result" / "result.json")
    assert "is of another result" in text(report([folder], tmp_path / "page.html"))
    score_of(folder)
    with open(folder / "split" / "truth.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"user": "u9", "item": 7, "action": 1, "time": 9}) + "\n")
    assert "is of another truth" in text(report([folder], tmp_path / "page.html"))


def test_settings_of_the_ranking_and_what_the_runs_read_are_compared(tmp_path):
    folders = [work(tmp_path / name, 0) for name in ("a", "b")]
    for folder, mode, data in zip(folders, ("cascade", "retrieval"), ("one", "two")):
        funnel = json.loads((folder / "result" / "funnel.json").read_text())
        (folder / "result" / "funnel.json").write_text(json.dumps({**funnel, "settings": {"mode": mode, "beam": 20}}))
        (folder / "retrieval" / "config.json").write_text(json.dumps({"dataset": data, "version": "1",
                                                                      "model": {"width": 8}, "train": {}}))
    score_of(folders[0])
    table = next(part for section in _comparison(dict(zip("ab", folders))) for part in section.parts if isinstance(part,
        Table))
    assert table.rows == [("infer.mode", "cascade", "retrieval"), ("dataset", "one", "two")]


def test_names_of_any_length_stay_inside_their_drawing():
    names = [f"a run with a long name, number {number}" for number in range(8)]
    drawn = ElementTree.fromstring(interval_chart([("x" * 60, {name: (0.1, 0.0, 0.2) for name in names})]))
    width = float(drawn.get("width"))
    texts = [one for one in drawn.iter() if one.tag.endswith("text")]
    assert set(names) < {one.text for one in texts}
    for one in texts:
        x, long = float(one.get("x")), 7 * len(one.text)
        assert 0 <= (x - long if one.get("text-anchor") == "end" else x) and (x if one.get("text-anchor") == "end"
                                                                              else x + long) <= width, one.text
    marks = [(one.tag, one.get("fill")) for one in drawn.iter() if one.tag.endswith(("circle", "rect"))]
    assert len(set(marks[:8])) == 8  # eight series are told apart


def test_names_that_no_page_may_hold_are_replaced(tmp_path):
    page = write_report(tmp_path / "page.html", "odd \x01 \udcff name",
                        [Section("one", [Table("t", ("a",), [("\x0b",)])])])
    assert "odd \ufffd \ufffd name" in "".join(ElementTree.parse(page).getroot().itertext())


def items_work(folder, items):
    """A work folder of some items with a tokenizer and vectors,
    the even ones in another direction than the odd ones.
    """
    for name in ("tokenizer", "dataset", "joint"):
        (folder / name).mkdir(parents=True)
    creative, codes = np.append(0, 7000 + np.arange(items)), np.column_stack([np.arange(-1,
        items)] * 2).astype(np.int32)
    tokenizer = Tokenizer(codes, creative, 2, max(items, 2), "fsq", {}, creative, creative[:0], codes[:0], {},
                          Space("emb_81", {}, ()))
    write_json(folder / "tokenizer" / "tokenizer.json", {
        **write_tokenizer_columns(folder / "tokenizer", tokenizer), "codes_per_level": max(items, 2), "config": {},
        "item_space": "",
        "levels": 2, "quantiser": "fsq", "vectors": "emb_81", "figures": {"after": [{"unique": items, "shared": 0.0}]}})
    write_json(folder / "dataset" / "schema.json", {})
    np.save(folder / "dataset" / "creative_id.npy", creative)
    np.save(folder / "dataset" / "item_count.npy", np.arange(items + 1)[::-1])
    np.save(folder / "joint" / "item_vectors.npy", np.eye(2, dtype=np.float32)[np.arange(items + 1) % 2])
    return folder


def test_few_items_have_few_neighbours_and_none_is_its_own(tmp_path):
    _, section, _ = item_sections(items_work(tmp_path, 3))
    rows = next(part for part in section.parts if isinstance(part, Table)).rows
    name = lambda number: f"{7000 + number} ‹{number}\N{NO-BREAK SPACE}{number}›"
    assert [row[0] for row in rows] == [name(0), name(1), name(2)]
    assert rows[0][2:] == (f"{name(2)}  1.00", f"{name(1)}  0.00", "", "", "")


def test_names_of_a_few_items_take_no_memory_for_the_others(tmp_path):
    items_work(tmp_path, 20_000)
    tracemalloc.start()
    names = CodeNames(tmp_path, range(7000, 7100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 40 + (1 << 20) and names(7099) == "7099 ‹99\N{NO-BREAK SPACE}99›"
    assert CodeNames(tmp_path, [5])(5) == CodeNames(tmp_path / "nothing", [5])(5) == "5"


def test_the_score_is_shown_by_how_often_training_saw_the_target(tmp_path, monkeypatch):
    """Targets of 0, 4, 5, 19, 20, 99, 100 and 1,000 events; only those of at least 20 are hit, in the first place."""
    counts, drawn = [0, 4, 5, 19, 20, 99, 100, 1000], []
    for folder in ("dataset", "split", "result"):
        (tmp_path / folder).mkdir()
    # the first target is in no training
    np.save(tmp_path / "dataset" / "creative_id.npy", np.array([0, *range(101, 108)]))
    np.save(tmp_path / "dataset" / "item_count.npy", np.array([0, *counts[1:]]))
    write_truth(tmp_path / "split" / "truth.jsonl", [Truth(f"u{n}", 100 + n, 1, 1000) for n in range(8)])
    answers = [[100 + n if counts[n] >= 20 else 999, *range(200, 209)] for n in range(8)]
    write_json(tmp_path / "result" / "result.json",
               {"time": 1.0, "top10s": answers, "user": [f"u{n}" for n in range(8)]})
    monkeypatch.setattr(run_sections, "interval_chart", lambda rows, **more: drawn.extend(rows) or interval_chart(rows,
        **more))
    run_sections._popularity(tmp_path)
    assert [(label, values["score"][0]) for label, values in drawn] == [
        ("never in training (1)", 0), ("1-4 events (1)", 0), ("5-19 events (2)", 0), ("20-99 events (2)", 1),
        ("100+ events (2)", 1)]
