"""Devices for replicas."""

import dataclasses

import jax
import pytest

from jbatch.config import EngineConfig
from jbatch.device.groups import device_groups
from jbatch.errors import ConfigError


def test_each_replica_has_a_device_of_its_own(monkeypatch, unchecked):
    monkeypatch.setattr(jax, "local_devices", lambda backend: ["a", "b", "c"])
    assert device_groups(EngineConfig(device="cpu", data_parallel_size=2)) == [("a",), ("b",)]


def test_each_replica_has_as_many_as_compute_together(monkeypatch, unchecked):
    monkeypatch.setattr(jax, "local_devices", lambda backend: list("abcde"))
    both = EngineConfig(device="cpu", tensor_parallel_size=2, data_parallel_size=2)
    assert device_groups(both) == [("a", "b"), ("c", "d")]
    with pytest.raises(ConfigError, match=r"^data_parallel_size=3: at most 2, "):
        device_groups(dataclasses.replace(both, data_parallel_size=3))
    with pytest.raises(ConfigError, match=r"^tensor_parallel_size=8: at most 5, .*device_count=16 makes"):
        device_groups(dataclasses.replace(both, tensor_parallel_size=8))


def test_more_replicas_than_devices_are_refused_with_how_many_there_could_be():
    num = len(jax.local_devices(backend="cpu"))
    with pytest.raises(
        ConfigError, match=rf"^data_parallel_size={num + 1}: at most {num}, as many as .* cpu"
    ):
        device_groups(EngineConfig(device="cpu", data_parallel_size=num + 1))


@pytest.mark.parametrize("num", [0, -1, 65, 1.5])
def test_numbers_that_are_none(num):
    with pytest.raises(ConfigError, match="data_parallel_size"):
        EngineConfig(data_parallel_size=num)
