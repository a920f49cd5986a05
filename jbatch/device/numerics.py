"""What the last bits of a result depend on, besides the model and the request."""

from __future__ import annotations

import os
from typing import Any

import jax
import jaxlib

from jbatch.device.programs import StepSpec


def numerics_of(spec: StepSpec) -> dict[str, Any]:
    """What computes an engine's steps and how, by the names that a user sets it with. Where two of these
    differ, the same request may get another text.

    What XLA finds out on a GPU when it chooses among kernels is not in it: JAX keeps that beside its compiled
    programs, with those of other models.
    """
    unusual: dict[str, Any] = {} if spec.mesh is None else {"tensor_parallel_size": spec.mesh.size}
    if jax.config.values["jax_disable_most_optimizations"]:
        unusual["jax_disable_most_optimizations"] = True
    return unusual | {
        "device_kind": spec.device.device_kind,
        "attention_backend": "/".join(dict.fromkeys((spec.attention.decode, spec.attention.prefill))),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "jax_default_matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "jax_enable_x64": jax.config.values["jax_enable_x64"],
        "XLA_FLAGS": os.environ.get("XLA_FLAGS") or None,
        "NVIDIA_TF32_OVERRIDE": os.environ.get("NVIDIA_TF32_OVERRIDE") or None,  # cuBLAS obeys it
    }
