"""SIGINT and SIGTERM of a job: the first asks it to stop, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 128 + signal.SIGINT  # the exit code of who ends by Ctrl-C


def exit_at_once(code: int) -> None:
    """End this process, whatever it is doing."""
    show_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides it
    with suppress(OSError):
        os.write(2, show_cursor + b"jbatch: interrupted\n")
    os._exit(code)


class StopSignals:
    """While it is entered, a thread waits for signals: Python runs no handler while a step is on the device.

    Until `graceful` is set, the first one ends the process at once, too: nothing is lost that way, only
    what could be said at the end.
    """

    def __init__(self, say: Callable[[str], None], exit_now: Callable[[int], Any]):
        self._say, self._exit_now = say, exit_now
        self.graceful = False
        self.received: int | None = None

    def __enter__(self) -> StopSignals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # as a signal handler must
        self._before = {signum: signal.signal(signum, lambda *_: None) for signum in SIGNALS}
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._fd_before)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        os.close(self._write)  # ends the thread
        self._thread.join()
        os.close(self._read)

    def stopped(self) -> bool:
        """Whether a signal asked to stop."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What a shell calls an end by this signal: 130 or 143."""
        return 128 + (self.received or 0)

    def _watch(self) -> None:
        while data := os.read(self._read, 1):  # one byte per signal, its number
            if data[0] not in SIGNALS:
                continue
            if self.received is not None or not self.graceful:
                self._exit_now(128 + data[0])
            self.received = data[0]
            self._say("interrupted: keeping what has finished; once more to end at once")
