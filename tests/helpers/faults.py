"""What may go wrong in the process of a job: kills, full disks, failing writes, slow ones."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from typing import NamedTuple

BOUNDARIES = ("write", "fsync", "replace", "ftruncate", "unlink")  # of what reaches the disk


class Faults(NamedTuple):
    """What goes wrong in one run."""

    kill: tuple[str, int, str] | None = None  # a function of BOUNDARIES, its call from 1, before/torn/after
    kill_at_step: int | None = None
    fail_at_step: int | None = None  # the device raises
    fail_at_load: bool = False  # whatever loads the model raises what nobody expects
    step_s: float = 0.0  # how long a step takes
    fail_write: tuple[int, int] | None = None  # errno, from this result on
    file_size: int | None = None  # bytes that the system lets a file have
    pause_before: tuple[str, float] | None = None  # seconds before each call of a function of BOUNDARIES

    def arm(self) -> None:
        """Let it go wrong in this process; steps are the runner's matter."""
        if self.kill is not None:
            _kill_at(*self.kill)
        if self.fail_write is not None:
            _fail_writes(*self.fail_write)
        if self.pause_before is not None:
            _pause(*self.pause_before)
        if self.file_size is not None:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write fails with EFBIG
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_size, self.file_size))


NONE = Faults()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at(name: str, call: int, when: str) -> None:
    """Kill this process at one call of a function that changes the disk; "torn": half of a write is done."""
    real, calls = getattr(os, name), Counter()

    def wrapped_call(*args, **options):
        calls[name] += 1
        if calls[name] != call:
            return real(*args, **options)
        if when == "torn":
            real(args[0], bytes(args[1])[: len(args[1]) // 2])
        elif when == "after":
            real(*args, **options)
        return die()

    setattr(os, name, wrapped_call)


def _fail_writes(errno: int, result: int) -> None:
    """From one write on, half of it is written and the next one fails."""
    real, calls = os.write, Counter()

    def write(fd, data):
        calls["all"] += fd > 2
        if calls["all"] < result or fd <= 2:
            return real(fd, data)
        if calls["all"] == result:
            return real(fd, bytes(data)[: len(data) // 2])
        raise OSError(errno, os.strerror(errno))

    os.write = write


def _pause(name: str, seconds: float) -> None:
    real = getattr(os, name)

    def paused(*args, **options):
        time.sleep(seconds)
        return real(*args, **options)

    setattr(os, name, paused)
