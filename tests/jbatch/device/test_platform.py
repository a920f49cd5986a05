"""Finding a device, and its memory."""

import dataclasses
import os
import types
import warnings
from typing import Any

import jax
import pytest

from jbatch.config import EngineConfig
from jbatch.device import platform as device
from jbatch.device.memory import Memory
from jbatch.errors import ConfigError


@dataclasses.dataclass
class Gpu:
    """A device with so much memory."""

    stats: dict[str, int] | None
    platform: str = "gpu"

    def memory_stats(self) -> dict[str, int] | None:
        return self.stats


def test_the_memory_of_a_gpu():
    gpu: Any = Gpu({"bytes_limit": 1000, "bytes_in_use": 30})
    assert device.memory_of(gpu) == Memory(True, 1000, 30)
    silent: Any = Gpu(None)
    assert device.memory_of(silent) == Memory(True, None)


def test_the_memory_of_a_cpu():
    cpu: Any = types.SimpleNamespace(platform="cpu")
    assert device.memory_of(cpu).limit > 2**27 and not device.memory_of(cpu).on_gpu


no_gpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU")


@no_gpu
def test_no_gpu():
    with pytest.warns(UserWarning, match="no NVIDIA GPU found: jbatch runs on the CPU"):
        assert device.find_device("auto").platform == "cpu"
    with pytest.raises(ConfigError, match=r"^device='cuda': .*pip install '\.\[cuda12\]' or '\.\[cuda13\]'"):
        device.find_device("cuda")


def test_a_cpu_that_was_asked_for_is_no_surprise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert device.find_device("cpu").platform == "cpu"


def test_platforms_that_do_not_start(monkeypatch):
    def devices(_platform: str) -> None:
        raise AssertionError

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(ConfigError, match=r"^JAX_PLATFORMS='cuda': "):
        device.find_device("cpu")
    with warnings.catch_warnings():  # not that it runs on a CPU
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match=r"^JAX_PLATFORMS='cuda': "):
            device.find_device("auto")


@pytest.fixture
def jax_options(monkeypatch):
    """What `prepare_jax` sets, by name, instead of setting it."""
    options: dict[str, Any] = {}
    config = types.SimpleNamespace(
        values={"jax_compilation_cache_dir": None}, update=lambda name, value: options.update({name: value})
    )
    monkeypatch.setattr(jax, "config", config)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    return options


def test_the_cache_directory_is_made(jax_options, tmp_path):
    path = tmp_path / "a" / "b"
    device.prepare_jax(EngineConfig(device="cpu", compilation_cache_dir=str(path)))
    assert path.is_dir()
    assert jax_options["jax_compilation_cache_dir"] == str(path)
    assert jax_options["jax_platforms"] == "cpu"
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"  # the user's own


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_the_share_of_the_memory_is_set_under_one_name(name, jax_options, monkeypatch):
    """JAX starts no GPU where both are set."""
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION")
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.setenv(name, "0.5")
    device.prepare_jax(EngineConfig(compilation_cache_dir=None))
    assert [os.environ[key] for key in os.environ if key.endswith("CLIENT_MEM_FRACTION")] == ["0.5"]


@pytest.mark.parametrize("name", ["file/below", "~nobody-of-this-name/x", "nul\0"])
def test_a_cache_directory_that_cannot_be_used(name, jax_options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="every start compiles"):
        device.prepare_jax(EngineConfig(compilation_cache_dir=name))
    assert "jax_compilation_cache_dir" not in jax_options


def test_no_cache(jax_options):
    device.prepare_jax(EngineConfig(compilation_cache_dir=None))
    assert jax_options == {"jax_compiler_enable_remat_pass": False}


def test_a_cpu_is_divided_into_as_many_devices_as_are_asked_for(jax_options, monkeypatch):
    """Unless a user has said into how many."""
    config = EngineConfig(compilation_cache_dir=None, tensor_parallel_size=4, data_parallel_size=2)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    device.prepare_jax(config)
    assert jax_options.pop("jax_num_cpu_devices") == 8
    monkeypatch.setenv("XLA_FLAGS", f"{device.FORCE_DEVICES}=3")
    device.prepare_jax(config)
    assert "jax_num_cpu_devices" not in jax_options
