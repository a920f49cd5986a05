"""Whether two engines gave the same greedy tokens, or parted at a near-tie: before any time is shown."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jbatch.config import ModelConfig
from jbatch.errors import JBatchError

# Two tokens whose logits are this close (natural log) may change places between two programs of one model:
# float32's is the engine's own rule; the others are some units in the last place of a logit, which PyTorch's
# transformers round to 16 bits.
NEAR_TIE = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.25}

Gap = Callable[
    [Sequence[int], int], float
]  # of a context, and a token that may follow: how far from the best


class Agreement(NamedTuple):
    """How an arm's tokens compare with the reference's."""

    requests: int
    equal: int  # requests of which every token is the same
    near_ties: int  # requests that part where two tokens are as good as each other
    largest_gap: float  # between those, in logits
    tolerance: float
    compared_tokens: int  # behind a parting nothing can be compared


class Disagreement(JBatchError):
    """Tokens that differ, and not at a near-tie; says where, and by how much."""


def cross_check(
    prompts: Sequence[Sequence[int]],
    reference: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[int]],
    gap: Gap,
    tolerance: float,
) -> Agreement:
    """Compare token by token, each request up to where the two part first.

    Raises:
      Disagreement: for a request of another length, and where the parting is no near-tie.
    """
    equal = near_ties = compared = 0
    largest = 0.0
    for number, (prompt, expected, got) in enumerate(zip(prompts, reference, tokens, strict=True)):
        if len(expected) != len(got):
            raise Disagreement(f"request {number}: {len(got)} tokens, and the reference has {len(expected)}")
        place = next(
            (i for i, pair in enumerate(zip(expected, got, strict=True)) if pair[0] != pair[1]), None
        )
        if place is None:
            equal, compared = equal + 1, compared + len(got)
            continue
        context = [*prompt, *expected[:place]]
        gaps = [gap(context, token) for token in (expected[place], got[place])]
        widest = max(gaps)
        if not all(gap_to_best <= tolerance for gap_to_best in gaps):  # or NaN
            raise Disagreement(
                f"request {number}, token {place}: {got[place]}, and the reference has {expected[place]}: "
                f"their logits are up to {widest:.3g} below the best, and a near-tie is at most {tolerance:g}"
            )
        near_ties, compared, largest = near_ties + 1, compared + place, max(largest, widest)
    return Agreement(len(tokens), equal, near_ties, largest, tolerance, compared)


class LogitGap:
    """How far a token's logit lies below the best, by a dense forward pass over jbatch's own parameters.

    Args:
      longest: tokens that a context may have; all are padded to it, so that one program is compiled.
    """

    def __init__(self, config: ModelConfig, params: Mapping[str, Any], longest: int):
        self._config, self._params, self._longest = config, tuple(params.values()), longest
        self._last: tuple[tuple[int, ...], Any] = (), None  # two tokens of a context come in turn

    def __call__(self, context: Sequence[int], token: int) -> float:
        if self._last[0] != tuple(context):
            self._last = tuple(context), self._logits(context)
        logits = self._last[1]
        return float(logits.max() - logits[token])

    def _logits(self, context: Sequence[int]) -> Any:
        import jax
        import numpy as np

        ids = np.zeros(self._longest, np.int32)
        ids[: len(context)] = context
        precision = "highest" if self._config.dtype == "float32" else None  # as the steps are compiled
        with jax.default_matmul_precision(precision):
            return np.asarray(_last_logits(self._config)(self._params, ids, len(context)))


@functools.lru_cache(maxsize=8)
def _last_logits(config: ModelConfig) -> Callable[..., Any]:
    """A compiled function (params, ids, length) -> the logits behind the first `length` tokens of `ids`."""
    import jax
    import jax.numpy as jnp

    from jbatch.device import model
    from pallas_kernels import rotated

    def attend(layer_idx: int, qkv: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        del layer_idx
        q, k, v = rotated(qkv, cos, sin)
        return jax.nn.dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]

    def last_logits(params: tuple[jax.Array, ...], ids: jax.Array, length: int) -> jax.Array:
        llama = model.build(config, params)
        hidden = llama(ids, jnp.arange(ids.shape[0]), attend)
        return llama.logits(hidden[length - 1])

    return jax.jit(last_logits)
