"""The results that stand in a benchmark's folder as tables, one file and a page: those of one setting for each row.

Stands between `sections.py` and `run.py`. A folder may hold results of other settings and data under
other seeds; a mean over these would be of nothing.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onepiece_comp.artefacts import fingerprint, read_json, write_json
from onepiece_comp.benchmark.full_ranking import FILTERS
from onepiece_comp.benchmark.pairs import against_baselines, baselines_of, pair_cells
from onepiece_comp.benchmark.rows import PROTOCOLS, rows, told
from onepiece_comp.benchmark.sections import benchmark_sections
from onepiece_comp.console import say, table
from onepiece_comp.reports.page import write_report

SHOWN = ("hr@10", "ndcg@10", "hr@50", "hr@200", "coverage@10", "popularity@10")


def setting(about: dict, config: dict) -> str:
    """What results of a row must share to be of one setting: data, protocol and configuration, all but the seed."""
    return fingerprint(about, told(config))


def report(out: Path, name: str, asked: Mapping[str, str]) -> Path:
    """Print the tables and write OUT/result.json and OUT/benchmark.html; returns the first.
    `asked` has the setting of each row that was run now.
    """
    files = {row: _of_one_setting(row, out, asked.get(row)) for row in rows(name)}
    found = {row: [result for _, result in results] for row, results in files.items()}
    lines = []
    for row, results in found.items():
        for kind in FILTERS if results else ("",):
            cells = [f"{np.mean([result['figures'][kind][metric] for result in results]):.4f}" if results else "not run"
                     for metric in SHOWN]
            minutes = f"{np.mean([result['seconds'] for result in results]) / 60:.1f}" if results else "not run"
            lines.append((row, kind, len(results), *cells, minutes))
    table(f"{name}: means over seeds; `unseen` leaves out the items of the history", ("row", "items", "seeds", *SHOWN,
          "minutes"), lines)
    compared = against_baselines(files)
    pairs = [(row, *cells) for row in files if any(cells := pair_cells(compared, row, "unseen"))]
    if pairs:
        table("NDCG@10, `unseen`: row - baseline, mean over the seeds of both, 95 % interval over users",
              ("row", *baselines_of(compared)), pairs)
    path = out / "result.json"
    write_json(path, {"protocol": name, "version": PROTOCOLS[name].version, "against": compared,
                      "rows": {row: results for row, results in found.items() if results}})
    page = write_report(out / "benchmark.html", f"Benchmark: {name}", benchmark_sections(name, files, compared))
    say(f"wrote {path} and {page.name}")
    return path


def _of_one_setting(row: str, out: Path, asked: str | None) -> list[tuple[Path, dict]]:
    """The files of a row and what they hold: of the setting that was asked for, or of that which most of them have."""
    held = [(path, read_json(path)) for path in sorted((out / "rows" / row).glob("seed-*.json"))]
    settings = [setting(result["about"], result["config"]) for _, result in held]
    kept = asked or (Counter(settings).most_common(1)[0][0] if held else None)
    if others := len(held) - settings.count(kept):
        say(f"{row}: {others} of {len(held)} seeds are of other settings or data, and left out; run them again to "
            f"count them in")
    return [one for one, of in zip(held, settings) if of == kept]
