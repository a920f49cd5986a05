"""Requests as a batch: all are queued, and the engine steps until each has its output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jbatch.engine.driver import Driver
from jbatch.engine.eta import TokensLeft, bound_of
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
    room = engine.scheduler.max_seq_len
    bounds = {request.request_id: bound_of(request.params, room) for request in requests}
    num_tokens, tokens_left = dict.fromkeys(bounds, 0), TokensLeft(0.0, len(requests))
    driver = Driver(engine, "generate")
    try:
        driver.begin()
        declare(request.params for request in requests)
        for request in requests:
            if (refused := driver.add(request)) is not None:
                outputs[request.request_id] = refused
                tokens_left.skip()
            else:
                bound = bounds[request.request_id]
                tokens_left.begin(bound, expected=bound)
        prepare()
        begin = time.monotonic()
        with progress_bar("generating", len(requests), "requests", enabled=show_progress) as update:
            while driver.unfinished:
                step = driver.step()
                outputs |= {output.request_id: output for output in step.outputs}
                for new in step.progress:
                    num_tokens[new.request_id] += len(new.token_ids)
                    tokens_left.add(len(new.token_ids))
                for output in step.outputs:
                    tokens_left.end(bounds[output.request_id], num_tokens[output.request_id])
                update(len(outputs), tokens_left.note(time.monotonic() - begin))
    finally:  # after an interrupt, too
        driver.left = True
        driver.leave()
    return [outputs[request.request_id] for request in requests]
