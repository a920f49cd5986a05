"""How likely a model finds given tokens: Score, from a request for its prompt's log-probabilities alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jbatch import shown
from jbatch.engine.prompts import UncheckedRequest
from jbatch.outputs import RequestOutput
from jbatch.sampling_params import SamplingParams

MAX_ROWS = 32  # of a table
SCORE_PARAMS = SamplingParams(max_tokens=0, prompt_logprobs=0, detokenize=False)


@dataclasses.dataclass(frozen=True)
class Score:
    """Of each token of a prompt, given those before it; None for those that were not asked for. The lists are
    empty where there is an error."""

    token_ids: list[int]
    logprobs: list[float | None]  # natural logarithms; None for the first token
    ranks: list[int | None]  # among all tokens; 1: what greedy sampling would have drawn
    cumulative_logprob: float | None  # of all tokens but the first, as far as asked for
    error: str | None = None

    def __repr__(self) -> str:
        """The sum; not the tokens."""
        if self.error is not None:
            return f"Score(error={self.error!r})"
        tokens = f"{shown.count(len(self.token_ids))} {shown.ids(self.token_ids)}"
        return f"Score({tokens}, cumulative_logprob={self.cumulative_logprob})"

    def _repr_html_(self) -> str:
        if self.error is not None:
            return shown.table(("error",), [(self.error,)])
        both = list(zip(self.token_ids, self.logprobs, self.ranks, strict=True))
        rows = [tuple("" if value is None else f"{value:.6g}" for value in each) for each in both[:MAX_ROWS]]
        if len(both) > MAX_ROWS:
            rows.append((f"... {len(both) - MAX_ROWS} more", "", ""))
        caption = f"{shown.count(len(both))}, cumulative_logprob {self.cumulative_logprob}"
        return shown.table(("token id", "logprob", "rank"), rows, caption)


def scored_from(requests: Sequence[UncheckedRequest], firsts: Sequence[int]) -> list[UncheckedRequest]:
    """The requests, each with the first token that is asked about. Raises ValueError for another number."""
    if len(firsts) != len(requests):
        raise ValueError(f"{len(firsts)} of first_scored for {len(requests)} prompts: give one for each")
    return [request._replace(first_scored=first) for request, first in zip(requests, firsts, strict=True)]


def score_of(output: RequestOutput, first_scored: int = 0) -> Score:
    """From the output of a request with SCORE_PARAMS, of the tokens from `first_scored` on."""
    if output.error is not None or output.prompt_logprobs is None:
        return Score([], [], [], None, output.error or "there are no log-probabilities")
    token_ids, first = output.prompt_token_ids, max(1, first_scored)
    both = zip(token_ids[first:], output.prompt_logprobs[first:], strict=True)
    entries = [entry[token_id] for token_id, entry in both if entry is not None]
    if len(entries) != len(token_ids) - first:
        return Score([], [], [], None, "the prompt was not computed to its end")
    logprobs = [entry.logprob for entry in entries]
    if any(map(math.isnan, logprobs)):
        return Score([], [], [], None, "a log-probability is not a number")
    ranks = [entry.rank for entry in entries]
    before = [None] * first
    return Score(token_ids, [*before, *logprobs], [*before, *ranks], sum(logprobs))
