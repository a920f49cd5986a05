"""Requests as a batch: all are queued, and the engine steps until each has its output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jbatch.engine.driver import Driver
from jbatch.engine.prompts import UncheckedRequest
from jbatch.engine.replicas import AnyEngine
from jbatch.outputs import RequestOutput
from jbatch.progress import progress_bar
from jbatch.sampling_params import SamplingParams


def complete(
    engine: AnyEngine,
    requests: Sequence[UncheckedRequest],
    declare: Callable[[Iterable[SamplingParams]], Any] = lambda params: None,
    prepare: Callable[[], None] = lambda: None,
    *,
    show_progress: bool = False,
) -> list[RequestOutput]:
    """The output of each request. `declare` and `prepare` as for `stream`.

    Raises:
      JBatchError: while someone else has the engine.
    """
    outputs = dict[str, RequestOutput]()
    num_tokens, begin = 0, time.monotonic()
    driver = Driver(engine, "generate")
    try:
        driver.begin()
        declare(request.params for request in requests)
        for request in requests:
            if (refused := driver.add(request)) is not None:
                outputs[request.request_id] = refused
        prepare()
        with progress_bar("generating", len(requests), enabled=show_progress) as update:
            while driver.unfinished:
                step = driver.step()
                outputs |= {output.request_id: output for output in step.outputs}
                num_tokens += sum(len(new.token_ids) for new in step.progress)
                update(len(outputs), f"{num_tokens / (time.monotonic() - begin):.0f} tokens/s")
    finally:  # after an interrupt, too
        driver.left = True
        driver.leave()
    return [outputs[request.request_id] for request in requests]
