"""What callers of every implementation rely on, beside right numbers: each a check of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from pallas_kernels import work_list
from pallas_kernels.problem import Kind
from tests.helpers.attention_cases import Case, Room, make_case
from tests.helpers.kernel_checks import check_case, check_close
from tests.helpers.kernels import Kernel

GROUPED: dict[str, Any] = dict(num_heads=6, kv_heads=2, head_dim=64, page_size=16, dtype="bfloat16")
PLAIN: dict[str, Any] = dict(num_heads=8, kv_heads=8, head_dim=128, page_size=64, dtype="float16")
SLOTS, TOKENS, NUM_PAGES, PAGES_PER_SEQ = 6, 112, 32, 14  # the same for all, to compile few programs


def decode_case(seed: int, kv_lens: list[int], shape: dict[str, Any] = GROUPED, **more: Any) -> Case:
    kv_lens = kv_lens + [0] * (SLOTS - len(kv_lens))
    room = Room(SLOTS, NUM_PAGES, PAGES_PER_SEQ)
    return make_case(seed, [min(n, 1) for n in kv_lens], kv_lens, decode=True, room=room, **shape, **more)


def prefill_case(seed: int, q_lens: list[int], kv_lens: list[int], **more: Any) -> Case:
    dead = [0] * (SLOTS - len(q_lens))
    room = Room(TOKENS, NUM_PAGES, PAGES_PER_SEQ)
    return make_case(seed, q_lens + dead, kv_lens + dead, room=room, **GROUPED, **more)


def decoding_sequences_may_share_pages(kernel: Kernel) -> None:
    case = decode_case(1, [40, 33, 70], shared_pages=2)
    assert (case.block_tables[:3, :2] == case.block_tables[0, :2]).all()
    check_case(kernel, "decode", case, kernel.tiles("decode")[0])


def a_batch_without_sequences_is_zeros(kernel: Kernel) -> None:
    case = decode_case(2, [])
    assert (kernel.decode(case, kernel.tiles("decode")[0]) == 0).all()


def a_sequences_bits_depend_on_nothing_but_the_sequence(kernel: Kernel) -> None:
    """In company, alone in another slot, and with another number of programs."""
    for shape in (GROUPED, PLAIN):
        case = decode_case(3, [40, 200, 17, 130, 0, 1], shape)
        tiles: Any = kernel.tiles("decode")[0]
        together = kernel.decode(case, tiles)

        turned, alone = np.asarray([2, 5, 3, 1, 4, 0]), np.asarray([0, 0, 0, 1, 0, 0])
        moved = {name: getattr(case, name)[turned] for name in ("q", "block_tables")}
        out = kernel.decode(case._replace(kv_lens=case.kv_lens[turned] * alone, **moved), tiles)
        np.testing.assert_array_equal(out, together[turned] * alone[:, None, None])
        if kernel.name != "xla":
            wider = kernel.decode(case, tiles._replace(num_ctas=3))
            np.testing.assert_array_equal(wider, together)


def slots_that_a_work_list_has_no_room_for_are_nan(kernel: Kernel) -> None:
    """And no others are: an answer from a part of the keys would be wrong in silence."""
    if kernel.name == "xla":
        return  # has no work list
    tiles: Any = kernel.tiles("decode")[0]
    chunk = tiles.chunk
    case = decode_case(4, [1, 2 * chunk, 0, 2 * chunk + 1, chunk, 0])
    first = np.asarray(work_list.make_decode_work(jnp.asarray(case.kv_lens), chunk=chunk, max_items=1).first)
    for max_items in (5, 3):
        out = kernel.decode(case, tiles, max_items=max_items)
        lost = (first[1:] > max_items) & (case.kv_lens > 0)
        assert np.isnan(out[lost]).all()
        check_close(out, case, ~lost)


def prompts_may_share_pages(kernel: Kernel) -> None:
    """As prompts behind a cached prefix do."""
    case = prefill_case(5, [9, 1, 38], [41, 33, 70], shared_pages=2)
    assert (case.block_tables[:3, :2] == case.block_tables[0, :2]).all()
    check_case(kernel, "prefill", case, kernel.tiles("prefill")[0])


def prompts_may_lie_in_any_order_with_gaps(kernel: Kernel) -> None:
    case = prefill_case(6, [5, 0, 17, 8], [30, 0, 17, 64], q_starts=[40, 0, 8, 56, 0, 0])
    check_case(kernel, "prefill", case, kernel.tiles("prefill")[0])


def a_prompt_in_pieces_is_the_prompt_in_one(kernel: Kernel) -> None:
    """In chunks of several sizes, each behind what is in the cache already."""
    tiles = kernel.tiles("prefill")[0]
    whole = prefill_case(7, [90], [90])
    check_case(kernel, "prefill", whole, tiles)
    for begin, end in [(0, 33), (33, 34), (34, 90)]:
        check_case(kernel, "prefill", piece_of(whole, begin, end), tiles)


def a_step_without_queries_runs(kernel: Kernel) -> None:
    case = prefill_case(8, [], [])
    assert kernel.prefill(case, kernel.tiles("prefill")[0]).shape == case.expected.shape


def piece_of(whole: Case, begin: int, end: int) -> Case:
    """Tokens of slot 0, the only one, as a step sees them that has written the cache up to `end`."""
    q = np.full_like(whole.q, np.nan)
    expected, magnitude = np.zeros_like(whole.expected), np.zeros_like(whole.magnitude)
    for to, of in ((q, whole.q), (expected, whole.expected), (magnitude, whole.magnitude)):
        to[: end - begin] = of[begin:end]
    page_size = whole.kv_pages.shape[3]
    kv_pages = whole.kv_pages.copy()
    for token in range(end, whole.kv_lens[0]):  # not there yet
        kv_pages[whole.block_tables[0, token // page_size], :, :, token % page_size] = np.nan
    first = np.eye(1, SLOTS, dtype=np.int32)[0]
    lengths = (0 * first, (end - begin) * first, end * first)
    return Case(whole.dtype, q, kv_pages, whole.block_tables, *lengths, expected, magnitude)


PROPERTIES: dict[Kind, tuple[Callable[[Kernel], None], ...]] = {
    "decode": (
        decoding_sequences_may_share_pages,
        a_batch_without_sequences_is_zeros,
        a_sequences_bits_depend_on_nothing_but_the_sequence,
        slots_that_a_work_list_has_no_room_for_are_nan,
    ),
    "prefill": (
        prompts_may_share_pages,
        prompts_may_lie_in_any_order_with_gaps,
        a_prompt_in_pieces_is_the_prompt_in_one,
        a_step_without_queries_runs,
    ),
}
