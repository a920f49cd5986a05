"""What comes back from the device after a step: one packed int32 array, whose layout is here alone."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int

from jbatch.sampler import Sampler
from jbatch.sampling_params import MAX_LOGPROB_TOKEN_IDS, MAX_LOGPROBS
from jbatch.seam.bucket import Bucket, room_of
from jbatch.seam.fields import Floats, Ints
from jbatch.seam.shape import StateShape

T = TypeVar("T")
Numbers = Ints | Floats


class Status:
    """Whether a row goes on after a draw, and if not, why."""

    RUNNING, STOPPED, OUT_OF_BUDGET, NON_FINITE, NOTHING_LEFT = range(5)


class Logprobs(NamedTuple, Generic[T]):
    """Log-probabilities at some positions."""

    logprob: T  # float32 [positions]: of the token there
    rank: T  # int32 [positions]: 1 + the number of likelier tokens
    top_ids: T  # int32 [positions, MAX_LOGPROBS], the likeliest first; -1 where the vocabulary is smaller
    top_logprobs: T  # float32 [positions, MAX_LOGPROBS]
    by_id: T  # float32 [positions, MAX_LOGPROB_TOKEN_IDS]: of the row's logprob_token_ids; or no column


class StepOutput(NamedTuple):
    """What came of each draw: first of the slots, then, from place `bucket.slots` on, of the chunks."""

    tokens: Int[Ints, "draws steps"]
    num_tokens: Int[Ints, " draws"]  # how many of them are valid
    status: Int[Ints, " draws"]  # a Status
    logprobs: Logprobs[Numbers] | None = None  # [draws]: of the tokens
    prompt_logprobs: Logprobs[Numbers] | None = None  # [tokens]: of the targets in the bucket's tokens


LOGPROBS_WIDTH = 2 + 2 * MAX_LOGPROBS + MAX_LOGPROB_TOKEN_IDS  # columns of a Logprobs, in its field order


def num_draws(bucket: Bucket, shape: StateShape) -> int:
    """Rows of a step's output."""
    return bucket.slots + room_of(bucket, shape).chunk_draws


def unpack_output(
    packed: Int[Ints, "..."], bucket: Bucket, shape: StateShape, sampler: Sampler
) -> StepOutput:
    """From int32 [draws, steps + 2]: tokens, number of them, status.

    The output of a step that reports log-probabilities is flat: these columns and the Logprobs of each draw,
    then the Logprobs of each token. A dispatch of several decode steps reports none.
    """
    width = bucket.steps + 2
    if not sampler.reports or bucket.steps > 1:
        return StepOutput(packed[:, :-2], packed[:, -2], packed[:, -1])
    draws = num_draws(bucket, shape)
    end = draws * (width + LOGPROBS_WIDTH)
    columns = packed[:end].reshape(draws, -1)
    return StepOutput(
        tokens=columns[:, : width - 2],
        num_tokens=columns[:, width - 2],
        status=columns[:, width - 1],
        logprobs=_unpack_logprobs(columns[:, width:]),
        prompt_logprobs=_unpack_logprobs(packed[end:].reshape(bucket.tokens, -1)) if bucket.tokens else None,
    )


def _unpack_logprobs(columns: Int[Ints, "positions width"]) -> Logprobs[Numbers]:
    tops = 2 + MAX_LOGPROBS, 2 + 2 * MAX_LOGPROBS
    logprob, rank, top_ids, *floats = np.split(np.ascontiguousarray(columns), (1, 2, *tops), axis=1)
    top_logprobs, by_id = (_floats(part) for part in floats)
    return Logprobs(_floats(logprob)[:, 0], rank[:, 0], top_ids, top_logprobs, by_id)


def _floats(bits: Int[Ints, "..."]) -> Float[Floats, "..."]:
    return bits.view(np.float32)
