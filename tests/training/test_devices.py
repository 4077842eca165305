"""Ranks, replicas and batches taken in turn: the same shares give the same weights, whoever computes them."""

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch import nn

from onepiece_comp.config_reading import load_config
from onepiece_comp.errors import InputError
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.stages.train import train
from onepiece_comp.training import devices as parallel, loop as training_loop
from onepiece_comp.training.batches import TrainingBatches
from onepiece_comp.training.checkpoint import MODEL, find_checkpoint
from onepiece_comp.training.devices import Ranks, Replicas, count_replicas
from onepiece_comp.training.loop import Loop
from onepiece_comp.training.weights import load_tensors

SETS = ("model.width=16", "model.feature_width=4", "model.id_width=4", "model.embedding_width=4",
        "model.expert_width=8",
        "train.epochs=4", "train.batch_users=8", "train.sampled_negatives=30", "train.validation_users=5",
        "train.threads=1",
        "train.device=cpu", "train.checkpoints=2", "train.save_minutes=0", "train.table_optimiser=adam_rows")

EXACT = ("model.dropout=0", "model.id_dropout=0", "model.balance_weight=0", "train.moment_lag_hours=0",
         "train.click_lag_hours=0", "train.action_weights=[1,3,0.5,1]")  # nothing is drawn or counted batch by batch

RANK = """
import os, signal, sys
import onepiece_comp.training.loop as loop
from onepiece_comp.cli import main
name, at, step = sys.argv.pop(1), int(sys.argv.pop(1)), loop.Loop._step
def dying(self, shares):
    if self.progress.step == at and self.ranks.rank == 1:
        os.kill(os.getpid(), getattr(signal, name))
    return step(self, shares)
loop.Loop._step = dying
"""

SHARES = """
def dying(self, shares, before=dying):
    found = before(self, shares)
    if self.progress.step == 1 and self.ranks.first:
        table = self.model.item_tower.id_table
        held = [table.weight, *(v for v in self.optimisers.rows.state[table.weight].values() if v.dim())]
        print(f"held {set(map(len, held)).pop()} of {table.num_embeddings} rows, weights and state", flush=True)
    return found
loop.Loop._step = dying
"""


def _weights(run):
    return torch.load(find_checkpoint(run) / MODEL, weights_only=True)


def _close(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5, msg=name)


def _logged(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if "gradient_norm" in line for name in ("Loss/retrieval", "gradient_norm")]


@pytest.fixture(scope="module")
def in_turn(dataset, tmp_path_factory):
    """One device that takes two batches before each step."""
    return train(dataset.path, tmp_path_factory.mktemp("turns") / "run",
                 load_config("tiny", None, [*SETS, "train.accumulate=2"]))


def _torchrun(script, *arguments, dataset, run):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script),
               *arguments,
               "train", str(dataset.path), str(run), *(part for text in SETS for part in ("--set", text))]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return lambda *more: subprocess.run([*command, *more], capture_output=True, text=True, timeout=120,
                                        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"})


def test_two_replicas_end_where_one_device_does_that_takes_two_batches_in_turn(dataset, in_turn, tmp_path):
    replicas = train(dataset.path, tmp_path / "run", load_config("tiny", None, [*SETS, "train.replicas=2"]))
    _close(_weights(replicas), _weights(in_turn))


def test_a_run_goes_on_with_as_many_batches_a_step_whoever_takes_them(dataset, in_turn, tmp_path, monkeypatch):
    run, step = tmp_path / "run", Loop._step
    monkeypatch.setattr(Loop, "_step", lambda loop, shares: step(loop, shares) if loop.progress.step < 5 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(dataset.path, run, load_config("tiny", None, [*SETS, "train.replicas=2"]))
    monkeypatch.undo()
    with pytest.raises(InputError, match="batches_per_step"):
        train(dataset.path, run, load_config("tiny", None, list(SETS)), resume=True)
    train(dataset.path, run, load_config("tiny", None, [*SETS, "train.accumulate=2"]), resume=True)
    _close(_weights(run), _weights(in_turn))


def test_two_batches_in_turn_are_another_run_than_one(dataset, in_turn, tmp_path):
    alone = _weights(train(dataset.path, tmp_path / "run", load_config("tiny", None, list(SETS))))
    assert not torch.allclose(alone["item_tower.linear.weight"], _weights(in_turn)["item_tower.linear.weight"],
                              atol=1e-3)


def test_two_ranks_end_there_too_even_after_one_was_killed_and_one_asked_to_end(dataset, in_turn, tmp_path):
    script, run = tmp_path / "rank.py", tmp_path / "run"
    script.write_text(RANK + "main()")
    killed = _torchrun(script, "SIGKILL", "5", dataset=dataset, run=run)()
    assert (killed.returncode and "no longer answers" in killed.stderr
            and "Traceback (most recent call last):\n  File \"/tmp" not in killed.stderr)
    asked = _torchrun(script, "SIGTERM", "8", dataset=dataset, run=run)("--resume")
    assert asked.returncode and asked.stdout.count("resuming after step 5") == 1  # one rank speaks
    assert load_tensors(run / "resume.pt")["progress"][0] == 9 and not (run / "run.json").exists()
    resumed = _torchrun(script, "SIGTERM", "-1", dataset=dataset, run=run)("--resume")
    assert resumed.returncode == 0, resumed.stderr
    _close(_weights(run), _weights(in_turn))


def test_ranks_that_share_the_tables_end_there_too_and_one_process_can_go_on(dataset, in_turn, tmp_path):
    """Killed after five steps, gone on with for some more, ended by one process that has the tables whole."""
    script, run = tmp_path / "rank.py", tmp_path / "run"
    script.write_text(RANK + SHARES + "main()")
    shared = ("--set", "train.shard_tables=true")
    killed = _torchrun(script, "SIGKILL", "5", dataset=dataset, run=run)(*shared)
    assert killed.returncode and (run / "resume.pt").is_file(), killed.stderr
    rows = dataset.schema.items + 1
    assert f"held {-(-rows // 2)} of {rows} rows, weights and state" in killed.stdout
    asked = _torchrun(script, "SIGTERM", "8", dataset=dataset, run=run)(*shared, "--resume")
    assert asked.returncode and load_tensors(run / "resume.pt")["progress"][0] == 9, asked.stderr
    train(dataset.path, run, load_config("tiny", None, [*SETS, "train.accumulate=2"]), resume=True)
    _close(_weights(run), _weights(in_turn))


def test_shared_tables_go_with_nothing_that_copies_models(dataset, tmp_path):
    for change in ("train.average=0.9", "train.replicas=2"):
        with pytest.raises(InputError, match="train.shard_tables"):
            train(dataset.path, tmp_path / change,
                  load_config("tiny", None, [*SETS, "train.shard_tables=true", change]))


def test_a_rank_that_meets_nobody_ends_with_a_line(monkeypatch):
    """So does one whose torchrun was killed before the ranks had met."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(parallel, "_MEETING", timedelta(seconds=1))
    with pytest.raises(InputError, match="rank 1 of 2: found a rank that no longer answers"), Ranks(1, 2):
        pass


class Joint(TrainingBatches):
    """Steps of one batch, with the users and the negatives of two batches that two ranks would take."""

    def __init__(self, dataset, **settings):
        super().__init__(dataset, **settings)
        self.halves = TrainingBatches(dataset, **{**settings, "ranks": 2})
        self.sampled *= 2

    @property
    def steps_per_epoch(self):
        return self.halves.steps_per_epoch

    def epoch(self, epoch, first_step=0, *, count=1):
        order = self.halves._order(epoch)
        for first in range(2 * first_step, len(order), 2):
            self.negatives = [self.halves._pick(order[number], self.halves._draw(epoch, number)).sampled
                              for number in (first, first + 1)]
            yield self.batch(np.concatenate(order[first:first + 2]), np.random.default_rng(0))

    def _sample(self, rng):
        return np.concatenate(self.negatives)


@pytest.mark.parametrize("changes", [{}, {"negative_power": 0.75}, {"sampled_negatives": 0}])
def test_with_shared_negatives_the_mean_loss_and_gradient_are_those_of_one_batch_with_all_users(dataset, changes):
    torch.manual_seed(0)
    codes = torch.randint(0, 5, (dataset.schema.items + 1, 2), dtype=torch.int32)
    codes[::7] = -1  # no loss of codes for these, so its weights differ from the retrieval loss's
    model = OnePiece(load_config("tiny", None, [*SETS, *EXACT, "model.conditioned=true"]).model, dataset.schema, codes)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # a sharpness of the similarity drawn at random leaves it no gradient
            nn.init.normal_(parameter, std=0.3)
    settings = {**dict(stop=np.array(dataset.user_start[1:]), batch_users=8, max_events=100, sampled_negatives=20,
                       action_weights=(1.0, 3.0, 0.5, 1.0), moment_lag_seconds=0.0, click_lag_seconds=0.0,
                       horizon_seconds=1e9, seed=0, codes=codes.numpy()), **changes}

    def mean(batches):
        model.zero_grad()
        losses = [model.losses(batch, semantic_weight=0.5, conditioned_weight=0.3) for batch in batches]
        (sum(part.total for part in losses) / len(losses)).backward()
        return ([sum(getattr(part, name) for part in losses) / len(losses) for name in ("retrieval", "semantic",
            "conditioned")],
                {name: parameter.grad.to_dense() for name, parameter in model.named_parameters()
                 if parameter.grad is not None})

    shared = TrainingBatches(dataset, **settings, ranks=2, shared_negatives=True).epoch(0, count=2)
    for joint in Joint(dataset, **settings).epoch(0):
        (loss, gradient), (expected_loss, expected) = mean([next(shared), next(shared)]), mean([joint])
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0.0)
        assert gradient.keys() == expected.keys()
        for name in gradient:
            torch.testing.assert_close(gradient[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("how", ["train.accumulate=2", "train.replicas=2"])
def test_a_run_with_shared_negatives_is_that_of_one_batch_with_all_users(dataset, tmp_path, monkeypatch, how):
    shared = train(dataset.path, tmp_path / "shared",
                   load_config("tiny", None, [*SETS, *EXACT, "train.shared_negatives=true", how]))
    monkeypatch.setattr(training_loop, "TrainingBatches", Joint)
    joint = train(dataset.path, tmp_path / "joint", load_config("tiny", None, [*SETS, *EXACT]))
    _close(_weights(shared), _weights(joint))
    # clipped, gradients of any scale move the weights alike
    assert _logged(shared) == pytest.approx(_logged(joint), rel=1e-4)


def test_replicas_sum_their_gradients_and_share_the_weights():
    replicas = Replicas(nn.Linear(3, 1, bias=False), torch.device("cpu"), 2)
    inputs = [torch.randn(4, 3) for _ in range(4)]
    found = replicas.run(lambda model, place, x: model(x).sum().backward() or (place, model), inputs)
    assert [place for place, _ in found] == [0, 1, 2, 3]
    assert [model is replicas.models[place % 2] for place, model in found] == [True] * 4
    replicas.gather()
    first = replicas.models[0].weight
    torch.testing.assert_close(first.grad[0], sum(x.sum(0) for x in inputs))
    assert replicas.models[1].weight.grad is None
    first.data += 1
    replicas.spread()
    assert torch.equal(replicas.models[1].weight, first)


def test_replicas_on_a_cpu_are_what_is_asked_for_and_negative_numbers_are_refused():
    assert [count_replicas(asked, torch.device("cpu")) for asked in (0, 1, 3)] == [1, 1, 3]
    with pytest.raises(InputError, match="replicas"):
        count_replicas(-1, torch.device("cpu"))


def test_a_process_has_all_visible_cards_and_a_rank_has_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [count_replicas(0, torch.device(name)) for name in ("cuda", "cuda:2")] == [4, 1]
    for device, asked in (("cuda", 5), ("cuda:2", 2)):
        with pytest.raises(InputError, match=f"found {asked}"):
            count_replicas(asked, torch.device(device))
