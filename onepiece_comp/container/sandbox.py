"""A process as the platform starts one: only its variables, no network, a time limit, and no library that it lacks.

The network goes by an empty network namespace (unshare) where this machine permits one, else by an audit hook of
Python that refuses every connection; neither lets two processes talk over TCP. Libraries are hidden from Python's own
search, so that `import` and `find_spec` behave as where they are not installed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from onepiece_comp.environment import bare_environment
from onepiece_comp.errors import InputError

NOT_PROMISED = ("typer", "rich", "yaml", "matplotlib", "orjson", "pytest", "hypothesis", "distributed", "dask")

_HIDE = """
import importlib.machinery, sys
hidden, find = set({names!r}), importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.partition(".")[0] in hidden else find(name, path, target))
"""
_REFUSE = """
import socket
def refuse(event, arguments):
    if event in ("socket.connect", "socket.bind") and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        raise OSError(101, "the network is unreachable in a rehearsal")
    if event == "socket.getaddrinfo":
        raise OSError(101, "the network is unreachable in a rehearsal")
sys.addaudithook(refuse)
"""


class Ended(NamedTuple):
    """How a job ended well."""

    seconds: float
    network: str  # how the network was kept away
    hidden: tuple[str, ...]  # libraries


@lru_cache(maxsize=None)
def network_namespace() -> tuple[str, ...]:
    """The words before a command that give it an empty network; none where this machine does not permit that."""
    for words in (("unshare", "-n", "--"), ("unshare", "-r", "-n", "--")):
        if shutil.which(words[0]) and subprocess.run([*words, "true"], capture_output=True).returncode == 0:
            return words
    return ()


def run_job(command: Sequence[str], variables: dict[str, str], *, folder: Path, log: Path,
            hidden: Sequence[str] = NOT_PROMISED, minutes: float = 0.0) -> Ended:
    """Run a command in `folder` until its end, its output in the file `log`;
    InputError when it fails or is too slow.
    """
    namespace = network_namespace()
    with tempfile.TemporaryDirectory() as aside:
        guard = _HIDE.format(names=tuple(hidden)) + ("" if namespace else _REFUSE)
        Path(aside, "sitecustomize.py").write_text(guard, "utf-8")
        environment = bare_environment({"PYTHONPATH": aside, **variables})
        started = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen([*namespace, *command], cwd=folder, env=environment, stdout=output,
                                       stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
            try:
                code = process.wait(60 * minutes or None)
            except subprocess.TimeoutExpired as error:
                raise InputError(log, found=f"a job that was not done after {minutes:g} minutes",
                                 expected="an end within the time limit",
                                 do="see the log, and `onepiece-comp plan`") from error
            finally:
                _end(process)
    if code:
        last = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()][-1:] or ["nothing"]
        raise InputError(log, found=f"a job that ended with {code} ({last[0][:300]})", expected="an end with 0",
                         do="see the log")
    return Ended(time.monotonic() - started, "empty network namespace" if namespace else "refused by a hook of Python",
                 tuple(hidden))


def _end(process: subprocess.Popen) -> None:
    """Nothing that the job started outlives it."""
    with contextlib.suppress(ProcessLookupError):  # the whole group is gone
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
