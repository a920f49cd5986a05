"""What the process that checks kernels is asked."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from jbatch.device.verdict.record import Kernel
from pallas_kernels.problem import Problem

LIMIT_S = 30.0  # to compile and run the trials of one kernel


class Request(NamedTuple):
    """Kernels to check, fastest first, and the problems that each must be right on."""

    kernels: tuple[Kernel, ...]
    problems: tuple[Problem, ...]
    platform: Literal["cuda", "cpu"] = "cuda"  # on a CPU kernels are interpreted
    limit_s: float = LIMIT_S  # of a kernel

    @classmethod
    def of_json(cls, value: Any) -> Request:
        """What `json` makes of a request's tuples, read back."""
        kernels, problems, *others = value
        return cls(
            tuple(Kernel(*kernel) for kernel in kernels),
            tuple(Problem(*problem) for problem in problems),
            *others,
        )
