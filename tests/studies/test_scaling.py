"""A grid of sizes: every objective judged on users that none has seen, resumed, and what does not fit is not run."""

import json

import numpy as np
import pytest

from onepiece_comp.artefacts import moving_aside
from onepiece_comp.columns import load_column
from onepiece_comp.config import TokenizerConfig
from onepiece_comp.dataset.preprocess import load_dataset
from onepiece_comp.errors import InputError
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.studies.ablation import read_ladder
from onepiece_comp.studies.scaling import _Planner, batches_of, keep_ids, keep_users, scaling
from onepiece_comp.studies.scaling_plan import Cell, read_plan, settings_of
from onepiece_comp.studies.scaling_sections import _frontier
from onepiece_comp.training.arithmetic import forward_work, shape_of

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
    assert all(len(row["codes"]) == 2 and sum(row["codes"]) == pytest.approx(row["semantic"]) for row in rows
               if row["semantic"])
    assert [row["beside"] for row in rows] == [False] * 3 + [True] * 3
    capsys.readouterr()
    grid.write_text(GRID.replace("width: 8}", "width: 8, layers: 2}"))
    scaling(grid, place, tmp_path / "out")
    printed = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("==")]
    assert printed == ["== narrow, InfoNCE, seed 0", "== narrow, ids, seed 0", "== narrow, both, seed 0"]


def test_a_training_costs_what_all_its_batches_cost(dataset, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.replace("checkpoints: 1,", "checkpoints: 1, batch_users: 3,"))
    row = read_ladder(grid, also=("scaling",))[0]
    cell = Cell(row, "InfoNCE", 0, 1.0)
    config, held = settings_of(cell), load_dataset(dataset.path)
    model = OnePiece(config.model, held.schema)
    shapes = [shape_of(batch) for batch in batches_of(held, config, None, negatives=20, users=3).epoch(0)]
    works = [forward_work(model, shape, semantic=False).training_flops for shape in shapes]
    assert max(works) > 1.5 * min(works)  # no one of them stands for all
    flops, events = _Planner(tmp_path).planned(config, cell, dataset.path)
    assert flops == pytest.approx(sum(works)) and events == sum(shape.rows for shape in shapes)


@moving_aside(print)
def test_users_and_ids_of_other_settings_are_made_anew(dataset, tmp_path, capsys):
    made = lambda path: path.stat().st_mtime_ns
    first = keep_users(dataset.path, tmp_path / "part", np.array([1, 4])) / "schema.json"
    before = made(first)
    assert made(keep_users(dataset.path, tmp_path / "part", np.array([1, 4])) / "schema.json") == before
    keep_users(dataset.path, tmp_path / "part", np.array([1, 5]))
    assert made(first) > before
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(len(load_column(dataset.path,
        "creative_id")), 4)).astype(np.float32))
    marker, config = tmp_path / "ids" / "tokenizer.json", TokenizerConfig()
    ids = lambda *asked: (keep_ids(dataset.path, tmp_path / "ids", *asked), made(marker))[1]
    vectors = str(tmp_path / "vectors.npy")
    times = [ids(config, vectors), ids(config, vectors), ids(TokenizerConfig(seed=1), vectors)]
    assert times[0] == times[1] < times[2]
    np.save(tmp_path / "vectors.npy", np.load(tmp_path / "vectors.npy") * 2)  # other vectors in the same file
    again = ids(TokenizerConfig(seed=1), vectors)
    assert again > times[2]
    # the same vectors, of items named now
    np.save(tmp_path / "vectors_ids.npy", load_column(dataset.path, "creative_id"))
    assert ids(TokenizerConfig(seed=1), vectors) > again


def test_the_frontier_is_of_means_over_seeds():
    row = lambda name, flops, loss: {"row": name, "flops": flops, "retrieval": loss, "semantic": None, "codes": []}
    rows = [row("small", 1.0, 6.0), row("small", 1.0, 8.0), row("middle", 2.0, 6.5), row("large", 3.0, 6.6)]
    assert [(one["row"], loss) for one, loss in _frontier(rows, "InfoNCE")] == [("small", 7.0), ("middle", 6.5)]


@pytest.mark.parametrize("part", ["{objectives: [nce]}", "{seed: 1}", "{seeds: '2'}", "{seeds: 0}", "{data: {b: 0.5}}",
                                  "{data: {a: 2}}",
                                  "{beside: [b]}", "{held_out: 1.0}", "[a]", "{objectives: [[InfoNCE]]}",
                                  "{beside: [[a]]}", "{beside: [{a: 1}]}"])
def test_a_grid_with_an_error_is_refused_with_its_place(tmp_path, part):
    (tmp_path / "grid.yaml").write_text(f"rows:\n  a: {{}}\nscaling: {part}\n")
    with pytest.raises(InputError, match="grid.yaml: scaling"):
        read_plan(tmp_path / "grid.yaml")


def test_a_cell_whose_loss_comes_apart_is_a_finding_and_the_others_run(dataset, tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.replace("narrow: {model: {width: 8}}",
                                 "wild: {train: {learning_rate: 1.0e+30, muon_learning_rate: 1.0e+30}}"
                                 ).replace("[InfoNCE, ids, both]", "[InfoNCE]"))
    for times in range(2):
        page = scaling(grid, dataset.path, tmp_path / "out")
        assert page.read_text().count("diverged") == 1 and "Alone and together" not in page.read_text()
        assert [row["row"] for row in json.loads((tmp_path / "out" / "scaling.json").read_text())["rows"]] == ["half"]
        assert ("== wild" in capsys.readouterr().out) == (times == 0)


def test_a_grid_of_infonce_alone_needs_no_vectors_for_ids(dataset, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.replace("[InfoNCE, ids, both]", "[InfoNCE], vectors: none-such").replace("half: {}",
        "half: {}\n  both: {}"))
    page = scaling(grid, dataset.path, tmp_path / "out", hours=0.0)
    assert page.read_text().count("not run") == 3


def test_rows_named_by_numbers_keep_their_share_and_their_place_beside(tmp_path):
    (tmp_path / "grid.yaml").write_text("rows: {64: {}, 128: {}}\nscaling: {data: {128: 0.5}, beside: [128]}\n")
    plan = read_plan(tmp_path / "grid.yaml")
    assert plan.data == {"128": 0.5} and plan.beside == ("128",)


def test_a_dataset_without_users_to_train_on_is_refused(dataset, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.replace("negatives: 20, beside", "negatives: 20, held_out: 0.999, beside"))
    with pytest.raises(InputError, match="held out"):
        scaling(grid, dataset.path, tmp_path / "out")


def test_the_step_size_of_adamw_falls_with_the_root_of_the_width(tmp_path):
    """A row of four times the width of 64 steps half as far, one of a quarter twice; Muon scales its steps itself."""
    (tmp_path / "grid.yaml").write_text("config: {train: {learning_rate: 0.002, muon_learning_rate: 0.02}}\nrows:\n"
                                        + "".join(f"  w{width}: {{model: {{width: {width}}}}}\n" for width in (16, 64,
                                            256)))
    found = {row.name: settings_of(Cell(row, "InfoNCE", 0, 1.0)).train for row in read_ladder(tmp_path / "grid.yaml")}
    assert [found[f"w{width}"].learning_rate for width in (16, 64, 256)] == pytest.approx([0.004, 0.002, 0.001])
    assert {train.muon_learning_rate for train in found.values()} == {0.02}
