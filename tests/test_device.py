"""Finding a device, and how many pages it holds."""

import dataclasses
import os
import types
import warnings
from typing import Any

import jax
import pytest

from jbatch import device
from jbatch.config import EngineConfig, ModelConfig
from jbatch.errors import ConfigError

MODEL = ModelConfig(96, 32, 48, 2, 4, 2, 8, 256, dtype="float32")
PAGE = 16 * MODEL.kv_bytes_per_token
CPU = types.SimpleNamespace(platform="cpu")


@dataclasses.dataclass
class Gpu:
    """A device with so much memory."""

    stats: dict[str, int] | None
    platform: str = "gpu"

    def memory_stats(self) -> dict[str, int] | None:
        return self.stats


def gpu(limit: int, used: int = 0) -> Gpu:
    return Gpu({"bytes_limit": limit, "bytes_in_use": used})


def num_pages(on: Any, step_bytes: int = 0, max_model_len: int = 64, **options: Any) -> int:
    config = EngineConfig(page_size=16, **{"max_num_seqs": 4, **options})
    return device.choose_num_pages(config, MODEL, max_model_len, on, step_bytes)


def test_as_many_as_can_be_used():
    assert num_pages(CPU) == num_pages(gpu(2**34)) == 1 + 4 * 4
    assert num_pages(CPU, max_model_len=65) == 1 + 4 * 5


def test_as_asked_for():
    assert num_pages(CPU, num_pages=3) == num_pages(gpu(2**30), num_pages=3) == 3
    assert num_pages(CPU, num_pages=1000) == 1000  # more than can be used
    assert num_pages(CPU, kv_cache_memory_bytes=5 * PAGE - 1) == 4
    assert num_pages(gpu(2**30), kv_cache_memory_bytes=5 * PAGE) == 5


def test_what_the_memory_holds():
    limit = 100 * PAGE
    assert num_pages(gpu(limit), max_num_seqs=64) == 98  # MARGIN
    assert num_pages(gpu(limit, used=20 * PAGE), step_bytes=8 * PAGE, max_num_seqs=64) == 70
    assert num_pages(CPU, max_num_seqs=4096, max_model_len=2**20) == device.CPU_CACHE_BYTES // PAGE


@pytest.mark.parametrize(
    "on, options, message",
    [
        (
            CPU,
            dict(kv_cache_memory_bytes=PAGE),
            f"kv_cache_memory_bytes={PAGE}: {PAGE} bytes are left .* {PAGE}",
        ),
        (gpu(4 * PAGE, 3 * PAGE), {}, "gpu_memory_utilization=0.9: .* bytes are left"),
        (gpu(4 * PAGE), dict(step_bytes=5 * PAGE), "gpu_memory_utilization=0.9: 0 bytes are left"),
        (gpu(4 * PAGE), dict(num_pages=5), "num_pages=5: .* at most 4 fit"),
        (CPU, dict(num_pages=2**50), f"num_pages={2**50}: .* fit into the memory"),
        (Gpu(None), {}, "gpu_memory_utilization=0.9: .* set num_pages or kv_cache_memory_bytes"),
    ],
)
def test_what_does_not_fit(on, options, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        num_pages(on, **options)


def test_a_gpu_that_says_nothing_does_what_it_is_told():
    assert num_pages(Gpu(None), num_pages=7) == 7


no_gpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU")


@no_gpu
def test_no_gpu():
    with pytest.warns(UserWarning, match="no NVIDIA GPU found: jbatch runs on the CPU"):
        assert device.find_device("auto").platform == "cpu"
    with pytest.raises(ConfigError, match=r"^device='cuda': .*pip install 'jbatch\[cuda13\]'"):
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
    assert jax_options == {}
