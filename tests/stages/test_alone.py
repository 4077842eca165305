"""Each stage is a program of its own with the platform's libraries: no typer, no rich, no yaml."""

import json
import sys

import pytest

from command_line import ROOT
from onepiece_comp.container.sandbox import NOT_PROMISED, run_job
from onepiece_comp.errors import InputError
from small_models import TRAIN_SETS


def alone(stage, *words, log):
    """The stage's program, in the checkout; its log as text."""
    command = [sys.executable, "-m", f"onepiece_comp.stages.{stage}", *map(str, words)]
    run_job(command, {}, folder=ROOT, log=log, hidden=(*NOT_PROMISED, "pandas", "pyarrow"))
    return log.read_text()


def sets(*settings):
    return [word for setting in settings for word in ("--set", setting)]


def test_the_stages_of_a_training_and_an_answer_run_one_by_one(parts, tmp_path):
    log, train = tmp_path / "log", sets(*TRAIN_SETS, "train.epochs=1")
    data, retrieval, ids, joint, out = (tmp_path / name for name in ("data", "retrieval", "ids", "joint", "out"))
    alone("preprocess", parts / "train", data, *sets("preprocess.threads=2"), log=log)
    alone("train", data, retrieval, *train, log=log)
    alone("build_tokenizer", data, ids, "--checkpoint", retrieval, *sets("tokenizer.codes=16"), log=log)
    alone("train", data, joint, "--tokenizer", ids, "--warm", retrieval, *train, log=log)
    alone("infer", joint, out, "--data", parts / "eval", "--truth", parts / "truth.jsonl", *sets("infer.threads=1"),
          log=log)
    result = json.loads((out / "result.json").read_text())
    assert len(result["user"]) == len((parts / "truth.jsonl").read_text().splitlines())
    assert "cascade" in json.loads((out / "funnel.json").read_text())["mode"]


@pytest.mark.parametrize("words, said", [
    (["nowhere", "out"], "error: nowhere/seq.jsonl: found no such file"),
    (["a", "b", "--set", "preprocess.x=1"], "unknown key 'x'"),
    (["only"], "the following arguments are required: out"),
    (["a", "b", "--preset", "huge"], "invalid choice: 'huge'")])
def test_bad_words_end_with_one_line_and_two(tmp_path, words, said):
    with pytest.raises(InputError):
        alone("preprocess", *words, log=tmp_path / "log")
    assert said in (tmp_path / "log").read_text() and "Traceback" not in (tmp_path / "log").read_text()
