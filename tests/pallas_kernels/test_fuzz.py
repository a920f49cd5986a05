"""Random cases, the same on every machine; `tests/long/check_kernels.py --fuzz N --seed S` runs others."""

import pytest

from tests.helpers.kernel_fuzz import check_fuzz
from tests.helpers.kernel_params import kernels

SEED = 0
COUNTS = {"xla": 40, "triton": 40, "mosaic": 20}  # of each op; those of Mosaic's interpreter take long


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
