"""Every implementation of the op against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import RaggedMetadata, paged_attention, write_kv
from tests.helpers.attention_cases import make_case

SHAPES = [(8, 2, 64, 16), (4, 4, 32, 16), (4, 1, 128, 64), (6, 2, 80, 128), (3, 1, 16, 32)]


def run(case, dtype=jnp.float32):
    metadata = RaggedMetadata(*map(jnp.asarray, (case.q_starts, case.q_lens, case.kv_lens)))
    q, kv_pages = jnp.asarray(case.q, dtype), jnp.asarray(case.kv_pages, dtype)
    scale = case.q.shape[-1] ** -0.5
    return np.asarray(
        jax.jit(lambda *a: paged_attention(*a, scale=scale))(
            q, kv_pages, jnp.asarray(case.block_tables), metadata
        ),
        np.float64,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode(shape):
    num_heads, kv_heads, head_dim, page_size = shape
    kv_lens = [0, 1, page_size - 1, page_size, page_size + 1, 5 * page_size, 300]
    case = make_case(
        0, [min(n, 1) for n in kv_lens], kv_lens,
        num_heads=num_heads, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size, decode=True,
    )  # fmt: skip
    np.testing.assert_allclose(run(case), case.expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "q_lens, kv_lens",
    [
        ([40, 7, 1], [40, 70, 33]),
        ([130], [300]),
        ([64, 0, 65, 0], [64, 0, 200, 0]),
        ([1, 63, 8], [1, 63, 136]),
    ],
)
def test_prefill(shape, q_lens, kv_lens):
    num_heads, kv_heads, head_dim, page_size = shape
    case = make_case(
        1, q_lens, kv_lens, num_heads=num_heads, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size
    )
    np.testing.assert_allclose(run(case), case.expected, atol=2e-5, rtol=2e-5)


def test_bfloat16_is_accurate_to_its_precision():
    case = make_case(2, [33, 20], [100, 20], num_heads=8, kv_heads=2, head_dim=64, page_size=16)
    np.testing.assert_allclose(run(case, jnp.bfloat16), case.expected, atol=0.03, rtol=0.03)


def test_a_rows_bits_do_not_depend_on_its_neighbours():
    shape = dict(num_heads=4, kv_heads=2, head_dim=32, page_size=16, decode=True)
    case = make_case(3, [1, 1, 1], [40, 500, 17], **shape)
    alone = case._replace(kv_lens=np.asarray([40, 0, 0], np.int32))
    np.testing.assert_array_equal(run(case)[0], run(alone)[0])


def test_write_kv_writes_live_tokens_and_drops_the_rest():
    num_pages, page_size = 4, 16
    kv_pages = jnp.full((num_pages, 2, 2, page_size, 8), 7.0)
    k = 100 + jnp.arange(3 * 2 * 8, dtype=jnp.float32).reshape(3, 2, 8)
    page_ids, offsets = jnp.asarray([2, num_pages, 1]), jnp.asarray([15, 3, 0])
    out = np.asarray(jax.jit(write_kv, donate_argnums=0)(kv_pages, k, -k, page_ids, offsets))
    np.testing.assert_array_equal(out[2, 0, :, 15], k[0])
    np.testing.assert_array_equal(out[1, 1, :, 0], -k[2])
    assert (out == 7.0).sum() == out.size - 2 * k[0].size * 2


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(q=jnp.zeros((8, 3, 32))), "heads=3"),
        (dict(q=jnp.zeros((8, 4, 16))), "head_dim=32"),
        (dict(kv_pages=jnp.zeros((3, 2, 2, 24, 32))), "page_size=24"),
        (dict(kv_pages=jnp.zeros((3, 1, 2, 16, 32))), "must be 2"),
        (dict(q=jnp.zeros((8, 32))), "expected q"),
        (dict(metadata=RaggedMetadata(*(jnp.zeros(2, jnp.int32),) * 3)), "q_starts.shape"),
        (dict(implementation="magic"), "implementation='magic'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    arguments = dict(
        q=jnp.zeros((8, 4, 32)),
        kv_pages=jnp.zeros((3, 2, 2, 16, 32)),
        block_tables=jnp.zeros((1, 2), jnp.int32),
        metadata=RaggedMetadata(*(jnp.zeros(1, jnp.int32),) * 3),
        scale=1.0,
    )
    with pytest.raises(ValueError, match=message):
        paged_attention(**(arguments | change))
