"""Log-probabilities as users read them, from what EXTENDED steps bring down."""

from __future__ import annotations

import functools
from collections.abc import Callable

from jbatch.errors import RequestError
from jbatch.outputs import Logprob
from jbatch.plan import Logprobs, StepOutput, StepPlan, align
from jbatch.request import Request
from jbatch.tokenizer import Tokenizer

Decode = Callable[[int], str | None]  # a token's text, where texts are asked for
Entry = dict[int, Logprob]


class LogprobList:
    """Those of one sequence, as its steps come in; texts follow at the end."""

    def __init__(self, request: Request):
        params = request.params
        self._num_top = params.logprobs or 0
        self._token_ids = params.logprob_token_ids or ()
        self._output: list[Entry] | None = None
        if params.logprobs is not None or self._token_ids:
            self._output = []
        self._num_prompt_top = params.prompt_logprobs or 0
        self._prompt: list[Entry | None] | None = None
        if params.prompt_logprobs is not None and request.sample_idx == 0:
            self._prompt = [None] * len(request.prompt_token_ids)

    def add_token(self, token_id: int, found: Logprobs, slot: int) -> None:
        """A token that was drawn."""
        if self._output is None:
            return
        entry = _entry(token_id, found, slot, self._num_top)
        if self._token_ids:
            ranks = _top_ranks(found, slot)
            for idx, token in enumerate(self._token_ids):
                entry.setdefault(token, Logprob(float(found.by_id[slot, idx]), ranks.get(token)))
        self._output.append(entry)

    def add_targets(self, targets: tuple[int, ...], start: int, found: Logprobs, begin: int) -> None:
        """The next prompt tokens of positions from `start`, which a step has at place `begin`; -1: none."""
        if self._prompt is None:
            return
        for idx, target in enumerate(targets):
            if target >= 0:
                entry = _entry(target, found, begin + idx, self._num_prompt_top)
                self._prompt[start + idx + 1] = entry

    def output(self, num_tokens: int, decode: Decode) -> tuple[list[Entry] | None, float | None]:
        """Of the first `num_tokens` tokens, and their sum over the tokens themselves."""
        if self._output is None:
            return None, None
        entries = [_with_text(entry, decode) for entry in self._output[:num_tokens]]
        return entries, sum(next(iter(entry.values())).logprob for entry in entries)

    def prompt(self, decode: Decode) -> list[Entry | None] | None:
        """Of the prompt's tokens; None for the first, and for those that were not reached."""
        if self._prompt is None:
            return None
        return [entry and _with_text(entry, decode) for entry in self._prompt]


def logprob_list(request: Request) -> LogprobList | None:
    """None where the request asks for no log-probabilities."""
    params = request.params
    asked = params.logprobs is not None or params.prompt_logprobs is not None or params.logprob_token_ids
    return LogprobList(request) if asked else None


def take_in(plan: StepPlan, output: StepOutput, find: Callable[[int], LogprobList | None]) -> None:
    """Give each sequence what a step tells of it; `find` gives the list of a seq_id, or None."""
    if output.logprobs is None:
        return
    begin = 0
    for slot, seq_id in enumerate(plan.seq_ids):
        found = find(seq_id)
        chunk = plan.chunks[slot] if plan.chunks else None
        if found is not None:
            if chunk is not None and chunk.targets and output.prompt_logprobs is not None:
                found.add_targets(chunk.targets, chunk.start, output.prompt_logprobs, begin)
            for token_id in output.tokens[slot, : output.num_tokens[slot]].tolist():
                found.add_token(token_id, output.logprobs, slot)
        begin += align(len(chunk.token_ids)) if chunk is not None else 0


def token_decoder(tokenizer: Tokenizer | None) -> Decode:
    """Each token's text by itself, decoded once; None without a tokenizer, and where its decoder fails."""

    @functools.cache
    def decode(token_id: int) -> str | None:
        try:
            return tokenizer.decode([token_id], skip_special_tokens=False) if tokenizer else None
        except RequestError:
            return None

    return decode


def _entry(token_id: int, found: Logprobs, idx: int, num_top: int) -> Entry:
    """A token, and the likeliest ones: the token comes first, as in vLLM."""
    entry = {token_id: Logprob(float(found.logprob[idx]), int(found.rank[idx]))}
    ids, values = found.top_ids[idx, :num_top].tolist(), found.top_logprobs[idx, :num_top].tolist()
    for rank, (token, value) in enumerate(zip(ids, values, strict=True), start=1):
        if token >= 0:
            entry.setdefault(token, Logprob(value, rank))
    return entry


def _top_ranks(found: Logprobs, idx: int) -> dict[int, int]:
    return {token: rank for rank, token in enumerate(found.top_ids[idx].tolist(), start=1)}


def _with_text(entry: Entry, decode: Decode) -> Entry:
    return {token: logprob._replace(decoded_token=decode(token)) for token, logprob in entry.items()}
