"""Compiled programs are kept between runs of the tests, and never in the user's own cache."""

import os


def pytest_configure(config):
    """JAX reads these when it is first imported, in subprocesses too."""
    cache_dir = config.cache.mkdir("jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
