"""How to choose the tokens of a request, checked: SamplingParams, and the bounds of each field."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from jbatch.config import plain
from jbatch.errors import RequestError, changed_in_a_copy, check_option_names
from jbatch.sampler import Sampler
from jbatch.shown import changed_fields

MAX_N = 128
MAX_STOP_IDS = 16  # end-of-sequence ids and stop_token_ids of one request together: a shape of the step
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LEN = 256
MAX_LOGPROBS = 20  # a shape of the step
MAX_LOGPROB_TOKEN_IDS = 32  # a shape of the step
MAX_LOGIT_BIAS = 1024  # entries
MAX_BAD_WORDS = 16  # strings
MAX_BAD_WORD_IDS = 2 * MAX_BAD_WORDS  # each with and without a space in front: a shape of the step
MAX_BAD_WORD_LEN = 8  # tokens of one: a shape of the step
MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1
MAX_ID = 2**31 - 1  # the model's vocabulary is checked by the engine
GREEDY_BELOW = 1e-5  # a temperature below it means greedy, as in vLLM


class UpTo(int):
    """A `max_tokens` that a model names as its default: so many tokens, or as many as there is room for.

    A plain number is a request's own wish, and one for which the context has no room is refused.
    """


@changed_in_a_copy
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose the tokens of one request. Names and defaults are vLLM's, but for `max_tokens`.

    temperature below 1e-5 is greedy. top_k 0 or -1 keeps all tokens. `max_tokens=None` generates to the
    end of the context. `seed=None`, and -1, derive a seed from the engine's seed and the request's index.
    Stop strings need a text: they are refused with `detokenize=False`.

    The repetition penalty counts prompt and output (Keskar et al. 2019), presence and frequency penalties
    count output alone (OpenAI). Log-probabilities are the model's own: of its logits, before all of these
    (but see `logprobs_mode` of LLM).

    Raises:
      RequestError: naming the field, its value and the limit.
      TypeError: for an unknown option, suggesting the closest known one.
    """

    n: int = 1  # samples, each with a key of its own
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
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
    logprobs: int | None = None  # of each generated token and of this many likeliest ones
    prompt_logprobs: int | None = None  # the same for the prompt's tokens
    logprob_token_ids: list[int] | tuple[int, ...] | None = None  # these too, at each generated position
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: dict[int, float] | None = None  # added to the logits of token ids
    allowed_token_ids: list[int] | tuple[int, ...] | None = None  # all others are ruled out
    bad_words: list[str] | tuple[str, ...] | None = None  # texts that may not be completed
    truncate_prompt_tokens: int | None = None  # keep the last ones; -1: as many as there is room for
    skip_reading_prefix_cache: bool | None = None  # compute the whole prompt; None: for prompt_logprobs

    __repr__ = changed_fields

    def __new__(cls, *args: Any, **options: Any) -> SamplingParams:
        if args:
            raise TypeError(f"SamplingParams({args[0]!r:.80}): give it by name, as temperature=0.5")
        check_option_names(options, cls.__dataclass_fields__, "SamplingParams")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        check_integer("n", self.n, 1, MAX_N)
        check_number("presence_penalty", self.presence_penalty, -2, 2)
        check_number("frequency_penalty", self.frequency_penalty, -2, 2)
        check_number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        check_number("temperature", self.temperature, 0, 100)
        check_number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise RequestError("top_p", self.top_p, "must be above 0 and at most 1")
        check_integer("top_k", self.top_k, -1, MAX_ID)
        check_number("min_p", self.min_p, 0, 1)
        if self.truncate_prompt_tokens is not None:
            check_integer("truncate_prompt_tokens", self.truncate_prompt_tokens, -1, MAX_ID)
            if self.truncate_prompt_tokens == 0:
                raise RequestError("truncate_prompt_tokens", 0, "must be -1, or at least 1")
        _check_lengths(self.min_tokens, self.max_tokens)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 0, MAX_LOGPROBS)
        for name in ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(name, getattr(self, name), "must be true or false")
        skip = self.skip_reading_prefix_cache
        if skip is not None and not isinstance(skip, bool):
            raise RequestError("skip_reading_prefix_cache", skip, "must be true, false, or not given")
        if skip is False and self.prompt_logprobs is not None:
            reason = "prompt_logprobs need the whole prompt computed: leave it out"
            raise RequestError("skip_reading_prefix_cache", skip, reason)
        checked = self._plain_values()
        if checked["stop"] and not self.detokenize:
            raise RequestError(
                "stop", self.stop, "takes detokenize=True: a stop string is looked for in a text"
            )
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _plain_values(self) -> dict[str, Any]:
        """The seed, and what is a list or a dictionary: checked, and as the engine takes it."""
        checked: dict[str, Any] = {
            "seed": _seed(self.seed),
            "stop": _texts(
                "stop", (self.stop,) if isinstance(self.stop, str) else self.stop, MAX_STOP_STRINGS
            ),
            "bad_words": _texts("bad_words", self.bad_words, MAX_BAD_WORDS),
            "stop_token_ids": _token_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_IDS),
            "logprob_token_ids": _token_ids(
                "logprob_token_ids", self.logprob_token_ids, MAX_LOGPROB_TOKEN_IDS
            ),
            "logit_bias": _logit_bias(self.logit_bias),
        }
        if self.allowed_token_ids is not None:  # None stays: an empty list would allow nothing
            allowed = _token_ids("allowed_token_ids", self.allowed_token_ids, MAX_ID)
            if not allowed:
                raise RequestError(
                    "allowed_token_ids", self.allowed_token_ids, "must name at least one token id"
                )
            checked["allowed_token_ids"] = allowed
        return checked

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def fills_room(self) -> bool:
        """Whether the number of its tokens depends on the room that the context leaves."""
        return self.max_tokens is None or isinstance(self.max_tokens, UpTo)

    @property
    def may_end_early(self) -> bool:
        """Whether it may end before its last token; else its number of tokens is what was asked for."""
        return not self.ignore_eos and (self.max_tokens is None or self.max_tokens > 1)

    @property
    def sampler(self) -> Sampler:
        """The least that a step needs to serve this request."""
        if self._processed:
            return Sampler.EXTENDED if self._reported else Sampler.PROCESSED
        if self._reported:
            return Sampler.LOGPROBS
        if self.greedy:
            return Sampler.GREEDY
        filtered = self.top_k > 0 or self.top_p < 1 or self.min_p > 0
        return Sampler.FILTERED if filtered else Sampler.PLAIN

    @property
    def penalised(self) -> bool:
        """Whether the tokens so far count."""
        return any((self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1))

    @property
    def _processed(self) -> bool:
        return self.penalised or any((self.logit_bias, self.allowed_token_ids, self.bad_words))

    @property
    def _reported(self) -> bool:
        wanted = self.logprobs is not None or self.prompt_logprobs is not None
        return wanted or bool(self.logprob_token_ids)


def seed_bits(seed: int) -> int:
    """The uint32 that a seed draws by: itself where it is one, otherwise a hash of its 64 bits."""
    if 0 <= seed < 2**32:
        return seed
    digest = hashlib.blake2b(seed.to_bytes(8, "little", signed=True), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def check_integer(field: str, value: Any, low: int, high: int) -> None:
    """Raise RequestError where `value` is not an integer from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(field, value, f"must be an integer from {low} to {high}")


def check_number(field: str, value: Any, low: float, high: float) -> None:
    """Raise RequestError where `value` is not a number from `low` to `high`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:  # or NaN
        raise RequestError(field, value, f"must be a number from {low} to {high}")


def _check_lengths(min_tokens: Any, max_tokens: Any) -> None:
    if max_tokens is None:
        return check_integer("min_tokens", min_tokens, 0, MAX_ID)
    check_integer("max_tokens", max_tokens, 0, MAX_ID)
    if isinstance(max_tokens, UpTo) and isinstance(min_tokens, int) and min_tokens > max_tokens:
        reason = f"the model's generation_config.json sets max_tokens={max_tokens}: set max_tokens, too"
        raise RequestError("min_tokens", min_tokens, reason)
    return check_integer("min_tokens", min_tokens, 0, max_tokens)


def _seed(seed: Any) -> int | None:
    """A seed, or None where there is none: -1 asks for none, as in vLLM."""
    if seed is None:
        return None
    check_integer("seed", seed, MIN_SEED, MAX_SEED)
    return None if seed == -1 else seed


def _texts(field: str, texts: Any, most: int) -> tuple[str, ...]:
    if texts is None:
        return ()
    if not isinstance(texts, (list, tuple)) or len(texts) > most:
        kind = "a string or a list" if field == "stop" else "a list"
        raise RequestError(field, texts, f"must be {kind} of at most {most}")
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_STRING_LEN:
            raise RequestError(field, text, f"must be a string of 1 to {MAX_STOP_STRING_LEN} characters")
    return tuple(texts)


def _token_ids(field: str, ids: Any, most: int) -> tuple[int, ...]:
    if ids is None:
        return ()
    if not isinstance(ids, (list, tuple)) or len(ids) > most:
        raise RequestError(field, ids, f"must be a list of at most {most} token ids")
    plain_ids = tuple(map(plain, ids))
    for token_id in plain_ids:
        check_integer(field, token_id, 0, MAX_ID)
    return plain_ids


def _logit_bias(bias: Any) -> dict[int, float]:
    if bias is None:
        return {}
    if not isinstance(bias, dict) or len(bias) > MAX_LOGIT_BIAS:
        raise RequestError("logit_bias", bias, f"must map at most {MAX_LOGIT_BIAS} token ids to numbers")
    plain_bias = {plain(token_id): plain(value) for token_id, value in bias.items()}
    for token_id, value in plain_bias.items():
        check_integer("logit_bias", token_id, 0, MAX_ID)
        check_number("logit_bias", value, -100, 100)
    return plain_bias
