"""Shapes are checked while the tests run; compiled programs are kept between runs, never in the user's cache.

Every function of `jbatch.device` and `pallas_kernels` checks the shapes and dtypes that it is annotated with,
when it is traced and when it is called: so what they say is true.

Mosaic's interpreter runs each warpgroup on a thread of XLA's pool, which has as many as the machine has cores
unless NPROC says otherwise: on two cores a kernel of three warpgroups would wait for itself.
"""

import os

import pytest
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

from tests.helpers.sizes import LONG

LONGEST = ("tests/parity", "tests/jbatch/cli", "tests/jbatch/device", "tests/bench/compare")

install_import_hook(["jbatch.device", "pallas_kernels"], "shape_checks.check")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="all tests, each in full (see helpers/sizes.py)")


def pytest_configure(config):
    """Read when the tests are collected and when JAX is first imported, in subprocesses too."""
    if config.getoption("long"):
        os.environ[LONG] = "1"
    cache_dir = config.cache.mkdir("jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_COMPILER_ENABLE_REMAT_PASS", "false")  # as an LLM does: the same programs
    # Compiling is most of the time. `make test-core` and `make test-long` optimise, as users do.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", str(not config.getoption("long")))
    os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_runtest_setup(item):
    if item.get_closest_marker("long") and not item.config.getoption("long"):
        pytest.skip("takes long: make test-long")


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch):
    """Where a machine is slow, what a command says would not be the same."""
    monkeypatch.setattr("jbatch.progress.LINE_EVERY_S", 3600.0)


@pytest.fixture
def unchecked():
    """Without the tests' own check of shapes, which would come before the one that is tested."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)
