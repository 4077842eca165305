"""The command line as a new user meets it: help with examples, clear errors with exit code 2, nothing left behind."""

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import COMMANDS, ROOT, command, refused

from onepiece_comp import cli
from onepiece_comp.artefacts import atomic_folder
from onepiece_comp.config import InferConfig
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.errors import InputError
from onepiece_comp.logs.features import Schema

def test_help_lists_every_command():
    done = command("--help")
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_shows_an_example_that_names_itself(name):
    done = command(name, "--help")
    assert done.returncode == 0 and f"Example: onepiece-comp {name}" in " ".join(done.stdout.split())


def test_the_doctor_tells_the_machine_and_refuses_a_folder_that_is_no_data(tmp_path):
    whole = command("doctor")
    assert whole.returncode == 0 and "torch" in whole.stdout and "USER_CACHE_PATH" in whole.stdout
    (tmp_path / "predict_seq.jsonl").write_text("")
    for folder, word in ((tmp_path / "nowhere", "nowhere"), (tmp_path, "predict_set.jsonl")):
        done = command("doctor", folder)
        refused(done, word)
        assert "not recognised" in done.stdout and "torch" in done.stdout


def _spoil_line(path, number, change):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = change(lines[number - 1])
    path.write_bytes(b"".join(lines))
    path.with_name("seq_offsets.pkl").unlink(missing_ok=True)


def _five_fields(line):
    records = json.loads(line)
    records[0].pop()
    return json.dumps(records).encode() + b"\n"


def test_a_missing_folder_and_a_wrong_one(tmp_path, dataset):
    refused(command("preprocess", tmp_path / "none", tmp_path / "out"), "no such file", "seq.jsonl")
    refused(command("train", tmp_path, tmp_path / "run"), "a dataset folder")
    refused(command("build-tokenizer", tmp_path, tmp_path / "out", "--vectors", "emb_81"), "a dataset folder")
    refused(command("infer", "--ckpt", dataset.path, "--out", tmp_path / "out"), "no checkpoint")
    refused(command("score", tmp_path / "result.json", tmp_path / "truth.jsonl"), "no such file")
    refused(command("run", tmp_path, tmp_path / "work"), "no such file", "seq.jsonl")
    refused(command("convert", "kuairand", tmp_path / "none", tmp_path / "out"))
    refused(command("convert", "netflix", tmp_path, tmp_path / "out"), "netflix")
    refused(command("split", tmp_path, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_line_cut_short(train_files, tmp_path):
    _spoil_line(train_files / "seq.jsonl", 7, lambda line: line[:40])
    refused(command("preprocess", train_files, tmp_path / "out"), "seq.jsonl:7", "no valid JSON")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_record_of_five_fields(train_files, tmp_path):
    _spoil_line(train_files / "seq.jsonl", 3, _five_fields)
    refused(command("preprocess", train_files, tmp_path / "out"), "seq.jsonl:3", "5 fields", "6 (user, item")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_offsets_of_another_file(train_files, tmp_path):
    (train_files / "seq_offsets.pkl").write_bytes(pickle.dumps([0, 5, 9]))
    refused(command("preprocess", train_files, tmp_path / "out"), "seq_offsets.pkl", "3 offsets")


def test_a_pickle_that_names_a_class(train_files, tmp_path):
    (train_files / "indexer.pkl").write_bytes(pickle.dumps(Path("x")))
    refused(command("preprocess", train_files, tmp_path / "out"), "indexer.pkl", "cannot be admitted", "pathlib")


def test_an_embedding_of_another_width(train_files, tmp_path):
    part = train_files / "creative_emb" / "emb_81_8" / "part-00000"
    text = part.read_text()
    part.unlink()  # it is a hard link of the log's own
    part.write_text(text + '{"anonymous_cid": 20000000001, "emb": [1.0, 2.0]}\n')
    refused(command("preprocess", train_files, tmp_path / "out"), "part-00000:81", "width 2", "8")
    assert not (tmp_path / "out").exists()


def test_an_item_outside_the_index(train_files, tmp_path):
    _spoil_line(train_files / "seq.jsonl", 2, lambda line: re.sub(rb"(\[\[\d+, )\d+", rb"\g<1>9999", line, count=1))
    refused(command("preprocess", train_files, tmp_path / "out"), "seq.jsonl:2", "item 9999")


def test_a_folder_of_the_users_own_is_not_replaced(parts, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused(command("preprocess", parts / "train", tmp_path), "did not write")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_full_disk(parts, tmp_path):
    """A file-size limit stands in for a full disk: the write fails in the middle."""
    script = ("import resource, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
              "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
              "sys.argv = ['onepiece-comp', 'preprocess', sys.argv[1], sys.argv[2]]; from onepiece_comp.cli import "
              "main; main()")
    done = subprocess.run([sys.executable, "-c", script, str(parts / "train"), str(tmp_path / "out")],
                          capture_output=True,
                          text=True, cwd=ROOT)
    refused(done, "disk")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_option_names_the_nearest():
    refused(command("train", "a", "b", "--set", "train.epoch=3"), "did you mean 'epochs'")
    refused(command("train", "a", "b", "--preset", "tinny"), "did you mean 'tiny'")


@pytest.fixture()
def eval_files(parts, tmp_path):
    return Path(shutil.copytree(parts / "eval", tmp_path / "eval"))


def _schema(dataset) -> Schema:
    return dataset.schema


def test_a_candidate_set_of_fewer_than_ten(eval_files, dataset):
    path = eval_files / "predict_set.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:9]))
    with pytest.raises(InputError, match="9 distinct candidates, expected at least 10"):
        read_evaluation(eval_files, _schema(dataset))


def test_a_candidate_or_a_user_that_stands_twice(eval_files, dataset):
    for name in ("predict_set.jsonl", "predict_seq.jsonl"):
        path = eval_files / name
        text = path.read_text()
        path.write_text(text + text.splitlines(keepends=True)[0])
        (eval_files / "predict_seq_offsets.pkl").unlink(missing_ok=True)
        with pytest.raises(InputError, match="twice"):
            read_evaluation(eval_files, _schema(dataset))
        path.write_text(text)


def test_an_embedding_that_evaluation_lacks_or_has_in_another_width(eval_files, dataset):
    folder = eval_files / "creative_emb" / "emb_81_8"
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no embedding 81"):
        read_evaluation(eval_files, _schema(dataset))
    folder.mkdir()
    (folder / "part-00000").write_text('{"anonymous_cid": 20000000001, "emb": [1.0, 2.0]}\n')
    with pytest.raises(InputError, match="width 2, expected 8"):
        read_evaluation(eval_files, _schema(dataset))


def test_cold_items_unknown_users_and_text_values_are_read_as_unseen(eval_files, dataset):
    """What the organisers write raw: an item beyond the index, a new user, feature values as text."""
    line = ["user_new", 20_009_999_999, None, {"100": "77"}, 1, 1_746_000_000]
    with open(eval_files / "predict_seq.jsonl", "a") as file:
        file.write(json.dumps([line, ["user_new", None, {"103": "5", "106": ["8", 1]}, None, None,
                                      1_746_000_001]]) + "\n")
    with open(eval_files / "predict_set.jsonl", "a") as file:
        file.write(json.dumps({"creative_id": 20_009_999_999, "retrieval_id": 999,
                               "features": {"100": "77", "101": 1}}) + "\n")
    (eval_files / "predict_seq_offsets.pkl").unlink()
    (eval_files / "user_action_type.json").write_text(json.dumps({"user_new": 2}))
    evaluation = read_evaluation(eval_files, _schema(dataset))
    assert evaluation.users[-1] == "user_new" and evaluation.target_action.tolist()[-1] == 2
    row = evaluation.item[-1]
    assert evaluation.items.creative_id[row] == 20_009_999_999 and evaluation.items.id_row[row] == 0
    assert row == evaluation.candidate[-1] and evaluation.items.features[row].tolist() == [0, 1]
    assert np_tokens(evaluation) == 1  # of three profile values one is known


def test_candidates_whose_features_contradict_the_training_folders_are_told(eval_files, dataset, capsys):
    read_evaluation(eval_files, _schema(dataset))
    assert "other features" not in capsys.readouterr().out
    path = eval_files / "predict_set.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["features"] = {fid: value % 3 + 1 if isinstance(value,
                                                             int) else value for fid, value in line["features"].items()}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read_evaluation(eval_files, _schema(dataset))
    assert "items have other features" in capsys.readouterr().out.replace("\n", " ")


def np_tokens(evaluation):
    return int(evaluation.user_token_start[-1] - evaluation.user_token_start[-2])


def test_item_features_come_from_the_records_where_the_dictionary_is_missing(parts, dataset, tmp_path):
    from onepiece_comp.config import PreprocessConfig
    from onepiece_comp.dataset.preprocess import load_dataset
    from onepiece_comp.stages.preprocess import preprocess
    copy = Path(shutil.copytree(parts / "train", tmp_path / "train"))
    (copy / "item_feat_dict.json").unlink()
    rebuilt = load_dataset(preprocess(copy, tmp_path / "out", PreprocessConfig()))
    assert (rebuilt.items.features == dataset.items.features).all()
    assert json.loads((tmp_path / "out" / "schema.json").read_text())["source"]["notes"]


def test_the_real_samples_corners_are_all_counted(data_dir, tmp_path):
    from onepiece_comp.config import PreprocessConfig
    from onepiece_comp.stages.preprocess import preprocess
    preprocess(data_dir / "tencentgr_1k_sample", tmp_path / "out", PreprocessConfig())
    stored = json.loads((tmp_path / "out" / "schema.json").read_text())
    corners = stored["corners"]
    assert (corners["users"], corners["events"], corners["null actions"]) == (88, 7956, 103)
    placed = {"profile records last": 82, "profile records mid-sequence": 6}
    assert {what: n for what, n in stored["source"]["profile records"].items() if n} == placed
    assert stored["items"] == 58_734
    assert stored["coverage"]["81"] == {"items": 55_289, "missing": 3_445, "records_without_emb": 50}
    assert corners["user: list-valued user feature"] == 159 and corners["items without features"] == 58_734 - 7_500


def test_a_missing_platform_variable_is_named(monkeypatch):
    from onepiece_comp.environment import eval_paths, train_paths
    for name in ("TRAIN_DATA_PATH", "MODEL_OUTPUT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRAIN_CKPT_PATH", "x")
    with pytest.raises(InputError, match="TRAIN_DATA_PATH"):
        train_paths()
    with pytest.raises(InputError, match="MODEL_OUTPUT_PATH"):
        eval_paths()


def test_the_settings_of_inference_come_from_the_checkpoint():
    assert InferConfig().mode == "auto" and InferConfig().filter_seen


def test_an_interrupt_that_is_ignored_stays_ignored(monkeypatch):
    """As in a training that a script started with `&`: Ctrl-C on the script is not for it."""
    seen, before = [], {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(cli, "app", lambda: seen.extend([signal.getsignal(signal.SIGINT),
                                                         signal.getsignal(signal.SIGTERM)]))
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        cli.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [signal.SIG_IGN, cli._stop]


def test_the_folder_one_stands_in_is_told_apart_from_an_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_folder(Path("."), "whole.json") as folder:
        (folder / "whole.json").write_text("{}")
    assert (tmp_path / "whole.json").is_file()
    (tmp_path / "whole.json").rename(tmp_path / "mine.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="did not write"), atomic_folder(Path("."), "whole.json"):
        pass
