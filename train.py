"""The platform's training job: `python -u train.py`, paths from its environment variables."""

import sys
from pathlib import Path

from onepiece_comp.container.jobs import frozen_config, training_job
from onepiece_comp.errors import InputError

if __name__ == "__main__":
    try:
        training_job(frozen_config(Path(__file__).resolve().parent))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
