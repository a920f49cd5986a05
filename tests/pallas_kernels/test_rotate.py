"""Rotating queries and keys and writing the cache: plain JAX and the kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import rotate_and_write
from pallas_kernels.rotary import rotate

NUM_PAGES, PAGE_SIZE, TOKENS = 4, 16, 9
SHAPES = {"grouped": (2, 4, 64), "one head each": (3, 1, 32), "three parts": (1, 7, 80), "wide": (2, 2, 128)}


def case(shape, dtype="bfloat16"):
    kv_heads, group, head_dim = shape
    rng = np.random.default_rng(0)
    kv_pages = jnp.asarray(rng.standard_normal((NUM_PAGES, 2, kv_heads, PAGE_SIZE, head_dim)), dtype)
    qkv = jnp.asarray(rng.standard_normal((TOKENS, kv_heads, group + 2, head_dim)), dtype)
    angles = jnp.asarray(rng.uniform(0, 6, (TOKENS, head_dim // 2)), jnp.float32)
    places = rng.permutation(NUM_PAGES * PAGE_SIZE)[:TOKENS]
    page_ids = np.where(np.arange(TOKENS) % 3 == 1, NUM_PAGES, places // PAGE_SIZE)  # dropped
    indices = (jnp.asarray(x, jnp.int32) for x in (page_ids, places % PAGE_SIZE))
    return kv_pages, qkv, jnp.cos(angles), jnp.sin(angles), *indices


def test_rotation_in_complex_numbers():
    x = np.random.default_rng(1).standard_normal((5, 3, 8))
    angles = np.random.default_rng(2).uniform(0, 6, (5, 4))
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[:, None]
    out = rotate(*(jnp.asarray(a, jnp.float32) for a in (x, np.cos(angles), np.sin(angles))))
    np.testing.assert_allclose(out, np.concatenate([turned.real, turned.imag], -1), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_live_tokens_are_written_and_nothing_else_changes(shape):
    kv_pages, qkv, cos, sin, page_ids, offsets = case(shape)
    expected = np.array(kv_pages, np.float32)
    k = np.asarray(rotate(qkv[:, :, -2], cos, sin), np.float32)
    for token in np.flatnonzero(np.asarray(page_ids) < NUM_PAGES):
        expected[page_ids[token], 0, :, offsets[token]] = k[token]
        expected[page_ids[token], 1, :, offsets[token]] = qkv[token, :, -1]
    for name in ("xla", "triton"):
        cache, q = rotate_and_write(
            kv_pages, qkv, cos, sin, page_ids, offsets, implementation=name, interpret=name != "xla"
        )
        right = rotate(qkv[:, :, :-2].reshape(TOKENS, -1, shape[-1]), cos, sin)
        for found, wanted in ((cache, expected), (q, right)):  # to a unit in the last place
            np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (found, wanted)), rtol=2**-7)
        assert cache.dtype == kv_pages.dtype and q.dtype == qkv.dtype


def test_values_are_written_as_they_are():
    kv_pages, qkv, cos, sin, page_ids, offsets = case((2, 1, 32))
    cache, _ = rotate_and_write(
        kv_pages, qkv, cos, sin, page_ids, offsets, implementation="triton", interpret=True
    )
    live = np.asarray(page_ids) < NUM_PAGES
    np.testing.assert_array_equal(cache[page_ids, 1, :, offsets][live], qkv[:, :, -1][live])


def test_the_cache_is_written_in_place():
    """Donated, it is neither copied nor held twice: pytest turns a donation that fails into an error."""
    kv_pages, *others = case((2, 2, 64))
    address = kv_pages.unsafe_buffer_pointer()
    cache, _ = jax.jit(rotate_and_write, donate_argnums=0)(kv_pages, *others)
    assert kv_pages.is_deleted() and cache.unsafe_buffer_pointer() == address
