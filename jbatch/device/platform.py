"""Finding the device to run on, and what memory it has."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import jax

from jbatch.config import EngineConfig
from jbatch.device.memory import Memory
from jbatch.device.settings import warn_of_what_is_fixed
from jbatch.distribution import install_hint
from jbatch.errors import ConfigError, stacklevel_of_caller

NO_GPU = "no NVIDIA GPU found: jbatch runs on the CPU"
FORCE_DEVICES = "--xla_force_host_platform_device_count"
INSTALL_HINT = f"install the CUDA plugin: {install_hint('cuda12', 'cuda13')}, with an NVIDIA driver"


def prepare_jax(config: EngineConfig) -> None:
    """Set what must be set before JAX starts its backend; later it has no effect."""
    compile_alike()
    warn_of_what_is_fixed()
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the older name; JAX takes only one
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(config.gpu_memory_utilization))
    if config.attention_backend == "mosaic":
        # Its interpreter runs each warpgroup on a thread of XLA's, which has one per core.
        os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))
    if config.device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # else JAX would claim a GPU's memory, too
    num_devices = config.tensor_parallel_size * config.data_parallel_size
    if num_devices > 1 and FORCE_DEVICES not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has started: `device_groups` says what is missing
            jax.config.update("jax_num_cpu_devices", num_devices)  # if it runs on one
    cache_dir = config.compilation_cache_dir
    if cache_dir is None or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        path = Path(cache_dir).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{path} is not readable and writable")
    except (OSError, RuntimeError, ValueError) as error:  # also: no home directory, or a NUL in the name
        warnings.warn(
            f"compilation_cache_dir cannot be used, so every start compiles: {error}",
            stacklevel=stacklevel_of_caller(),
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # many short compiles add up
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def compile_alike() -> None:
    """Let programs not depend on how much memory is free. Where a large cache leaves little, XLA would
    compute things twice instead of keeping them, and the bits of a token could depend on the cache."""
    jax.config.update("jax_compiler_enable_remat_pass", False)


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
        cpu = _cpu()
        meant = "device='cpu', or --device cpu, says that this is meant"
        warnings.warn(f"{NO_GPU} ({meant})", stacklevel=stacklevel_of_caller())
        return cpu


def _cpu() -> jax.Device:
    try:
        return jax.devices("cpu")[0]
    except (RuntimeError, AssertionError):
        platforms = os.environ.get("JAX_PLATFORMS")
        reason = "JAX can start none of these platforms, or no CPU; unset it, or add cpu"
        raise ConfigError("JAX_PLATFORMS", platforms, reason) from None


def memory_of(device: jax.Device | Any, num_ranks: int = 1) -> Memory:
    """What the device says of its memory: on a GPU the share that JAX may use, and how much of it is used.
    `num_ranks` devices of a CPU share its memory."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return Memory(True, stats.get("bytes_limit"), stats.get("bytes_in_use", 0))
    try:
        return Memory(False, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // num_ranks)
    except (AttributeError, ValueError, OSError):  # not everywhere
        return Memory(False, None)
