"""Interrupts at chosen places: before the n-th line, or the n-th instruction, of some files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from jbatch.engine.engine import Engine
from jbatch.sampling_params import SamplingParams

OF_THE_RUNNER = tuple(f"jbatch/device/{name}.py" for name in ("runner", "features", "page_programs"))


class Interrupts:
    """Within `with`, raises KeyboardInterrupt at the n-th event of code that `wanted` accepts by its file and
    function. `raised` says whether there were so many; then tracing has ended.

    Args:
      event: "line", "opcode" or "return".
    """

    def __init__(self, number: int, wanted: Callable[[str, str], bool], event: str = "line"):
        self._left, self._wanted, self._event = number, wanted, event
        self.raised = False

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not self._wanted(frame.f_code.co_filename, frame.f_code.co_name):
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        if event == self._event:
            self._left -= 1
            if self._left < 0:
                self.raised = True
                raise KeyboardInterrupt
        return self._trace

    def __enter__(self) -> Interrupts:
        self._before = sys.gettrace()
        if self._event == "opcode":  # Python 3.12 asks, when tracing begins, whether any frame wants them
            sys._getframe().f_trace_opcodes = True
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


def interrupt_the_runner(
    engine: Engine, params: SamplingParams, number: int, event: str, only: str | None = None
) -> bool:
    """Let three requests run, with an interrupt at an event of the runner or of JAX's call of a program; all
    end and leave nothing. False where there are not so many events; `only`: of one function."""

    def wanted(file: str, function: str) -> bool:
        return file.endswith((*OF_THE_RUNNER, "jax/_src/stages.py")) and only in (None, function)

    for idx in range(3):
        engine.add_request(str(idx), [idx, 2], params)
    ended = []
    with contextlib.suppress(KeyboardInterrupt), Interrupts(number, wanted, event) as interrupts:
        while engine.has_unfinished:
            ended += engine.step().outputs
    while engine.has_unfinished:
        ended += engine.step().outputs
    assert sorted(output.request_id for output in ended) == ["0", "1", "2"]
    assert engine.scheduler.pool.num_used == 0
    return interrupts.raised
