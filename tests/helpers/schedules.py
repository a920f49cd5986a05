"""A small scheduler, and requests for it."""

from __future__ import annotations

from collections.abc import Sequence

from jbatch.host.config import SchedulerConfig
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES
from jbatch.host.request import Request
from jbatch.sampling_params import SamplingParams
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.shape import StateShape

VOCAB_SIZE = 97
BATCH_WAIT = 4.0  # of a batch that waits to be full, in steps of the driver


def buckets(tokens: Sequence[int], slots: Sequence[int], mode: str = "continuous") -> tuple[Bucket, ...]:
    """Of steps with prompts, and of decoding ones, as an engine of that mode has them."""
    if not MODES[mode].refill:
        return (*map(prefill_bucket, tokens), *map(decode_bucket, slots))
    mixed = tuple(Bucket(max(slots), size) for size in tokens)
    return mixed if len(tokens) == len(slots) == 1 else (*mixed, *map(decode_bucket, slots))


def scheduler_config(
    mode: str = "continuous",
    policy: str = "fcfs",
    *,
    num_rows: int = 4,
    num_pages: int = 17,
    page_size: int = 16,
    max_model_len: int = 128,
    **changes,
) -> SchedulerConfig:
    """A small one, to be changed by name."""
    default = SchedulerConfig(
        shape=StateShape(num_rows, num_pages, page_size, -(-max_model_len // page_size)),
        max_model_len=max_model_len,
        buckets=buckets((32, 64), (1, 2, 4), mode),
        policy=POLICIES[policy],
        admission=MODES[mode],
        batch_wait_timeout_s=BATCH_WAIT,
    )
    return default._replace(**changes)


def request(
    prompt: list[int],
    max_tokens: int,
    stop_ids: tuple[int, ...] = (),
    min_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    prompt_logprobs: int | None = None,
    **fields,
) -> Request:
    """As the engine makes it from checked parameters."""
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        min_tokens=min_tokens,
        stop_token_ids=stop_ids,
        prompt_logprobs=prompt_logprobs,
    )
    fields = {"request_id": "r", "seed": 0, **fields}
    return Request(
        prompt_token_ids=tuple(prompt), params=params, max_tokens=max_tokens, stop_ids=stop_ids, **fields
    )
