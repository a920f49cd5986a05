"""A user's own function of the logits, compiled into the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jbatch.device.process.penalties import Counts
from jbatch.device.settings import fixed_settings
from jbatch.device.state import Rows
from jbatch.errors import ConfigError


class LogitsState(NamedTuple):
    """What a `logits_fn` may look at, of the sequence of each draw. Places without one hold anything."""

    last_token: Int[Array, " draws"]
    length: Int[Array, " draws"]  # tokens so far, prompt and output: the position of the one to draw
    prompt_len: Int[Array, " draws"]
    in_prompt: Bool[Array, "draws vocab"]  # the tokens that the prompt has
    counts: Int[Array, "draws vocab"]  # how often the output has each token
    temperature: Float[Array, " draws"]  # 0: greedy
    seed: Int[Array, " draws"]  # the bits of a uint32
    sample_idx: Int[Array, " draws"]  # of the request's n samples
    request_idx: Int[Array, " draws"]  # of the request: the place of its prompt in the call's list, from 0


LogitsFn = Callable[[Float[Array, "draws vocab"], LogitsState], Float[Array, "draws vocab"]]


def logits_state(rows: Rows, lengths: Int[Array, " draws"], counts: Counts) -> LogitsState:
    """What the function sees."""
    return LogitsState(
        last_token=rows["last_token"],
        length=lengths,
        prompt_len=rows["prompt_len"],
        in_prompt=counts.in_prompt,
        counts=counts.in_output,
        temperature=rows["temperature"],
        seed=rows["seed"],
        sample_idx=rows["sample_idx"],
        request_idx=rows["request_idx"],
    )


def call(
    logits_fn: LogitsFn, logits: Float[Array, "draws vocab"], state: LogitsState
) -> Float[Array, "draws vocab"]:
    """A user's function, traced. Raises ConfigError where that fails, or for a result of another shape."""
    name = getattr(logits_fn, "__name__", type(logits_fn).__name__)
    draws = logits.shape[0]
    try:
        result = logits_fn(logits, state)
    except Exception as error:  # whatever a user's function raises
        what = f"{type(error).__name__}: {error}".split("\n", 1)[0]  # JAX goes on for a page
        raise ConfigError("logits_fn", name, f"cannot be traced for {draws} draws: {what}") from error
    got = (getattr(result, "shape", None), getattr(result, "dtype", None))
    if got != (logits.shape, logits.dtype):
        said = f"{got[1]}{list(got[0])}" if got[0] is not None else type(result).__name__
        raise ConfigError("logits_fn", name, f"must return float32{list(logits.shape)}, not {said}")
    return result


def check_logits_fn(logits_fn: LogitsFn, draws: int, vocab_size: int) -> None:
    """Trace a user's function once. Raises what `call` raises."""

    def leaf(dtype: type, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((draws, *shape), dtype)

    logits, ints = leaf(jnp.float32, vocab_size), leaf(jnp.int32)
    state = LogitsState(
        last_token=ints,
        length=ints,
        prompt_len=ints,
        in_prompt=leaf(jnp.bool, vocab_size),
        counts=leaf(jnp.int32, vocab_size),
        temperature=leaf(jnp.float32),
        seed=ints,
        sample_idx=ints,
        request_idx=ints,
    )
    with fixed_settings():
        jax.eval_shape(lambda logits, state: call(logits_fn, logits, state), logits, state)
