"""The command line where the environment is odd: the same texts, or one line and exit code 2."""

import os
import subprocess
import sys
import warnings

from tests.helpers import command
from tests.helpers.command import SMALL, run, write_model

ODD = {
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_RANDOM_SEED_OFFSET": "1",
    "JAX_ENABLE_X64": "1",
    "JAX_DISABLE_JIT": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEBUG_NANS": "1",
    "JAX_PLATFORMS": "another",
}


def test_the_texts_are_the_same_in_an_odd_environment(capsys, tmp_path):
    """All of it at once, without assertions, and with warnings as errors."""
    prompts = ["-p", "12+3=", "-p", "b", "--temperature", "2", "--max-tokens", "9", "--seed", "5"]
    options = ["generate", str(write_model(tmp_path)), *prompts, *SMALL]
    expected = run(capsys, *options)
    assert expected.code == 0 and len(expected.out.splitlines()) >= 2
    python = [sys.executable, "-O", "-W", "error", "-m", "jbatch"]
    done = subprocess.run([*python, *options], env={**os.environ, **ODD}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, expected.out), done.stderr


def test_a_warning_that_is_an_error_is_one_line(capsys, tmp_path, monkeypatch):
    def warn(*args, **options):
        warnings.warn("something is odd", stacklevel=1)

    monkeypatch.setattr("jbatch.llm.LLM.__init__", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ended = run(capsys, "generate", command.DEMO, "-p", "x", *SMALL)
    assert ended.code == 2 and ended.err == "jbatch: something is odd\n"


def test_a_setting_that_jax_refuses_is_one_line(tmp_path):
    options = ["-m", "jbatch", "generate", str(write_model(tmp_path)), "-p", "x"]
    odd = {**os.environ, "JAX_DEFAULT_MATMUL_PRECISION": "banana"}
    done = subprocess.run([sys.executable, *options], env=odd, capture_output=True, text=True)
    refusal = 'jbatch: JAX: Invalid value "banana" for JAX flag jax_default_matmul_precision\n'
    assert (done.returncode, done.stderr) == (2, refusal)
