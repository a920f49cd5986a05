"""This project's Mosaic decode kernel, called from PyTorch: needs jax >= 0.11 and a Hopper GPU.

Written after the documentation of `plgpu.as_torch_kernel`; it has not run here. That function takes a JAX
function of one kernel and nothing else, so the kernel's two halves are wrapped one by one, and what XLA
computes around them (the work list, the padding of odd groups) is done in PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from bench.compare.torch_engine import attention
from jbatch.config import ModelConfig
from jbatch.errors import ConfigError
from jbatch.seam.shape import StateShape


class Work(NamedTuple):
    """pallas_kernels.work_list.DecodeWork, as tensors."""

    slots: Int[Tensor, " max_items"]
    chunks: Int[Tensor, " max_items"]
    first: Int[Tensor, " slots_plus_1"]


def build(config: ModelConfig, shape: StateShape) -> attention.Decode:
    """The kernel for an engine's sizes.

    Raises:
      ConfigError: where it declines the model or the device.
    """
    import jax

    from pallas_kernels import Problem, implementations, tuning
    from pallas_kernels import work_list as plan
    from pallas_kernels.work_list import DecodeWork

    device = next((d for d in jax.devices() if d.platform in ("gpu", "cuda")), None)
    if device is None:
        raise ConfigError("kernel", "mosaic", "JAX finds no NVIDIA GPU")

    def problem(slots: int) -> Problem:
        return Problem(
            "decode",
            config.dtype,
            tokens=slots,
            slots=slots,
            num_heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_pages=shape.num_pages + 1,
            page_size=shape.page_size,
            pages_per_seq=shape.pages_per_seq,
        )

    reason = implementations.declines("mosaic", problem(1), device)
    if reason is not None:
        raise ConfigError("kernel", "mosaic", reason)
    as_torch_kernel = importlib.import_module("jax.experimental.pallas.mosaic_gpu").as_torch_kernel
    kernel = implementations.module("mosaic", "decode")
    group, scale = config.group, config.head_dim**-0.5
    pack = kernel.Pack.of(group, config.num_kv_heads)

    def decode(block_tables: Tensor, kv_lens: Tensor) -> attention.Attend:
        slots = len(kv_lens)
        tiles: Any = tuning.lookup("mosaic", problem(slots), device.device_kind)
        tables, lens = block_tables.to(torch.int32), kv_lens.to(torch.int32)
        work = plan_work(lens, tiles.chunk, plan.max_items(problem(slots), tiles.chunk))

        def partials(q: Any, kv_pages: Any, tables: Any, lens: Any, *work: Any) -> Any:
            work = DecodeWork(*work)
            return kernel.partials(q, kv_pages, tables, lens, work, pack, scale, tiles, False)

        def combine(out: Any, peaks: Any, totals: Any, first: Any) -> Any:
            return kernel.combine(out, peaks, totals, first, slots, config.dtype, False)

        first_half, second_half = as_torch_kernel(partials), as_torch_kernel(combine)

        def attend(q: Tensor, kv_pages: Tensor) -> Tensor:
            grouped = q.view(slots, config.num_kv_heads, group, -1)
            padded = functional.pad(grouped, (0, 0, 0, pack.group - group)).reshape(slots, -1, q.shape[-1])
            parts = first_half(padded.contiguous(), kv_pages, tables, lens, *work)
            out = second_half(*parts, work.first)
            out = out[0] if isinstance(out, (list, tuple)) else out
            return out.view(slots, config.num_kv_heads, pack.group, -1)[:, :, :group].reshape(q.shape)

        return attend

    return decode


def plan_work(kv_lens: Int[Tensor, " slots"], chunk: int, max_items: int) -> Work:
    """`pallas_kernels.work_list.make_decode_work`, in PyTorch."""
    counts = (kv_lens + chunk - 1) // chunk
    first = functional.pad(counts.cumsum(0), (1, 0))
    items = torch.arange(max_items, device=kv_lens.device)
    slots = (torch.searchsorted(first, items, right=True) - 1).clamp(0, len(kv_lens) - 1)
    return Work(*(x.to(torch.int32) for x in (slots, items - first[slots], first)))
