"""The whole pipeline: raw files to a scored submission, each stage once; what is done and unchanged is reused.

Stages and folders under WORK: split/ dataset/ retrieval/ tokenizer/ joint/ (ranker/) result/ baselines/ and score.json.
`stages.json` holds what each was made from and what it wrote. What was made from something else, or was replaced since,
is not reused: it stays where it is and the command stops, or moves aside under a dated name when that is asked for.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from onepiece_comp import __version__
from onepiece_comp.artefacts import (
    MARKERS, differences, files_under, fingerprint, move_aside, read_json, read_marker, write_json)
from onepiece_comp.config import Config
from onepiece_comp.config_reading import result_settings
from onepiece_comp.console import say, table
from onepiece_comp.converters.convert import open_raw
from onepiece_comp.dataset.split import repeats
from onepiece_comp.errors import InputError
from onepiece_comp.evaluation.baselines import NAMES
from onepiece_comp.funnel.infer import MODES
from onepiece_comp.logs.formats import LIST
from onepiece_comp.logs.open_log import log_fingerprint
from onepiece_comp.stages.baselines import baselines
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.stages.infer import infer
from onepiece_comp.stages.preprocess import preprocess
from onepiece_comp.stages.score import score
from onepiece_comp.stages.split import split
from onepiece_comp.stages.train import train_or_resume
from onepiece_comp.stages.train_ranker import train_ranker
from onepiece_comp.world.oracle import ceiling, random_ranking

_OF_A_WORLD = ("ceiling", "random")  # baselines that only a synthetic world has


class _Stage(NamedTuple):
    """One step: the file that makes its output whole, what it is made from, and how."""

    name: str
    output: Path
    settings: dict[str, object]  # those that the result depends on
    after: tuple[str, ...]  # stages that it reads
    make: Callable[[], object]


class _Stages:
    """Runs stages in order; reused is what was made from the same and is as it was written."""

    def __init__(self, work: Path, stages: Sequence[_Stage], source: str):
        self.work, self._stages, self._path = work, stages, work / "stages.json"
        self._done = read_json(self._path) if self._path.is_file() else {}
        self._keys: dict[str, str] = {}
        for stage in stages:
            before = [self._keys[name] for name in stage.after] or [source]
            self._keys[stage.name] = fingerprint(__version__, stage.settings, before)
        self._reasons: dict[str, str] = {}  # why a stage is done, of those that are not reused
        for stage in stages:
            if reason := self._reason(stage):
                self._reasons[stage.name] = reason

    def run(self) -> list[tuple[str, str]]:
        """Do what has to be done; (stage, time) of each.
        InputError where that would replace what stands, unless forced.
        """
        self._clear_the_way()
        seconds = []
        for stage in self._stages:
            if stage.name not in self._reasons:
                say(f"{stage.name}: reused {self._place(stage)}")
                seconds.append((stage.name, "reused"))
                continue
            started = time.monotonic()
            say(f"== {stage.name}")
            stage.make()
            self._done[stage.name] = {"key": self._keys[stage.name], "settings": stage.settings,
                                      "wrote": self._written(stage)}
            write_json(self._path, self._done)
            seconds.append((stage.name, f"{time.monotonic() - started:.1f} s"))
        return seconds

    def _reason(self, stage: _Stage) -> str:
        """Why the stage must be done; empty where it is done."""
        done = self._done.get(stage.name)
        if not stage.output.is_file():
            return "missing"
        if not isinstance(done, dict):
            return "not made by this command"
        if changed := differences(done["settings"], stage.settings):
            return f"made with {changed}"
        if redone := [name for name in stage.after if name in self._reasons]:
            return f"made from another output of {redone[0]}"
        if done["key"] != self._keys[stage.name]:
            return "made from another log or by another version"
        now = self._written(stage)
        other = next((name for name, what in done["wrote"].items() if now.get(name) != what), None)
        return f"{other} is not as it was written" if other else ""

    def _clear_the_way(self) -> None:
        """Folders that stand and are not reused move aside, all before anything is made, or are refused."""
        standing = [stage for stage in self._stages
                    if stage.name in self._reasons and stage.output.is_file() and self._place(stage).is_dir()]
        shown = "; ".join(f"{self._place(stage).name}, {self._reasons[stage.name]}" for stage in standing)
        refusal = InputError(self.work, found=shown, expected="the log, settings and folders of the earlier call",
                             do="give another "
                             "WORK, or --force, which moves what stands aside under dated names and makes it anew")
        for stage in standing:
            move_aside(self._place(stage), refusal)

    def _place(self, stage: _Stage) -> Path:
        return stage.output if stage.output.parent == self.work else stage.output.parent

    def _written(self, stage: _Stage) -> dict[str, object]:
        """The bytes of each file of the output, of its last one the fingerprint."""
        place = self._place(stage)
        sizes = ({} if place.is_file()
                 else {str(path.relative_to(self.work)): path.stat().st_size for path in files_under(place)})
        return {**sizes, str(stage.output.relative_to(self.work)): fingerprint(stage.output)}


def run_all(raw: Path, work: Path, config: Config) -> Path:
    """From raw files to WORK/score.json: split, columns, both trainings, tokenizer, submission, baselines, score.

    InputError where WORK holds outputs of another log or of other settings, unless within `artefacts.moving_aside`.
    """
    raw, work = Path(raw), Path(work)
    log = open_raw(raw)
    by_hand = [stage for stage in ("retrieval", "joint") if (work / stage / MARKERS["run"]).is_file()]
    if by_hand and not (work / "stages.json").is_file():
        raise InputError(work, found=f"{' and '.join(by_hand)} without stages.json: trained stage by stage",
                         expected="a folder of this "
                         "command, which would train them anew", do="give another WORK, or go on stage by stage")
    work.mkdir(parents=True, exist_ok=True)
    if config.split.mode == "leave_one_out" and config.model.trend:
        say("note: users of this split end at different times, so that popularity up to the log's end tells little of "
            "their "
            "targets; compare with --set model.trend=false")
    # events to the byte; features, embeddings, oracle by their ends
    source = fingerprint(*log.files(), log_fingerprint(raw))
    seconds = _Stages(work, list(_stages(raw, work, config)), source).run()
    table("stages", ("stage", "time"), seconds)
    say(f"{repeats(work / 'split')}; infer.filter_seen={str(config.infer.filter_seen).lower()}, ours and the baselines")
    say(f"submission: {work / 'result' / 'result.json'}   score: {work / 'score.json'}")
    return work / "score.json"


def _stages(raw: Path, work: Path, config: Config) -> Iterator[_Stage]:
    parts, data, result = work / "split", work / "dataset", work / "result"
    learning, infer_config, last = _settings(config, "model", "train"), config.infer, "train jointly"
    yield _Stage("split", parts / MARKERS["split"], _settings(config, "split"), (),
                 lambda: split(raw, parts, config.split))
    yield _Stage("preprocess", data / MARKERS["dataset"], _settings(config, "preprocess"), ("split",),
                 lambda: _columns(raw, parts, data, config))
    yield _Stage("train retrieval", work / "retrieval" / MARKERS["run"], learning, ("preprocess",),
                 lambda: train_or_resume(data, work / "retrieval", config))
    yield _Stage("build tokenizer", work / "tokenizer" / MARKERS["tokenizer"], _settings(config, "tokenizer"),
                 ("train retrieval",),
                 lambda: build_tokenizer(data, work / "tokenizer", config.tokenizer, checkpoint=work / "retrieval"))
    yield _Stage("train jointly", work / "joint" / MARKERS["run"], learning, ("build tokenizer",),
                 lambda: train_or_resume(data, work / "joint", config, tokenizer=work / "tokenizer",
                                         warm=work / "retrieval"))
    if config.ranker.use:
        last, infer_config = "train ranker", dataclasses.replace(config.infer, ranker=str(work / "ranker"))
        yield _Stage("train ranker", work / "ranker" / MARKERS["ranker"], _settings(config, "ranker", "infer"),
                     ("train jointly", "preprocess"),
                     lambda: train_ranker(work / "joint", data, work / "ranker", config.ranker, config.infer))
    yield _Stage("infer", result / "result.json", {**_settings(config, "infer"), "ranker": config.ranker.use}, (last,),
                 lambda: infer(work / "joint", result, infer_config, data=parts / "eval", truth=parts / "truth.jsonl",
                               beside=MODES))
    filters = {"infer.filter_seen": config.infer.filter_seen, "infer.filter_cold": config.infer.filter_cold}
    yield _Stage("baselines", work / "baselines" / "popularity.json", filters, ("split",),
                 lambda: _baselines(raw, parts, work / "baselines", config))
    yield _Stage("score", work / "score.json", _settings(config, "score"), ("infer", "baselines"),
                 lambda: _score(work, parts, config))


def _columns(raw: Path, parts: Path, data: Path, config: Config) -> None:
    """`preprocess`; before it, and so before hours of training, InputError where no answer could be filled."""
    candidates = read_marker(parts, "split")["figures"]["candidates"]
    if candidates < LIST:
        raise InputError(raw, found=f"{candidates} candidates", expected=f"at least {LIST}, as in an answer",
                         do="take a larger catalogue or another cut")
    preprocess(parts / "train", data, config.preprocess)


def _settings(config: Config, *sections: str) -> dict[str, object]:
    return {f"{section}.{name}": value for section in sections for name,
            value in result_settings(getattr(config, section)).items()}


def _baselines(raw: Path, parts: Path, out: Path, config: Config) -> None:
    for name in _OF_A_WORLD:  # of another log that had its truth
        (out / f"{name}.json").unlink(missing_ok=True)
    baselines(parts / "train", parts / "eval", out, config.infer)
    if (raw / "oracle").is_dir():
        files, seen = (parts / "eval", parts / "truth.jsonl"), config.infer.filter_seen
        ceiling(raw, *files, out / "ceiling.json", filter_seen=seen)
        random_ranking(*files, out / "random.json", read_marker(raw, "raw").get("seed", 0), filter_seen=seen)


def _score(work: Path, parts: Path, config: Config) -> None:
    against = {mode: work / "result" / f"{mode}.json" for mode in MODES}
    others = (work / "baselines" / f"{name}.json" for name in sorted((*NAMES, *_OF_A_WORLD)))
    against |= {path.stem: path for path in others if path.is_file()}
    score(
        work / "result" / "result.json", parts / "truth.jsonl", config.score, against=against, out=work / "score.json"
    )
