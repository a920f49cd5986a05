"""The same programs and tokens, whatever a user's environment has set for JAX."""

import contextlib
import warnings

import jax
import pytest

from jbatch.config import EngineConfig
from jbatch.device.platform import prepare_jax
from jbatch.device.programs import Program, StepSpec
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from tests.helpers import tiny_engine
from tests.helpers.tiny_engine import DECODE, MIXED, make_engine, make_runner

HOSTILE = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 1,
    "jax_high_dynamic_range_gumbel": True,
    "jax_enable_x64": True,
    "jax_disable_jit": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "bfloat16",
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_log_compiles": True,
}


@contextlib.contextmanager
def settings(values):
    before = {name: jax.config.values[name] for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def traced(sampler=Sampler.EXTENDED, logits_fn=None):
    spec = StepSpec(tiny_engine.tiny_config(), tiny_engine.SHAPE, jax.devices("cpu")[0], logits_fn=logits_fn)
    return spec.lower(Program(MIXED, sampler)).as_text()


@pytest.fixture(scope="module")
def reference():
    return traced()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_step_is_traced_alike(name, reference):
    with settings({name: HOSTILE[name]}):
        assert traced() == reference


def test_a_users_function_is_traced_alike():
    """Also one that takes NumPy's 64-bit numbers along."""
    import numpy as np

    def logits_fn(logits, state):
        return logits * np.float64(2) + np.arange(logits.shape[1])

    expected = traced(logits_fn=logits_fn)
    with settings({"jax_enable_x64": True, "jax_numpy_dtype_promotion": "strict"}):
        assert traced(logits_fn=logits_fn) == expected


def tokens_of(runner):
    engine = make_engine(runner=runner)
    params = SamplingParams(temperature=2.0, top_k=50, max_tokens=6, ignore_eos=True)
    for idx in range(5):
        engine.add_request(str(idx), [idx + 1] * (idx + 3), params)
    return {name: output.outputs[0].token_ids for name, output in tiny_engine.drain(engine).items()}


def test_tokens_are_the_same_under_all_of_them():
    """Loading aside: new programs, a new state, steps and results."""
    expected = tokens_of(make_runner(Sampler.FILTERED, buckets=(DECODE, MIXED)))
    with settings(HOSTILE):
        assert tokens_of(make_runner(Sampler.FILTERED, buckets=(DECODE, MIXED))) == expected


def test_nan_checks_of_jax_end_no_batch():
    """A request whose logits are not finite ends with its own error."""

    def logits_fn(logits, state):
        return jax.numpy.where(state.request_idx[:, None] == 1, jax.numpy.nan, logits)

    runner = make_runner(Sampler.PROCESSED, logits_fn=logits_fn, buckets=(MIXED,))
    with settings({"jax_debug_nans": True}):
        engine = make_engine(tiny_engine.make_scheduler(buckets=(MIXED,)), runner)
        for idx in range(3):
            engine.add_request(str(idx), [idx + 1], SamplingParams(temperature=0, max_tokens=3))
        errors = {name: output.error for name, output in tiny_engine.drain(engine).items()}
    assert errors["0"] is None and errors["2"] is None and "not finite" in errors["1"]


def test_a_precision_that_has_no_effect_is_said_to_have_none():
    said = pytest.warns(UserWarning, match="'tensorfloat32' has no effect on jbatch")
    with settings({"jax_default_matmul_precision": "tensorfloat32"}), said:
        prepare_jax(EngineConfig(device="cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_jax(EngineConfig(device="cpu"))
