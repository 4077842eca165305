"""Shared fixtures: where the real data is, and a small hand-made log in the organisers' layout."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from onepiece_comp.config import PreprocessConfig, SplitConfig
from onepiece_comp.dataset.preprocess import Dataset, load_dataset
from onepiece_comp.logs.embeddings import write_embedding
from onepiece_comp.logs.formats import Event, UserLine
from onepiece_comp.logs.raw_folder import RawWriter
from onepiece_comp.stages.preprocess import preprocess
from onepiece_comp.stages.split import split

torch.set_num_threads(1)

CREATIVE = 20_000_000_000
START = 1_746_000_000


def pytest_configure() -> None:
    """What a script starts with `&` ignores SIGINT, and so would every process that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is missing."""
    place = Path(os.environ.get("ONEPIECE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not place.is_dir():
        pytest.skip(f"no real data at {place} (set ONEPIECE_DATA)")
    return place


def write_log(folder: Path, *, users: int = 60, items: int = 80, seed: int = 0) -> Path:
    """A log of users who click within one of four groups of items; two embeddings, one of them with gaps."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with RawWriter(folder) as writer:
        for user in range(users):
            group, time, events = user % 4, START + int(rng.integers(0, 5 * 86400)), []
            for _ in range(int(rng.integers(8, 16))):
                inside = rng.random() < 0.8
                item = int(rng.integers(0, items // 4)) * 4 + (group if inside else int(rng.integers(0, 4)))
                time += int(rng.integers(60, 40000))
                features = {"100": 1000 + item % 4, "101": 2000 + item % 7}
                events.append(Event(CREATIVE + item, features, int(inside and rng.random() < 0.5), time))
            profile = {"103": 30 + group, "106": [1, 2 + group]} if user % 10 else {}
            writer.add(UserLine(f"user_{user:04d}", profile, time, events))
    vectors = rng.normal(size=(items, 8))
    vectors[:, :4] += 3 * np.eye(4)[np.arange(items) % 4]
    write_embedding(folder, "81", ((CREATIVE + i, vectors[i]) for i in range(items)), width=8)
    write_embedding(folder, "82", ((CREATIVE + i, vectors[i, :5] if i % 3 else None) for i in range(items)), width=5)
    (folder / "raw.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def raw_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small log's folder; tests must not change it."""
    return write_log(tmp_path_factory.mktemp("log") / "raw")


@pytest.fixture(scope="session")
def parts(raw_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small log, split: train/, eval/, truth.jsonl."""
    return split(raw_log, tmp_path_factory.mktemp("split") / "parts", SplitConfig(auto_cut=0.7))


@pytest.fixture(scope="session")
def dataset(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The columns of the small log's training part."""
    return load_dataset(preprocess(parts / "train", tmp_path_factory.mktemp("data") / "dataset", PreprocessConfig()))


@pytest.fixture()
def train_files(parts, tmp_path):
    """A copy of the small log's training files that a test may spoil."""
    return Path(shutil.copytree(parts / "train", tmp_path / "train"))
