"""What a part is given: its name, its deadline, the rows of the parts before it, and where its own go."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from bench.steps.step_model import Rates
from jbatch.device.backend import Attention
from pallas_kernels.names import COMPILERS

Row = dict[str, Any]
# A part of what `jbatch demo` compiles: in the cache of whoever ran that, and of the tests.
TINY_OPTIONS: Row = {
    "max_num_seqs": 4,
    "max_model_len": 256,
    "page_size": 16,
    "max_num_batched_tokens": 64,
    "token_buckets": (64,),
    "decode_buckets": (4,),
    "device": "cpu",
    "show_progress": False,
}
K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class NotHere(Exception):
    """A part cannot run on this machine; the message says why."""


class Task(NamedTuple):
    """A part under way. A row has a `case`, by which a later row takes its place, and a `status`."""

    part: str
    tiny: bool  # sizes for a CPU, which measure nothing
    deadline: float  # of time.monotonic
    earlier: Mapping[str, list[Row]]  # by part: of this call, or of one before it
    out: Path  # for files that others read: the batching ladder's, the comparisons'
    work: Path  # for what the archive takes along
    emit: Callable[[Row], None]

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def rates(self) -> Rates | None:
        """What the device was measured to do at most; None where nobody has measured it."""
        rows = self.earlier.get("ceilings", ())
        done = [row for row in rows if row["status"] == "ok"]
        return Rates(done[0]["read_bytes_per_s"], done[0]["gemm_flop_per_s"]) if done else None

    def attention(self) -> Attention:
        """For each op the first compiler whose kernels were right; else plain JAX."""
        decode, prefill, rotate = (self._compiler(op) for op in ("decode", "prefill", "rotate"))
        return Attention(decode, prefill, rotate=rotate)

    def backend(self) -> str:
        """What an engine takes: one name for all ops."""
        attention = self.attention()
        return attention.decode if attention.decode == attention.prefill else "xla"

    def _compiler(self, op: str) -> str:
        if self.tiny:
            return "xla"
        for compiler in COMPILERS:
            rows = [row for row in self.earlier.get(f"correct-{compiler}", ()) if row["op"] == op]
            if rows and all(row["status"] == "ok" for row in rows):
                return compiler
        return "xla"


class Compiled(NamedTuple, Generic[T]):
    """A program, and how long it took to compile beside others."""

    program: T
    seconds: float


def compile_all(
    jobs: Mapping[K, Callable[[], T]], at_once: int, budget_s: float
) -> dict[K, Compiled[T] | str]:
    """Compile together. What fails, or is not there when the budget is over, is a reason.

    A compiler cannot be stopped: its thread goes on, and the process must end without it.
    """
    pool = ThreadPoolExecutor(at_once)
    futures = {key: pool.submit(_timed, job) for key, job in jobs.items()}
    wait(futures.values(), timeout=max(0.0, budget_s))
    pool.shutdown(wait=False, cancel_futures=True)
    return {key: _outcome(future, budget_s) for key, future in futures.items()}


def _timed(job: Callable[[], T]) -> Compiled[T]:
    begin = time.monotonic()
    return Compiled(job(), time.monotonic() - begin)


def _outcome(future: Future[Compiled[T]], budget_s: float) -> Compiled[T] | str:
    if not future.done() or future.cancelled():
        return f"not compiled within {budget_s:.0f} s"
    error = future.exception()
    return future.result() if error is None else reason_of(error)


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
