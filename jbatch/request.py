"""What is asked (SamplingParams, Request), what is under way (Sequence), what comes back (RequestOutput)."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from jbatch.errors import RequestError, check_option_names

MAX_STOP_IDS = 16  # end-of-sequence ids and stop_token_ids of one request together: a shape of the step
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LEN = 256
GREEDY_BELOW = 1e-5  # a temperature below it means greedy, as in vLLM


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"  # a stop token or a stop string
    LENGTH = "length"  # max_tokens
    ABORT = "abort"
    ERROR = "error"


class Sampler(enum.IntEnum):
    """What drawing a token takes; each can do what those before it can. A step runs the greatest that any
    running request needs."""

    GREEDY = 0
    PLAIN = 1  # temperature
    FILTERED = 2  # and top-k, top-p, min-p


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How to choose the tokens of one request. Names and defaults are vLLM's, but for `max_tokens`.

    temperature below 1e-5 is greedy. top_k 0 or -1 keeps all tokens. `max_tokens=None` generates to the
    end of the context. `seed=None` derives a seed from the engine's seed and the request's index.

    Raises:
      RequestError: naming the field, its value and the limit.
      TypeError: for an unknown option, suggesting the closest known one.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | tuple[str, ...] | None = None
    stop_token_ids: list[int] | tuple[int, ...] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __new__(cls, *args: Any, **options: Any) -> SamplingParams:
        check_option_names(options, cls.__dataclass_fields__, "SamplingParams")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else self.stop
        ids = self.stop_token_ids if self.stop_token_ids is not None else ()
        _check_integer("n", self.n, 1, 1)
        _check_number("temperature", self.temperature, 0, 100)
        _check_number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise RequestError("top_p", self.top_p, "must be above 0 and at most 1")
        _check_integer("top_k", self.top_k, -1, 2**31 - 1)
        _check_number("min_p", self.min_p, 0, 1)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, 2**32 - 1)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 0, 2**31 - 1)
        limit = 2**31 - 1 if self.max_tokens is None else self.max_tokens
        _check_integer("min_tokens", self.min_tokens, 0, limit)
        _check_stop_strings(stop)
        if not isinstance(ids, (list, tuple)) or len(ids) > MAX_STOP_IDS:
            raise RequestError("stop_token_ids", ids, f"must be a list of at most {MAX_STOP_IDS} token ids")
        for token_id in ids:
            _check_integer("stop_token_ids", token_id, 0, 2**31 - 1)
        for name in ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(name, getattr(self, name), "must be true or false")
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(ids))

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def sampler(self) -> Sampler:
        if self.greedy:
            return Sampler.GREEDY
        filtered = self.top_k > 0 or self.top_p < 1 or self.min_p > 0
        return Sampler.FILTERED if filtered else Sampler.PLAIN


def _check_integer(field: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(field, value, f"must be an integer from {low} to {high}")


def _check_number(field: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:  # or NaN
        raise RequestError(field, value, f"must be a number from {low} to {high}")


def _check_stop_strings(stop: Any) -> None:
    if not isinstance(stop, (list, tuple)) or len(stop) > MAX_STOP_STRINGS:
        raise RequestError("stop", stop, f"must be a string or a list of at most {MAX_STOP_STRINGS}")
    for text in stop:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_STRING_LEN:
            raise RequestError("stop", text, f"must be a string of 1 to {MAX_STOP_STRING_LEN} characters")


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A checked request, with everything resolved that depends on the model and the engine."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    stop_ids: tuple[int, ...]  # end-of-sequence (unless ignored) and stop_token_ids
    seed: int  # uint32
    arrival: float = 0.0  # seconds, on the engine's clock
    priority: int = 0  # lower runs first
    deadline: float | None = None  # seconds, on the engine's clock
    predicted_len: int | None = None  # output tokens: an input, or a replay would depend on a predictor
    prompt: str | None = None

    def __post_init__(self) -> None:
        """Raise RequestError for what a policy could not sort by."""
        _check_integer("priority", self.priority, -(2**31), 2**31 - 1)
        _check_number("arrival", self.arrival, -1e18, 1e18)
        if self.deadline is not None:
            _check_number("deadline", self.deadline, -1e18, 1e18)
        if self.predicted_len is not None:
            _check_integer("predicted_len", self.predicted_len, 0, 2**31 - 1)


@dataclasses.dataclass(slots=True, eq=False)
class Sequence:
    """A request under way. Only the scheduler writes to it.

    Counts of tokens, prompt included: `num_known` are on the host, `num_planned` will be once every
    issued step has landed, `num_cached` will then have their keys and values in the cache.
    """

    seq_id: int
    request: Request
    token_ids: list[int]
    num_planned: int
    num_cached: int = 0
    num_computed: int = 0  # positions cached before the last preemption: prefilling them is recomputation
    decoding: bool = False  # every known token is prefilled, and the device's row is set up
    pages: list[int] = dataclasses.field(default_factory=list)
    row: int = -1  # index into device state while running
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_known(self) -> int:
        return len(self.token_ids)

    @property
    def max_len(self) -> int:
        """Tokens that the sequence may grow to, prompt included."""
        return len(self.request.prompt_token_ids) + self.request.max_tokens

    @property
    def running(self) -> bool:
        return self.row >= 0

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]


@dataclasses.dataclass(frozen=True)
class RequestMetrics:
    """When things happened to one request, in seconds on the engine's monotonic clock."""

    arrival_time: float
    scheduled_ts: float | None
    first_token_ts: float | None
    last_token_ts: float | None
    finished_ts: float
    num_generation_tokens: int
    num_preemptions: int

    @property
    def first_token_latency(self) -> float | None:
        """Time to first token, from arrival."""
        return None if self.first_token_ts is None else self.first_token_ts - self.arrival_time


@dataclasses.dataclass(frozen=True)
class CompletionOutput:
    """One generated text. `token_ids` includes a stop token, `text` does not."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None = None  # the stop string or token id; None for end-of-sequence


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """A finished request. `error` says why where finish_reason is "error"."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    metrics: RequestMetrics | None = None
    error: str | None = None
