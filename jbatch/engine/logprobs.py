"""Log-probabilities as users read them, from what EXTENDED steps bring down."""

from __future__ import annotations

import array
import functools
import math
from collections.abc import Callable, Mapping

import numpy as np

from jbatch.errors import RequestError
from jbatch.host.landing import DEVICE_ERRORS
from jbatch.host.plan import StepPlan
from jbatch.host.request import Request
from jbatch.outputs import Logprob
from jbatch.sampling_params import MAX_LOGPROBS
from jbatch.seam.bucket import align
from jbatch.seam.step_output import Logprobs, Status, StepOutput
from jbatch.text.tokenizer import Tokenizer, TokenText

Decode = Callable[[int], TokenText]
Entry = dict[int, Logprob]


class _Positions:
    """What is known at some positions, in bare arrays: 12 bytes each and 8 for each likely token, where a
    dictionary of 20 tokens takes 3,000. At 32,000 positions of a few hundred sequences that matters."""

    def __init__(self, num_top: int, token_ids: tuple[int, ...] = ()):
        self._num_top, self._token_ids = num_top, token_ids
        self._num_kept = MAX_LOGPROBS if token_ids else num_top  # the others tell the ranks of `token_ids`
        self._chosen, self._ranks, self._top_ids = (array.array("i") for _ in range(3))
        self._logprobs, self._top_logprobs, self._by_id = (array.array("f") for _ in range(3))

    def __len__(self) -> int:
        return len(self._chosen)

    def add(self, token_id: int, reported: Logprobs[np.ndarray], idx: int) -> None:
        self._chosen.append(token_id)
        self._ranks.append(int(reported.rank[idx]))
        self._logprobs.append(float(reported.logprob[idx]))
        self._top_ids.extend(reported.top_ids[idx, : self._num_kept].tolist())
        self._top_logprobs.extend(reported.top_logprobs[idx, : self._num_top].tolist())
        if self._token_ids:
            self._by_id.extend(reported.by_id[idx, : len(self._token_ids)].tolist())

    def entry(self, at: int, decode: Decode) -> Entry:
        """A token, and the likeliest ones: the token comes first, as in vLLM; named ids come last."""
        top = self._top_ids[at * self._num_kept : (at + 1) * self._num_kept]
        values = self._top_logprobs[at * self._num_top : (at + 1) * self._num_top]
        entries: dict[int, tuple[float, int | None]] = {}
        entries[self._chosen[at]] = self._logprobs[at], self._ranks[at]
        for rank, (token, value) in enumerate(zip(top, values, strict=False), start=1):
            if token >= 0:
                entries.setdefault(token, (value, rank))
        ranks = {token: rank for rank, token in enumerate(top, start=1)} if self._token_ids else {}
        begin = at * len(self._token_ids)
        for idx, token in enumerate(self._token_ids, start=begin):
            entries.setdefault(token, (self._by_id[idx], ranks.get(token)))
        return _with_texts(entries, decode)


class LogprobList:
    """Those of one sequence, as its steps come in; dictionaries and texts follow at the end."""

    def __init__(self, request: Request):
        params = request.params
        token_ids = tuple(params.logprob_token_ids or ())
        self._output: _Positions | None = None
        if params.logprobs is not None or token_ids:
            self._output = _Positions(params.logprobs or 0, token_ids)
        self._prompt: _Positions | None = None
        if params.prompt_logprobs is not None and request.sample_idx == 0:
            self._prompt = _Positions(params.prompt_logprobs)
            self._prompt_at = array.array("i", [-1]) * len(request.prompt_token_ids)  # where each is in it
        self.error: str | None = None  # a prompt whose logits are not finite; a draw's are told by its status

    def add_token(self, token_id: int, reported: Logprobs[np.ndarray], slot: int) -> None:
        """A token that was drawn."""
        if self._output is not None:
            self._output.add(token_id, reported, slot)

    def add_targets(
        self, targets: tuple[int, ...], start: int, reported: Logprobs[np.ndarray], begin: int
    ) -> None:
        """The next prompt tokens of positions from `start`, which a step has at place `begin`; -1: none."""
        if self._prompt is None:
            return
        for idx, target in enumerate(targets):
            if target >= 0:
                self._prompt_at[start + idx + 1] = len(self._prompt)
                self._prompt.add(target, reported, begin + idx)
                if self.error is None and math.isnan(reported.logprob[begin + idx]):
                    self.error = DEVICE_ERRORS[Status.NON_FINITE].format(position=start + idx + 1)

    def output(self, num_tokens: int, decode: Decode) -> tuple[list[Entry] | None, float | None]:
        """Of the first `num_tokens` tokens, and their sum over the tokens themselves."""
        if self._output is None:
            return None, None
        num_known = min(num_tokens, len(self._output))
        entries = [self._output.entry(at, decode) for at in range(num_known)]
        return entries, sum(next(iter(entry.values())).logprob for entry in entries)

    def prompt(self, decode: Decode) -> list[Entry | None] | None:
        """Of the prompt's tokens; None for the first, and for those that were not reached."""
        if self._prompt is None:
            return None
        return [None if at < 0 else self._prompt.entry(at, decode) for at in self._prompt_at]


def logprob_list(request: Request) -> LogprobList | None:
    """None where the request asks for no log-probabilities."""
    params = request.params
    wanted = params.logprobs is not None or params.prompt_logprobs is not None or params.logprob_token_ids
    return LogprobList(request) if wanted else None


def take_in(plan: StepPlan, output: StepOutput, find: Callable[[int], LogprobList | None]) -> None:
    """Give each sequence what a step tells of it; `find` gives the list of a seq_id, or None."""
    if output.logprobs is None:
        return
    for idx, seq_id in enumerate(plan.seq_ids):
        _add_drawn(find(seq_id), output, idx)
    begin, idx = 0, plan.bucket.slots
    for chunk in plan.chunks:
        scored = find(chunk.seq_id) if chunk.targets else None
        if scored is not None and output.prompt_logprobs is not None:
            scored.add_targets(chunk.targets, chunk.start, output.prompt_logprobs, begin)
        for draw in chunk.draws:
            _add_drawn(find(draw.seq_id), output, idx)
            idx += 1
        begin += align(len(chunk.token_ids))


def _add_drawn(logprobs: LogprobList | None, output: StepOutput, idx: int) -> None:
    if logprobs is not None and output.logprobs is not None:
        for token_id in output.tokens[idx, : output.num_tokens[idx]].tolist():
            logprobs.add_token(token_id, output.logprobs, idx)


def token_decoder(tokenizer: Tokenizer | None) -> Decode:
    """Each token by itself, decoded once; without text where there is no tokenizer, and where its decoder
    fails."""

    @functools.cache
    def decode(token_id: int) -> TokenText:
        try:
            return no_text(token_id) if tokenizer is None else tokenizer.token_text(token_id)
        except RequestError:
            return no_text(token_id)

    return decode


def no_text(_: int) -> TokenText:
    """Of any token, where no texts are asked for."""
    return TokenText(None, None, special=False)


def less_special(decode: Decode) -> Decode:
    """The same, where special tokens are left out of the text: they add no bytes to it."""

    def skipping(token_id: int) -> TokenText:
        token = decode(token_id)
        return token._replace(raw=None) if token.special else token

    return skipping


def _with_texts(entries: Mapping[int, tuple[float, int | None]], decode: Decode) -> Entry:
    return {token: Logprob(*pair, *decode(token)[:2]) for token, pair in entries.items()}
