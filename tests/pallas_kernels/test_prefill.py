"""Prefill attention of every implementation against float64 NumPy, and what its callers rely on."""

import pytest

from tests.helpers.kernel_checks import check_point
from tests.helpers.kernel_params import kernels, kernels_and_points
from tests.helpers.kernel_properties import PROPERTIES


@pytest.mark.parametrize("kernel, point", kernels_and_points("prefill"))
def test_it_is_right_to_the_dtypes_precision(kernel, point):
    check_point(kernel, point)


@pytest.mark.parametrize("holds_for", PROPERTIES["prefill"], ids=lambda function: function.__name__)
@pytest.mark.parametrize("kernel", kernels())
def test_property(kernel, holds_for):
    holds_for(kernel)
