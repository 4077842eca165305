#!/usr/bin/env bash
# bash benchmarks/old_versions.sh [FOLDER] [pytest words]
# The suite under the versions of the platform's container: Python 3.10, torch 2.7.1, numpy 2.1, pandas 2.3, pyarrow 20,
# faiss-cpu 1.9, tensorboard 2.19. Makes an environment of about 7 GB in FOLDER (default /tmp/onepiece_old), at low priority.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-/tmp/onepiece_old}
shift || true
python=${PYTHON310:-python3.10}

"$python" -c '' 2>/dev/null || { echo "$python does not start: set PYTHON310 to a Python 3.10" >&2; exit 2; }
if [[ ! -f $folder/whole ]]; then
  "$python" -m venv "$folder"
  nice -n 19 "$folder/bin/python" -m pip install --quiet --no-cache-dir \
    torch==2.7.1 numpy==2.1.3 pandas==2.3.1 pyarrow==20.0.0 faiss-cpu==1.9.0 tensorboard==2.19.0 numba==0.61.2 \
    typer rich pyyaml matplotlib pytest hypothesis
  touch "$folder/whole"
fi
PYTHONPATH=$PWD OMP_NUM_THREADS=1 exec nice -n 19 "$folder/bin/python" -m pytest "$@"
