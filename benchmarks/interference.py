"""Do the two objectives disturb each other: held-out losses alone and together, and the angle between their gradients.

    python benchmarks/interference.py WORK/dataset WORK/interference --set train.threads=1

One model, one split by users, the same initial weights and batches of a seed in every row: InfoNCE alone, ids alone,
both at several weights of the ids, with ids that no two items share and with ids as the quantiser gave them. At several
moments of a joint training the gradients of both losses over the shared parameters are compared on batches of users
that training never sees, without dropout. All rows run under the first seed, then under the next; resumable: a row's
JSON is kept under OUT/rows.
"""

import argparse
import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from onepiece_comp.artefacts import MARKERS, fingerprint, read_json, read_marker, write_json
from onepiece_comp.config import Config
from onepiece_comp.config_reading import load_config, to_dict
from onepiece_comp.console import mean_and_spread, say, table
from onepiece_comp.dataset.preprocess import Dataset, load_dataset
from onepiece_comp.models.recommender import OnePiece
from onepiece_comp.studies.scaling import batches_of, held_out_losses, keep_ids, keep_users
from onepiece_comp.tokenizer.folder import load_tokenizer
from onepiece_comp.training.devices import Ranks
from onepiece_comp.training.loop import Loop
from onepiece_comp.training.process import repeatable, set_threads
from onepiece_comp.training.run_log import RunLog
from onepiece_comp.training.validation import hold_out, validate

LAMBDAS = (0.1, 0.01, 0.03, 0.3, 1.0)
MOMENTS = (0.0, 0.05, 0.25, 0.5, 1.0)  # shares of the steps
IDS = {"unshared": "assignment", "shared": "none"}  # how collisions are resolved
HELD_OUT, JUDGED_USERS, BATCH_USERS, BATCHES = 0.1, 300, 16, 12
CPU = torch.device("cpu")


class Row(NamedTuple):
    """One training."""

    ids: str
    retrieval: float  # weights of the two losses
    semantic: float
    seed: int

    @property
    def name(self) -> str:
        if not self.semantic:
            return "InfoNCE alone"
        return f"{self.ids} ids alone" if not self.retrieval else f"both, {self.ids} ids, lambda {self.semantic:g}"

    @property
    def file(self) -> str:
        return f"{self.ids}-{self.retrieval:g}-{self.semantic:g}-seed-{self.seed}.json"


def all_rows(seeds: int) -> list[Row]:
    """What decides first: a seed's rows alone, then both at the default weight, then the other weights."""
    alone = [("unshared", 1.0, 0.0), *((ids, 0.0, 1.0) for ids in IDS)]
    both = [(ids, 1.0, weight) for weight in LAMBDAS for ids in IDS]
    return [Row(*one, seed) for seed in range(seeds) for one in (*alone, *both)]


class Angles(NamedTuple):
    """Two objectives' gradients on the same batches, by their inner products."""

    parameters: int
    together: float  # mean cosine of both on the same batch
    spread: float  # its standard deviation over batches
    opposed: float  # share of the batches with a cosine below 0
    apart: float  # mean cosine of both on different batches
    first: float  # mean cosine of the first objective's on different batches: the noise control
    second: float  # of the second one's
    true: float | None  # cosine of the expected gradients, noise taken out; None where that is all noise
    error: float | None  # its jackknife standard error
    norms: float  # mean norm of the second over that of the first


class Moments(Loop):
    """A loop that compares gradients at shares of its steps."""

    def watch(self, held: Dataset) -> None:
        """Compare on batches of `held`; validation of no users, at each moment, is what makes the loop stop there."""
        self.found: dict[str, dict] = {}
        codes = self.model.codes.numpy()
        self._probe = [batch for _, batch in zip(range(BATCHES), batches_of(
            held, self.config, codes, negatives=self.config.train.sampled_negatives, users=BATCH_USERS).epoch(0))]
        self.validate_at = {round(share * self.total_steps): share for share in MOMENTS}
        self._judge(None)

    def _judge(self, log: RunLog | None) -> None:
        share = self.validate_at[self.progress.step]
        self.found[f"{share:g}"] = {name: angles._asdict() for name, angles in gradients(self.model,
            self._probe).items()}
        if log is not None:
            super()._judge(log)


def gradients(model: OnePiece, batches: Sequence) -> dict[str, Angles]:
    """Angles between InfoNCE and ids over each group of shared parameters, and over all of them but the tables."""
    groups, rows = shared_parameters(model), {}
    was_training = model.training
    model.eval()
    for batch in batches:
        item_ND = model.encode_items(batch.items)
        encoded = model.encode(batch.history, item_ND)
        losses = (model.retrieval_loss(batch, encoded, item_ND), model.semantic_loss(model.forced(batch, encoded),
            encoded))
        for place, loss in enumerate(losses):
            for name, parameters in groups.items():
                found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                rows.setdefault((name, place), []).append(torch.cat([
                    (torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)]))
    model.train(was_training)
    return {name: compare(*(torch.stack(rows[name, place]).double().numpy() for place in (0, 1))) for name in groups}


def shared_parameters(model: OnePiece) -> dict[str, list[torch.nn.Parameter]]:
    """Parameters that both losses reach, in groups from the input up."""
    tables = {id(p) for m in model.modules() if isinstance(m, (torch.nn.Embedding, torch.nn.EmbeddingBag))
              for p in m.parameters()}
    groups: dict[str, list] = {"embedding tables": [], "item tower": [], "history inputs": []}
    for name, parameter in model.named_parameters():
        first, second = name.split(".")[:2] if "." in name else (name, "")
        if first in ("item_tower", "inputs"):
            group = ("embedding tables" if id(parameter) in tables
                     else {"item_tower": "item tower", "inputs": "history inputs"}[first])
            groups[group].append(parameter)
        elif first == "layers":
            groups.setdefault(f"layer {int(second) + 1}", []).append(parameter)
    dense = [p for name, parameters in groups.items() if name != "embedding tables" for p in parameters]
    return {**{name: parameters for name, parameters in groups.items() if parameters}, "all but the tables": dense}


def compare(first_BP: np.ndarray, second_BP: np.ndarray) -> Angles:  # noqa: N803
    """Angles of gradients [batches, parameters] of two objectives; row b of both is of the same batch."""
    products = [a @ b.T for a, b in ((first_BP, first_BP), (second_BP, second_BP), (first_BP, second_BP))]
    norms = [np.sqrt(np.diag(product)).clip(1e-30) for product in products[:2]]
    cosines = [products[0] / np.outer(norms[0], norms[0]), products[1] / np.outer(norms[1], norms[1]),
               products[2] / np.outer(norms[0], norms[1])]
    count = len(first_BP)
    other = ~np.eye(count, dtype=bool)
    same = np.diag(cosines[2])
    whole, parts = _true(products), [_true([np.delete(np.delete(p, b, 0), b, 1) for p in products])
                                     for b in range(count)]
    known = whole is not None and None not in parts
    error = float(np.sqrt((count - 1) * np.var(parts))) if known else None
    return Angles(first_BP.shape[1], float(same.mean()), float(same.std(ddof=1)), float((same < 0).mean()),
                  *(float(cosines[place][other].mean()) for place in (2, 0, 1)), whole if known else None, error,
                  float((norms[1] / norms[0]).mean()))


def _true(products: Sequence[np.ndarray]) -> float | None:
    """Cosine of the expected gradients: products of different batches have no noise in common."""
    other = ~np.eye(len(products[0]), dtype=bool)
    own, theirs, both = (product[other].mean() for product in products)
    return float(both / np.sqrt(own * theirs)) if own > 0 and theirs > 0 else None


def run_row(row: Row, config: Config, out: Path) -> dict:
    """Train one row and judge it on the users that no row sees."""
    data, held = (load_dataset(out / "data" / name) for name in ("train", "held-out"))
    codes = np.array(load_tokenizer(out / f"tokenizer-{row.ids}", data.schema.item_space).codes)
    torch.manual_seed(row.seed)
    model = OnePiece(config.model, data.schema, torch.from_numpy(codes))
    model.inputs.time.fit(np.asarray(data.time_seconds))
    run, started = out / "run", time.monotonic()
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    loop = Moments(model, data, run, config, CPU, warm=False,
                   ranks=Ranks()) if row.retrieval and row.semantic else Loop(
        model, data, run, config, CPU, warm=False, ranks=Ranks())
    with RunLog((run, None, None), 0) as log, repeatable(CPU):
        if isinstance(loop, Moments):
            loop.watch(held)
        loop.run_steps(log)
    seconds = time.monotonic() - started
    retrieval, levels = held_out_losses(model, held, config, negatives=2048)
    asked = hold_out(held, users=JUDGED_USERS, seed=0, one_in=1)
    return {"steps": loop.total_steps, "retrieval": retrieval, "codes": levels, "seconds": seconds,
            "score": validate(model, held, asked, CPU).score if row.retrieval else None,
            "moments": loop.found if isinstance(loop, Moments) else {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vectors", default="emb_81", help="what the ids are made from, as in build-tokenizer")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="section.key=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hours", type=float, default=2.0, help="after which no row is begun")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    config = load_config(options.preset, None, options.sets)
    set_threads(config.train.threads)
    until = time.monotonic() + 3600 * options.hours
    prepare(options.dataset, options.out, config, options.vectors)
    found = {row: figures for row in all_rows(options.seeds) if (figures := one(row, config, options.out,
                                                                                until)) is not None}
    report(options, found)


def prepare(dataset: Path, out: Path, config: Config, vectors: str) -> None:
    """Users for training and held out, and both tokenizers."""
    order = np.random.default_rng(0).permutation(len(load_dataset(dataset).user_start) - 1)
    held = round(HELD_OUT * len(order))
    for name, users in (("held-out", order[:held]), ("train", order[held:])):
        keep_users(dataset, out / "data" / name, np.sort(users))
    for name, rule in IDS.items():
        keep_ids(dataset, out / f"tokenizer-{name}", dataclasses.replace(config.tokenizer, resolve=rule), vectors)


def one(row: Row, config: Config, out: Path, until: float) -> dict | None:
    """Figures of a row: those kept, or new ones where there is time."""
    config = dataclasses.replace(config, train=dataclasses.replace(
        config.train, seed=row.seed, retrieval_weight=row.retrieval, semantic_weight=row.semantic,
        conditioned_weight=0.0,
        validation_users=0, checkpoints=1))
    file = out / "rows" / row.file
    key = fingerprint(to_dict(config.model), to_dict(config.train),
                      read_json(out / "data" / "train" / MARKERS["dataset"]),
                      read_marker(out / f"tokenizer-{row.ids}", "tokenizer")["checksum"], MOMENTS, BATCHES)
    kept = read_json(file) if file.is_file() else {}
    if kept.get("key") == key:
        return kept
    if time.monotonic() > until:
        return None
    say(f"== {row.name}, seed {row.seed}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"key": key, **run_row(row, config, out)})
    return read_json(file)


def report(options: argparse.Namespace, found: Mapping[Row, dict]) -> None:
    """Tables on the terminal and as Markdown."""
    rows = all_rows(options.seeds)
    shown = sorted((row for row in rows if row.seed == 0),
                   key=lambda row: (bool(row.retrieval and row.semantic), not row.retrieval,
                                                                           row.ids == "shared", row.semantic))
    losses = [loss_line(row, rows, found) for row in shown]
    default = Row("unshared", 1.0, LAMBDAS[0], 0)
    others = [line for row in shown if row.retrieval and row.semantic and row != default for line in angle_lines(row,
        found, ["1"])]
    angles = angle_lines(default, found, [f"{share:g}" for share in MOMENTS]) + others
    tables = (("Held-out losses", LOSS_COLUMNS, losses), ("Angles between the gradients", ANGLE_COLUMNS, angles))
    for title, columns, lines in tables:
        table(title, columns, lines)
    asked = ["python benchmarks/interference.py WORK/dataset OUT",
             *([f"--preset {options.preset}"] if options.preset != "tiny" else []),
             *([f"--vectors {options.vectors}"] if options.vectors != "emb_81" else []),
             *(f"--set {one}" for one in options.sets)]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "interference.md").write_text("\n".join([f"`{' '.join(asked)}`", "",
                                                                *(line for title, columns, lines in tables for line in (
        f"{title}:", "", *("| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *lines)),
        ""))]))
    say(f"wrote {options.results / 'interference.md'}")


LOSS_COLUMNS = ("row", "seeds", "InfoNCE", "to InfoNCE alone", "ids", "to these ids alone", "first code", "second code",
                "score", "minutes")
ANGLE_COLUMNS = ("row", "steps", "parameters of", "cosine, same batch", "below 0", "different batches",
                 "InfoNCE with itself",
                 "ids with themselves", "noise taken out", "chance", "norm of ids / InfoNCE")


def loss_line(row: Row, rows: Sequence[Row], found: Mapping[Row, dict]) -> list[str]:
    """Means over seeds; differences to the row alone are of the same seed."""
    mine = [found[row._replace(seed=seed)] for seed in sorted({r.seed for r in rows})
            if row._replace(seed=seed) in found]
    if not mine:
        return [row.name, "0", *["not run"] * (len(LOSS_COLUMNS) - 2)]
    ids = lambda figures: sum(figures["codes"])
    cells = [row.name, str(len(mine))]
    for trained, alone, loss in ((row.retrieval, Row("unshared", 1.0, 0.0, 0), lambda figures: figures["retrieval"]),
                                 (row.semantic, Row(row.ids, 0.0, 1.0, 0), ids)):
        pairs = [(loss(found[r]), loss(found[alone._replace(seed=r.seed)])) for r in found
                 if r._replace(seed=0) == row and alone._replace(seed=r.seed) in found]
        cells += [mean_and_spread([loss(figures) for figures in mine]), mean_and_spread([a - b for a, b in pairs],
            sign=True)
                  if pairs and row != alone else ""] if trained else ["", ""]
    levels = [mean_and_spread([figures["codes"][level] for figures in mine]) if row.semantic else "" for level in (0,
        1)]
    return [*cells, *levels, mean_and_spread([figures["score"] for figures in mine]) if row.retrieval else "",
            f"{np.mean([figures['seconds'] for figures in mine]) / 60:.1f}"]


def angle_lines(row: Row, found: Mapping[Row, dict], moments: Sequence[str]) -> list[list[str]]:
    """Angles of a row, seeds averaged: every group at its moments for the first row,
    all parameters at the end for others.
    """
    mine = [figures["moments"] for r, figures in found.items() if r._replace(seed=0) == row]
    if not mine:
        return [[row.name, "", "", *["not run"] * (len(ANGLE_COLUMNS) - 3)]]
    lines = []
    for moment in moments:
        for group in mine[0][moment] if len(moments) > 1 else ["all but the tables"]:
            seen = [one[moment][group] for one in mine]
            mean = lambda field: np.mean([one[field] for one in seen])
            true = "noise alone" if any(one["true"] is None for one in seen) else (
                f"{mean('true'):+.3f} ± {np.sqrt(np.mean([one['error'] ** 2 for one in seen]) / len(seen)):.3f}")
            lines.append([row.name, f"{100 * float(moment):g} %", group,
                          f"{mean('together'):+.3f} ± {mean('spread'):.3f}",
                          f"{100 * mean('opposed'):.0f} %", f"{mean('apart'):+.3f}", f"{mean('first'):+.3f}",
                          f"{mean('second'):+.3f}",
                          true, f"{1.96 / seen[0]['parameters'] ** 0.5:.3f}", f"{mean('norms'):.2f}"])
    return lines


if __name__ == "__main__":
    main()
