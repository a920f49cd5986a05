"""What an implementation declines is what its documentation says, and it computes the rest."""

import itertools

import pytest

from pallas_kernels.problem import PAGE_SIZES, Problem
from tests.helpers.attention_cases import make_case
from tests.helpers.kernel_checks import check_case
from tests.helpers.kernel_params import kernels

HALF = ("bfloat16", "float16")


def triton_takes(p: Problem) -> bool:
    return p.dtype in HALF and p.head_dim % 16 == 0 and p.head_dim <= 128 and p.group <= 64


TAKES = {  # README.md of pallas_kernels
    ("xla", "decode"): lambda p: True,
    ("xla", "prefill"): lambda p: True,
    ("triton", "decode"): triton_takes,
    ("triton", "prefill"): triton_takes,
    ("mosaic", "decode"): lambda p: p.dtype in HALF and p.head_dim in (64, 128) and p.group <= 64,
    ("mosaic", "prefill"): lambda p: (
        p.dtype in HALF and p.head_dim in (64, 128) and p.group <= 16 and p.tokens % 8 == 0
    ),
}
LIMITS = {  # (group, head_dim) where an implementation's range ends
    ("triton", "decode"): [(64, 16), (1, 128)],
    ("triton", "prefill"): [(64, 16), (1, 128)],
    ("mosaic", "decode"): [(64, 64)],
    ("mosaic", "prefill"): [(16, 128)],
}


@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("kernel", kernels())
def test_it_takes_what_is_documented_and_nothing_else(kernel, kind):
    for dtype, tokens, kv_heads, group, head_dim, page_size in itertools.product(
        ("bfloat16", "float16", "float32", "float64"), (8, 12), (1, 2, 8), (1, 2, 5, 8, 16, 17, 64, 65, 128),
        (8, 16, 32, 64, 72, 80, 96, 112, 120, 128, 192, 256, 272, 512), PAGE_SIZES,
    ):  # fmt: skip
        heads = (group * kv_heads, kv_heads, head_dim)
        problem = Problem(kind, dtype, tokens, 4, *heads, num_pages=9, page_size=page_size, pages_per_seq=3)
        reason = kernel.declines(problem)
        assert (reason is None) == TAKES[kernel.name, kind](problem), f"{problem}: {reason}"


@pytest.mark.long  # interpreted, the largest problems take minutes
@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("kernel", kernels("triton", "mosaic"))
def test_it_works_at_its_limits(kernel, kind):
    """With the tiles that a call without any gets."""
    for group, head_dim in LIMITS[kernel.name, kind]:
        q_lens = [1, 1, 0] if kind == "decode" else [3, 9, 0]
        case = make_case(
            0, q_lens, [17, 70, 0], num_heads=group, kv_heads=1, head_dim=head_dim, page_size=16,
            dtype="bfloat16", decode=kind == "decode",
        )  # fmt: skip
        check_case(kernel, kind, case, None)
