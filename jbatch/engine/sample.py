"""A sample of a request that is under way: its text, its stop strings, and the output that it ends with."""

from __future__ import annotations

from jbatch.engine.logprobs import Decode, LogprobList, less_special, logprob_list, no_text
from jbatch.errors import RequestError
from jbatch.host.request import Request, Sequence
from jbatch.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput
from jbatch.seam.loaded import Version
from jbatch.text.detokenizer import Detokenizer
from jbatch.text.tokenizer import Tokenizer


class Sample:
    """A sequence, as the engine follows it."""

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer | None):
        params = sequence.request.params
        self.sequence, self._tokenizer = sequence, tokenizer
        self.logprobs: LogprobList | None = logprob_list(sequence.request)
        self.scheduled_ts: float | None = None
        self._first_token_ts: float | None = None
        self._last_token_ts: float | None = None
        self._versions: list[tuple[int, Version]] = []  # of the weights, each with its first token
        self._error: str | None = None  # its text cannot be made
        self._stop_finder: Detokenizer | None = None
        if params.stop and tokenizer is not None:
            self._stop_finder = tokenizer.detokenizer(
                params.stop,
                after=sequence.request.prompt_token_ids,
                skip_special_tokens=params.skip_special_tokens,
            )

    def take_in(
        self, token_ids: list[int], now: float, version: Version
    ) -> tuple[FinishReason, str | None] | None:
        """Follow new tokens; why they end the sequence, and the stop string, or None.

        A stop string ends a sequence that has just ended by its length, too.

        Args:
          version: of the weights that drew them.
        """
        if not self._versions or self._versions[-1][1] is not version:
            first = self.sequence.num_known - self.sequence.num_prompt - len(token_ids)
            self._versions.append((first, version))
        if token_ids:
            self._last_token_ts = now
            if self._first_token_ts is None:
                self._first_token_ts = now
        finder = self._stop_finder
        if finder is None or self.sequence.finish_reason in (FinishReason.STOP, FinishReason.ERROR):
            return None
        first = len(self.sequence.output_token_ids) - len(token_ids) + 1
        min_tokens = self.sequence.request.params.min_tokens
        try:
            for number, token_id in enumerate(token_ids, start=first):
                if finder.push(token_id, search=number > min_tokens):
                    return FinishReason.STOP, finder.found
        except RequestError as error:  # this request's text alone
            self._error = str(error)
            return FinishReason.ERROR, None
        return None

    def output(self, now: float, decode: Decode) -> RequestOutput:
        """What it ended with, as a request of one sample. `decode` gives the tokens of log-probabilities."""
        sequence, request = self.sequence, self.sequence.request
        assert sequence.finish_reason is not None, "an output of a sequence that goes on"
        text = self._text()
        stop = self._stop_finder.found if self._stop_finder is not None else None
        reason = FinishReason.STOP if stop else sequence.finish_reason  # also where both came with one token
        error = self._error
        logprobs, cumulative, prompt_logprobs, text_offset = None, None, None, None
        if self.logprobs is not None:
            if not request.params.detokenize:
                decode = no_text
            elif request.params.skip_special_tokens:
                decode = less_special(decode)
            error = error or self.logprobs.error
            logprobs, cumulative = self.logprobs.output(len(sequence.output_token_ids), decode)
            prompt_logprobs = None if self.logprobs.error else self.logprobs.prompt(decode)
            text_offset = None if logprobs is None else self._text_offset(text)
        completion = CompletionOutput(
            index=request.sample_idx,
            text=text,
            token_ids=sequence.output_token_ids,
            finish_reason=FinishReason.ERROR if error else reason,
            stop_reason=stop or sequence.stop_reason,
            logprobs=logprobs,
            cumulative_logprob=cumulative,
            error=error or sequence.error,
            text_offset=text_offset,
            weight_versions=tuple([(first, version.label) for first, version in self._versions]),
        )
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=list(request.prompt_token_ids),
            outputs=[completion],
            metrics=self._metrics(now),
            error=completion.error,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=sequence.num_found or 0,
        )

    def _text(self) -> str:
        """Empty where the tokenizer's decoder fails, which is then this sample's error."""
        sequence, params = self.sequence, self.sequence.request.params
        if self._stop_finder is not None and self._stop_finder.found is not None:
            return self._stop_finder.text(include_stop=params.include_stop_str_in_output)
        if self._tokenizer is None or not params.detokenize:
            return ""
        token_ids = sequence.output_token_ids
        if sequence.finish_reason == FinishReason.STOP and not params.include_stop_str_in_output:
            token_ids = token_ids[:-1]
        try:
            return self._tokenizer.decode(
                token_ids,
                after=sequence.request.prompt_token_ids,
                skip_special_tokens=params.skip_special_tokens,
            )
        except RequestError as error:
            self._error = str(error)
            return ""

    def _text_offset(self, text: str) -> list[int] | None:
        """Where each token begins in `text`; one behind it, as those of a stop string, at its end. None where
        there is no text."""
        params, token_ids = self.sequence.request.params, self.sequence.output_token_ids
        if self._tokenizer is None or not params.detokenize or self._error is not None:
            return None
        offsets = self._tokenizer.text_offsets(
            token_ids,
            after=self.sequence.request.prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
        )
        return [min(offset, len(text)) for offset in offsets]

    def _metrics(self, now: float) -> RequestMetrics:
        return RequestMetrics(
            arrival_time=self.sequence.request.arrival,
            scheduled_ts=self.scheduled_ts,
            first_token_ts=self._first_token_ts,
            last_token_ts=self._last_token_ts,
            finished_ts=now,
            num_generation_tokens=len(self.sequence.output_token_ids),
            num_preemptions=self.sequence.num_preemptions,
        )


def empty_output(request: Request, now: float) -> RequestOutput:
    """The output of a request for no tokens."""
    completions = [CompletionOutput(idx, "", [], FinishReason.LENGTH) for idx in range(request.params.n)]
    return _output_of(request, completions, now, None)


def aborted_output(request: Request, now: float) -> RequestOutput:
    """The output of a request that was aborted before it was queued."""
    completions = [CompletionOutput(idx, "", [], FinishReason.ABORT) for idx in range(request.params.n)]
    return _output_of(request, completions, now, None)


def refused_output(request: Request, error: str, now: float) -> RequestOutput:
    """The output of a request that could not be queued."""
    return _output_of(request, [CompletionOutput(0, "", [], FinishReason.ERROR)], now, error)


def _output_of(
    request: Request, completions: list[CompletionOutput], now: float, error: str | None
) -> RequestOutput:
    metrics = RequestMetrics(request.arrival, None, None, None, now, 0, 0)
    prompt = list(request.prompt_token_ids)
    return RequestOutput(
        request.request_id, request.prompt, prompt, completions, metrics=metrics, error=error
    )
