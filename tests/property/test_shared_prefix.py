"""64 sequences on one prefix of 4,096 tokens, in a kernel whose work list has no room for all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jbatch.host.turns import Turns
from pallas_kernels import RaggedMetadata, paged_attention
from tests.jbatch.host.test_turns import sequences

SLOTS, PAGE_SIZE, PREFIX = 64, 16, 4096
NUM_PAGES = PREFIX // PAGE_SIZE + 8


@functools.partial(jax.jit, static_argnames="implementation")
def attend(kv_lens, implementation):
    """Of random queries and pages. All block tables are the same; nobody owns the last pages: NaN."""
    rng = np.random.default_rng(0)
    kv_pages = rng.standard_normal((NUM_PAGES, 2, 1, PAGE_SIZE, 64))
    kv_pages[0] = kv_pages[PREFIX // PAGE_SIZE + 1 :] = np.nan
    tables = np.tile(np.arange(1, PREFIX // PAGE_SIZE + 1), (SLOTS, 1))
    out = paged_attention(
        jnp.asarray(rng.standard_normal((SLOTS, 1, 64)), jnp.bfloat16),
        jnp.asarray(kv_pages, jnp.bfloat16),
        jnp.asarray(tables, jnp.int32),
        RaggedMetadata(jnp.arange(SLOTS), (kv_lens > 0).astype(jnp.int32), kv_lens),
        scale=0.125,
        max_q_len=1,
        implementation=implementation,
        interpret=implementation != "xla",
    )
    return out.astype(jnp.float32)


def test_the_kernel_answers_those_that_the_scheduler_gives_it_and_no_others():
    everyone = np.asarray(attend(jnp.full(SLOTS, PREFIX, jnp.int32), "triton"))
    assert np.isnan(everyone).any((1, 2)).sum() > SLOTS / 2, "all fit: this shows nothing"
    turns, running = Turns(NUM_PAGES * PAGE_SIZE), sequences(*[PREFIX - 1] * SLOTS)
    for turn in range(2):
        (taken,) = turns.take(running, 1)
        assert taken.seq_id == turn
        kv_lens = jnp.zeros(SLOTS, jnp.int32).at[turn].set(PREFIX)
        right, ours = (np.asarray(attend(kv_lens, name))[turn] for name in ("xla", "triton"))
        assert np.isfinite(right).all()
        np.testing.assert_allclose(ours, right, atol=0.01)
