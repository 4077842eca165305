"""A process that is asked to end comes to the end of its step first."""

import signal
import threading


class EndAsked:
    """Within the block SIGINT and SIGTERM are only noted, so that a step is never cut in two; a second one passes.

    One that is ignored, as SIGINT is in what a script starts with `&`, stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "EndAsked":
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
                            if signal.getsignal(number) is not signal.SIG_IGN}
        return self

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *exc: object) -> None:
        self._put_back()
        if self.signal is not None and exc[0] is None:
            signal.raise_signal(self.signal)
