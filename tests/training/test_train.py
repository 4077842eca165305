"""Training and inference as stages: the same twice, unbroken by a kill, refused with other data;
checkpoints are whole.
"""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killed import killed_before_it_was_whole
from small_models import TRAIN_SETS, train_config

from onepiece_comp.config import InferConfig, PreprocessConfig, TokenizerConfig
from onepiece_comp.config_reading import load_config
from onepiece_comp.errors import InputError, StaleRun
from onepiece_comp.funnel.infer import choose_mode
from onepiece_comp.models.recommender import Losses, OnePiece
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.stages.infer import infer
from onepiece_comp.stages.preprocess import preprocess
from onepiece_comp.stages.train import train
from onepiece_comp.training import loop as training_loop, train as training
from onepiece_comp.training.arithmetic import forward_work, shape_of
from onepiece_comp.training.checkpoint import MODEL, find_checkpoint, load_checkpoint
from onepiece_comp.training.devices import Ranks
from onepiece_comp.training.loop import Loop
from onepiece_comp.training.process import EndAsked
from onepiece_comp.training.run_log import LogInterval
from onepiece_comp.training.validation import Validation
from onepiece_comp.training.weights import load_tensors

def _weights(run):
    return torch.load(find_checkpoint(run) / MODEL, weights_only=True)


def _equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def retrieval(dataset, tmp_path_factory):
    return train(dataset.path, tmp_path_factory.mktemp("runs") / "retrieval", train_config())


@pytest.fixture(scope="module")
def tokenizer(dataset, retrieval):
    return build_tokenizer(dataset.path, retrieval.parent / "tokenizer", TokenizerConfig(), checkpoint=retrieval)


@pytest.fixture(scope="module")
def joint(dataset, retrieval, tokenizer):
    return train(dataset.path, retrieval.parent / "joint", train_config(), tokenizer=tokenizer, warm=retrieval)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(dataset, retrieval, tmp_path):
    assert _equal(_weights(retrieval), _weights(train(dataset.path, tmp_path / "again", train_config())))
    assert not _equal(_weights(retrieval),
                      _weights(train(dataset.path, tmp_path / "other", train_config("train.seed=1"))))


def test_two_threads_give_the_same_weights_twice(dataset, tmp_path):
    """Sums into rows that many positions share must not depend on which thread comes first."""
    runs = [train(dataset.path, tmp_path / name, train_config("train.threads=2", "train.batch_users=64",
                                                              "train.epochs=8",
                                                    "model.similarity_width=256", "model.width=256"))
            for name in ("first", "second")]
    assert _equal(*map(_weights, runs))
    assert not torch.are_deterministic_algorithms_enabled()  # the caller's setting stands again


def test_a_run_explains_itself(retrieval):
    run = json.loads((retrieval / "run.json").read_text())
    assert (retrieval / run["checkpoint"]).is_dir() and run["checkpoint"].startswith("global_step")
    assert set(run["checkpoint"]) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-=.")
    records = [json.loads(line) for line in (retrieval / "log.jsonl").read_text().splitlines()]
    assert records[-1]["global_step"] == run["figures"]["steps"] and any("valid/score" in record for record in records)
    assert json.loads((retrieval / "environment.json").read_text())["torch"] == torch.__version__
    vectors, ids = np.load(retrieval / "item_vectors.npy"), np.load(retrieval / "item_ids.npy")
    assert len(vectors) == len(ids) and np.allclose(np.linalg.norm(vectors[1:], axis=1), 1, atol=1e-5)


def test_a_checkpoint_keeps_how_many_events_of_each_action_were_trained_on(dataset, retrieval):
    """All but those held out: the last positive of each validation user, and what comes after it."""
    kept = load_checkpoint(retrieval, torch.device("cpu")).actions
    every = np.bincount(dataset.action, minlength=4)
    assert all(kept <= every) and 5 <= sum(every) - sum(kept) <= 5 * 15 and kept[1] > 0 == kept[2]


def test_the_loss_falls(retrieval):
    losses = [json.loads(line)["Loss/retrieval"] for line in (retrieval / "log.jsonl").read_text().splitlines()
              if "Loss/" in line]
    assert losses[-1] < losses[0] - 0.2


def test_the_log_counts_the_codes_that_were_no_target_yet(joint, tokenizer):
    """By hand over the log: in the end those whose items no training user met are left."""
    lines = [json.loads(line) for line in (joint / "log.jsonl").read_text().splitlines()]
    dead = [line["dead_codes/level_0"] for line in lines if "dead_codes/level_0" in line]
    used = len(np.unique(np.load(tokenizer / "codes.npy")[1:, 0]))
    assert dead == sorted(dead, reverse=True) and used > dead[0] > dead[-1]


def test_the_log_tells_the_work_of_its_steps_and_its_share_of_a_known_peak(dataset, retrieval, tmp_path):
    model = load_checkpoint(retrieval, torch.device("cpu")).model
    loop = Loop(model, dataset, tmp_path, train_config(), torch.device("cpu"), warm=False, ranks=Ranks())
    batch = next(loop.batches.epoch(0))
    work = forward_work(model, shape_of(batch), semantic=False).training_flops
    first = json.loads((retrieval / "log.jsonl").read_text().splitlines()[0])
    assert first["flops_per_second"] / first["events_per_second"] == pytest.approx(work / len(batch.target_N))
    assert "share_of_peak" not in first  # a CPU's is not known
    losses = Losses(*torch.ones(5), None)
    window = LogInterval(1e9)
    window.add(batch, losses, 1.0, flops=6e9)
    window.add(batch, losses, 1.0, flops=2e9)
    found = window.record()
    assert found["share_of_peak"] == pytest.approx(8 * found["users_per_second"] / (2 * len(batch.history.length_B)))


KILLER = """
import os, signal, sys
from pathlib import Path
import onepiece_comp.stages.train as stage
import onepiece_comp.training.loop as loop
from onepiece_comp.config_reading import load_config
at, step = int(sys.argv[1]), loop.Loop._step
def dying(self, batch):
    if self.progress.step == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)
loop.Loop._step = dying
stage.train(Path(sys.argv[2]), Path(sys.argv[3]), load_config("tiny", None, sys.argv[5:]),
               tokenizer=Path(sys.argv[4]) if sys.argv[4] else None)
"""


@pytest.mark.parametrize("with_ids", [False, True])
def test_a_killed_run_resumed_ends_with_the_weights_of_the_unbroken_one(dataset, retrieval, tokenizer, tmp_path,
                                                                        with_ids):
    codes = tokenizer if with_ids else None
    unbroken = (_weights(train(dataset.path, tmp_path / "unbroken", train_config(), tokenizer=codes)) if with_ids
                else _weights(retrieval))
    steps = json.loads((retrieval / "run.json").read_text())["figures"]["steps"]
    run = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", KILLER, str(steps // 2 + 3), str(dataset.path), str(run),
                           str(codes or ""), *TRAIN_SETS],
                          capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (run / "run.json").exists()
    train(dataset.path, run, train_config(), tokenizer=codes, resume=True)
    assert _equal(unbroken, _weights(run))
    logged = [json.loads(line)["global_step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert logged == sorted(logged) and set(logged) == set(range(1, steps + 1))


def test_a_run_that_is_asked_to_end_saves_its_last_step_and_goes_on_from_there(dataset, retrieval, tmp_path):
    run, at = tmp_path / "ended", 5  # between two validations
    done = subprocess.run([sys.executable, "-c", KILLER.replace("SIGKILL", "SIGTERM"), str(at), str(dataset.path),
                           str(run), "", *TRAIN_SETS],
                          capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert load_tensors(run / "resume.pt")["progress"][0] == at + 1  # the step in which it was asked is whole
    with pytest.raises(InputError, match="other settings .train.warmup.$|train.warmup"):
        train(dataset.path, run, train_config("train.warmup=0.3"), resume=True)
    # the same result
    train(dataset.path, run, train_config("train.threads=2", "train.log_every=3", "train.save_minutes=5"), resume=True)
    assert _equal(_weights(retrieval), _weights(run))


def test_a_second_request_to_end_is_not_held_back():
    with pytest.raises(KeyboardInterrupt), EndAsked() as end:
        os.kill(os.getpid(), signal.SIGINT)
        assert end.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        raise AssertionError("the second one was swallowed")
    with pytest.raises(KeyboardInterrupt), EndAsked():
        os.kill(os.getpid(), signal.SIGINT)  # the first one is passed on at the end of the block
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with EndAsked() as end:
            os.kill(os.getpid(), signal.SIGINT)
        assert end.signal is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_state_is_written_by_the_clock(dataset, tmp_path, monkeypatch):
    steps, save = [], Loop._save_state
    monkeypatch.setattr(Loop, "_save_state", lambda self: (steps.append(self.progress.step), save(self)))
    train(dataset.path, tmp_path / "run", train_config("train.epochs=1", "train.checkpoints=1", "train.save_minutes=0"))
    assert steps == list(range(1, steps[-1] + 1))


@pytest.mark.parametrize("part, value", [("retrieval", float("nan")), ("balance", float("inf")),
                                         ("norm", float("nan"))])
def test_a_loss_that_is_not_finite_is_named_and_moves_no_weight(dataset, tmp_path, monkeypatch, part, value):
    losses, run, seen = OnePiece.losses, tmp_path / "run", {}

    def broken(self, batch, **settings):
        found = losses(self, batch, **settings)
        if len(seen) < 4:
            seen[len(seen)] = {name: tensor.clone() for name, tensor in self.state_dict().items()}
            return found
        seen["model"] = self
        if part == "norm":
            return found._replace(total=found.total * float("nan"))
        return found._replace(**{part: torch.tensor(value)})

    monkeypatch.setattr(OnePiece, "losses", broken)
    with pytest.raises(InputError, match=f"step 5.*{part}.*{value}.*the state after step 4"):
        train(dataset.path, run, train_config("train.save_minutes=0"))
    saved = load_tensors(run / "resume.pt")
    assert saved["progress"][0] == 4
    assert all(torch.equal(saved["model"][name], tensor) for name, tensor in seen["model"].state_dict().items())


def test_a_loss_that_grows_ends_the_run(dataset, tmp_path, monkeypatch):
    losses, count = OnePiece.losses, iter(range(1000))

    def growing(self, batch, **settings):
        return losses(self, batch, **settings)._replace(retrieval=torch.tensor(4.0 + next(count)))

    monkeypatch.setattr(OnePiece, "losses", growing)
    with pytest.raises(InputError, match="step 10: found a loss of 13 after one of 4 at the start"):
        train(dataset.path, tmp_path / "run", train_config())


def test_validation_targets_that_the_filter_of_seen_items_drops_are_counted():
    """Of the first user the last click was met before, of the second the item stands behind it alone."""
    from onepiece_comp.training.validation import HeldOut, repeated
    data = SimpleNamespace(user_start=np.array([0, 3, 7]), item_row=np.array([4, 5, 4, 6, 7, 8, 8]))
    assert repeated(data, HeldOut(np.array([0, 1]), np.array([2, 5]), np.array([2, 5]))) == 1
    assert repeated(data, HeldOut(np.array([1]), np.array([6]), np.array([3, 6]))) == 1
    assert repeated(data, HeldOut(*np.zeros((3, 0), np.int64))) == 0


def test_training_ends_after_validations_without_a_better_score(dataset, tmp_path, monkeypatch):
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.25, 0.9])
    monkeypatch.setattr(training_loop, "validate", lambda *arguments: Validation(np.zeros(5),
        np.full(5, next(scores) / 0.69)))
    run = train(dataset.path, tmp_path / "run", train_config("train.patience=3", "train.checkpoints=6"))
    figures = json.loads((run / "run.json").read_text())["figures"]
    valid = [json.loads(line)["valid/score"] for line in (run / "log.jsonl").read_text().splitlines()
             if "valid/score" in line]
    assert valid == pytest.approx([0.1, 0.3, 0.2, 0.3, 0.25]) and figures["valid_score"] == pytest.approx(0.3)
    assert _equal(_weights(run), _weights(train(dataset.path, run,
                                                train_config("train.patience=3", "train.checkpoints=6"), resume=True)))


def test_without_anybody_to_judge_by_no_patience_is_lost(dataset, tmp_path):
    run = train(dataset.path, tmp_path / "run", train_config("train.patience=1", "train.checkpoints=4",
                                                             "train.validation_users=0"))
    figures, lines = json.loads((run / "run.json").read_text())["figures"], (run / "log.jsonl").read_text().splitlines()
    assert (json.loads(lines[-1])["epoch"] == train_config().train.epochs
            and figures["steps"] == json.loads(lines[-1])["global_step"])


def test_a_run_that_could_not_begin_claims_no_folder(dataset, tmp_path):
    with pytest.raises(InputError, match="schedule"):
        train(dataset.path, tmp_path / "run", train_config("train.schedule=cosinus"))
    assert train(dataset.path, tmp_path / "run", train_config()).joinpath("run.json").is_file()


def test_a_resumed_run_is_warm_or_not_as_it_was(dataset, tmp_path):
    first = train(dataset.path, tmp_path / "first", train_config())
    run = tmp_path / "run"
    with killed_before_it_was_whole():
        train(dataset.path, run, train_config())
    with pytest.raises(StaleRun, match="started from no other"):
        train(dataset.path, run, train_config(), warm=first, resume=True)
    assert not json.loads((run / "config.json").read_text())["warm_start"]


def test_averaged_weights_are_judged_and_kept_and_resume_goes_on_with_them(dataset, tmp_path, monkeypatch):
    config = train_config("train.average=0.9", "train.checkpoints=1")
    whole, trained = Loop._step, []

    def step(self, batch):
        found = whole(self, batch)
        trained.append({name: value.detach().clone() for name, value in self.model.named_parameters()})
        return found

    monkeypatch.setattr(Loop, "_step", step)
    unbroken = train(dataset.path, tmp_path / "unbroken", config)
    for name, kept in _weights(unbroken).items():
        if name in trained[0]:
            average = trained[0][name]
            for later in trained[1:]:
                average = 0.9 * average + 0.1 * later[name]
            torch.testing.assert_close(kept, average, rtol=1e-4, atol=1e-6)

    def dying(self, batch):
        if self.progress.step == 11:
            raise RuntimeError("power cut")
        return whole(self, batch)

    config = train_config("train.average=0.9", "train.checkpoints=1", "train.save_minutes=0")
    monkeypatch.setattr(Loop, "_step", dying)
    with pytest.raises(RuntimeError, match="power cut"):
        train(dataset.path, tmp_path / "broken", config)
    monkeypatch.setattr(Loop, "_step", whole)
    assert _equal(_weights(unbroken), _weights(train(dataset.path, tmp_path / "broken", config, resume=True)))


def test_other_peoples_recipes_train_and_answer(dataset, parts, tmp_path):
    small = ["model.width=16", "model.layers=2", "model.heads=2", "model.hash_sizes=[17]", "model.hash_width=4",
             "model.feature_width=4", "model.embedding_width=4", "model.decoder_layers=2", "train.batch_users=8",
             "train.epochs=1", "train.warm_start_epochs=1", "train.checkpoints=1", "train.threads=1",
             "train.validation_users=5",
             "train.device=cpu", "infer.device=cpu"]
    baseline = load_config("official-baseline", None, small)
    run = train(dataset.path, tmp_path / "baseline", baseline)
    infer(run, tmp_path / "baseline_result", baseline.infer, data=parts / "eval")
    paper = load_config("onepiece-paper", None, [*small, "tokenizer.codes=16"])
    tokenizer = build_tokenizer(dataset.path, tmp_path / "tokenizer", paper.tokenizer, checkpoint=run)
    joint = train(dataset.path, tmp_path / "paper", paper, tokenizer=tokenizer)
    infer(joint, tmp_path / "paper_result", paper.infer, data=parts / "eval")
    assert (tmp_path / "baseline_result/result.json").is_file() and (tmp_path / "paper_result/result.json").is_file()


def test_a_run_is_never_overwritten_and_resumed_only_with_its_own_settings(dataset, retrieval, tmp_path):
    with pytest.raises(InputError, match="--resume"):
        train(dataset.path, retrieval, train_config())
    with pytest.raises(InputError, match="train.epochs"):
        train(dataset.path, retrieval, train_config("train.epochs=5"), resume=True)
    with pytest.raises(InputError, match="no resume.pt"):
        train(dataset.path, tmp_path / "none", train_config(), resume=True)


@pytest.mark.parametrize("mode", ["retrieval", "beam", "cascade"])
def test_inference_twice_gives_the_same_file_but_for_the_time(joint, parts, tmp_path, mode):
    config = InferConfig(mode=mode, threads=1)
    first, second = (json.loads(infer(joint, tmp_path / name, config, data=parts / "eval").read_text())
                     for name in "ab")
    assert first["top10s"] == second["top10s"] and first["user"] == second["user"]
    assert all(isinstance(item, int) for ten in first["top10s"] for item in ten)


def test_the_evaluation_folder_defaults_to_the_one_beside_the_training_files(joint, parts, tmp_path):
    given = json.loads(infer(joint, tmp_path / "a", InferConfig(), data=parts / "eval").read_text())
    remembered = json.loads(infer(joint, tmp_path / "b", InferConfig()).read_text())
    assert given["top10s"] == remembered["top10s"]


def test_the_funnel_counts_candidates_and_targets_at_each_step(joint, parts, tmp_path):
    infer(joint, tmp_path, InferConfig(mode="cascade"), data=parts / "eval", truth=parts / "truth.jsonl")
    steps = {step["step"]: step for step in json.loads((tmp_path / "funnel.json").read_text())["steps"]}
    assert steps["candidates"]["per_user"] >= steps["union"]["per_user"] >= steps["beam"]["per_user"] >= 10
    assert steps["union"]["targets"] >= steps["beam"]["targets"] and steps["ten"]["per_user"] == 10
    assert steps["union"]["targets"] >= steps["ten"]["targets"] > 0


def test_the_action_asked_for_changes_the_ranking(joint, parts, tmp_path):
    first, second = (json.loads(infer(joint, tmp_path / str(a), InferConfig(mode="retrieval", action=a),
                                      data=parts / "eval").read_text())
                     for a in (0, 1))
    assert first["top10s"] != second["top10s"]


def test_a_checkpoint_of_another_dataset_is_refused(joint, raw_log, tmp_path):
    from conftest import write_log
    from onepiece_comp.config import SplitConfig
    from onepiece_comp.stages.split import split
    other = split(write_log(tmp_path / "raw", items=60, seed=5), tmp_path / "parts", SplitConfig(auto_cut=0.7))
    with pytest.raises(InputError, match="found items: number .* as in the checkpoint"):
        infer(joint, tmp_path / "out", InferConfig(), data=other / "eval")
    assert not (tmp_path / "out").exists()
    data = preprocess(other / "train", tmp_path / "data", PreprocessConfig())
    with pytest.raises(InputError, match="found items: number .* as in the dataset"):
        train(data, tmp_path / "run", train_config(), tokenizer=joint.parent / "tokenizer")


def test_modes_that_need_semantic_ids_are_refused_without_them(retrieval):
    checkpoint = load_checkpoint(retrieval, torch.device("cpu"))
    assert choose_mode("auto", checkpoint) == "retrieval"
    for mode in ("beam", "cascade", "magic"):
        with pytest.raises(InputError):
            choose_mode(mode, checkpoint)


def test_weights_cut_short_or_hostile_are_refused(joint, tmp_path):
    import pickle
    import shutil
    copy = tmp_path / find_checkpoint(joint).name
    shutil.copytree(find_checkpoint(joint), copy)
    whole = (copy / MODEL).read_bytes()
    for content in (whole[:len(whole) // 2], b"", pickle.dumps(print)):
        (copy / MODEL).write_bytes(content)
        with pytest.raises(InputError, match="no readable weights"):
            load_checkpoint(copy, torch.device("cpu"))


def test_an_interrupt_ends_with_one_line_and_can_be_resumed(dataset, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "onepiece_comp", "train", str(dataset.path), str(run),
               *[x for s in TRAIN_SETS for x in ("--set", s)],
               "--set", "train.epochs=400", "--set", "train.checkpoints=100"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not (run / "resume.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None) and "Traceback" not in errors and "interrupted" in errors
    assert not list(run.glob(".*writing*")) and (run / "resume.pt").exists()


def test_a_later_checkpoint_is_kept_unless_the_earlier_one_is_clearly_better():
    from onepiece_comp.training.validation import as_good

    kept = np.array([1.0, 0.0, 0.4, 0.0, 0.3, 0.0])
    assert as_good(kept, kept) and as_good(kept + 0.1, kept)
    assert as_good(kept - [0.3, 0, 0, 0, 0, 0], kept)  # one user's luck: 0.05 with a standard error of 0.05
    assert not as_good(kept - 0.1, kept) and not as_good(kept - [0.3, 0.2, 0.1, 0.2, 0.3, 0.1], kept)
    assert as_good(np.zeros(0), np.zeros(0)) and as_good(np.zeros(1), np.ones(1))


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_has_saved_nothing_is_left_to_its_owner_who_is_told_so(dataset, retrieval, tmp_path, resume):
    """It may have been killed, or be running still."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "environment.json", "log.jsonl"):
        (run / name).write_bytes((retrieval / name).read_bytes())
    with pytest.raises(InputError, match="saved nothing yet.*remove the folder"):
        train(dataset.path, run, train_config(), resume=resume)
    assert len(list(run.iterdir())) == 3


def test_a_whole_run_keeps_no_state_and_is_left_as_it_is(dataset, retrieval, capsys):
    before = (retrieval / "run.json").read_bytes()
    assert not (retrieval / "resume.pt").exists()
    train(dataset.path, retrieval, train_config(), resume=True)
    assert "is whole" in capsys.readouterr().out and (retrieval / "run.json").read_bytes() == before
    (retrieval / "resume.pt").touch()  # killed before it could remove it
    train(dataset.path, retrieval, train_config(), resume=True)
    assert not (retrieval / "resume.pt").exists()


def test_seconds_count_what_an_ended_call_has_saved(dataset, tmp_path):
    run = tmp_path / "run"
    with killed_before_it_was_whole():
        train(dataset.path, run, train_config())
    state = load_tensors(run / "resume.pt")
    state["progress"][-1] += 1000.0
    torch.save(state, run / "resume.pt")
    train(dataset.path, run, train_config(), resume=True)
    assert 1000 < json.loads((run / "run.json").read_text())["figures"]["seconds"] < 1060


def test_the_score_of_a_run_is_that_of_the_weights_that_it_keeps(dataset, tmp_path, monkeypatch):
    # the second is as good, the others are worse
    gains = iter([[0.9, 0.1, 0.5, 0.2, 0.3], [0.5, 0.2, 0.5, 0.3, 0.4]] + [[0.0] * 5] * 9)
    monkeypatch.setattr(training_loop, "validate", lambda *_: Validation(np.zeros(5), np.array(next(gains))))
    monkeypatch.setattr(training_loop, "as_good", lambda later, kept: later.any())
    run = train(dataset.path, tmp_path / "run", train_config("train.checkpoints=4"))
    found = json.loads((run / "run.json").read_text())
    assert (found["figures"]["valid_score"] == pytest.approx(0.69 * 0.38)
            and found["checkpoint"].endswith("valid_score=0.2622"))


def test_weights_that_a_warm_start_cannot_copy_take_whole_steps_also_after_a_resume(dataset, retrieval, tokenizer,
    tmp_path):
    """With codes as input the item tower's matrices are of another width than the run's before."""
    run, config = tmp_path / "run", train_config("model.codes_as_input=true", "train.warm_start_rate=0.1",
                                                 "train.warm_start_epochs=1")
    with killed_before_it_was_whole():
        train(dataset.path, run, config, tokenizer=tokenizer, warm=retrieval)
    rates = []

    class Watched(Loop):
        def __init__(self, model, *args, **more):
            super().__init__(model, *args, **more)
            rate = {id(p): group["rate"] for part in (self.optimisers.muon, self.optimisers.adam)
                    for group in part.param_groups
                    for p in group["params"]}
            rates.append({name: rate[id(p)] for name, p in model.named_parameters()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onepiece_comp.stages.train.Loop", Watched)
        train(dataset.path, run, config, tokenizer=tokenizer, warm=retrieval, resume=True)
        train(dataset.path, tmp_path / "whole", config, tokenizer=tokenizer, warm=retrieval)
    for found in rates:
        assert found["item_tower.hidden.weight"] == found["item_tower.linear.weight"] == 1.0
        assert found["item_tower.id_table.weight"] == 0.1
    assert _equal(_weights(run), _weights(tmp_path / "whole"))


@pytest.mark.parametrize("setting, told", [("train.precision=bfloat16", "bfloat16 on a CPU"),
                                           ("train.device=cuda:7", "card 7")])
def test_a_device_that_is_not_there_or_cannot_is_named(dataset, tmp_path, setting, told):
    with pytest.raises(InputError, match=told):
        train(dataset.path, tmp_path / "run", train_config(setting))
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_all_ranks_wait_until_a_state_is_written(dataset, tmp_path, monkeypatch):
    model = load_checkpoint(train(dataset.path, tmp_path / "run", train_config()), torch.device("cpu")).model
    loop = Loop(model, dataset, tmp_path / "other", train_config(), torch.device("cpu"), warm=False, ranks=Ranks())
    written = []
    monkeypatch.setattr(Ranks, "wait", lambda self: written.append((tmp_path / "other" / "resume.pt").is_file()))
    loop._save_state()
    assert written == [True]


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(2)])
def test_a_file_of_weights_that_holds_something_else_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "model.pt")
    with pytest.raises(InputError, match="no readable weights"):
        load_tensors(tmp_path / "model.pt")


def test_item_vectors_are_written_a_tile_at_a_time(dataset, retrieval, tmp_path, monkeypatch):
    model, sizes, encode = load_checkpoint(retrieval, torch.device("cpu")).model, [], training.encode_item_table

    def watched(model, table, rows, device):
        sizes.append(len(rows))
        return encode(model, table, rows, device)

    monkeypatch.setattr(training, "TILE", 16)
    monkeypatch.setattr(training, "encode_item_table", watched)
    training._write_item_vectors(tmp_path / "vectors.npy", model, dataset, torch.device("cpu"))
    found, whole = np.load(tmp_path / "vectors.npy"), np.load(retrieval / "item_vectors.npy")
    assert max(sizes) <= 16 and sum(sizes) == len(whole) - 1 and not found[0].any() and not list(tmp_path.glob(".*"))
    np.testing.assert_allclose(found, whole, atol=1e-6)
