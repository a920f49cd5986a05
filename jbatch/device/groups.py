"""Which devices each replica runs on."""

from __future__ import annotations

import jax

from jbatch.config import EngineConfig
from jbatch.device.platform import find_device
from jbatch.errors import ConfigError


def device_groups(config: EngineConfig) -> list[tuple[jax.Device, ...]]:
    """The devices of each replica, in order: none is in two groups.

    Raises:
      ConfigError: for more replicas than there are devices for, saying how many there could be.
    """
    first = find_device(config.device)
    there, num = jax.local_devices(backend=first.platform), config.data_parallel_size
    if num > len(there):
        reason = f"at most {len(there)}, as many as there are devices of the kind {first.platform}"
        if first.platform == "cpu":
            reason += f"; XLA_FLAGS=--xla_force_host_platform_device_count={num} makes as many, to try it out"
        raise ConfigError("data_parallel_size", num, reason)
    return [(device,) for device in there[:num]]
