"""The intake desk of an engine: what a caller asks for, as a checked request."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from jbatch.config import plain
from jbatch.errors import RequestError, check_option_names
from jbatch.host.lengths.history import History
from jbatch.host.lengths.prediction import Predictor, predicted
from jbatch.host.request import LatencyLimits, Request
from jbatch.sampler import Sampler
from jbatch.sampling_params import MAX_BAD_WORD_LEN, MAX_STOP_IDS, SamplingParams, seed_bits
from jbatch.text.tokenizer import Tokenizer

ID_FIELDS = ("stop_token_ids", "logprob_token_ids", "allowed_token_ids", "logit_bias")


class ScheduleFields(TypedDict, total=False):
    """The fields of a Schedule, by name."""

    arrival: float | None
    priority: int
    deadline: float | None
    predicted_len: int | None
    user: str | None
    ttft_ms: float | None
    tpot_ms: float | None
    e2el_ms: float | None
    streamed: bool


class Schedule(NamedTuple):
    """What a policy may sort a request by."""

    arrival: float | None = None  # seconds on the engine's clock; None: now
    priority: int = 0  # for policy "priority"; lower runs first
    deadline: float | None = None  # seconds on the engine's clock
    predicted_len: int | None = None  # output tokens, for policies that sort by length
    user: str | None = None  # for policy "fair"
    ttft_ms: float | None = None  # latencies to keep, for policies "deadline" and "adaptive"
    tpot_ms: float | None = None
    e2el_ms: float | None = None
    streamed: bool = False  # its tokens are shown one by one: no step draws several


def schedule_of(fields: ScheduleFields) -> Schedule:
    """A schedule. Raises TypeError for a name that it does not have, suggesting the closest."""
    check_option_names(fields, Schedule._fields, "add_request", SamplingParams.__dataclass_fields__)
    return Schedule(**fields)


class Asked(NamedTuple):
    """What is asked for a request beside its prompt and parameters: see `Engine.add_request`."""

    input_idx: int
    request_idx: int | None = None
    first_scored: int = 0
    cache_salt: str | None = None
    schedule: Schedule = Schedule()


class Intake:
    """Makes requests for one model and one engine.

    Args:
      max_seq_len: tokens, prompt and output, that a sequence may have.
      seed: of the engine; a request without a seed gets one from it and from the request's index.
      predictor: of the output lengths of requests that come without one.

    Attributes:
      history: lengths of requests that ended, for the predictor; the engine adds to it.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        max_seq_len: int,
        eos_token_ids: Iterable[int] = (),
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
        predictor: Predictor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.vocab_size, self.tokenizer = vocab_size, tokenizer
        self._max_seq_len, self._seed, self._clock = max_seq_len, seed, clock
        self._predictor, self.history = predictor, History()
        self._eos_token_ids = tuple(sorted(eos_token_ids))

    def request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams,
        asked: Asked,
        compiled: Iterable[Sampler],
    ) -> Request:
        """The request, with everything resolved that depends on the model and the engine.

        Raises:
          RequestError: naming field, value and limit.
        """
        check_params(params, self.vocab_size, compiled)
        schedule, index = Schedule(*map(plain, asked.schedule)), asked.input_idx
        token_ids = self._truncated(self._token_ids(prompt), params, is_text=isinstance(prompt, str))
        if params.stop and self.tokenizer is None:
            raise RequestError("stop", list(params.stop), "this model has no tokenizer: use stop_token_ids")
        request = Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=params,
            max_tokens=self._max_tokens(params, len(token_ids)),
            stop_ids=self._stop_ids(params),
            seed=derive_seed(self._seed, index) if params.seed is None else seed_bits(params.seed),
            arrival=self._clock() if schedule.arrival is None else schedule.arrival,
            priority=schedule.priority,
            deadline=schedule.deadline,
            predicted_len=schedule.predicted_len,
            user=schedule.user,
            limits=LatencyLimits(schedule.ttft_ms, schedule.tpot_ms, schedule.e2el_ms),
            streamed=schedule.streamed,
            prompt=prompt if isinstance(prompt, str) else None,
            bad_word_ids=bad_word_ids(params, self.tokenizer, self.vocab_size),
            request_idx=index % 2**31 if asked.request_idx is None else plain(asked.request_idx),
            first_scored=plain(asked.first_scored),
            cache_salt=asked.cache_salt,
        )
        if self._predictor is None or request.predicted_len is not None:
            return request
        prediction = predicted(self._predictor, request, self.history)
        return dataclasses.replace(
            request, predicted_len=round(prediction.expected), length_quantiles=prediction.quantiles
        )

    def _token_ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError("prompt", prompt, "must not be empty", code="empty_prompt")
            if self.tokenizer is None:
                raise RequestError("prompt", prompt, "this model has no tokenizer: give prompt_token_ids")
            return self._of_vocabulary(self.tokenizer.encode(prompt))
        if not isinstance(prompt, (list, tuple, np.ndarray)):
            raise RequestError("prompt", prompt, "must be text or a list of token ids")
        for token_id in prompt:
            if not isinstance(token_id, (int, np.integer)) or isinstance(token_id, bool):
                raise RequestError("prompt_token_ids", token_id, "must be integers")
        return self._of_vocabulary(prompt)

    def _of_vocabulary(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The ids, if the model has each: a tokenizer may have tokens that its model was not given."""
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise RequestError(
                    "prompt_token_ids", token_id, f"must be from 0 to {self.vocab_size - 1}, the vocabulary"
                )
        return tuple(map(int, token_ids))

    def _truncated(
        self, token_ids: tuple[int, ...], params: SamplingParams, *, is_text: bool
    ) -> tuple[int, ...]:
        """The last tokens of a prompt, where the request asks for no more. As in vLLM, a text's
        begin-of-sequence token stays in front, and counts."""
        most = params.truncate_prompt_tokens
        if most == -1:
            most = max(1, self._max_seq_len - (1 if params.fills_room else params.max_tokens or 0))
        if most is None or len(token_ids) <= most:
            return token_ids
        bos = None if self.tokenizer is None else self.tokenizer.bos_token_id
        if is_text and token_ids[0] == bos:
            return (token_ids[0], *token_ids[len(token_ids) - most + 1 :])
        return token_ids[-most:]

    def _max_tokens(self, params: SamplingParams, prompt_len: int) -> int:
        if params.max_tokens is not None and not params.fills_room:
            return params.max_tokens
        room = max(1, self._max_seq_len - prompt_len)  # the scheduler refuses a prompt that fills the context
        return room if params.max_tokens is None else min(int(params.max_tokens), room)

    def _stop_ids(self, params: SamplingParams) -> tuple[int, ...]:
        named = params.stop_token_ids or ()
        eos = () if params.ignore_eos else self._eos_token_ids
        stop_ids = tuple(dict.fromkeys((*eos, *named)))
        if len(stop_ids) > MAX_STOP_IDS:
            raise RequestError(
                "stop_token_ids",
                list(named),
                f"with the model's {len(eos)} end-of-sequence ids there may be at most {MAX_STOP_IDS}",
            )
        return stop_ids


def check_params(params: SamplingParams, vocab_size: int, compiled: Iterable[Sampler]) -> None:
    """Raise RequestError for ids of no token, and for a way of drawing that is not compiled."""
    for field in ID_FIELDS:
        for token_id in getattr(params, field) or ():
            if token_id >= vocab_size:
                raise RequestError(field, token_id, f"must be from 0 to {vocab_size - 1}, the vocabulary")
    if params.sampler.choose(compiled) is None:
        name = params.sampler.name.lower()
        raise RequestError(
            "sampling_params",
            name,
            "this way of drawing tokens is not compiled: name it in LLM(samplers=...), or call llm.prepare "
            "with these parameters",
        )


def bad_word_ids(
    params: SamplingParams, tokenizer: Tokenizer | None, vocab_size: int
) -> tuple[tuple[int, ...], ...]:
    """The token ids of bad words: each as it is written with and without a space in front.

    Raises:
      RequestError: for a word of too many tokens, of none, or of tokens that the model does not have, and
        where there is no tokenizer.
    """
    if not params.bad_words:
        return ()
    if tokenizer is None:
        raise RequestError("bad_words", list(params.bad_words), "this model has no tokenizer")
    spellings: dict[tuple[int, ...], None] = {}
    for word in params.bad_words:
        spelled = [
            tuple(tokenizer.encode(text, add_special_tokens=False))
            for text in (word.lstrip(), f" {word.lstrip()}")
        ]
        longest = max(map(len, spelled))
        if not 0 < longest <= MAX_BAD_WORD_LEN:
            raise RequestError("bad_words", word, f"is {longest} tokens: must be 1 to {MAX_BAD_WORD_LEN}")
        if (highest := max(map(max, filter(None, spelled)))) >= vocab_size:
            reason = f"has token {highest}: must be of 0 to {vocab_size - 1}, the vocabulary"
            raise RequestError("bad_words", word, reason)
        spellings |= dict.fromkeys(ids for ids in spelled if ids)
    return tuple(spellings)


def derive_seed(engine_seed: int, index: int) -> int:
    """The seed of request `index`, uint32: never of its arrival, so that a resumed job draws the same."""
    return int(np.random.SeedSequence([engine_seed, index]).generate_state(1)[0])
