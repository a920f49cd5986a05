"""Which devices each replica runs on."""

from __future__ import annotations

import jax

from jbatch.config import EngineConfig
from jbatch.device.platform import FORCE_DEVICES, find_device
from jbatch.errors import ConfigError


def device_groups(config: EngineConfig) -> list[tuple[jax.Device, ...]]:
    """The devices of each replica, in order, as many as compute each step together: none is in two groups.

    Raises:
      ConfigError: for more than there are devices for, saying how many there could be.
    """
    first = find_device(config.device)
    num, size = config.data_parallel_size, config.tensor_parallel_size
    if num * size == 1:
        return [(first,)]
    there = jax.local_devices(backend=first.platform)
    if num * size > len(there):
        most, field, value = len(there), "tensor_parallel_size", size
        if size <= len(there) and num > 1:
            most, field, value = len(there) // size, "data_parallel_size", num
        reason = f"at most {most}, as many as there are devices of the kind {first.platform}"
        if first.platform == "cpu":
            reason += f"; XLA_FLAGS={FORCE_DEVICES}={num * size} makes as many, to try it out"
        raise ConfigError(field, value, reason)
    return [tuple(there[begin : begin + size]) for begin in range(0, num * size, size)]
