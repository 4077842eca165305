"""Make a synthetic world in the organisers' layout: the first stage of the flow where no log is at hand.

What is true is in `arrays.py`, what happens in `impressions.py`, what the log shows of it in `observables.py`; here it
becomes files, user by user, with the corners of the real data: null actions, a profile record in the middle, equal
times, item records that differ, missing features and vectors; or, with layout=parquet, those of the public release,
with its candidates. raw/oracle/ keeps the truth for `oracle.py`. Ends with a table of published and own figures
(arXiv 2604.04976; the organisers' 1k demo set; public notes on the 1M set).
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from onepiece_comp import console
from onepiece_comp.config import SynthesizeConfig
from onepiece_comp.logs.embeddings import write_embedding
from onepiece_comp.logs.formats import (
    CLICK, CONVERSION, EXPOSURE, UNKNOWN_ACTION, Candidate, Event, Features, Index, UserLine)
from onepiece_comp.logs.raw_folder import RawWriter, to_predict_features
from onepiece_comp.logs.release_writer import (
    EMBEDDING_PARTS, ReleaseWriter, write_candidate_table, write_embedding_table)
from onepiece_comp.world.arrays import DAY, END, World, draw_users
from onepiece_comp.world.impressions import Impressions, draw_clicks, selected_users, show
from onepiece_comp.world.observables import EMBEDDINGS, Catalogue, profiles, vectors
from onepiece_comp.world.oracle import OracleWriter

BLOCK = 512  # users drawn together, before selection
NULL_SHARE, NULL_DAYS = 0.0165, 10  # null actions, none in the log's last days: a target's action is known
ALTERED_SHARE = 0.02  # records of a known item that differ from its usual one
MIDDLE_SHARE = 0.06  # users whose profile record stands before their last event
DAYS_COMPARED = 14  # latest days whose items are compared
COLD_SHARE = 0.2257  # share of the release's candidates that the log never shows
_USUAL: Features = {}  # stands for the usual record of an item that the log knows already


class WorldWriter(RawWriter):
    """A RawWriter that maps the usual record of an item once: most of its time would go there."""

    def item(self, creative_id: int, features: Features) -> tuple[int, Features]:
        if features is not _USUAL:
            return super().item(creative_id, features)
        reid = self.index.items[creative_id]
        return reid, self._item_features[reid]


class ReleaseWorldWriter(WorldWriter, ReleaseWriter):
    """The same for the public release's files."""


class Tally:
    """What is counted while the log goes by; arrays run over item rows."""

    def __init__(self, items: int):
        self.seen = bytearray(items)
        self.rows: list[int] = []  # items of the log by first appearance
        self.impressions = np.zeros(items, np.int64)
        self.days = np.zeros(items, np.uint16)  # bit d: shown d days before the end
        self.actions = np.zeros(4, np.int64)

    def count(self, item: np.ndarray, seconds: np.ndarray, action: np.ndarray) -> None:
        """Add some events of the log."""
        self.impressions += np.bincount(item, minlength=len(self.impressions))
        self.actions += np.bincount(action, minlength=4)
        age = (END - 1 - seconds) // DAY
        recent = age < DAYS_COMPARED
        np.bitwise_or.at(self.days, item[recent], (1 << age[recent]).astype(np.uint16))

    def day_overlap(self, apart: int) -> float:
        """Mean Jaccard index of the items of two days."""
        return float(np.mean([self._jaccard(day, day + apart) for day in range(DAYS_COMPARED - apart)]))

    def _jaccard(self, one: int, other: int) -> float:
        first, second = self.days >> one & 1, self.days >> other & 1
        return (first & second).sum() / max(1, (first | second).sum())


def world_lines(world: World, catalogue: Catalogue, config: SynthesizeConfig, *, oracle: OracleWriter,
                tally: Tally) -> Iterator[UserLine]:
    """The log in original ids, block after block, until enough users are selected."""
    written = 0
    for block in itertools.count():
        rng = np.random.default_rng([config.seed, 4, block])
        users = draw_users(world, BLOCK, rng)
        shown = show(world, users, rng)
        clicked = draw_clicks(shown, rng)
        chosen = selected_users(users, shown, clicked)[:config.users - written]
        oracle.append(users, chosen)
        action = _actions(shown, clicked, config.conversion_rate, rng)
        kept = np.isin(shown.user, chosen)
        tally.count(shown.item[kept], shown.time[kept], action[kept])
        events = _event_lists(shown, action, chosen, catalogue, tally=tally, rng=rng)
        profile = profiles(world.topics, users, rng)
        late = np.where(rng.random(BLOCK) < MIDDLE_SHARE, -1, rng.exponential(1.5 * DAY, BLOCK).astype(np.int64))
        for user, user_events in zip(chosen, events):
            written += 1
            yield UserLine(f"user_{written:08d}", profile[user], user_events[-1].time + int(late[user]), user_events)
        if written == config.users:
            return


def _actions(shown: Impressions, clicked: np.ndarray, conversion_rate: float, rng: np.random.Generator) -> np.ndarray:
    """The strongest action of each impression; some older ones are unknown."""
    converted = clicked & (rng.random(len(clicked)) < conversion_rate)
    action = np.where(converted, CONVERSION, np.where(clicked, CLICK, EXPOSURE))
    unknown = (rng.random(len(clicked)) < NULL_SHARE) & (shown.time < END - NULL_DAYS * DAY)
    return np.where(unknown, UNKNOWN_ACTION, action)


def _event_lists(shown: Impressions, action: np.ndarray, chosen: np.ndarray, catalogue: Catalogue, *, tally: Tally,
                 rng: np.random.Generator) -> Iterator[list[Event]]:
    """The events of each chosen user; an item's first record is its usual one, later ones may differ."""
    dice = np.where(rng.random(len(action)) < ALTERED_SHARE, rng.integers(0, 1 << 40, len(action)), -1).tolist()
    rows, creative = shown.item.tolist(), catalogue.creative_id[shown.item].tolist()
    times, actions = shown.time.tolist(), [None if a == UNKNOWN_ACTION else a for a in action.tolist()]
    begins, ends = np.searchsorted(shown.user, chosen), np.searchsorted(shown.user, chosen, side="right")
    for begin, end in zip(begins.tolist(), ends.tolist()):
        events = []
        for i in range(begin, end):
            features = _USUAL
            if not tally.seen[rows[i]]:
                tally.seen[rows[i]] = 1
                tally.rows.append(rows[i])
                features = catalogue.record(rows[i])
            elif dice[i] >= 0:
                features = catalogue.altered(rows[i], dice[i])
            events.append(Event(creative[i], features, actions[i], times[i]))
        yield events


def write_release_candidates(folder: Path, world: World, catalogue: Catalogue, *, tally: Tally, index: Index,
                             seed: int) -> np.ndarray:
    """The items of the log's last days, and some then alive that it never shows; returns the rows of the latter."""
    shown, items = np.flatnonzero(tally.days), world.items
    alive = items.birth + items.life_days * DAY > END - DAYS_COMPARED * DAY
    unseen = np.flatnonzero(alive & (tally.impressions == 0))
    count = min(len(unseen), round(len(shown) * COLD_SHARE / (1 - COLD_SHARE)))
    cold = np.random.default_rng([seed, 5]).choice(unseen, count, replace=False)
    rows = np.concatenate([shown, cold])
    rows = rows[np.argsort(catalogue.creative_id[rows])]
    write_candidate_table(folder, (
        Candidate(int(catalogue.creative_id[row]), number, to_predict_features(catalogue.record(row), index))
        for number, row in enumerate(rows)))
    return cold


def write_world_embeddings(folder: Path, world: World, catalogue: Catalogue, *, rows: np.ndarray, cold: np.ndarray,
                           config: SynthesizeConfig) -> dict[str, float]:
    """Write the six tables for the log's items and cold candidates; returns the share of the log's items in each."""
    coverage, unseen = {}, set(catalogue.creative_id[cold].tolist())
    for feature, table in EMBEDDINGS.items():
        present = [0]

        def counted() -> Iterator[tuple[int, np.ndarray | None]]:
            for creative_id, vector in vectors(world, catalogue, feature, rows=rows, later=cold, seed=config.seed):
                if creative_id not in unseen:
                    present[0] += vector is not None
                elif vector is None:
                    continue  # records without a vector are counted when read: only those of the log's items are wanted
                yield creative_id, vector

        lines = console.progress(counted(), total=None, what=f"vectors of embedding {feature}")
        if config.layout == "parquet":
            lines = ((creative_id, None if vector is None else np.round(np.asarray(vector, np.float64), 6))
                     for creative_id, vector in lines)  # as many digits as the organisers' files have
            write_embedding_table(folder, feature, lines, width=table.width,
                                  rows_per_part=-(-(len(rows) + len(cold)) // EMBEDDING_PARTS))
        else:
            write_embedding(folder, feature, lines, width=table.width)
        coverage[feature] = present[0] / len(rows)
    return coverage


def world_figures(config: SynthesizeConfig, tally: Tally, coverage: dict[str, float]) -> list[tuple[str, str,
    int | float]]:
    """(name, published, ours)."""
    counts, events = tally.impressions[tally.impressions > 0], int(tally.actions.sum())
    known = tally.actions / max(1, events - tally.actions[UNKNOWN_ACTION])
    published = {"81": "0.961", "82": "0.993", "83": "0.993", "84": "0.974", "85": "0.394", "86": "0.375"}
    return [
        ("users", "1,001,845", config.users), ("items", "4,783,154", len(counts)), ("events", "90,223,574", events),
        ("items per user", "4.77", round(len(counts) / config.users, 2)),
        ("events per user, mean", "91.06 in histories", round(events / config.users, 2)),
        ("share exposure", "0.9019", round(float(known[EXPOSURE]), 4)),
        ("share click", "0.0981", round(float(known[CLICK]), 4)),
        ("share conversion", "0", round(float(known[CONVERSION]), 4)),
        ("null actions", "0.0088", round(float(tally.actions[UNKNOWN_ACTION] / events), 4)),
        ("events per item, mean", "18.9", round(float(counts.mean()), 1)),
        ("items with < 5 events", "over 0.5", round(float((counts < 5).mean()), 3)),
        ("events per item, median", "2", round(float(np.median(counts)), 1)),
        ("events per item, P90", "22", round(float(np.quantile(counts, 0.9)), 1)),
        ("Jaccard of items, adjacent days", "below 0.3", round(tally.day_overlap(1), 3)),
        ("Jaccard of items, 3 days apart", "below 0.1", round(tally.day_overlap(3), 3)),
        *[(f"embedding {feature}, share of items", published[feature], round(share, 3))
          for feature, share in coverage.items()]]
