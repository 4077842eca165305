"""What `describe` says of logs with planted faults: warnings, coverage, pages; and that it knows every artefact."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from onepiece_comp.artefacts import write_json
from onepiece_comp.errors import InputError
from onepiece_comp.logs.embeddings import write_embedding
from onepiece_comp.logs.formats import Event, UserLine
from onepiece_comp.logs.raw_folder import RawWriter
from onepiece_comp.logs.release_writer import write_release
from onepiece_comp.reports import describe as stage, page as report_html
from onepiece_comp.reports.describe import describe
from onepiece_comp.reports.log_figures import DAY
from onepiece_comp.reports.page import Table, Text

ROOT = Path(__file__).resolve().parents[2]
NOON = 20_000 * DAY + 43_200
USERS, ITEMS, EVENTS = 12, 20, 10


def clean_lines():
    """Users who meet the same twenty items over five days, each at moments of their own: nothing to warn of."""
    lines = []
    for user in range(USERS):
        events = [Event(1000 + (user + 2 * k) % ITEMS, {"100": 7 + (user + 2 * k) % 3}, k % 2,
                        NOON + k * DAY // 2 + 60 * user) for k in range(EVENTS)]
        lines.append(UserLine(f"u{user}", {"103": user % 3}, events[-1].time, events))
    return lines


def write(folder, lines):
    """A raw folder of lines in original ids."""
    folder.mkdir(parents=True)
    with RawWriter(folder) as writer:
        for line in lines:
            writer.add(line)
    return folder


def changed(lines, user, change):
    """The lines with the events of one user changed."""
    events = change(list(lines[user].events))
    return [*lines[:user], lines[user]._replace(events=events), *lines[user + 1:]]


def rows(found, section, table):
    """The first two columns of a table of a description."""
    parts = next(one for one in found.sections if one.title == section).parts
    return {row[0]: row[1] for part in parts if isinstance(part, Table) and part.title == table for row in part.rows}


def warnings_of(path):
    return [one.line() for one in describe(path).warned]


def test_a_clean_log_has_its_counts_and_no_warning(tmp_path):
    found = describe(write(tmp_path / "raw", clean_lines()))
    counts = rows(found, "Log", "Counts")
    assert found.kind == "a log of users (jsonl)" and found.warned == []
    assert (counts["users"], counts["events"], counts["items with events"]) == ("12", "120", "20")
    assert counts["first event"] == "2024-10-04T12:00:00Z" and counts["span, days"] == "4.5"
    assert counts["exposures"] == counts["clicks"] == "50.0 %" and counts["exact duplicates"] == "0"
    assert rows(found, "Coverage", "Item features, of the items with events")["100"] == "100.0 %"
    assert rows(found, "Log", "Distributions")["events per user"] == "10"


def _twice(events):
    return [*events, events[-1]]


def _tied(events):
    return [event._replace(time=NOON) for event in events]


def _long(events):
    return [events[0]._replace(time=NOON + 60 * k, item=1000 + k % ITEMS, action=k % 2) for k in range(101)]


def _fresh(events):
    return [*events, *(Event(5000 + k, {"100": 7}, 1, NOON + 9 * DAY + 60 * k) for k in range(3))]


@pytest.mark.parametrize("plant, words", [
    (lambda lines: changed(lines, 3, _twice), "1 exact duplicates"),
    (lambda lines: changed(lines, 4, lambda events: events[::-1]), "1 of 12 users are not in time order"),
    (lambda lines: changed(lines, 5, _tied), "bear the time of the one before"),
    (lambda lines: changed(lines, 6, _long), "1 of 12 users have more than 100 events"),
    (lambda lines: changed(lines, 7, _fresh), "100.0 % of the last day's events are on items first seen that day"),
    (lambda lines: [line._replace(profile_time=line.profile_time + 1) for line in lines[:2]] + lines[2:],
     "2 of the first 12 users bears a time after their last event"),
    (lambda lines: [line._replace(events=[e._replace(action=None if e.item == 1000 else 1) for e in line.events])
                    for line in lines], "one action only (clicks)"),
    (lambda lines: [line._replace(events=[e._replace(time=e.time // 60) for e in line.events]) for line in lines],
     "120 events before 1990"),
    (lambda lines: [line._replace(events=[e._replace(time=e.time * 10) for e in line.events]) for line in lines],
     "120 events before 1990 or after 2100"),
    (lambda lines: [line._replace(events=[e._replace(time=NOON + 600 * k) for k, e in enumerate(line.events)])
                    for line in lines], "a single day of data"),
    (lambda lines: [line._replace(events=[e._replace(features={} if e.item % 5 == 0 else e.features)
                                          for e in line.events]) for line in lines],
     "4 of 20 items with events (20.0 %) have no feature at all"),
], ids=["duplicate", "unsorted", "ties", "long", "cold", "late profile", "one action", "minutes", "tenths", "one day",
        "no features"])
def test_a_planted_fault_is_the_one_that_is_warned_of(plant, words, tmp_path):
    warned = [line for line in warnings_of(write(tmp_path / "raw", plant(clean_lines())))
              if not (words.startswith("1 exact") and "time of the one before" in line)]
    assert any(words in line for line in warned), warned
    by_design = ("time of the one before", "profile record", "first seen", "not in time order", "a single day")
    assert len([line for line in warned if words in line or not any(word in line for word in by_design)]) == 1, warned


def test_embeddings_and_identity_features_are_told(tmp_path, monkeypatch):
    lines = [UserLine(f"u{user}", {}, None, [
        Event(1000 + 10 * user + k, {"100": 1, "111": 10 * user + k}, k % 2, NOON + k * DAY) for k in range(10)])
        for user in range(12)]
    folder = write(tmp_path / "raw", lines)
    vectors = [(1000 + i, np.ones(4) if i % 4 else None) for i in range(60)] + [(9, np.ones(4))]
    write_embedding(folder, "81", iter(vectors), width=4)
    found = describe(folder)
    assert rows(found, "Coverage", "Embeddings, of the items with events") == {"emb_81": "37.5 %"}
    lines = [one.line() for one in found.warned]
    assert any("62.5 % of the items with events have no emb_81" in line for line in lines)
    assert any("feature 111 has nearly one value per item" in line for line in lines)
    monkeypatch.setattr(stage, "_LARGE_TABLE", 100)
    left_out = next(one for one in describe(folder).sections if one.title == "Coverage").parts
    assert any("--embeddings" in part.text for part in left_out if isinstance(part, Text))
    asked = describe(folder, embeddings=True)
    assert rows(asked, "Coverage", "Embeddings, of the items with events") == {"emb_81": "37.5 %"}


def test_a_dataset_tells_the_same_of_its_log(parts, dataset, monkeypatch):
    monkeypatch.setattr(stage, "_EVENTS_PER_BLOCK", 100)
    log, columns = describe(parts / "train"), describe(dataset.path)
    ours, theirs = (rows(found, "Log", "Counts") for found in (log, columns))
    same = set(ours) & set(theirs)
    assert len(same) > 15 and {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    for table in ("Item features, of the items with events", "User features, of the users",
                  "Embeddings, of the items with events"):
        assert rows(log, "Coverage", table) == rows(columns, "Coverage", table) != {}
    assert rows(log, "Log", "Distributions") == rows(columns, "Log", "Distributions")


def test_the_parquet_release_tells_the_same_and_of_its_candidates(evaluation, tmp_path):
    release = write_release(evaluation, tmp_path / "release", parts=3, lists=())
    log, same = describe(tmp_path / "lines"), describe(release)
    for section, table in (("Log", "Counts"), ("Log", "Distributions"), ("Coverage", "User features, of the users"),
                           ("Coverage", "Item features, of the items with events")):
        assert rows(log, section, table) == rows(same, section, table) != {}
    assert rows(same, "Candidates", "Candidates and targets")["candidates known to training"] == "10 (83.3 %)"


def test_user_features_are_counted_by_user_and_not_by_value(tmp_path):
    profiles = [{"103": 1, "106": [1, 2, 3]}, {"106": [2]}, {}, {"103": 2}]
    lines = [line._replace(profile=profile) for line, profile in zip(clean_lines(), profiles)]
    told = rows(describe(write(tmp_path / "raw", lines)), "Coverage", "User features, of the users")
    assert told == {"103": "50.0 %", "106": "50.0 %"}


def test_a_split_tells_of_its_targets_and_of_training_events_after_its_cut(parts, tmp_path, capsys):
    found = describe(parts)
    marker = json.loads((parts / "split.json").read_text())["figures"]
    asked = rows(found, "eval: Evaluation", "Candidates and targets")
    assert asked["candidates"] == f"{marker['candidates']:,}" and asked["users to serve"] == str(marker["eval users"])
    assert asked["cold targets"].split()[0] == str(marker["cold targets"])
    assert asked["targets in the user's history"].split()[0] == str(marker["targets seen in the history"])
    assert rows(found, "Truth", "Targets")["users"] == str(marker["eval users"])
    assert not any("at or after the cut" in one.found for one in found.warned)
    (tmp_path / "split.json").write_text(json.dumps({"cut": NOON + 2 * DAY}))
    warned = warnings_of(write(tmp_path / "train", clean_lines()))
    assert any(line.startswith("72 training events at or after the cut") for line in warned), warned
    (tmp_path / "split.json").unlink()
    (tmp_path / "truth.jsonl").write_text(json.dumps({"user": "u1", "item": 1, "action": 1, "time": NOON + 4 * DAY}))
    warned = warnings_of(tmp_path / "train")
    assert any(line.startswith("24 training events at or after the cut") for line in warned), warned


@pytest.fixture()
def evaluation(tmp_path):
    """Four users of whom one is new, twelve candidates, and targets of every kind; its log alone is in lines/."""
    folder, _ = write(tmp_path / "eval", clean_lines()), write(tmp_path / "lines", clean_lines())
    line = lambda user, item: json.dumps([[user, item, None, {}, 1, NOON], [user, None, {}, None, None, NOON + 5]])
    (folder / "predict_seq.jsonl").write_text("\n".join([line(1, 1), line(2, 20_000_000_777), line("new", 2),
                                                         json.dumps([[3, None, {}, None, None, NOON]])]) + "\n")
    candidates = [*range(1000, 1010), 20_000_000_777, 88_888]
    (folder / "predict_set.jsonl").write_text("".join(json.dumps(
        {"creative_id": one, "retrieval_id": k, "features": {"100": "999" if k % 4 == 0 else 1}}) + "\n"
        for k, one in enumerate(candidates)))
    truths = [("u0", 1000), ("u1", 88_888), ("new", 555), ("stranger", 1003)]
    (folder / "truth.jsonl").write_text("".join(json.dumps(
        {"user": user, "item": item, "action": 1, "time": NOON + DAY}) + "\n" for user, item in truths))
    return folder


def test_candidates_and_targets_are_told_apart(evaluation):
    found = describe(evaluation)
    told = rows(found, "Evaluation", "Candidates and targets")
    assert told["users to serve"] == "4" and told["users without history"] == "1"
    assert told["candidates known to training"] == "10 (83.3 %)"
    assert told["candidates with feature values that training has not seen"] == "3 (25.0 %)"
    assert told["targets"] == "4" and told["targets among the candidates"] == "3 (75.0 %)"
    assert told["cold targets"] == "2 (50.0 %)" and told["targets in the user's history"] == "1 (25.0 %)"
    lines = [one.line() for one in found.warned]
    for words in ("1 of 4 targets (25.0 %) are no candidates", "2 of 4 targets (50.0 %) are cold",
                  "1 of 4 targets (25.0 %) stand in their user's history", "1 of 4 targets (25.0 %) belong to users"):
        assert any(line.startswith(words) for line in lines), (words, lines)
    assert any("3 of the first 4 users" in line for line in lines)
    assert not any("duplicates" in line for line in lines)
    path = evaluation / "predict_seq.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps([first[0], *first]) + "\n")
    assert any(line.startswith("1 exact duplicates") for line in warnings_of(evaluation))


def test_too_few_or_repeated_candidates_are_warned_of(evaluation):
    path = evaluation / "predict_set.jsonl"
    head = path.read_text().splitlines(keepends=True)
    path.write_text("".join(head[:9] + head[:1]))
    lines = warnings_of(evaluation)
    assert any(line.startswith("9 different candidates") for line in lines)
    assert any(line.startswith("1 candidates stand twice") for line in lines)


def test_artefacts_and_files_say_what_they_are(tmp_path, parts, capsys):
    for kind, marker in (("run", {"figures": {"steps": 7}, "model": {"hash_sizes": [2, 3]}}),
                         ("tokenizer", {"figures": {"levels": [{"used": 5}]}})):
        (tmp_path / kind).mkdir()
        write_json(tmp_path / kind / f"{kind}.json", marker)
        assert describe(tmp_path / kind).kind == f"a {kind} folder"
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("figures.steps", "2, 3", "figures.levels.1.used"))
    assert describe(parts / "truth.jsonl").kind == "the targets of a split"
    lists = [list(range(10)), [*range(1, 9), 1, 1]]
    write_json(tmp_path / "mine.json", {"time": 1.5, "top10s": lists, "user": ["a", "b"]})
    told = rows(describe(tmp_path / "mine.json"), "Result", "Lists")
    assert told["lists"] == "2" and told["lists with an item twice"] == "1" and told["zeros (no item)"] == "1"
    write_json(tmp_path / "mine.json", {"time": 1.5, "top10s": lists, "user": None})
    assert rows(describe(tmp_path / "mine.json"), "Result", "Lists")["users"] == "0"


def test_what_is_not_ours_is_named_with_what_to_type(tmp_path, parts):
    table = tmp_path / "events.csv"
    table.write_text("user_id,item_id,timestamp\n1,2,1600000000\n")
    with pytest.raises(InputError, match="onepiece-comp convert table .*events.csv"):
        describe(table)
    with pytest.raises(InputError, match="no such file"):
        describe(tmp_path / "none")
    with pytest.raises(InputError, match="one file of a folder"):
        describe(parts / "train" / "seq.jsonl")
    (tmp_path / "work" / "run").mkdir(parents=True)
    write_json(tmp_path / "work" / "run" / "run.json", {})
    with pytest.raises(InputError, match="describe what lies in it: .*work/run"):
        describe(tmp_path / "work")


def test_the_page_is_whole_and_well_formed_and_needs_nothing_beside_it(raw_log, tmp_path, capsys):
    page = tmp_path / "page.html"
    describe(raw_log, out=page)
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {page}"
    text = page.read_text("utf-8")
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
    tree = ElementTree.fromstring(text)
    plots = [one.get("aria-label") for one in tree.iter("{http://www.w3.org/2000/svg}svg")]
    assert len(plots) == 6 and "Item popularity by rank" in plots and "<script" not in text
    titles = [one.text for one in tree.iter("{http://www.w3.org/1999/xhtml}caption")]
    assert "Counts" in titles and "Distributions" in titles


def test_without_matplotlib_the_page_has_its_tables_and_says_so(raw_log, tmp_path, monkeypatch, capsys):
    for module in (report_html, stage):
        monkeypatch.setattr(module, "can_plot", lambda: False)
    page = tmp_path / "page.html"
    describe(raw_log, out=page)
    assert "without plots" in capsys.readouterr().out.splitlines()[-1]
    text = page.read_text("utf-8")
    assert "need matplotlib" in text and "<svg" not in text and "Distributions" in text
    ElementTree.fromstring(text)


def test_a_log_without_events_and_one_with_values_that_no_index_knows_are_described(tmp_path):
    nothing = [line._replace(events=[]) for line in clean_lines()]
    assert rows(describe(write(tmp_path / "nothing", nothing)), "Log", "Counts") == {"users": 12, "events": 0}
    folder = write(tmp_path / "raw", clean_lines())
    path = folder / "seq.jsonl"
    path.write_text(path.read_text().replace('{"103": 1}', '{"103": 9, "777": 1}'))
    (folder / "seq_offsets.pkl").unlink()
    lines = warnings_of(folder)
    assert any(line.startswith("8 times a value outside the vocabulary") for line in lines), lines


def test_the_command_writes_a_page_and_refuses_what_it_does_not_know(raw_log, tmp_path):
    run = lambda *words: subprocess.run(
        [sys.executable, "-m", "onepiece_comp", "describe", *map(str, words)], capture_output=True, text=True, cwd=ROOT)
    done, refused = run(raw_log, "--out", tmp_path / "page.html"), run(tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == f"wrote {tmp_path / 'page.html'}", done.stderr
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr


def test_the_real_sample_has_the_figures_that_were_counted_otherwise(data_dir):
    found = describe(data_dir / "tencentgr_1k_sample")
    counts = rows(found, "Log", "Counts")
    assert (counts["users"], counts["events"], counts["items with events"]) == ("88", "7,956", "7,500")
    assert counts["items numbered"] == "58,734" and counts["exposures"] == f"{100 * 6939 / 7956:.1f} %"
    assert counts["null actions"] == f"{100 * 103 / 7956:.1f} %"
    assert rows(found, "Coverage", "Item features, of the items with events")["115"] == "22.8 %"
    lines = [one.line() for one in found.warned]
    assert any("feature 111" in line for line in lines) and any("profile record of 82" in line for line in lines)
