"""What is known of this machine's GPUs before CUDA is opened."""

from __future__ import annotations

import importlib.util
import os
import subprocess

import jax

DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")  # the second under Windows
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
LIMIT_S = 30.0  # a driver without persistence wakes the GPU first


def may_be_used() -> bool:
    """Whether JAX would find an NVIDIA GPU, as far as files and variables tell."""
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    allowed = not platforms or not {"cuda", "gpu"}.isdisjoint(platforms.split(","))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    installed = any(importlib.util.find_spec(name) is not None for name in PLUGINS)
    return allowed and not hidden and installed and any(map(os.path.exists, DRIVER_FILES))


def describe_all() -> str | None:
    """Names and driver of the GPUs, with the choice among them where they differ. None where the driver's own
    tool does not say."""
    try:
        told = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=LIMIT_S, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    kinds = sorted({line.strip() for line in told.splitlines() if line.strip()})
    if len(kinds) > 1:
        kinds.append(f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}")
    return "; ".join(kinds) or None
