"""A grid of sizes: every objective judged on users that none has seen, resumed, and what does not fit is not run."""

import json

import numpy as np
import pytest

from onepiece_comp.errors import InputError
from onepiece_comp.preprocess import load_dataset
from onepiece_comp.scaling import keep_users, read_plan, scaling

GRID = """
config:
  model: {width: 16, feature_width: 4, id_width: 4, embedding_width: 4, expert_width: 8, layers: 1}
  train: {epochs: 1, sampled_negatives: 20, checkpoints: 1, threads: 1}
rows:
  narrow: {model: {width: 8}}
  half: {}
scaling: {objectives: [InfoNCE, ids, both], data: {half: 0.5}, negatives: 20, beside: [half]}
"""


def test_a_share_of_the_users_has_their_events_and_all_items(dataset, tmp_path):
    whole = load_dataset(dataset.path)
    part = load_dataset(keep_users(whole.path, tmp_path / "part", np.array([1, 4])))
    for place, user in enumerate((1, 4)):
        inside = slice(whole.user_start[user], whole.user_start[user + 1])
        mine = slice(part.user_start[place], part.user_start[place + 1])
        assert part.item_row[mine].tolist() == whole.item_row[inside].tolist()
    assert part.schema == whole.schema and part.fingerprint != whole.fingerprint and len(part.user_start) == 3


def test_a_grid_goes_on_where_it_stopped_and_judges_each_objective_by_its_own_loss(dataset, tmp_path, capsys):
    place = dataset.path
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)
    page = scaling(grid, place, tmp_path / "out", hours=0.0)
    assert page.read_text().count("not run") == 6 and "==" not in capsys.readouterr().out
    scaling(grid, place, tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "scaling.json").read_text())["rows"]
    assert [(row["retrieval"] is None, row["semantic"] is None, row["score"] is None) for row in rows] == [
        (False, True, False), (True, False, True), (False, False, False)] * 2
    assert rows[0]["dense"] < rows[3]["dense"] and rows[0]["events"] > 1.5 * rows[3]["events"]
    assert all(len(row["codes"]) == 2 and sum(row["codes"]) == pytest.approx(row["semantic"]) for row in rows if row["semantic"])
    assert [row["beside"] for row in rows] == [False] * 3 + [True] * 3
    capsys.readouterr()
    grid.write_text(GRID.replace("width: 8}", "width: 8, layers: 2}"))
    scaling(grid, place, tmp_path / "out")
    printed = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("==")]
    assert printed == ["== narrow, InfoNCE, seed 0", "== narrow, ids, seed 0", "== narrow, both, seed 0"]


@pytest.mark.parametrize("part", ["{objectives: [nce]}", "{seed: 1}"])
def test_a_grid_with_an_error_is_refused_with_its_place(tmp_path, part):
    (tmp_path / "grid.yaml").write_text(f"rows:\n  a: {{}}\nscaling: {part}\n")
    with pytest.raises(InputError, match="grid.yaml: scaling"):
        read_plan(tmp_path / "grid.yaml")
