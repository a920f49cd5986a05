"""Products with weights: their values, and which operand a CPU's program begins with."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbatch.device.project import FEW_ROWS, project

WEIGHTS = {"matrix": ((6, 32), 1), "heads": ((2, 3, 4, 32), 3), "of heads": ((6, 4, 8), 1)}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_values(weight, rows):
    shape, num_out = WEIGHTS[weight]
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape, np.float32)
    x = rng.standard_normal((rows, *shape[num_out:]), np.float32)
    want = np.tensordot(x.astype(np.float64), w, axes=(range(1, x.ndim), range(num_out, w.ndim)))
    np.testing.assert_allclose(jax.jit(project, static_argnums=2)(x, w, num_out), want, atol=1e-4)


def test_type_of_the_result():
    x, w = jnp.ones((2, 8), jnp.bfloat16), jnp.ones((4, 8), jnp.bfloat16)
    assert project(x, w, 1).dtype == jnp.bfloat16
    assert project(x, w, 1, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("rows", [2, FEW_ROWS, FEW_ROWS + 1])
def test_a_cpu_moves_no_weight_for_few_rows(rows):
    """Its library moves the right operand, so the weight is the left one, whose rows the result has."""
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, 512), (1024, 512)))
    text = jax.jit(lambda x, w: project(x, w, 1)).lower(x, w).compile().as_text()
    (result,) = re.findall(r"= f32\[(\d+,\d+)\]\S* dot\(", text)
    assert result == (f"1024,{rows}" if rows <= FEW_ROWS else f"{rows},1024")
