#!/usr/bin/env bash
# bash run.sh          synthetic world to scored submission, in work/ (a second call reuses what is done)
# bash run.sh test     the test suite
# With the platform's variables set (TRAIN_DATA_PATH, TRAIN_CKPT_PATH) it installs nothing and runs train.py.
set -euo pipefail
cd "${RUNTIME_SCRIPT_DIR:-$(dirname "${BASH_SOURCE[0]}")}"

if [[ -n "${TRAIN_DATA_PATH:-}" && -n "${TRAIN_CKPT_PATH:-}" ]]; then
  exec python -u train.py
fi

case "${1:-run}" in run | test) ;; *)
  echo "usage: bash run.sh [test]" >&2
  exit 2
  ;;
esac

python=${PYTHON:-python3}
stamp=.venv/installed-$(cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)
if [[ ! -f $stamp ]]; then
  echo "installing into .venv"
  "$python" -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version) if sys.version_info < (3, 10) else None'
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
  touch "$stamp"
fi

case "${1:-run}" in
  run)
    [[ -f work/raw/raw.json ]] || .venv/bin/onepiece-comp synthesize work/raw --set synthesize.users=2400
    exec .venv/bin/onepiece-comp run work/raw work
    ;;
  test)
    exec .venv/bin/python -m pytest "${@:2}"
    ;;
esac
