"""What last bits depend on."""

import json

import jax
import jaxlib
import pytest

from jbatch.device.backend import Attention
from jbatch.device.numerics import numerics_of
from jbatch.device.programs import StepSpec
from jbatch.device.sharding import mesh_of
from tests.helpers.tiny_engine import SHAPE, tiny_config

SPEC = StepSpec(tiny_config(), SHAPE, jax.devices("cpu")[0])


def test_numerics(monkeypatch):
    for name in ("XLA_FLAGS", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    numerics = numerics_of(SPEC)
    assert numerics == json.loads(json.dumps(numerics))
    numerics.pop("jax_disable_most_optimizations", None)  # where it is set, as in most tests
    assert numerics == {
        "device_kind": "cpu",
        "attention_backend": "xla",
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "jax_default_matmul_precision": None,
        "jax_enable_x64": False,
        "XLA_FLAGS": None,
        "NVIDIA_TF32_OVERRIDE": None,
    }
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert numerics_of(SPEC)["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=true"
    mixed = SPEC._replace(attention=Attention("mosaic", "xla"))
    assert numerics_of(mixed)["attention_backend"] == "mosaic/xla"
    together = SPEC._replace(mesh=mesh_of([SPEC.device], 2))
    assert numerics_of(together)["tensor_parallel_size"] == 2


@pytest.mark.parametrize(
    "name, value",
    [
        ("jax_default_matmul_precision", "float32"),
        ("jax_enable_x64", True),
        ("jax_disable_most_optimizations", True),
    ],
)
def test_what_jax_is_told(name, value):
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        assert numerics_of(SPEC)[name] == value
    finally:
        jax.config.update(name, before)
