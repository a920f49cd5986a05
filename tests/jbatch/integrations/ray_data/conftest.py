"""What needs Ray is for `make test-ray`, which names this folder: Ray is installed nowhere else."""

import os
from importlib.util import find_spec

import pytest

collect_ignore = [] if find_spec("ray") else ["test_batches.py", "test_processor.py"]
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
MEMORY = 200 * 2**20  # of Ray's store of objects


@pytest.fixture(scope="session")
def cluster():
    """A cluster of this machine alone, on the loopback device. Its CPUs are tickets and no cores: two actors
    have one each, and reading and writing take others."""
    import ray

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=MEMORY,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()
