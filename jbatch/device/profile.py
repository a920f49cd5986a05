"""A trace by JAX's profiler, in which each step is marked."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import jax

from jbatch.errors import ConfigError, JBatchError


class Profile:
    """One trace at a time: JAX has one for the whole process."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._num_steps = 0

    @property
    def under_way(self) -> bool:
        """Whether there is a trace."""
        return self._directory is not None

    def start(self, directory: str | Path) -> None:
        """Begin a trace, to be written to a directory.

        Raises JBatchError where one is under way, and ConfigError for what is no directory's path, or cannot
        be written to: now, for at its end the trace would be lost.
        """
        if self._directory is not None:
            raise JBatchError(f"a profile is under way, for {self._directory}: stop it first")
        if not isinstance(directory, (str, Path)) or (
            Path(directory).exists() and not Path(directory).is_dir()
        ):
            raise ConfigError("directory", directory, "must be the path of a directory")
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("directory", str(directory), f"cannot be made: {error.strerror}") from None
        if not os.access(directory, os.W_OK):
            raise ConfigError("directory", str(directory), "cannot be written to")
        try:
            jax.profiler.start_trace(str(directory))
        except RuntimeError as error:  # somebody else's
            raise JBatchError(f"no profile can be started: {error}") from error
        self._directory, self._num_steps = Path(directory), 0

    def stop(self) -> None:
        """End the trace and write it. Raises JBatchError where none is under way."""
        if self._directory is None:
            raise JBatchError("no profile is under way")
        self._directory = None
        try:
            jax.profiler.stop_trace()
        except RuntimeError as error:  # somebody else ended it
            raise JBatchError(f"the profile cannot be stopped: {error}") from error

    def step(self, name: str) -> AbstractContextManager[object]:
        """Marks the dispatch of a step, while there is a trace."""
        if self._directory is None:
            return nullcontext()
        self._num_steps += 1
        return jax.profiler.StepTraceAnnotation(name, step_num=self._num_steps)
