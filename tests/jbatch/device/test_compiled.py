"""What the compilation cache gives is looked at: a wrong or broken entry is compiled anew."""

import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jbatch.device.compiled import compile_anew_if_foreign


@pytest.fixture
def cache(tmp_path):
    """A cache of this test alone."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def compiled(number):
    """A program of the same shapes and name for each number: it adds it."""

    def step(x):
        return x + number

    return compile_anew_if_foreign(lambda: jax.jit(step).lower(jnp.zeros(3)))


def result(number):
    return compiled(number)(jnp.zeros(3)).tolist()


def entries(folder):
    return sorted(folder.glob("jit_step*-cache"))


def test_swapped_entries_are_compiled_anew(cache):
    assert [result(1), result(2)] == [[1] * 3, [2] * 3]
    first, second = entries(cache)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    for _ in range(2):
        assert [result(1), result(2)] == [[1] * 3, [2] * 3]
    assert len(entries(cache)) == 4, "the second time, what was compiled anew is read"


def test_the_cache_is_used(cache):
    compiled(1)
    (entry,) = entries(cache)
    before = entry.stat().st_mtime_ns
    compiled(1)
    assert entries(cache) == [entry] and entry.stat().st_mtime_ns == before


def test_a_function_that_jax_has_traced_before_keeps_its_name(cache):
    names = {step_of(jax.jit(double).lower(jnp.zeros(3))) for _ in range(3)}
    assert len(names) == 1 and len(entries(cache)) == 1


def step_of(lowered):
    return compile_anew_if_foreign(lambda: lowered).runtime_executable().hlo_modules()[0].name


def double(x):
    return 2 * x


double.__name__ = "step"


@pytest.mark.parametrize("how", ["empty", "cut", "flipped", "text"])
def test_broken_entries_are_compiled_anew(cache, how):
    result(1)
    (entry,) = entries(cache)
    raw = bytearray(entry.read_bytes())
    if how == "empty":
        raw = b""
    elif how == "cut":
        raw = raw[: len(raw) // 2]
    elif how == "flipped":
        raw[len(raw) // 2] ^= 0x10
    else:
        raw = b"not a program"
    entry.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX says what it could not read
        assert result(1) == [1] * 3
