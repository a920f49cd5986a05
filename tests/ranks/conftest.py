"""What takes several devices, in a process that has divided its CPU into eight: a test that JAX counts one in
would see other devices, too. `tests/jbatch/device/test_ranks.py` runs it; by hand:

    JBATCH_TEST_DEVICES=8 python -m pytest tests/ranks
"""

import os

import jax

DEVICES = os.environ.get("JBATCH_TEST_DEVICES")

if DEVICES is None:
    collect_ignore_glob = ["test_*.py"]
else:
    jax.config.update("jax_num_cpu_devices", int(DEVICES))
    jax.devices()  # an LLM that comes first would divide the CPU into as many as it needs
