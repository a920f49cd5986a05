"""What is asked (Request), and what is under way (Sequence)."""

from __future__ import annotations

import dataclasses
import sys
from typing import NamedTuple

from jbatch import shown
from jbatch.errors import RequestError
from jbatch.outputs import FinishReason
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams, check_integer, check_number

Key = tuple[float, ...]  # what a policy gives a request to be sorted by
MAX_LIMIT_MS = 1e9
NEVER = sys.maxsize
NOT_YET = -1  # no step is planned that computes the last of a prompt
ALONE = -2  # no other sample may begin with its pages: they are of weights that are gone
MAX_SALT_CHARS = 1024


class LatencyLimits(NamedTuple):
    """Latencies that a request should keep, in milliseconds, as `jbatch bench --goodput` has them."""

    ttft_ms: float | None = None  # from its arrival to its first token
    tpot_ms: float | None = None  # per token after that
    e2el_ms: float | None = None  # from its arrival to its last token


NO_LIMITS = LatencyLimits()


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
    length_quantiles: tuple[float, ...] | None = None  # at lengths.prediction.LEVELS
    user: str | None = None  # whose it is, for a fair policy
    limits: LatencyLimits = NO_LIMITS
    prompt: str | None = None
    bad_word_ids: tuple[tuple[int, ...], ...] = ()  # bad_words as token ids
    sample_idx: int = 0  # which of its n samples this is: a sequence each
    request_idx: int = 0  # what a user's function of the logits knows it by
    streamed: bool = False  # its tokens are shown one by one
    first_scored: int = 0  # the first token of the prompt whose log-probability is wanted, where any is
    cache_salt: str | None = None  # its pages are found by requests of the same one alone

    def __post_init__(self) -> None:
        """Raise RequestError for what a policy could not sort by, and for a salt that is none."""
        check_integer("priority", self.priority, -(2**31), 2**31 - 1)
        check_number("arrival", self.arrival, -1e18, 1e18)
        check_integer("request_idx", self.request_idx, 0, 2**31 - 1)
        check_integer("first_scored", self.first_scored, 0, len(self.prompt_token_ids))
        if self.deadline is not None:
            check_number("deadline", self.deadline, -1e18, 1e18)
        if self.predicted_len is not None:
            check_integer("predicted_len", self.predicted_len, 0, 2**31 - 1)
        salt = self.cache_salt
        if salt is not None and not (isinstance(salt, str) and 0 < len(salt) <= MAX_SALT_CHARS):
            raise RequestError("cache_salt", salt, f"must be text of 1 to {MAX_SALT_CHARS} characters")
        if self.user is not None and not isinstance(self.user, str):
            raise RequestError("user", self.user, "must be text")
        for name, limit in zip(self.limits._fields, self.limits, strict=True):
            if limit is not None:
                check_number(name, limit, 0.0, MAX_LIMIT_MS)

    def __repr__(self) -> str:
        """What a policy may go by; not its tokens."""
        prompt = shown.count(len(self.prompt_token_ids), "prompt token")
        parts = [repr(self.request_id), prompt, f"max_tokens={self.max_tokens}", repr(self.params)]
        for name in ("priority", "deadline", "predicted_len", "user"):
            if (value := getattr(self, name)) not in (None, 0):
                parts.append(f"{name}={value!r}")
        return f"Request({', '.join(parts)})"

    @property
    def num_readable(self) -> int:
        """Tokens whose keys and values may come from the cache: not those whose logits are wanted."""
        if self.params.skip_reading_prefix_cache:
            return 0
        return NEVER if self.params.prompt_logprobs is None else max(0, self.first_scored - 1)

    @property
    def expected_len(self) -> int:
        """Output tokens: predicted ones, or else the most that it may have."""
        return self.max_tokens if self.predicted_len is None else self.predicted_len


class LeftPage(NamedTuple):
    """A page that a sequence gave up before its last steps had landed."""

    page_id: int
    times_taken: int  # until then: it is as it was left while nobody takes it again


@dataclasses.dataclass(slots=True, eq=False)
class Sequence:
    """One sample of a request, under way. Only the scheduler writes to it.

    Counts of tokens, prompt included. What is so, by the results that came back: `num_known` are on the host,
    `num_cached` have their keys and values in the cache. What will be at most, once every issued step has
    landed: `num_planned` and `num_cached_planned`.
    """

    seq_id: int
    request: Request
    token_ids: list[int]
    num_planned: int
    key: Key = ()  # by which it is admitted, and gives up its pages
    num_cached: int = 0
    num_cached_planned: int = 0
    num_computed: int = 0  # positions cached before the last preemption: prefilling them is recomputation
    num_scored: int = 0  # of these, those whose next prompt token need not be scored again
    decoding: bool = False  # every known token is prefilled, and its row on the device is set up
    pages: list[int] = dataclasses.field(default_factory=list)
    row: int = -1  # index into device state while running
    family: list[Sequence] = dataclasses.field(default_factory=list)  # the samples of its prompt, itself too
    prompt_step: int = NOT_YET  # the step that computes the last of its prompt; or one of the two above
    forked: bool = False  # the page that it writes to next may be other samples', too
    leaving: bool = False  # its last token is planned, and its row and pages are others'
    left_pages: tuple[LeftPage, ...] = ()  # those, while it leaves
    digests: list[bytes] = dataclasses.field(default_factory=list)  # of its full pages, as far as asked for
    root: bytes = b""  # what they begin from
    publish_at: int = NEVER  # tokens cached, at which its next page may be found by others
    num_found: int | None = None  # tokens of the prompt that were in the cache when it first ran
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    max_len: int = dataclasses.field(init=False)  # tokens that it may grow to, prompt included
    sampler: Sampler = dataclasses.field(init=False)  # the least that its draws take
    watched: bool = dataclasses.field(init=False)  # the host looks at each token before the next one is drawn

    def __post_init__(self) -> None:
        params = self.request.params
        self.max_len = len(self.request.prompt_token_ids) + self.request.max_tokens
        self.sampler = params.sampler
        self.watched = bool(params.stop or self.sampler.reports or self.request.streamed)

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_known(self) -> int:
        return len(self.token_ids)

    @property
    def next_len(self) -> int:
        """Tokens once the known ones are prefilled and one is drawn, if one is."""
        return min(self.num_known + 1, self.max_len)

    @property
    def prefilling(self) -> bool:
        """Whether it runs, with known tokens that no step has been planned for."""
        return self.row >= 0 and not self.decoding and self.num_cached_planned < len(self.token_ids)

    @property
    def running(self) -> bool:
        return self.row >= 0

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]
