"""Every implementation of the op against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    Problem,
    RaggedMetadata,
    add_work_list,
    choose,
    paged_attention,
    paged_decode,
    write_kv,
)
from pallas_kernels._compat import HAS_MOSAIC
from tests.helpers.attention_cases import make_case

SHAPES = [(8, 2, 64, 16), (4, 4, 32, 16), (4, 1, 128, 64), (6, 2, 80, 128), (3, 1, 16, 32)]


def run(case, dtype=jnp.float32, max_q_len=None):
    metadata = RaggedMetadata(*map(jnp.asarray, (case.q_starts, case.q_lens, case.kv_lens)))
    q, kv_pages = jnp.asarray(case.q, dtype), jnp.asarray(case.kv_pages, dtype)
    scale = case.q.shape[-1] ** -0.5
    return np.asarray(
        jax.jit(lambda *a: paged_attention(*a, scale=scale, max_q_len=max_q_len))(
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
    np.testing.assert_allclose(run(case, max_q_len=1), case.expected, atol=2e-5, rtol=2e-5)


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
    np.testing.assert_array_equal(run(case, max_q_len=1)[0], run(alone, max_q_len=1)[0])


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
        (dict(implementation="magic"), "implementation='magic': choose from mosaic, triton, xla"),
        (dict(implementation=["xla", "magic"]), "choose from"),
        (dict(implementation=[]), "choose from"),
        (dict(kv_pages=jnp.zeros((3, 2, 2, 16, 32), jnp.bfloat16)), "dtype=float32 of q differs"),
        (dict(max_q_len=1), "tokens=8 of q: a decode step has one per slot, 1"),
        (dict(implementation="triton", interpret=True), "triton: dtype float32"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message, unchecked):
    arguments = dict(
        q=jnp.zeros((8, 4, 32)),
        kv_pages=jnp.zeros((3, 2, 2, 16, 32)),
        block_tables=jnp.zeros((1, 2), jnp.int32),
        metadata=RaggedMetadata(*(jnp.zeros(1, jnp.int32),) * 3),
        scale=1.0,
    )
    with pytest.raises(ValueError, match=message):
        paged_attention(**(arguments | change))


def problem(kind="decode", dtype="bfloat16", head_dim=128, page_size=64):
    return Problem(kind, dtype, 8, 8, 32, 8, head_dim, 100, page_size, 4)


class Device:
    """Of jax.Device, what a choice looks at."""

    def __init__(self, platform, compute_capability=None):
        self.platform = platform
        if compute_capability:
            self.compute_capability = compute_capability


HOPPER, AMPERE, CPU = Device("gpu", "9.0"), Device("cuda", "8.0"), Device("cpu")
EVERYTHING = ("mosaic", "triton", "xla")


@pytest.mark.parametrize("device", [HOPPER, AMPERE, CPU, Device("gpu", "12.0")])
def test_the_default_is_what_has_been_measured(device):
    assert choose(problem(), None, device).name == "xla"


def test_a_list_falls_through_and_says_why():
    name, declined = choose(problem(head_dim=80), EVERYTHING, HOPPER)
    assert name == "triton" and list(declined) == ["mosaic"]
    assert ("head_dim 80" if HAS_MOSAIC else "jax 0.10") in declined["mosaic"]
    name, declined = choose(problem(dtype="float32"), EVERYTHING, HOPPER)
    assert name == "xla" and list(declined) == ["mosaic", "triton"]
    assert "float32" in declined["triton"]


def test_a_list_looks_at_the_device():
    name, declined = choose(problem(), EVERYTHING, AMPERE)
    assert name == "triton" and "compute capability 8.0" in declined["mosaic"]
    name, declined = choose(problem(), EVERYTHING, CPU)
    assert name == "xla" and all("unless interpreted" in reason for reason in declined.values())
    name, declined = choose(problem(), EVERYTHING, Device("gpu", "7.5"))
    assert name == "xla" and "at least 8.0" in declined["triton"]


def test_when_all_decline_every_reason_is_given():
    with pytest.raises(ValueError, match=r"mosaic: .*; triton: .*float32"):
        choose(problem(dtype="float32"), ("mosaic", "triton"), HOPPER)


def test_a_work_list_is_shared_by_layers_and_changes_nothing():
    case = make_case(4, [1, 1], [40, 17], num_heads=4, kv_heads=2, head_dim=64, page_size=16, decode=True)
    q, kv_pages = jnp.asarray(case.q, jnp.bfloat16), jnp.asarray(case.kv_pages, jnp.bfloat16)
    arrays = (q, kv_pages, jnp.asarray(case.block_tables))
    options = dict(max_q_len=1, implementation="triton", interpret=True)
    metadata = RaggedMetadata(*map(jnp.asarray, (case.q_starts, case.q_lens, case.kv_lens)))
    listed = add_work_list(*arrays, metadata, **options)
    assert metadata.work is None and listed.work is not None
    outs = [paged_attention(*arrays, some, scale=0.125, **options) for some in (metadata, listed)]
    np.testing.assert_array_equal(*(np.asarray(out, np.float32) for out in outs))
    np.testing.assert_allclose(np.asarray(outs[0], np.float64), case.expected, atol=0.03, rtol=0.03)
    assert add_work_list(*arrays, metadata, max_q_len=1, implementation="xla") == metadata


def test_decode_checks_its_own_arguments(unchecked):
    with pytest.raises(ValueError, match=r"kv_lens.shape=\(3,\): must be \[slots\] = \(2,\)"):
        paged_decode(jnp.zeros((2, 4, 32)), jnp.zeros((3, 2, 2, 16, 32)), jnp.zeros((2, 2), jnp.int32),
                     jnp.zeros(3, jnp.int32), scale=1.0)  # fmt: skip
