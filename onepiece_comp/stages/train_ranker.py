"""Train a ranker of the funnel's survivors on the dataset that a checkpoint was trained on."""

import dataclasses
import time
from pathlib import Path

import torch

from onepiece_comp import __version__
from onepiece_comp.artefacts import MARKERS, atomic_folder, check_output, peak_memory_mib, write_json
from onepiece_comp.config import InferConfig, RankerConfig
from onepiece_comp.config_reading import result_settings, to_dict
from onepiece_comp.dataset.preprocess import load_dataset
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.infer import choose_mode
from onepiece_comp.funnel.rerank import WEIGHTS, build_ranker, checkpoint_key
from onepiece_comp.ranking.train import calibrate_ranker, fit_ranker, past_lists_of, report_ranker
from onepiece_comp.training.checkpoint import load_checkpoint
from onepiece_comp.training.process import choose_device, kept_heap, repeatable, set_threads
from onepiece_comp.training.weights import save_tensors


def train_ranker(checkpoint: Path, dataset: Path, out: Path, config: RankerConfig, infer: InferConfig) -> Path:
    """Train a ranker against a run or checkpoint folder and write OUT; `infer` is the first stage that it follows.

    InputError when the dataset is not the checkpoint's.
    """
    started, data = time.monotonic(), load_dataset(dataset)
    set_threads(config.threads)
    device = choose_device(config.device)
    loaded = load_checkpoint(checkpoint, device)
    if loaded.dataset != data.fingerprint:
        raise InputError(dataset, found="a dataset that the checkpoint was not trained on",
                         expected=f"the one of {loaded.path}", do="give the dataset of that run")
    made_of = {"checkpoint": str(loaded.path.resolve()), **result_settings(config), "infer": result_settings(infer)}
    check_output(Path(out), MARKERS["ranker"], made_of)  # before hours, not after
    infer = dataclasses.replace(infer, mode=choose_mode(infer.mode, loaded), ranker="")
    torch.manual_seed(config.seed)
    with repeatable(device), kept_heap(device.type == "cpu"):
        learn, chosen, shown = past_lists_of(loaded, data, config, infer, device)
        net = build_ranker(loaded.model, config).to(device)
        figures = fit_ranker(net, learn, chosen, config)
        figures["calibration"] = calibrate_ranker(net, chosen, shown)
    figures |= {"seconds": round(time.monotonic() - started, 1), "peak_memory_mib": round(peak_memory_mib())}
    with atomic_folder(out, MARKERS["ranker"], made_of) as folder:
        save_tensors(net.state_dict(), folder / WEIGHTS)
        write_json(folder / MARKERS["ranker"], {
            "version": __version__, "config": to_dict(config), "mode": infer.mode, "infer": to_dict(infer),
            "checkpoint": checkpoint_key(loaded), "checkpoint_path": str(loaded.path), "dataset": data.fingerprint,
            **figures})
    report_ranker(figures, Path(out))
    return Path(out)
