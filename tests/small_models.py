"""A model and settings small enough for every test that needs one."""

import dataclasses

import torch

from onepiece_comp.config import InferConfig, ModelConfig
from onepiece_comp.config_reading import load_config
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.training.checkpoint import save_checkpoint

CONFIG = ModelConfig(width=16, layers=2, heads=2, feature_width=4, id_width=4, embedding_width=4, experts=0,
                     dropout=0.0)

INFER = InferConfig(batch_users=7, threads=1, filter_seen=False, mode="retrieval")


def random_checkpoint(dataset, folder, **changes):
    """Random weights, so that popularity weighs too."""
    torch.manual_seed(1)
    model = OnePiece(dataclasses.replace(CONFIG, **changes), dataset.schema)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return save_checkpoint(folder, model, dataset.trend, step=1, score=0.0, infer=INFER, dataset="", evaluation=None,
                           columns=dataset.path)

SETS = ["model.width=16", "model.feature_width=4", "model.id_width=4", "model.embedding_width=4",
        "model.expert_width=8",
        "train.epochs=1", "train.sampled_negatives=64", "train.validation_users=10", "train.threads=1",
        "infer.threads=1",
        "synthesize.users=80", "score.resamples=100"]

TRAIN_SETS = ("model.width=16", "model.feature_width=4", "model.id_width=4", "model.embedding_width=4",
              "model.expert_width=8",
        "train.epochs=4", "train.batch_users=8", "train.sampled_negatives=30", "train.validation_users=5",
        "train.threads=1",
        "train.device=cpu", "train.log_every=1")


def train_config(*more):
    return load_config("tiny", None, [*TRAIN_SETS, *more])
