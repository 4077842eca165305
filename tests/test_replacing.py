"""What a stage did not write is never removed, and what was made of something else is never replaced unasked."""

import json
import shutil
from pathlib import Path

import pytest
from small_models import train_config
from typer.testing import CliRunner

from onepiece_comp.artefacts import MARKERS, atomic_folder, moving_aside, read_json, write_json
from onepiece_comp.cli import app
from onepiece_comp.errors import InputError
from onepiece_comp.stages.train import train


def line(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def make(out: Path, made_of: dict, text: str = "x") -> None:
    with atomic_folder(out, MARKERS["dataset"], made_of) as folder:
        (folder / "column").write_text(text)
        write_json(folder / MARKERS["dataset"], {"text": text})


def dated(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f"{out.name}.20*"))


def test_an_output_is_made_anew_of_the_same_and_nothing_else(tmp_path):
    out = tmp_path / "data"
    make(out, {"seed": 1})
    make(out, {"seed": 1}, "y")
    assert (out / "column").read_text() == "y" and not dated(out)
    with pytest.raises(InputError, match="data: found an output made of something else: seed 1, now 2, .*--force"):
        make(out, {"seed": 2})
    said = []
    with moving_aside(said.append):
        make(out, {"seed": 2}, "z")
    (aside,) = dated(out)
    assert (out / "column").read_text() == "z" and (aside / "column").read_text() == "y" and aside.name in said[0]


@pytest.mark.parametrize("what", ["notes.txt", "train/notes.txt", "empty/", "link"])
def test_an_entry_of_somebody_else_stops_the_stage_and_is_named(tmp_path, what):
    out, mine = tmp_path / "data", tmp_path / "data" / what
    make(out, {"seed": 1})
    mine.parent.mkdir(exist_ok=True)
    if what == "link":
        mine.symlink_to(tmp_path)
    else:
        mine.mkdir() if what.endswith("/") else mine.write_text("a thesis")
    with pytest.raises(InputError, match=f"entries that this stage did not write: "
                                         f".*{what.strip('/').rpartition('/')[2]}.*--force"):
        make(out, {"seed": 1})
    assert mine.exists() or mine.is_symlink()
    with moving_aside(print):
        make(out, {"seed": 1}, "y")
    (aside,) = dated(out)
    assert ((aside / what).exists() or (aside / what).is_symlink()) and not mine.exists()


def test_a_stage_that_fails_moves_nothing_aside(tmp_path):
    out = tmp_path / "data"
    make(out, {"seed": 1})
    with moving_aside(print), pytest.raises(RuntimeError), atomic_folder(out, MARKERS["dataset"], {"seed": 2}):
        raise RuntimeError
    assert (out / "column").is_file() and not dated(out)


def test_an_output_of_an_earlier_version_stays_until_asked(tmp_path):
    out = tmp_path / "data"
    make(out, {"seed": 1})
    marker = read_json(out / MARKERS["dataset"])
    write_json(out / MARKERS["dataset"], {name: value for name, value in marker.items() if name != "wrote"})
    with pytest.raises(InputError, match="does not list its files"):
        make(out, {"seed": 1})


def test_no_option_moves_what_is_no_output(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with moving_aside(print), pytest.raises(InputError, match="did not write"):
        make(tmp_path / "home", {"seed": 1})


def test_a_second_split_into_a_folder_of_work_keeps_what_lies_there(raw_log, tmp_path):
    """`split RAW work` by mistake, where work/ has columns and notes by now."""
    work = tmp_path / "work"
    line("split", raw_log, work, "--set", "split.auto_cut=0.7")
    line("split", raw_log, work, "--set", "split.auto_cut=0.7")  # the same again
    line("preprocess", work / "train", work / "dataset")
    (work / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="work: found entries that this stage did not write: dataset, dataset/"):
        line("split", raw_log, work, "--set", "split.auto_cut=0.7")
    assert (work / "dataset" / "schema.json").is_file() and (work / "notes.txt").read_text() == "mine"
    told = line("split", raw_log, work, "--set", "split.auto_cut=0.8", "--force")
    (aside,) = dated(work)
    assert f"moved aside to {aside.name}" in told and (aside / "notes.txt").read_text() == "mine"
    assert (aside / "dataset" / "schema.json").is_file() and not (work / "dataset").exists()


def test_columns_and_logs_of_other_settings_are_not_replaced_unasked(raw_log, tmp_path):
    data, raw = tmp_path / "data", tmp_path / "raw"
    line("preprocess", raw_log, data)
    # what cannot change it
    line("preprocess", raw_log, data, "--set", "preprocess.threads=1", "--set", "preprocess.reader=plain")
    with pytest.raises(InputError, match="data: found an output made of something else: max_array_values 16, now 4"):
        line("preprocess", raw_log, data, "--set", "preprocess.max_array_values=4")
    other = Path(shutil.copytree(raw_log, tmp_path / "other"))
    with pytest.raises(InputError, match="made of something else: train .*now .*other"):
        line("preprocess", other, data)
    for day in (1, 2):
        (tmp_path / f"{day}.txt").write_text("1 5 6\n" + "2 5\n" * (day - 1))
    line("convert", "sequences", tmp_path / "1.txt", raw)
    with pytest.raises(InputError, match='made of something else: clicks 2, now 3; events 2, now 3; users 1, now 2'):
        line("convert", "sequences", tmp_path / "2.txt", raw)
    line("convert", "sequences", tmp_path / "2.txt", raw, "--force")
    assert len(dated(raw)) == 1 and json.loads((raw / "raw.json").read_text())["figures"]["events"] == 3


def test_a_training_run_moves_aside_on_request_alone(dataset, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="--force, which moves this one aside"):
        train(dataset.path, run, train_config("train.epochs=1"))
    with moving_aside(print):
        train(dataset.path, run, train_config("train.epochs=1"))
    assert (dated(run)[0] / "notes.txt").read_text() == "mine" and (run / "run.json").is_file()
