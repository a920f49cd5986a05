"""Decode attention by name: which implementations there are for the PyTorch engine, and why not another.

flash-attn, flash-attn-3 and mosaic are written after their documentation; this project has not run them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from bench.compare.torch_engine import attention
from jbatch.config import ModelConfig
from jbatch.errors import ConfigError
from jbatch.seam.shape import StateShape

NAMES = ("gather", "triton", "flash-attn", "flash-attn-3", "mosaic")
FLASH_PAGE = 256  # FlashAttention 2 takes pages of a multiple of it


def choose(
    name: str, config: ModelConfig, shape: StateShape, device: torch.device
) -> tuple[str, attention.Decode]:
    """An implementation, "auto" being plain PyTorch on a CPU and Triton on a GPU.

    Raises:
      ConfigError: for an unknown name, and where it cannot run the model here, saying why.
    """
    if name == "auto":
        name = "gather" if device.type == "cpu" else "triton"
    if name not in NAMES:
        raise ConfigError("kernel", name, f"must be one of auto, {', '.join(NAMES)}")
    reason = _declines(name, config, shape.page_size, device)
    if reason is not None:
        raise ConfigError("kernel", name, reason)
    builders: dict[str, Callable[[], attention.Decode]] = {
        "gather": lambda: attention.gather_decode,
        "triton": _triton,
        "flash-attn": lambda: _flash("flash_attn", "block_table"),
        "flash-attn-3": lambda: _flash("flash_attn_interface", "page_table"),
        "mosaic": lambda: importlib.import_module("bench.compare.torch_engine.mosaic_decode").build(
            config, shape
        ),
    }
    return name, builders[name]()


def _declines(name: str, config: ModelConfig, page_size: int, device: torch.device) -> str | None:
    if name == "gather":
        return None
    module = {
        "triton": "triton",
        "flash-attn": "flash_attn",
        "flash-attn-3": "flash_attn_interface",
        "mosaic": "jax",
    }[name]
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    if name == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return "needs an NVIDIA GPU"
    if name.startswith("flash") and config.dtype == "float32":
        return "takes bfloat16 and float16 only"
    if name == "flash-attn" and page_size % FLASH_PAGE:
        return f"takes pages of a multiple of {FLASH_PAGE} tokens, and these have {page_size}"
    return None


def _triton() -> attention.Decode:
    paged_decode = importlib.import_module("bench.compare.torch_engine.triton_decode").paged_decode

    def decode(block_tables: Tensor, kv_lens: Tensor) -> attention.Attend:
        tables, lens = block_tables.to(torch.int32), kv_lens.to(torch.int32)
        return lambda q, kv_pages: paged_decode(q.contiguous(), kv_pages, tables, lens)

    return decode


def _flash(module: str, table_name: str) -> attention.Decode:
    """`flash_attn_with_kvcache`, which sees pages as [num_pages, page_size, kv_heads, head_dim].
    https://github.com/Dao-AILab/flash-attention"""
    with_kvcache = importlib.import_module(module).flash_attn_with_kvcache

    def decode(block_tables: Tensor, kv_lens: Tensor) -> attention.Attend:
        options = {table_name: block_tables.to(torch.int32), "cache_seqlens": kv_lens.to(torch.int32)}

        def attend(q: Tensor, kv_pages: Tensor) -> Tensor:
            keys, values = (kv_pages[:, kind].transpose(1, 2) for kind in (0, 1))  # no copy
            scale = q.shape[-1] ** -0.5
            out = with_kvcache(q[:, None], keys, values, softmax_scale=scale, causal=True, **options)
            return out[:, 0]

        return attend

    return decode
