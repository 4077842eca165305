"""The command line as a process of its own, for tests of several rooms."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("synthesize", "convert", "describe", "split", "preprocess", "build-tokenizer", "tokenizer-report", "align",
            "settings",
            "train", "train-ranker", "infer", "export-ann", "baselines", "score", "run", "ablate", "benchmark",
            "scaling", "report", "pack", "rehearse", "plan", "doctor")


def command(*words, **environment):
    """Run `onepiece-comp` as a process of its own."""
    return subprocess.run([sys.executable, "-m", "onepiece_comp", *map(str, words)], capture_output=True, text=True,
                          cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def refused(done, *words):
    """Exit code 2, one line on standard error that has all the words, no traceback."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for word in ("found", "expected", *words):
        assert word in lines[0], lines[0]
