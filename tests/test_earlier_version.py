"""Folders that version 0.1.1 wrote answer as they did:
a dataset, a tokenizer, a checkpoint, and the ten of every user.
"""

import json
from pathlib import Path

import numpy as np
import torch

from onepiece_comp.dataset.preprocess import load_dataset
from onepiece_comp.funnel.infer import stored_config
from onepiece_comp.stages.infer import infer
from onepiece_comp.tokenizer.folder import load_tokenizer
from onepiece_comp.training.checkpoint import load_checkpoint

OLD = Path(__file__).parent / "version_0_1_1"


def test_a_checkpoint_answers_as_under_its_own_version_and_what_it_does_not_tell_is_said(tmp_path, capsys):
    """All settings are the stored ones but the threads; the ids that it does not tell apart by name are said."""
    config = stored_config(OLD / "checkpoint", None, ["infer.threads=1", "infer.cache=false"])
    found = json.loads(infer(OLD / "checkpoint", tmp_path / "out", config, data=OLD / "eval").read_text())
    before = json.loads((OLD / "result.json").read_text())
    assert found["user"] == before["user"] and found["top10s"] == before["top10s"] and len(found["user"]) > 5
    assert config.action == "1" and "could not be checked" in capsys.readouterr().out


def test_a_dataset_and_its_tokenizer_are_those_of_the_checkpoint():
    data, checkpoint = load_dataset(OLD / "dataset"), load_checkpoint(OLD / "checkpoint", torch.device("cpu"))
    assert checkpoint.dataset == data.fingerprint and data.schema == checkpoint.model.schema
    codes = load_tokenizer(OLD / "tokenizer", data.schema.item_space).codes
    np.testing.assert_array_equal(np.asarray(codes), checkpoint.model.codes.numpy())
