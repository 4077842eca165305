"""Ablation ladders: every row under one split, the best under more seeds, resumed where they stopped,
errors that name the place.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from onepiece_comp.errors import InputError
from onepiece_comp.studies import ablation
from onepiece_comp.studies.ablation import ablate, read_ladder

COMMON = """
config:
  model: {width: 16, feature_width: 4, id_width: 4, embedding_width: 4, expert_width: 8}
  train: {epochs: 1, sampled_negatives: 30, validation_users: 10, checkpoints: 1, threads: 1}
  infer: {threads: 1}
  split: {auto_cut: 0.7}
  score: {resamples: 50}
rows:
"""
ROWS = "  whole: {note: all of it}\n  no experts: {model: {experts: 0}}\n  ids: {joint: true}\n"


def ladder(folder, rows=ROWS, head=COMMON):
    path = folder / "ladder.yaml"
    path.write_text(head + rows)
    return path


@pytest.fixture(scope="module")
def done(raw_log, tmp_path_factory):
    """A finished ladder: three rows, and two of them under a second seed."""
    place = tmp_path_factory.mktemp("ablation")
    ablate(ladder(place), raw_log, place / "work", seeds=2, best=1)
    return place


def figures(place):
    return json.loads((place / "work" / "ablation.json").read_text())["rows"]


def test_every_row_runs_and_the_best_by_validation_run_again(done):
    found = figures(done)
    other = max(("no experts", "ids"), key=lambda name: found[f"{name}, seed 0"]["valid"])
    assert set(found) == {"whole, seed 0", "no experts, seed 0", "ids, seed 0", "whole, seed 1", f"{other}, seed 1"}
    for name, value in found.items():
        assert value["score"] == pytest.approx(0.31 * value["hr"] + 0.69 * value["ndcg"])
        assert (value["difference"] is None) == name.startswith("whole")
        if value["difference"]:
            mean, low, high = value["difference"]
            assert (low <= mean <= high
                    and mean == pytest.approx(value["score"] - found[f"whole, seed {name[-1]}"]["score"]))
    page = (done / "work" / "ablation.html").read_text()
    assert "no experts" in page and "not run" not in page
    table = [line.split(" | ") for line in (done / "work" / "ablation.md").read_text().splitlines()[2:]]
    assert [cells[0] for cells in table] == ["| whole", "| no experts", "| ids"]
    assert table[0][-1] == "all of it |"


def test_rows_that_differ_in_ranking_or_ids_alone_share_what_is_trained_before(done, raw_log, capsys):
    capsys.readouterr()
    runs = done / "work" / "runs"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("run.json")}
    trained_apart = [name for name in figures(done) if not name.startswith("ids")]
    assert len([path for path in before if path.parent.name == "retrieval"]) == len(trained_apart)
    ablate(ladder(done, ROWS + "  seen kept: {infer: {filter_seen: false}}\n"), raw_log, done / "work", seeds=1)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("==")] == ["== seen kept, seed 0"]
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("run.json")} == before
    assert figures(done)["seen kept, seed 0"]["hr"] != figures(done)["whole, seed 0"]["hr"]


def test_a_second_call_runs_what_is_missing_and_what_has_changed(done, raw_log, capsys):
    capsys.readouterr()
    ablate(ladder(done), raw_log, done / "work", seeds=2, best=1)
    assert "==" not in capsys.readouterr().out
    ablate(ladder(done, ROWS.replace("experts: 0", "experts: 2") + "  wide: {model: {width: 24}}\n"), raw_log,
           done / "work", seeds=1)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("==")]
    assert printed == ["== no experts, seed 0", "== wide, seed 0"]


def test_another_split_or_another_log_is_prepared_anew(raw_log, tmp_path, capsys):
    made = lambda: (tmp_path / "work" / "split" / "truth.jsonl").stat().st_mtime_ns
    ablate(ladder(tmp_path), raw_log, tmp_path / "work", hours=0.0)
    first = made()
    ablate(ladder(tmp_path), raw_log, tmp_path / "work", hours=0.0)
    assert made() == first
    ablate(ladder(tmp_path, head=COMMON.replace("auto_cut: 0.7", "auto_cut: 0.5")), raw_log, tmp_path / "work",
           hours=0.0)
    second = made()
    assert second > first
    other = Path(shutil.copytree(raw_log, tmp_path / "other"))
    with open(other / "item_feat_dict.json", "a", encoding="utf-8") as file:
        file.write("\n")
    ablate(ladder(tmp_path, head=COMMON.replace("auto_cut: 0.7", "auto_cut: 0.5")), other, tmp_path / "work", hours=0.0)
    assert made() > second


def test_what_does_not_fit_the_hours_is_not_run(raw_log, tmp_path, capsys):
    page = ablate(ladder(tmp_path), raw_log, tmp_path / "work", hours=0.0)
    assert figures(tmp_path) == {} and page.read_text().count("not run") >= 3
    assert "not run" in capsys.readouterr().out


@pytest.mark.parametrize("head, rows, match", [
    (COMMON, "  a: {model: {widht: 3}}\n", "rows.a.model.widht.*'width'"),
    (COMMON, "  a: {split: {auto_cut: 0.5}}\n", "rows.a: found the section split.*under config"),
    (COMMON, "  a: {joint: 3}\n", "rows.a: .*joint: true or false"),
    (COMMON, "  a b: {}\n  A-b: {}\n", "two rows of nearly the same name"),
    ("rows: {}\n", "", "found no rows"),
    ("config: {}\n", "", "found no rows"),
    ("rwos: {}\nrows:\n", ROWS, "the key 'rwos'"),
    ("preset: huge\nrows:\n", ROWS, "'huge'"),
    ("config: {model: 3}\nrows:\n", ROWS, "config.model.*found '?3"),
    ("config: 3\nrows:\n", ROWS, "config: found 3"),
    ("preset: [tiny]\nrows:\n", ROWS, "--preset"),
    (COMMON, "  a: 3\n", "rows.a: found 3"),
    (COMMON, "  a: {train: {batch_users: 0}}\n", "rows.a.train.batch_users: found 0"),
])
def test_a_ladder_with_an_error_is_refused_with_its_place(tmp_path, head, rows, match):
    with pytest.raises(InputError, match=match):
        read_ladder(ladder(tmp_path, rows, head))


def test_the_ladder_of_the_repository_is_read():
    from command_line import ROOT

    rows = read_ladder(ROOT / "benchmarks" / "ladder.yaml")
    assert rows[0].name == "the recipe" and all(row.config != rows[0].config or row.joint for row in rows[1:])


def test_a_row_may_start_from_another_preset_and_takes_the_settings_for_all(tmp_path):
    rows = read_ladder(ladder(tmp_path, ROWS + "  theirs: {preset: official-baseline, model: {layers: 2}}\n"))
    assert [row.config.train.loss for row in rows] == ["info_nce"] * 3 + ["bce"]
    assert rows[3].config.model.width == 16 and rows[3].config.model.layers == 2 and not rows[3].config.train.muon


def test_a_row_whose_loss_comes_apart_is_a_finding_and_the_others_run(raw_log, tmp_path, capsys):
    wild = "  wild: {train: {learning_rate: 1.0e+30, muon_learning_rate: 1.0e+30}}\n"
    for times in range(2):
        page = ablate(ladder(tmp_path, "  whole: {}\n" + wild + "  no experts: {model: {experts: 0}}\n"), raw_log,
                      tmp_path / "work", seeds=1)
        assert (set(figures(tmp_path)) == {"whole, seed 0", "no experts, seed 0"}
                and page.read_text().count("diverged") >= 4)
        assert ("== wild" in capsys.readouterr().out) == (times == 0)
    with pytest.raises(InputError, match="the .* is nan"):  # there is nothing to compare with
        ablate(ladder(tmp_path, wild + "  whole: {}\n"), raw_log, tmp_path / "work", seeds=1)


@pytest.mark.parametrize("change", ["joint", "version"])
def test_differences_to_a_first_row_that_is_another_now_are_made_anew(raw_log, tmp_path, capsys, monkeypatch, change):
    ablate(ladder(tmp_path, "  first: {}\n  no experts: {model: {experts: 0}}\n"), raw_log, tmp_path / "work", seeds=1)
    capsys.readouterr()
    if change == "version":
        monkeypatch.setattr(ablation, "__version__", "9.9")
    ablate(ladder(tmp_path, "  first: {joint: %s}\n  no experts: {model: {experts: 0}}\n" % str(change
        == "joint").lower()), raw_log,
           tmp_path / "work", seeds=1)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("==")]
    assert printed == ["== first, seed 0", "== no experts, seed 0"]


def test_the_plot_has_a_place_for_rows_that_were_not_run(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(ablation, "write_report", lambda path, title, sections: drawn.extend(sections[0].parts) or path)
    rows = read_ladder(ladder(tmp_path, "  a: {}\n  b: {}\n  c: {}\n  d: {}\n"))
    reached = ablation.RowResult(0.1, 0.2, 0.3, 0.4, None, 1.0)
    ablation._report(tmp_path / "ladder.yaml", tmp_path, rows, {("a", 0): reached, ("d", 0): reached})
    plot = drawn[-1]
    assert plot.x.tolist() == [1, 2, 3, 4] and np.isnan(plot.series["score"]).tolist() == [False, True, True, False]
