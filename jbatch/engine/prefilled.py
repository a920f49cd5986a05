"""A prompt that has been computed once, and whose pages stay until they are let go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jbatch import shown
from jbatch.engine.driver import Driver
from jbatch.engine.engine import Engine
from jbatch.engine.prompts import UncheckedRequest
from jbatch.errors import JBatchError
from jbatch.outputs import RequestOutput
from jbatch.sampling_params import SamplingParams

PARAMS = SamplingParams(
    temperature=0, max_tokens=1, ignore_eos=True, detokenize=False
)  # nothing less computes


class Prefilled:
    """Full pages with the keys and values of a prompt's first tokens. Prompts that begin with these find them
    until it is closed, whatever else the cache holds.

    Where weights change, or the engine loses its pages, it holds nothing any more: prompts are computed as
    ever.

    Attributes:
      token_ids: of the prompt.
      num_tokens: of these, those that are held: all of its full pages.
    """

    def __init__(self, engine: Engine, hold_id: int, token_ids: list[int], num_tokens: int):
        self.engine, self.hold_id = engine, hold_id
        self.token_ids, self.num_tokens = token_ids, num_tokens

    def __repr__(self) -> str:
        return f"<Prefilled: {self.num_tokens:,} of {shown.count(len(self.token_ids))}, in full pages>"

    def close(self) -> None:
        """Let the pages go: they are found as long as nobody takes them. Any thread may do it, at any time;
        during a step it is done before the next one."""
        self.engine.let_go(self.hold_id)

    def __enter__(self) -> Prefilled:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefill(
    engine: Engine,
    request: UncheckedRequest,
    declare: Callable[[Iterable[SamplingParams]], Any] = lambda params: None,
    prepare: Callable[[], None] = lambda: None,
) -> Prefilled:
    """Compute a request's prompt, and hold its pages. `declare` and `prepare` as for `stream`.

    Raises:
      JBatchError: for a prompt that is refused, while someone else has the engine, and where the pool has no
        room for it.
    """
    driver = Driver(engine, "prefill")
    try:
        driver.begin()
        declare((request.params,))
        output: RequestOutput | None = driver.add(request)
        prepare()
        while driver.unfinished:
            output = next(iter(driver.step().outputs), output)
        assert output is not None, "it has ended"
        if output.error is not None:
            raise JBatchError(f"prefill: {output.error}")
        token_ids, page_size = output.prompt_token_ids, engine.scheduler.pool.page_size
        hold_id = driver.call(engine.hold, token_ids, request.cache_salt)
        return Prefilled(engine, hold_id, token_ids, len(token_ids) // page_size * page_size)
    finally:
        driver.left = True
        driver.leave()
