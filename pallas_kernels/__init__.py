"""Paged attention for GPUs: plain array functions, useful without the rest of jbatch."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "Problem": "pallas_kernels.problem",
    "RaggedMetadata": "pallas_kernels.api",
    "add_work_list": "pallas_kernels.api",
    "check_block_tables": "pallas_kernels.checks",
    "choose": "pallas_kernels.implementations",
    "copy_pages": "pallas_kernels.cache",
    "paged_attention": "pallas_kernels.api",
    "paged_decode": "pallas_kernels.api",
    "paged_prefill": "pallas_kernels.api",
    "rotate_and_write": "pallas_kernels.api",
    "rotated": "pallas_kernels.rotary",
    "write_kv": "pallas_kernels.cache",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:  # lazy (PEP 562): device options must be set before jax is imported
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pallas_kernels' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
