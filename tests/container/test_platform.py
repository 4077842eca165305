"""Upload folders, and the jobs as the platform runs them: its environment variables only, no network, its libraries."""

import json
import re
import subprocess
import sys
import time

import pytest

from onepiece_comp.config import SplitConfig
from onepiece_comp.config_reading import load_config
from onepiece_comp.container import sandbox
from onepiece_comp.container.jobs import frozen_config
from onepiece_comp.container.pack import pack, rehearse_packed, shrunk
from onepiece_comp.container.rehearse import (
    Limits, _claim, check_result, evaluation_job_of, rehearse, release, training_job_of)
from onepiece_comp.container.sandbox import NOT_PROMISED, run_job
from onepiece_comp.container.upload import check_upload, warnings, write_upload
from onepiece_comp.errors import InputError
from onepiece_comp.presets import PRESETS

SETS = ["model.width=16", "model.layers=1", "model.feature_width=4", "model.id_width=4", "model.embedding_width=4",
        "model.expert_width=8", "train.epochs=1", "train.sampled_negatives=16", "train.validation_users=5",
        "train.threads=1", "infer.threads=1", "train.checkpoints=1"]


def _rehearsed(raw, place, *sets, flat, hidden):
    folder = write_upload(place / "pack", load_config("tiny", None, [*SETS, *sets]), preset="tiny", flat=flat)
    splitting = SplitConfig(auto_cut=0.7, action_types=True)
    rehearse(raw, place / "out", folder, limits=Limits(minutes=10, hidden=hidden), splitting=splitting)
    assert json.loads((place / "out" / "score.json").read_text())["missing_users"] == 0
    return place / "out"


def _steps(out):
    return [json.loads(line) for line in (out / "log" / "train.log").read_text().splitlines()]


def test_both_jobs_run_from_packed_folders_with_the_promised_libraries_alone(raw_log, tmp_path):
    out = _rehearsed(raw_log, tmp_path, flat=False, hidden=NOT_PROMISED)
    steps = _steps(out)
    assert [step["global_step"] for step in steps] == list(range(1, len(steps) + 1)) and len(steps) > 2
    assert all(set(step) == {"global_step", "loss", "epoch", "time"} for step in steps)
    assert [path.name for path in (out / "result").iterdir()] == ["result.json"]
    assert len(json.loads((out / "result" / "result.json").read_text())["user"]) > 10


def test_so_they_do_flat_without_numba_and_with_two_replicas(raw_log, tmp_path):
    out = _rehearsed(raw_log, tmp_path, "train.replicas=2", "train.batch_users=8", flat=True,
                     hidden=(*NOT_PROMISED, "numba"))
    assert not [path for path in (tmp_path / "pack" / "training").iterdir() if path.is_dir()
                and path.name != "__pycache__"]
    config = next((out / "cache").glob("onepiece-joint-*/config.json"))
    assert json.loads(config.read_text())["batches_per_step"] == 2


def test_what_is_hidden_can_be_neither_found_nor_imported(tmp_path):
    code = ("import importlib.util as u\nassert u.find_spec('numpy') is None and u.find_spec('json')\n"
            "try:\n    import numpy\nexcept ImportError:\n    print('hidden')")
    run_job([sys.executable, "-c", code], {}, folder=tmp_path, log=tmp_path / "log", hidden=("numpy",))
    assert (tmp_path / "log").read_text() == "hidden\n"


@pytest.mark.parametrize("namespace", [True, False], ids=["namespace", "hook"])
def test_a_job_has_no_network_and_only_the_platforms_variables(tmp_path, monkeypatch, namespace):
    if not namespace:
        monkeypatch.setattr(sandbox, "network_namespace", lambda: ())
    elif not sandbox.network_namespace():
        pytest.skip("this machine permits no network namespace")
    monkeypatch.setenv("SECRET_OF_MINE", "1")
    code = ("import os, socket\nassert 'SECRET_OF_MINE' not in os.environ and os.environ['TRAIN_DATA_PATH'] == 'x'\n"
            "listener = socket.socket()\n"
            "try:\n    listener.bind(('127.0.0.1', 0))\n    listener.listen()\n"
            "    socket.create_connection(listener.getsockname(), 2)\nexcept OSError as error:\n    print(error.errno)")
    ended = run_job([sys.executable, "-c", code], {"TRAIN_DATA_PATH": "x"}, folder=tmp_path, log=tmp_path / "log")
    assert (tmp_path / "log").read_text() == "101\n" and ("namespace" in ended.network) == namespace


def test_a_job_that_fails_or_takes_too_long_is_named_with_its_last_line(tmp_path):
    with pytest.raises(InputError, match="ended with 3 \\(no card\\)"):
        run_job(["bash", "-c", "echo no card; exit 3"], {}, folder=tmp_path, log=tmp_path / "log")
    with pytest.raises(InputError, match="not done after"):
        run_job(["sleep", "60"], {}, folder=tmp_path, log=tmp_path / "log", minutes=0.005)


def test_a_rehearsal_never_removes_its_log_its_pack_or_what_it_did_not_write(tmp_path):
    raw, out = tmp_path / "w" / "raw", tmp_path / "w"
    raw.mkdir(parents=True)
    for path in (raw / "seq.jsonl", out / "training.log", out / "mine"):
        path.write_text("x")
    for log, pack in ((raw, tmp_path / "pack"), (tmp_path, raw), (tmp_path / "nowhere", tmp_path / "pack")):
        with pytest.raises(InputError):
            _claim(out, log, pack)
    assert (raw / "seq.jsonl").is_file() and (out / "training.log").is_file()
    other = tmp_path / "log"
    other.mkdir()
    (other / "seq.jsonl").write_text("x")
    (out / "cache").mkdir()
    _claim(out, other, tmp_path / "pack", keep=("cache",))
    left = {path.name for path in out.iterdir()}
    assert left == {"mine", "raw", "cache"} and (raw / "seq.jsonl").is_file()


def test_nothing_that_a_job_started_outlives_it(tmp_path):
    code = f"(sleep 3; touch {tmp_path}/later) & echo done"
    run_job(["bash", "-c", code], {}, folder=tmp_path, log=tmp_path / "log")
    time.sleep(3.5)
    assert (tmp_path / "log").read_text() == "done\n" and not (tmp_path / "later").exists()


def _answering(tmp_path, text):
    (tmp_path / "scripts").mkdir(exist_ok=True)
    (tmp_path / "scripts" / "infer.py").write_text(f"import os\n{text}")
    evaluation_job_of(tmp_path / "scripts", tmp_path, tmp_path, tmp_path, Limits(minutes=1))
    return tmp_path / "result" / "result.json", tmp_path / "evaluation.log"


def test_the_driver_keeps_the_result_alone_and_warns_under_ten(tmp_path):
    text = ("def infer():\n    open(os.path.join(os.environ['EVAL_RESULT_PATH'], 'scratch'), 'w')\n"
            "    return [list(range(10)), [1, 2]], ['a', 'b']")
    result, log = _answering(tmp_path, text)
    assert [path.name for path in result.parent.iterdir()] == ["result.json"] and "warning: 1 users" in log.read_text()
    assert json.loads(result.read_text())["user"] == ["a", "b"]
    with pytest.raises(InputError, match="1 of 2 users"):
        check_result(result, log)


def test_numbers_that_json_cannot_write_end_the_evaluation(tmp_path):
    with pytest.raises(InputError, match="not JSON serializable"):
        _answering(tmp_path, "import numpy\ndef infer():\n    return [list(numpy.arange(10))], ['a']")


@pytest.mark.parametrize("job, places", [(training_job_of, 3), (evaluation_job_of, 4)], ids=["training", "evaluation"])
def test_a_cache_beyond_its_quota_ends_the_rehearsal_after_either_job(tmp_path, job, places):
    filling = "open(os.path.join(os.environ['USER_CACHE_PATH'], 'x'), 'wb').write(bytes(2000))"
    (tmp_path / "run.sh").write_text(f'python3 -c "import os; {filling}"')
    (tmp_path / "infer.py").write_text(f"import os\ndef infer():\n    {filling}\n    return [], []")
    (tmp_path / "cache").mkdir()
    with pytest.raises(InputError, match="GiB after the"):
        job(*[tmp_path] * places, Limits(minutes=1, cache_gib=1e-6))


@pytest.mark.parametrize("name", ["global_step5.score=0.1 (best)", "step5", "global_step5,x"])
def test_only_checkpoints_of_names_that_the_platform_accepts_are_released(tmp_path, name):
    (tmp_path / "ckpt" / name).mkdir(parents=True)
    (tmp_path / "ckpt" / name / "model.pt").write_text("")
    with pytest.raises(InputError, match=re.escape(name)):
        release(tmp_path / "ckpt", tmp_path / "released")
    (tmp_path / "ckpt" / "global_step6.lr=0.1-a_b").mkdir()
    (tmp_path / "ckpt" / "global_step6.lr=0.1-a_b" / "model.pt").write_text("")
    assert release(tmp_path / "ckpt", tmp_path / "released").name == "global_step6.lr=0.1-a_b"


@pytest.mark.parametrize("preset", PRESETS)
def test_the_frozen_configuration_is_the_chosen_one_whatever_the_defaults_become(tmp_path, preset):
    config = load_config(preset, None, ["train.epochs=7"])
    folder = write_upload(tmp_path / "pack", config, preset=preset)
    assert frozen_config(folder / "training") == (config, 20.0)
    assert json.loads((folder / "training" / "config.json").read_text())["model"]["width"] == config.model.width


def test_a_changed_file_is_no_longer_the_pack(tmp_path):
    folder = pack(tmp_path / "pack", load_config("tiny"), preset="tiny", check=False)
    stored = json.loads((folder / "pack.json").read_text())
    check_upload(folder, stored)
    with open(folder / "evaluation" / "onepiece_comp" / "beam.py", "a") as file:
        file.write("# later")
    with pytest.raises(InputError, match="beam.py"):
        check_upload(folder, stored)


def test_averaged_weights_and_processes_that_talk_are_warned_of():
    assert not warnings(load_config("base"))
    found = warnings(load_config("base", None, ["train.average=0.99", "preprocess.engine=dask"]))
    assert len(found) == 2 and "average" in found[0] and "TCP" in found[1]


def test_a_configuration_is_tried_out_small_but_with_its_own_switches():
    small = shrunk(load_config("onepiece-paper"))
    assert small.model.width == 16 and len(small.model.hash_sizes) == 2 and max(small.model.hash_sizes) < 200
    assert small.tokenizer.resolve == "greedy" and small.train.positive_logq and small.infer.filter_cold


@pytest.mark.parametrize("stored, told", [
    ({"train": {"batch_users": 0}}, "train.batch_users"), ({"model": {"width": 16, "heads": 3}}, "model.heads"),
    ({"cache_gib": "20GiB"}, "cache_gib"), ({"cache_gib": -5}, "cache_gib"), ({"preset": ["small"]}, "preset"),
    ([1], "an object")])
def test_a_frozen_configuration_that_was_edited_wrongly_is_refused(tmp_path, stored, told):
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=told):
        frozen_config(tmp_path)


def test_a_training_job_with_a_wrong_configuration_ends_with_one_line(tmp_path):
    folder = write_upload(tmp_path / "pack", load_config("tiny"), preset="tiny") / "training"
    (folder / "config.json").write_text('{"train": {"batch_users": 0}}')
    done = subprocess.run([sys.executable, folder / "train.py"], capture_output=True, text=True)
    assert (done.returncode == 2 and done.stderr.startswith("error: train.batch_users")
            and "Traceback" not in done.stderr)


def test_settings_beside_a_pack_are_refused_unless_the_rehearsal_reads_them(tmp_path):
    config = load_config("tiny", None, ["train.epochs=7", "score.resamples=50"])
    with pytest.raises(InputError, match="other settings of train beside it"):
        rehearse_packed(tmp_path / "raw", tmp_path / "out", config, pack=tmp_path / "pack", preset="tiny",
                        limits=Limits())


def test_a_ranker_is_said_to_have_no_effect_on_the_platform():
    assert any("ranker.use" in line for line in warnings(load_config("tiny", None, ["ranker.use=true"])))
    assert not any("ranker.use" in line for line in warnings(load_config("tiny")))
