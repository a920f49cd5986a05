"""Kernels that are broken on purpose, in place of real ones: for the process that checks them.

    FAULTS='{"mosaic decode": "wrong"}' python -m tests.helpers.broken_kernels < request

is that process with such kernels; all others are right.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Mapping

import numpy as np

from jbatch.device.verdict import child
from pallas_kernels import proof


def wrong(answer: np.ndarray, turn: int) -> np.ndarray:
    return answer + answer.dtype.type(1)


def unequal(answer: np.ndarray, turn: int) -> np.ndarray:
    answer.view(np.uint8)[..., 0, 0] ^= np.uint8(turn)
    return answer


def raises(answer: np.ndarray, turn: int) -> np.ndarray:
    raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal\nmemory access was encountered")


def no_memory(answer: np.ndarray, turn: int) -> np.ndarray:
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes")


def hangs(answer: np.ndarray, turn: int) -> np.ndarray:
    time.sleep(60)
    return answer


def segfault(answer: np.ndarray, turn: int) -> np.ndarray:
    os.kill(os.getpid(), signal.SIGSEGV)
    return answer


def exits(answer: np.ndarray, turn: int) -> np.ndarray:
    os._exit(3)


FAULTS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    function.__name__: function for function in (wrong, unequal, raises, no_memory, hangs, segfault, exits)
}


def compile_with(faults: Mapping[str, str]) -> Callable[..., Callable[[], np.ndarray]]:
    """In place of `proof.compile_trial`: kernels that know what is right, and have faults by their names."""

    def compile_trial(name: str, trial: proof.Trial, *, interpret: bool = False) -> Callable[[], np.ndarray]:
        fault = FAULTS.get(faults.get(f"{name} {trial.problem.kind}", ""), lambda answer, _: answer)
        turns = itertools.count()
        return lambda: fault(trial.expected.astype(proof.jnp.dtype(trial.problem.dtype)), next(turns))

    return compile_trial


if __name__ == "__main__":
    child.declines = lambda *_: None  # an older jax has no Mosaic
    proof.compile_trial = compile_with(json.loads(os.environ["FAULTS"]))
    child.main()
