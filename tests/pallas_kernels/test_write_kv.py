"""Writing the cache, and copying its pages, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import copy_pages, write_kv
from tests.helpers.kernel_checks import check_write
from tests.helpers.kernel_params import NUM_POINTS
from tests.helpers.kernel_points import write_cover


@pytest.mark.parametrize("point", write_cover()[:NUM_POINTS], ids=str)
def test_live_tokens_are_written_and_nothing_else_changes(point):
    check_write(point)


def test_new_tokens_are_rounded_to_the_caches_dtype():
    kv_pages = jnp.zeros((2, 2, 1, 16, 64), jnp.bfloat16)
    k = 1 + jnp.arange(64, dtype=jnp.float32).reshape(1, 1, 64) / 1000
    out = write_kv(kv_pages, k, -k, jnp.asarray([1]), jnp.asarray([3]))
    np.testing.assert_array_equal(out[1, 0, 0, 3], k[0, 0].astype(jnp.bfloat16))
    np.testing.assert_array_equal(out[1, 1, 0, 3], -k[0, 0].astype(jnp.bfloat16))


def test_a_step_whose_tokens_are_all_dropped_changes_nothing():
    kv_pages = jax.random.normal(jax.random.key(0), (3, 2, 2, 16, 64), jnp.bfloat16)
    k = jnp.ones((5, 2, 64), jnp.bfloat16)
    dropped, offsets = jnp.full(5, len(kv_pages)), jnp.asarray([0, 0, 15, 3, 3])
    np.testing.assert_array_equal(write_kv(kv_pages, k, k, dropped, offsets), kv_pages)


def test_the_cache_is_written_in_place():
    """Donated, it is neither copied nor held twice: pytest turns a donation that fails into an error."""
    kv_pages = jnp.zeros((3, 2, 2, 16, 64), jnp.bfloat16)
    k = jnp.ones((1, 2, 64), jnp.bfloat16)
    address = kv_pages.unsafe_buffer_pointer()
    out = jax.jit(write_kv, donate_argnums=0)(kv_pages, k, k, jnp.asarray([1]), jnp.asarray([0]))
    assert kv_pages.is_deleted() and out.unsafe_buffer_pointer() == address


def test_pages_are_copied_as_they_were():
    """Chains and swaps read before they write; pairs whose target is `num_pages` are dropped."""
    num_pages = 7
    kv_pages = np.random.default_rng(0).standard_normal((num_pages, 2, 2, 16, 8), np.float32)
    src, dst = np.asarray([1, 2, 3, 4, 5]), np.asarray([2, 3, 4, num_pages, 1])
    expected = kv_pages.copy()
    expected[[2, 3, 4, 1]] = kv_pages[[1, 2, 3, 5]]
    out = jax.jit(copy_pages, donate_argnums=0)(*map(jnp.asarray, (kv_pages, src, dst)))
    np.testing.assert_array_equal(out, expected)


def test_a_copy_of_a_page_holds_what_nobody_wrote_too():
    kv_pages = jnp.full((3, 2, 1, 16, 8), jnp.nan).at[1, :, :, :4].set(1.0)
    out = copy_pages(kv_pages, jnp.asarray([1]), jnp.asarray([2]))
    np.testing.assert_array_equal(out[2], kv_pages[1])
