"""Arrays in memory become parameters: what fits, what is refused, and whose memory it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import weights
from jbatch.device.compile_counter import compile_counter
from jbatch.device.model import abstract_params
from jbatch.model_dir.config_json import parse_config
from tests.helpers.hf_checkpoint import random_params, tiny

UNTIED = tiny(attention_bias=True, mlp_bias=True)
TIED = tiny(tie_word_embeddings=True)


def _like(config):
    return abstract_params(parse_config(config))


def _make_all(arrays, like):
    there = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    matched = weights.match(arrays, like)
    return {name: weights.make(matched[name], leaf, there) for name, leaf in like.items()}


@pytest.mark.parametrize("to", [np.array, jnp.array], ids=["numpy", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("theirs", [False, True], ids=["our-names", "hugging-face"])
def test_parameters_are_what_loading_makes_of_them(to, dtype, theirs):
    config = {**UNTIED, "torch_dtype": dtype}
    like, params = _like(config), random_params(UNTIED)
    named = weights.to_hugging_face(params) if theirs else params
    made = _make_all({name: to(array) for name, array in named.items()}, like)
    for name, leaf in like.items():
        assert made[name].dtype == leaf.dtype and made[name].committed
        assert np.array_equal(made[name], params[name].astype(leaf.dtype)), name


@pytest.mark.parametrize("to", [np.array, jnp.array], ids=["numpy", "jax"])
@pytest.mark.parametrize("theirs", [False, True], ids=["our-names", "hugging-face"])
def test_parameters_have_memory_of_their_own(to, theirs):
    params = random_params(UNTIED)
    named = weights.to_hugging_face(params) if theirs else params
    arrays = {name: to(array) for name, array in named.items()}
    made = _make_all(arrays, _like(UNTIED))
    for array in arrays.values():
        if isinstance(array, jax.Array):
            array.delete()  # as by a function that it is donated to
        else:
            array.fill(np.nan)
    assert all(np.array_equal(made[name], params[name]) for name in made)


def test_memory_of_numpy_that_jax_could_adopt_is_copied():
    """JAX on a CPU takes an array at such an address as it is, whatever it is asked for."""
    like = {"norm.scale": jax.ShapeDtypeStruct((64,), jnp.float32)}
    memory = np.zeros(64 + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    aligned = memory[start : start + 64]
    made = _make_all({"norm.scale": aligned}, like)["norm.scale"]
    aligned[:] = 1
    assert not np.asarray(made).any()


def test_a_second_time_nothing_is_compiled():
    config = {**UNTIED, "intermediate_size": 56}  # no other test has it
    like = _like({**config, "torch_dtype": "bfloat16"})
    counts = []
    for seed in (1, 2):
        arrays = {k: jnp.array(v) for k, v in weights.to_hugging_face(random_params(config, seed)).items()}
        before = compile_counter().count
        _make_all(arrays, like)
        counts.append(compile_counter().count - before)
    assert counts[1] == 0 < counts[0]


def test_a_tied_head_may_be_there_if_it_is_the_embedding():
    params = random_params(TIED)
    named = weights.to_hugging_face(params)
    for head in (named["model.embed_tokens.weight"], named["model.embed_tokens.weight"].copy()):
        assert weights.match({**named, "lm_head.weight": head}, _like(TIED)).keys() == params.keys()
    with pytest.raises(weights.WeightsError, match=r"ties lm_head.weight .* but the two differ"):
        weights.match({**named, "lm_head.weight": named["model.embed_tokens.weight"] + 1}, _like(TIED))


def test_constants_of_old_checkpoints_are_left_out():
    named = weights.to_hugging_face(random_params(TIED))
    named["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4)
    weights.match(named, _like(TIED))


def _deleted():
    array = jnp.zeros(32)
    array.delete()
    return array


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(31, np.float32), r"tensor norm.scale has shape \[31\]: must be \[32\]"),
        (np.zeros(32, np.int32), "tensor norm.scale has dtype int32: must be bfloat16, float16, float32"),
        (np.zeros(32, ml_dtypes.float8_e4m3fn), "tensor norm.scale has dtype float8_e4m3fn: must be"),
        ([0.0] * 32, "tensor norm.scale is a builtins.list: must be an array of NumPy or JAX"),
        (jax.ShapeDtypeStruct((32,), np.float32), "tensor norm.scale is a .*ShapeDtypeStruct: must be"),
        (_deleted(), "tensor norm.scale was deleted, or donated to a function"),
        (None, "tensor norm.scale is a builtins.NoneType"),
    ],
)
def test_an_array_that_does_not_fit_is_named(value, message):
    with pytest.raises(weights.WeightsError, match=message):
        weights.match({**random_params(TIED), "norm.scale": value}, _like(TIED))


def test_a_traced_array_is_refused():
    @jax.jit
    def update(scale):
        weights.match({**random_params(TIED), "norm.scale": scale}, _like(TIED))

    with pytest.raises(weights.WeightsError, match=r"tensor norm.scale is being traced"):
        update(jnp.zeros(32))


def test_what_is_missing_and_what_is_unexpected_is_named():
    ours, theirs = random_params(TIED), weights.to_hugging_face(random_params(TIED))
    del ours["layers.1.mlp.down"], theirs["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(weights.WeightsError, match=r"tensor layers.1.mlp.down is missing: all are needed"):
        weights.match(ours, _like(TIED))
    with pytest.raises(weights.WeightsError, match=r"tensor model.layers.1.mlp.up_proj.weight is missing"):
        weights.match(theirs, _like(TIED))
    with pytest.raises(weights.WeightsError, match="tensor 'unembedding' is unexpected"):
        weights.match(random_params(UNTIED), _like({**UNTIED, "tie_word_embeddings": True}))
    lora = {"base.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((2, 2))}
    with pytest.raises(weights.WeightsError, match="is of a LoRA adapter: merge it"):
        weights.match(lora, _like(TIED))
    with pytest.raises(weights.WeightsError, match="is missing"):
        weights.match({}, _like(TIED))
