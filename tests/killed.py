"""A training that is killed after its last step, before its folder is whole: what `--resume` finds then."""

import contextlib
from collections.abc import Iterator

import pytest

from onepiece_comp.stages import train as stage


class Killed(BaseException):
    """Stands for the end of the process."""


@contextlib.contextmanager
def killed_before_it_was_whole() -> Iterator[None]:
    """Inside, no training comes to its end; the block must ask for one."""
    def die(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(stage, "finish_run", die)
        yield
