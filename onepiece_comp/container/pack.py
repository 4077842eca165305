"""Packing as a stage: a configuration in, two upload folders out, tried out before they are believed.

The trial is a rehearsal on a tiny synthetic world with copies of the folders whose configuration is the frozen one at
a size that any machine trains in seconds: the switches are tried, the size is not.
"""

import dataclasses
import tempfile
from pathlib import Path

from onepiece_comp.artefacts import MARKERS, read_json, write_json
from onepiece_comp.config import Config, ScoreConfig, SplitConfig, SynthesizeConfig
from onepiece_comp.config_reading import load_config, to_dict
from onepiece_comp.console import quietly, say
from onepiece_comp.container.rehearse import Limits, rehearse
from onepiece_comp.container.upload import write_upload
from onepiece_comp.errors import InputError
from onepiece_comp.stages.synthesize import synthesize

_MODEL = {"width": 16, "heads": 2, "feature_width": 4, "embedding_width": 4, "expert_width": 8, "max_events": 20}
_TRAIN = {"epochs": 1.0, "warm_start_epochs": 1.0, "batch_users": 16, "validation_users": 10, "checkpoints": 1}


def pack(out: Path, config: Config, *, preset: str, flat: bool = False, cache_gib: float = 20.0,
         check: bool = True) -> Path:
    """Write the upload folders to OUT and run both jobs from them; returns OUT."""
    out = write_upload(Path(out), config, preset=preset, flat=flat, cache_gib=cache_gib)
    if check:
        figures = _try_out(out, config)
        write_json(out / MARKERS["pack"], {**read_json(out / MARKERS["pack"]), "tried out": figures})
        say(f"both jobs ran from these folders on a tiny world: training {figures['training seconds']} s, evaluation "
            f"{figures['evaluation seconds']} s, network: {figures['network']}")
    say(f"wrote {out}")
    return out


def rehearse_packed(raw: Path, out: Path, config: Config, *, pack: Path | None, preset: str, limits: Limits) -> Path:
    """`rehearse` from a folder that was packed before, or from one that is packed now and thrown away.

    InputError for settings beside `pack` that the jobs would not see: theirs are frozen in it.
    """
    usual = to_dict(load_config())
    beside = [name for name, values in to_dict(config).items() if name not in ("split",
                                                                               "score") and values != usual[name]]
    if pack and beside:
        raise InputError("--pack", found=f"other settings of {', '.join(beside)} beside it",
                         expected="settings of split and score alone",
                         do="pack again with these settings, or leave out --pack")
    with tempfile.TemporaryDirectory() as place:
        pack = pack or write_upload(Path(place, "pack"), config, preset=preset, cache_gib=limits.cache_gib)
        return rehearse(raw, out, pack, limits=limits, splitting=config.split, judging=config.score)


def _try_out(out: Path, config: Config) -> dict:
    """The rehearsal's figures; the folders of OUT themselves stay untouched."""
    with tempfile.TemporaryDirectory() as place, quietly():
        world, copy, small = Path(place, "raw"), Path(place, "pack"), shrunk(config)
        synthesize(world, SynthesizeConfig(users=80, conversion_rate=0.47))
        stored = read_json(out / MARKERS["pack"])
        write_upload(copy, small, preset=stored["preset"], flat=stored["layout"] == "flat")
        for side in ("training", "evaluation"):
            _same_code(out / side, copy / side)
        report = rehearse(world, Path(place, "rehearsal"), copy, limits=Limits(minutes=20),
                          splitting=SplitConfig(action_types=True), judging=ScoreConfig(resamples=50))
        return read_json(report)["figures"]


def _same_code(packed: Path, copy: Path) -> None:
    """What is tried out is what was packed, but for the configuration."""
    for path in copy.rglob("*.py"):
        assert path.read_bytes() == (packed / path.relative_to(copy)).read_bytes(), path


def shrunk(config: Config) -> Config:
    """A configuration with the same switches at a size that trains in seconds on one core."""
    model, train = config.model, config.train
    return dataclasses.replace(
        config,
        preprocess=dataclasses.replace(config.preprocess, reader="plain"),
        tokenizer=dataclasses.replace(config.tokenizer, codes=0, rqvae_steps=20, device="auto"),
        model=dataclasses.replace(
            model, **_MODEL, layers=min(2, model.layers), decoder_layers=min(2, model.decoder_layers),
            id_width=min(4, model.id_width), hash_width=min(4, model.hash_width), experts=min(4, model.experts),
            hash_sizes=tuple(101 + 2 * number for number in range(len(model.hash_sizes))),
            active_experts=min(2, model.active_experts),
            similarity_width=min(4, model.similarity_width)),
        train=dataclasses.replace(train, **_TRAIN, device="auto", precision="auto",
                                  sampled_negatives=min(64, train.sampled_negatives), accumulate=1, replicas=1),
        infer=dataclasses.replace(config.infer, device="auto", beam=min(5, config.infer.beam), shortlist=200))
