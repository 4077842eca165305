"""The part `scaling` of a grid file, its trainings, and the settings of each.

Stands between `ablation.py`, whose rows it takes, and `scaling.py`. The step size of AdamW is the row's times
sqrt(64 / width); Muon's scales itself.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from onepiece_comp.config import Config
from onepiece_comp.config_reading import read_yaml
from onepiece_comp.errors import InputError
from onepiece_comp.studies.ablation import Row

OBJECTIVES = {"InfoNCE": (1.0, 0.0), "ids": (0.0, 1.0), "both": (1.0, 1.0)}  # weights of retrieval and ids
_REFERENCE_WIDTH = 64


class Plan(NamedTuple):
    """The part `scaling` of a grid."""

    objectives: tuple[str, ...]
    seeds: int
    data: Mapping[str, float]
    vectors: str
    held_out: float
    negatives: int
    beside: tuple[str, ...]  # rows that differ in more than their size


class Cell(NamedTuple):
    """One training of the grid."""

    row: Row
    objective: str
    seed: int
    share: float

    @property
    def name(self) -> str:
        return f"{self.row.folder}-{self.objective.lower()}-seed-{self.seed}"


def read_plan(grid: Path) -> Plan:
    """The part `scaling` of a grid file; InputError for a key or an objective that is none, and for names of no row."""
    whole = read_yaml(Path(grid))[0]
    given, rows = whole.get("scaling") or {}, whole.get("rows") or {}
    value = {"objectives": list(OBJECTIVES), "seeds": 1, "data": {}, "vectors": "emb_81", "held_out": 0.1,
             "negatives": 2048,
             "beside": [], **(given if isinstance(given, dict) else {repr(given): None})}
    rows = set(map(str, rows))  # YAML reads `128` as a number
    if isinstance(value["data"], dict):
        value["data"] = {str(name): share for name, share in value["data"].items()}
    if isinstance(value["beside"], list):
        value["beside"] = [str(name) for name in value["beside"]]
    number = lambda one, kind: isinstance(one, kind) and not isinstance(one, bool)
    right = {
        "objectives": lambda one: isinstance(one, list) and one and all(isinstance(name, str) and name in OBJECTIVES
                                                                        for name in one),
        "seeds": lambda one: number(one, int) and one >= 1, "negatives": lambda one: number(one, int) and one >= 1,
        "data": lambda one: isinstance(one, dict) and all(
            name in rows and number(share, (int, float)) and 0 < share <= 1 for name, share in one.items()),
        "vectors": lambda one: isinstance(one, str), "held_out": lambda one: number(one, float) and 0 < one < 1,
        "beside": lambda one: isinstance(one, list) and all(name in rows for name in one)}
    for key, one in value.items():
        if key not in right or not right[key](one):
            raise InputError(f"{grid}: scaling", found=f"{key}: {one}", do="correct it", expected=(
                f"the keys {', '.join(Plan._fields)}; objectives of {', '.join(OBJECTIVES)}; seeds and negatives from "
                f"1; shares "
                "above 0, of users for training up to 1, held out below 1; names of rows under data and beside"))
    return Plan(**{**value, "objectives": tuple(value["objectives"]), "beside": tuple(value["beside"])})


def settings_of(cell: Cell) -> Config:
    """The row's configuration under the cell's objective, seed and width's step size."""
    retrieval, semantic = OBJECTIVES[cell.objective]
    config, train = cell.row.config, cell.row.config.train
    rate = train.learning_rate * (_REFERENCE_WIDTH / config.model.width) ** 0.5
    weight = train.semantic_weight if cell.objective == "both" else semantic
    return replace(config, train=replace(train, seed=cell.seed, learning_rate=rate, retrieval_weight=retrieval,
                                         semantic_weight=weight, validation_users=0))
