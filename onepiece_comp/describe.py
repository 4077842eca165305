"""What a folder or file is, what it holds, and what of it will hurt: tables on the terminal, plots in a page of HTML.

Looks at anything that the stages read or write: logs, datasets, evaluation folders, splits, tokenizers, runs, truths,
results; of other logs it says which converter fits. A log is read once, in blocks, by the reader that `preprocess.py`
uses; memory is bounded by the item tables.
"""

from collections.abc import Callable
from pathlib import Path

from onepiece_comp.artefact_sections import marker_section, result_section, truth_section
from onepiece_comp.artefacts import MARKERS, read_marker
from onepiece_comp.console import say, table
from onepiece_comp.convert import detect_log
from onepiece_comp.errors import InputError
from onepiece_comp.log_description import Description, describe_dataset, describe_log
from onepiece_comp.log_sections import log_section, protocol_section, warning_section
from onepiece_comp.log_source import is_release, open_log
from onepiece_comp.log_warnings import order_warnings, profile_warnings, protocol_warnings
from onepiece_comp.protocol_figures import read_protocol
from onepiece_comp.report_html import Section, Table, Text, can_plot, write_report
from onepiece_comp.truths import read_truth

_NAMES_SHOWN = 8
_OF_A_FOLDER = ("seq.jsonl", "predict_seq.jsonl", "predict_set.jsonl", "indexer.pkl", "item_feat_dict.json")


def describe(path: Path, *, out: Path | None = None, embeddings: bool = False) -> Description:
    """Print what `path` is and write the HTML page `out` (None = no page); returns what was found.

    `embeddings` counts embedding tables of more than a gigabyte too. InputError for what is nothing of ours, and for
    a broken file, with its line.
    """
    path = Path(path)
    found = _read(path, embeddings)
    page = [Section("What it is", [Text(f"{path}: {found.kind}.")]), warning_section(found.warned), *found.sections]
    say(f"{path}: {found.kind}")
    for section in found.sections:
        _print(section)
    for one in found.warned:
        say(f"warning: {one.line()}")
    if not found.warned:
        say("no warnings")
    if out is None:
        say("no page was written: add --out report.html for plots")
    else:
        say(f"wrote {write_report(out, f'{path.name}: {found.kind}', page)}"
            + ("" if can_plot() else " (without plots: they need matplotlib)"))
    return found


def _print(section: Section) -> None:
    for part in section.parts:
        if isinstance(part, Table):
            table(f"{section.title}: {part.title}", part.columns, part.rows)
        elif isinstance(part, Text):
            say(f"note: {part.text}")


def _read(path: Path, embeddings: bool) -> Description:
    """Tell what the path is, by its markers and file names, and read it."""
    if not path.exists():
        raise InputError(path, found="no such file or folder", expected="something to describe", do="check the path")
    if path.is_file():
        return _read_file(path)
    readers: dict[str, Callable[[Path], Description]] = {
        "split": lambda folder: _read_split(folder, embeddings), "dataset": describe_dataset,
        **{kind: lambda folder, kind=kind: _read_artefact(folder, kind)
           for kind in ("tokenizer", "run", "ranker", "neighbour search")}}
    for kind, reader in readers.items():
        if (path / MARKERS[kind]).is_file():
            return reader(path)
    if (path / "predict_seq.jsonl").is_file():
        return _read_evaluation(path, _beside(path, "truth.jsonl"))
    if (path / "seq.jsonl").is_file() or is_release(path):
        return describe_log(open_log(path), cut=_cut_beside(path), embeddings=embeddings)
    raise _not_ours(path)


def _not_ours(path: Path) -> InputError:
    """What to say of something that no stage writes: the converter that fits, or what lies inside."""
    kind = detect_log(path)
    if kind:
        return InputError(path, found=f"a log of another kind ({kind})", expected="the competition's layout",
                          do=f"convert it first: onepiece-comp convert {kind} {path} work/raw")
    signs, held = (*MARKERS.values(), "predict_seq.jsonl", "seq.jsonl"), sorted(path.iterdir()) if path.is_dir() else []
    inside = [one for one in held if any((one / sign).is_file() for sign in signs)]
    names = ", ".join(one.name for one in held[:_NAMES_SHOWN]) if path.is_dir() else "a file"
    return InputError(
        path, found=f"nothing that is known ({names or 'an empty folder'})",
        expected="a log, an evaluation folder, a split, a dataset, a tokenizer, a run, truth.jsonl or result.json",
        do=f"describe what lies in it: {', '.join(map(str, inside))}" if inside else "check the path")


def _beside(folder: Path, name: str) -> Path | None:
    """A file of this name in the folder or in the one around it."""
    return next((place / name for place in (folder, folder.resolve().parent) if (place / name).is_file()), None)


def _cut_beside(folder: Path) -> int | None:
    """When the training data of a split must end: as the split says, else at the first target of a truth beside."""
    marker, truth = _beside(folder, MARKERS["split"]), _beside(folder, "truth.jsonl")
    if marker is not None:
        return read_marker(marker.parent, "split").get("cut")
    times = [one.time for one in read_truth(truth)] if truth else []
    return min(times) if times else None


def _read_evaluation(folder: Path, truth: Path | None) -> Description:
    asked = read_protocol(folder, truth)
    warned = [*order_warnings(asked.histories), *profile_warnings(asked.late_profiles, asked.protocol.users),
              *protocol_warnings(asked.protocol)]
    return Description("an evaluation folder" + (f", with the truth in {truth}" if truth else ""), [
        protocol_section("Evaluation", asked.protocol), log_section("Histories", asked.histories)], warned)


def _read_split(folder: Path, embeddings: bool) -> Description:
    marker, truth = read_marker(folder, "split"), folder / "truth.jsonl"
    train = describe_log(open_log(folder / "train"), cut=marker.get("cut"), embeddings=embeddings)
    evaluation = _read_evaluation(folder / "eval", truth)
    named = lambda side, sections: [section._replace(title=f"{side}: {section.title}") for section in sections]
    warned = [one._replace(found=f"train: {one.found}") for one in train.warned]
    return Description("a split (train, eval, truth)", [
        *named("train", train.sections), *named("eval", evaluation.sections), truth_section(truth),
        marker_section(MARKERS["split"], marker)],
        [*warned, *(one._replace(found=f"eval: {one.found}") for one in evaluation.warned)])


def _read_artefact(folder: Path, kind: str) -> Description:
    return Description(f"a {kind} folder", [marker_section(MARKERS[kind], read_marker(folder, kind))], [])


def _read_file(path: Path) -> Description:
    """A truth or a result; of other files, what to do with them."""
    if path.name in _OF_A_FOLDER:
        raise InputError(path, found="one file of a folder", expected="the folder", do=f"describe {path.parent}")
    with open(path, "rb") as file:
        head = file.read(1 << 12)
    if path.suffix == ".jsonl" and all(name in head for name in (b'"user"', b'"item"', b'"action"', b'"time"')):
        return Description("the targets of a split", [truth_section(path)], [])
    if path.name == "result.json" or path.suffix == ".json" and b'"top10s"' in head:
        return Description("the result of an inference", [result_section(path)], [])
    raise _not_ours(path)
