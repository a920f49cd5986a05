"""The kernels on this machine's GPU, not interpreted: the same cases as in tests/pallas_kernels."""

import jax
import pytest

from tests.helpers.kernel_checks import check_point
from tests.helpers.kernel_fuzz import check_fuzz
from tests.helpers.kernel_points import cover
from tests.helpers.kernel_properties import PROPERTIES
from tests.helpers.kernels import Kernel, on_device

KERNELS = on_device(jax.devices()[0]) if jax.default_backend() == "gpu" else []
KINDS = ("decode", "prefill")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not KERNELS, reason="no NVIDIA GPU")]


@pytest.fixture(autouse=True)
def optimised():
    """Kernels are compiled as a user's are (see tests/conftest.py)."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


def name(x):
    return x.name if isinstance(x, Kernel) else getattr(x, "__name__", str(x))


@pytest.mark.parametrize(
    "kernel, point",
    [(kernel, point) for kernel in KERNELS for kind in KINDS for point in cover(kernel, kind)],
    ids=name,
)
def test_it_is_right_to_the_dtypes_precision(kernel, point):
    check_point(kernel, point)


@pytest.mark.parametrize("holds_for", [f for kind in KINDS for f in PROPERTIES[kind]], ids=name)
@pytest.mark.parametrize("kernel", KERNELS, ids=name)
def test_property(kernel, holds_for):
    holds_for(kernel)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", KERNELS, ids=name)
def test_random_cases(kernel, kind):
    for index in range(100):
        check_fuzz(kernel, kind, 0, index)
