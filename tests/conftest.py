"""Compiled programs are kept between runs of the tests, and never in the user's own cache.

Mosaic's interpreter runs each warpgroup on a thread of XLA's pool, which has as many as the machine has cores
unless NPROC says otherwise: on two cores a kernel of three warpgroups would wait for itself.
"""

import os


def pytest_configure(config):
    """JAX reads these when it is first imported, in subprocesses too."""
    cache_dir = config.cache.mkdir("jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))
