"""Finding the device to run on, and how many pages of cache it holds."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import jax

from jbatch.config import EngineConfig, ModelConfig
from jbatch.errors import ConfigError

CPU_CACHE_BYTES = 2**30  # of the KV cache on a CPU, at most, where nothing else is asked for
MARGIN = 0.02  # of a GPU's memory: what the runtime takes for itself
UNKNOWN_BYTES = 2**62

NO_GPU = "no NVIDIA GPU found: jbatch runs on the CPU"
INSTALL_HINT = "install the CUDA plugin: pip install 'jbatch[cuda13]' (or [cuda12]), with an NVIDIA driver"


def prepare_jax(config: EngineConfig) -> None:
    """Set what must be set before JAX starts its backend; later it has no effect."""
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the older name; JAX takes only one
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(config.gpu_memory_utilization))
    if config.attention_backend == "mosaic":
        # Its interpreter runs each warpgroup on a thread of XLA's, which has one per core.
        os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))
    if config.device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # else JAX would claim a GPU's memory, too
    cache_dir = config.compilation_cache_dir
    if cache_dir is None or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        path = Path(cache_dir).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{path} is not readable and writable")
    except (OSError, RuntimeError, ValueError) as error:  # also: no home directory, or a NUL in the name
        warnings.warn(f"compilation_cache_dir cannot be used, so every start compiles: {error}", stacklevel=3)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # many short compiles add up
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def find_device(name: str) -> jax.Device:
    """The device for "auto", "cpu" or "cuda".

    Raises:
      ConfigError: for "cuda" where JAX finds no NVIDIA GPU, saying what to install.
    """
    if name == "cpu":
        return _cpu()
    try:
        return jax.devices("cuda")[0]
    except (RuntimeError, AssertionError) as error:  # AssertionError: JAX_PLATFORMS names a missing plugin
        if name == "cuda":
            reason = str(error).splitlines()[0] if str(error) else "no CUDA plugin"
            raise ConfigError("device", name, f"JAX finds no NVIDIA GPU ({reason}); {INSTALL_HINT}") from None
        warnings.warn(f"{NO_GPU} (device='cpu' says that this is meant)", stacklevel=4)
        return _cpu()


def _cpu() -> jax.Device:
    try:
        return jax.devices("cpu")[0]
    except (RuntimeError, AssertionError):
        platforms = os.environ.get("JAX_PLATFORMS")
        reason = "JAX can start none of these platforms, or no CPU; unset it, or add cpu"
        raise ConfigError("JAX_PLATFORMS", platforms, reason) from None


def choose_num_pages(
    config: EngineConfig, model: ModelConfig, max_model_len: int, device: jax.Device, step_bytes: int
) -> int:
    """Pages of the pool, the null page included: as asked for, or what the memory holds.

    Args:
      step_bytes: temporary memory of the largest step.

    Raises:
      ConfigError: where not even one page fits, or not what was asked for, saying how much memory there is.
    """
    page_bytes = model.kv_bytes_per_token * config.page_size
    memory = _memory_bytes(device)
    if config.num_pages is not None:
        if config.num_pages * page_bytes > memory:
            reason = f"pages of {page_bytes} bytes: at most {memory // page_bytes} fit into the memory"
            raise ConfigError("num_pages", config.num_pages, reason)
        return config.num_pages
    if config.kv_cache_memory_bytes is not None:
        field, available = "kv_cache_memory_bytes", config.kv_cache_memory_bytes
    elif device.platform == "cpu":
        field, available = "kv_cache_memory_bytes", CPU_CACHE_BYTES
    else:
        field, available = "gpu_memory_utilization", _free_gpu_bytes(device, config) - step_bytes
    useful = 1 + config.max_num_seqs * -(-max_model_len // config.page_size)
    num_pages = min(useful, min(available, memory) // page_bytes)
    if num_pages < 2:
        reason = f"{max(0, available)} bytes are left for the KV cache, and a page takes {page_bytes}"
        raise ConfigError(field, getattr(config, field), f"{reason}: two are needed at least")
    return num_pages


def _memory_bytes(device: jax.Device) -> int:
    """All the memory there is, used or not."""
    if device.platform != "cpu":
        return int((device.memory_stats() or {}).get("bytes_limit", UNKNOWN_BYTES))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not everywhere
        return UNKNOWN_BYTES


def _free_gpu_bytes(device: jax.Device, config: EngineConfig) -> int:
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        reason = "this device does not say how much memory it has: set num_pages or kv_cache_memory_bytes"
        raise ConfigError("gpu_memory_utilization", config.gpu_memory_utilization, reason)
    return int(stats["bytes_limit"] * (1 - MARGIN)) - stats["bytes_in_use"]
