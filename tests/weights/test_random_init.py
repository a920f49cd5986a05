from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import weights
from jbatch.device.model import abstract_params
from jbatch.model_dir.config_json import parse_config
from tests.helpers.hf_checkpoint import tiny

LIKE = abstract_params(parse_config(tiny(attention_bias=True, mlp_bias=True, torch_dtype="bfloat16")))


def test_shapes_dtypes_and_values():
    params = weights.random(LIKE, 3)
    assert list(params) == list(LIKE)
    for name, leaf in LIKE.items():
        value = np.asarray(params[name].astype(jnp.float32))
        assert (value.shape, params[name].dtype) == (leaf.shape, leaf.dtype)
        if name.endswith(".scale"):
            assert (value == 1).all()
        elif name.endswith("bias"):
            assert (value == 0).all()
        else:
            assert abs(value.std() - 0.02) < 0.002 and abs(value.mean()) < 0.002
    wider = np.asarray(weights.random(LIKE, 3, scale=0.15)["embedding"].astype(jnp.float32))
    assert abs(wider.std() - 0.15) < 0.015


def test_a_parameter_depends_on_seed_and_name_alone():
    params = weights.random(LIKE, 3)
    alone = weights.random({"layers.1.mlp.down": LIKE["layers.1.mlp.down"]}, 3)
    assert np.array_equal(params["layers.1.mlp.down"], alone["layers.1.mlp.down"])
    assert not np.array_equal(params["layers.0.mlp.down"], params["layers.1.mlp.down"])
    other = weights.random({"layers.1.mlp.down": LIKE["layers.1.mlp.down"]}, 4)
    assert not np.array_equal(other["layers.1.mlp.down"], alone["layers.1.mlp.down"])


def test_seed_zero_to_the_largest():
    like = {"embedding": jax.ShapeDtypeStruct((4, 4), jnp.float32)}
    weights.random(like, 0), weights.random(like, 2**32 - 1)
    for seed in (-1, 2**32):
        with pytest.raises(weights.WeightsError, match="seed"):
            weights.random(like, seed)


def test_shardings():
    sharding = jax.sharding.NamedSharding(
        jax.make_mesh((1,), ("model",)), jax.sharding.PartitionSpec("model")
    )
    params = weights.random(LIKE, 0, shardings={"embedding": sharding, "norm.scale": sharding})
    assert params["embedding"].sharding == params["norm.scale"].sharding == sharding


def test_importing_the_package_does_not_import_jax():
    code = "import sys, weights; weights.WeightsError, weights.is_checkpoint; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_exports():
    for name in weights.__all__:
        assert callable(getattr(weights, name)) and callable(getattr(weights, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        weights.nothing
