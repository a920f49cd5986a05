"""A sample under way, as the engine follows it, and the output that it ends with."""

from __future__ import annotations

import dataclasses

from jbatch.engine.logprobs import Decode, LogprobList
from jbatch.host.request import Request, Sequence
from jbatch.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput
from jbatch.text.tokenizer import Detokenizer


@dataclasses.dataclass(slots=True)
class Live:
    """A sample that has not ended, as the engine follows it."""

    sequence: Sequence
    stop_finder: Detokenizer | None
    logprobs: LogprobList | None
    error: str | None = None  # its text cannot be made
    scheduled_ts: float | None = None
    first_token_ts: float | None = None
    last_token_ts: float | None = None


def sample_output(live: Live, text: str, now: float, decode: Decode) -> RequestOutput:
    """Of one sample."""
    sequence, request = live.sequence, live.sequence.request
    logprobs, cumulative, prompt_logprobs = None, None, None
    if live.logprobs is not None:
        logprobs, cumulative = live.logprobs.output(len(sequence.output_token_ids), decode)
        prompt_logprobs = live.logprobs.prompt(decode)
    assert sequence.finish_reason is not None, "an output of a request that goes on"
    found = live.stop_finder.found if live.stop_finder is not None else None
    reason = FinishReason.STOP if found else sequence.finish_reason  # also where both came with one token
    error = live.error or sequence.error
    completion = CompletionOutput(
        index=request.sample_idx,
        text=text,
        token_ids=sequence.output_token_ids,
        finish_reason=FinishReason.ERROR if live.error else reason,
        stop_reason=found or sequence.stop_reason,
        logprobs=logprobs,
        cumulative_logprob=cumulative,
        error=error,
    )
    metrics = RequestMetrics(
        arrival_time=request.arrival,
        scheduled_ts=live.scheduled_ts,
        first_token_ts=live.first_token_ts,
        last_token_ts=live.last_token_ts,
        finished_ts=now,
        num_generation_tokens=len(completion.token_ids),
        num_preemptions=sequence.num_preemptions,
    )
    return RequestOutput(
        request_id=request.request_id,
        prompt=request.prompt,
        prompt_token_ids=list(request.prompt_token_ids),
        outputs=[completion],
        metrics=metrics,
        error=error,
        prompt_logprobs=prompt_logprobs,
    )


def empty_output(request: Request, now: float) -> RequestOutput:
    """Of a request for no tokens."""
    metrics = RequestMetrics(request.arrival, None, None, None, now, 0, 0)
    completions = [CompletionOutput(idx, "", [], FinishReason.LENGTH) for idx in range(request.params.n)]
    return RequestOutput(
        request.request_id, request.prompt, list(request.prompt_token_ids), completions, metrics=metrics
    )
