"""XLA's options by device and bucket."""

import types

import pytest

from jbatch.device.compiler_options import SUMS_IN_PRODUCTS, WHOLE_PRODUCTS, options_for
from jbatch.seam.bucket import Bucket, decode_bucket


def gpu(capability):
    return types.SimpleNamespace(platform="gpu", compute_capability=capability)


@pytest.mark.parametrize(
    "version, options",
    [
        ((0, 10, 2), WHOLE_PRODUCTS),
        ((0, 11, 2), WHOLE_PRODUCTS | SUMS_IN_PRODUCTS),
        ((0, 12, 0), WHOLE_PRODUCTS),
    ],
)
def test_decode_programs_of_known_gpus_have_some(version, options):
    assert options_for(gpu("9.0"), decode_bucket(64), version) == options
    assert options_for(gpu("8.0"), Bucket(64, 0, 8), version) == options


def test_others_have_none():
    """A CPU's compiler refuses a GPU's options."""
    cpu = types.SimpleNamespace(platform="cpu")
    for device, bucket in (
        (gpu("9.0"), Bucket(64, 512)),
        (gpu("7.5"), decode_bucket(1)),
        (cpu, decode_bucket(1)),
    ):
        assert options_for(device, bucket, (0, 11, 2)) == {}
