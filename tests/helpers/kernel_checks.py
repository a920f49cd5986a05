"""What every implementation must do, as checks of one case: for the tests, the fuzzer and the script."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import write_kv
from pallas_kernels.problem import Kind
from tests.helpers.attention_cases import Case, rounded
from tests.helpers.kernel_points import Point, WritePoint
from tests.helpers.kernels import Kernel


def check_point(kernel: Kernel, point: Point, seed: int = 0) -> None:
    """The kernel's answer is right to the dtype's precision."""
    check_case(kernel, point.kind, point.case(seed), kernel.tiles(point.kind)[point.tiles])


def check_case(kernel: Kernel, kind: Kind, case: Case, tiles: Any) -> None:
    """Every element is within its error; dead slots of a decode step are zeros, rows of no slot anything."""
    out = kernel.decode(case, tiles) if kind == "decode" else kernel.prefill(case, tiles)
    rows = np.ones(len(out), bool) if kind == "decode" else case.live
    check_close(out, case, rows)


def check_close(out: np.ndarray, case: Case, rows: np.ndarray) -> None:
    """Raise AssertionError, naming the worst element, unless `rows` of the answer are within their error."""
    assert out.shape == case.expected.shape, f"shape {out.shape}, expected {case.expected.shape}"
    error = np.abs(out - case.expected)[rows]
    wrong = ~(error <= case.max_error[rows])  # NaN is wrong
    if not wrong.any():
        return
    excess = np.where(np.isnan(error), np.inf, error - case.max_error[rows])
    index, head, dim = np.unravel_index(np.argmax(np.where(wrong, excess, -np.inf)), error.shape)
    row = np.flatnonzero(rows)[index]
    in_slot = (case.q_starts <= row) & (row < case.q_starts + case.q_lens)
    slot = np.argmax(in_slot if in_slot.any() else case.q_starts == row)  # a dead slot of a decode step
    raise AssertionError(
        f"{wrong.sum()} of {wrong.size} elements are wrong, the worst of slot {slot} "
        f"(q_len {case.q_lens[slot]}, kv_len {case.kv_lens[slot]}), query {row - case.q_starts[slot]}, "
        f"head {head}, dim {dim}: {out[row, head, dim]:.6g}, expected {case.expected[row, head, dim]:.6g} "
        f"+- {case.max_error[row, head, dim]:.2g}"
    )


def check_write(point: WritePoint) -> None:
    """Live tokens are where they belong, bit for bit, and nothing else has changed; a third are dropped."""
    kv_heads, head_dim, page_size, dtype, num_tokens = point
    rng = np.random.default_rng(0)
    num_pages = 6
    before = rounded(rng.standard_normal((num_pages, 2, kv_heads, page_size, head_dim)), dtype)
    before[0] = np.nan
    new = rounded(rng.standard_normal((2, num_tokens, kv_heads, head_dim)), dtype)
    places = rng.permutation(num_pages * page_size)[:num_tokens]
    page_ids, offsets = places // page_size, places % page_size
    page_ids[rng.random(num_tokens) < 1 / 3] = num_pages  # dropped

    expected = before.copy()
    for token in np.flatnonzero(page_ids < num_pages):
        expected[page_ids[token], :, :, offsets[token]] = new[:, token]
    arrays = (jnp.asarray(x, dtype) for x in (before, *new))
    indices = (jnp.asarray(x, jnp.int32) for x in (page_ids, offsets))
    written = jax.jit(write_kv)(*arrays, *indices)
    np.testing.assert_array_equal(np.asarray(written, np.float64), expected)
