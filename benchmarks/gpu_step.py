"""A training step on a GPU: losses against the CPU's, then time and memory by preset. Has not been run by us.

    python benchmarks/gpu_step.py work/dataset --presets tiny small base full

Prints float32 losses of one batch on both devices and their difference, then the median step in bfloat16.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from onepiece_comp.config_reading import load_config
from onepiece_comp.console import table
from onepiece_comp.dataset.preprocess import Dataset, load_dataset
from onepiece_comp.models.recommender import OnePiece, size
from onepiece_comp.training.batches import TrainingBatches
from onepiece_comp.training.optimisers import Optimisers


def measure(data: Dataset, preset: str, steps: int) -> tuple[str, ...]:
    """One row: loss difference CPU against GPU, milliseconds a step, users a second, peak GiB."""
    config = load_config(preset)
    batches = TrainingBatches(
        data,
        stop=np.array(data.user_start[1:]),
        batch_users=config.train.batch_users,
        max_events=config.model.max_events,
        sampled_negatives=config.train.sampled_negatives,
        action_weights=config.train.action_weights,
        moment_lag_seconds=config.train.moment_lag_hours * 3600,
        click_lag_seconds=config.train.click_lag_hours * 3600,
        horizon_seconds=config.train.horizon_days * 86400,
        seed=0,
    )
    batch = next(batches.epoch(0))
    torch.manual_seed(0)
    model = OnePiece(config.model, data.schema).eval()  # no dropout: both devices must agree
    on_gpu, moved = copy.deepcopy(model).cuda(), batch.to(torch.device("cuda"))
    difference = abs(
        float(model.losses(batch, semantic_weight=0).total) - float(on_gpu.losses(moved, semantic_weight=0).total)
    )
    optimisers = Optimisers(on_gpu.train(), learning_rate=1e-3, muon_learning_rate=1e-2, weight_decay=0, warmup_steps=1,
                            total_steps=steps)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for step in range(steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = on_gpu.losses(moved, semantic_weight=0).total
        loss.backward()
        optimisers.step(step)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[steps // 4:])
    return (preset, f"{size(model).dense:,}", f"{difference:.1e}", f"{1000 * median:.1f}",
            f"{len(batch.history.length_B) / median:,.0f}", f"{torch.cuda.max_memory_allocated() / 2 ** 30:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing to measure")
    data = load_dataset(options.dataset)
    rows = [measure(data, preset, options.steps) for preset in options.presets]
    table(
        torch.cuda.get_device_name(),
        ("preset", "dense parameters", "loss CPU - GPU", "ms a step", "users/s", "peak GiB"),
        rows,
    )


if __name__ == "__main__":
    main()
