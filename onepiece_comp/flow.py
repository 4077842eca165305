"""The lot: raw files to a scored submission, each stage once; what is done and unchanged is reused.

Stages and folders under WORK: split/ dataset/ retrieval/ tokenizer/ joint/ (ranker/) result/ baselines/ and score.json. A stage
is redone when its own settings or anything before it has changed; `stages.json` holds the key of each.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from onepiece_comp import __version__
from onepiece_comp.artefacts import MARKERS, fingerprint, read_json, read_marker, write_json
from onepiece_comp.baselines import NAMES, baselines
from onepiece_comp.config import Config
from onepiece_comp.config_reading import to_dict
from onepiece_comp.console import say, table
from onepiece_comp.errors import InputError, StaleRun
from onepiece_comp.log_source import log_fingerprint, open_log
from onepiece_comp.oracle import ceiling, random_ranking
from onepiece_comp.preprocess import preprocess
from onepiece_comp.ranker_training import train_ranker
from onepiece_comp.scoring import score
from onepiece_comp.split import repeats, split
from onepiece_comp.submission import MODES, infer
from onepiece_comp.tokenizer import build_tokenizer
from onepiece_comp.training import train

_OF_A_WORLD = ("ceiling", "random")  # baselines that only a synthetic world has


class _Stages:
    """Runs stages in order, each under a key that covers all that it depends on."""

    def __init__(self, work: Path):
        self.work, self._path = work, work / "stages.json"
        self._done = read_json(self._path) if self._path.is_file() else {}
        self._redone: set[str] = set()  # keys of what this call did: what stands on it is done again too
        self.seconds: list[tuple[str, str]] = []

    def run(self, name: str, output: Path, settings: object, after: list[str], action: Callable[[], object]) -> str:
        """Do `action` unless `output` stands from the same settings and inputs; returns the stage's key.

        `after` are the keys of what the stage reads.
        """
        key, started = fingerprint(__version__, settings, after), time.monotonic()
        if self._done.get(name) == key and output.exists() and not self._redone.intersection(after):
            say(f"{name}: reused {output.parent if output.is_file() else output}")
            self.seconds.append((name, "reused"))
            return key
        say(f"== {name}")
        action()
        self._redone.add(key)
        self._done[name] = key
        write_json(self._path, self._done)
        self.seconds.append((name, f"{time.monotonic() - started:.1f} s"))
        return key


def run_all(raw: Path, work: Path, config: Config) -> Path:
    """From raw files to WORK/score.json: split, columns, both trainings, tokenizer, submission, baselines, score."""
    raw, work = Path(raw), Path(work)
    log = open_log(raw)
    by_hand = [stage for stage in ("retrieval", "joint") if (work / stage / MARKERS["run"]).is_file()]
    if by_hand and not (work / "stages.json").is_file():
        raise InputError(work, found=f"{' and '.join(by_hand)} without stages.json: trained stage by stage", expected="a folder of this "
                         "command, which would train them anew", do="give another WORK, or go on stage by stage")
    work.mkdir(parents=True, exist_ok=True)
    if config.split.mode == "leave_one_out" and config.model.trend:
        say("note: users of this split end at different times, so that popularity up to the log's end tells little of their "
            "targets; compare with --set model.trend=false")
    stages = _Stages(work)
    source = fingerprint(*log.files(), log_fingerprint(raw))  # events to the byte; features, embeddings, oracle by their ends
    parts, data, result = work / "split", work / "dataset", work / "result"
    cut = stages.run("split", parts, to_dict(config.split), [source], lambda: split(raw, parts, config.split))
    columns = stages.run("preprocess", data, to_dict(config.preprocess), [cut],
                         lambda: preprocess(parts / "train", data, config.preprocess))
    trained = [to_dict(config.model), to_dict(config.train)]
    first = stages.run("train retrieval", work / "retrieval" / MARKERS["run"], trained, [columns],
                       lambda: train_or_resume(data, work / "retrieval", config))
    codes = stages.run(
        "build tokenizer",
        work / "tokenizer",
        to_dict(config.tokenizer),
        [first],
        lambda: build_tokenizer(data, work / "tokenizer", config.tokenizer, checkpoint=work / "retrieval"),
    )
    joint = stages.run("train jointly", work / "joint" / MARKERS["run"], trained, [codes],
                       lambda: train_or_resume(data, work / "joint", config, tokenizer=work / "tokenizer",
                                                warm=work / "retrieval"))
    settings = config.infer
    if config.ranker.use:
        ranked = [to_dict(config.ranker), to_dict(config.infer)]
        joint = stages.run("train ranker", work / "ranker" / MARKERS["ranker"], ranked, [joint, columns],
                           lambda: train_ranker(work / "joint", data, work / "ranker", config.ranker, config.infer))
        settings = dataclasses.replace(config.infer, ranker=str(work / "ranker"))
    inferred = stages.run(
        "infer", result / "result.json", to_dict(settings), [joint],
        lambda: infer(work / "joint", result, settings, data=parts / "eval", truth=parts / "truth.jsonl", beside=MODES))
    filters = [config.infer.filter_seen, config.infer.filter_cold]
    compared = stages.run("baselines", work / "baselines" / "popularity.json", filters, [cut],
                          lambda: _baselines(raw, parts, work / "baselines", config))
    stages.run("score", work / "score.json", to_dict(config.score), [inferred, compared],
               lambda: _score(work, parts, config))
    table("stages", ("stage", "time"), stages.seconds)
    say(f"{repeats(parts)}; infer.filter_seen={str(config.infer.filter_seen).lower()}, ours and the baselines")
    say(f"submission: {result / 'result.json'}   score: {work / 'score.json'}")
    return work / "score.json"


def train_or_resume(data: Path, run: Path, config: Config, **inputs: Path | None) -> None:
    """Go on where a killed run of the same settings stands; a run of others is our own and old, and makes way.

    Any other error leaves the run as it is: a card that is missing now, a full disk or a loss that came apart is no
    reason to lose what was trained.
    """
    if (run / "resume.pt").is_file() and not (run / MARKERS["run"]).is_file():
        try:
            train(data, run, config, resume=True, **inputs)
            return
        except StaleRun as error:
            say(f"starting again: {error}")
    if run.is_dir():
        shutil.rmtree(run)
    train(data, run, config, **inputs)


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
