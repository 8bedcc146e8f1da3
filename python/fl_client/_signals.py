"""SIGTERM ends a client in an orderly way.

While the client waits for the master, the wait ends and with it the loop. An upload in flight may finish, for at most
`drain_s`. Training is interrupted with `SystemExit(0)`, so that `finally` blocks run and the process ends with success:
what was trained of a round that is not sent is of no use to anyone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Callable, Iterator, Optional


class Stopped(BaseException):
    """Shutdown was requested; never leaves the package."""


class Stop:
    """Whether a shutdown was requested. Catches SIGTERM from `install` to `restore`, in the main thread alone."""

    def __init__(self, drain_s: float = 10.0):
        self.requested = False
        self._drain_s = drain_s
        self._is_installed, self._process = False, os.getpid()
        # What a signal does now: "train" ends the process, "wait" the waiting, "upload" nothing for a while.
        self._mode = "train"
        self._abort: Callable[[], None] = lambda: None
        self._timer: Optional[threading.Timer] = None

    def install(self, abort: Callable[[], None]) -> None:
        """Catches SIGTERM, unless the program does so itself. `abort` ends an upload that takes too long."""
        self._abort = abort
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._caught)
            self._is_installed = True

    def restore(self) -> None:
        """Gives the signal back."""
        if self._timer is not None:
            self._timer.cancel()
        if self._is_installed:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._is_installed = False

    def check(self) -> None:
        """Raises `Stopped` if a shutdown was requested."""
        if self.requested:
            raise Stopped

    @contextlib.contextmanager
    def in_mode(self, mode: str) -> Iterator[None]:
        """What a signal does within the block."""
        before, self._mode = self._mode, mode
        try:
            yield
        finally:
            self._mode = before

    def waiting(self):
        """For a request: a signal ends it, unless it is an upload."""
        return self.in_mode("upload" if self._mode == "upload" else "wait")

    def interruptible(self):
        """For a pause: a signal ends it."""
        return self.in_mode("wait")

    def _caught(self, number, _frame) -> None:
        if os.getpid() != self._process:
            # A forked child, such as a worker of a data loader: ends as it would without this package.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.requested = True
        if self._mode == "wait":
            raise Stopped
        if self._mode == "train":
            raise SystemExit(0)
        if self._timer is None:
            self._timer = threading.Timer(self._drain_s, self._abort)
            self._timer.daemon = True
            self._timer.start()
