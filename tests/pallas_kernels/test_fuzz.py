"""Random cases, the same on every machine; `tests/long/check_kernels.py --fuzz N --seed S` runs others."""

import pytest

from tests.helpers.kernel_fuzz import check_fuzz
from tests.helpers.kernel_params import kernels
from tests.helpers.sizes import sized

SEED = 0
COUNTS = {  # of each op; those of Mosaic's interpreter take long
    "xla": sized(12, 40),
    "triton": sized(12, 40),
    "mosaic": sized(6, 20),
}


def kernels_and_indices():
    params = []
    for kernel in kernels():
        skipped = kernel.values[0] is None
        for index in range(1 if skipped else COUNTS[kernel.id]):
            params.append(pytest.param(*kernel.values, index, id=f"{kernel.id}-{index}", marks=kernel.marks))
    return params


@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("kernel, index", kernels_and_indices())
def test_random_case(kernel, kind, index):
    check_fuzz(kernel, kind, SEED, index)
