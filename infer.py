"""The platform's evaluation job: its driver imports this file and calls `infer()`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from onepiece_comp.container.jobs import evaluation_job  # noqa: E402


def infer() -> tuple[list[list[int]], list[str]]:
    """Ten creative ids for each user, and the users, in the same order."""
    return evaluation_job()
