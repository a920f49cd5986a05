"""FlashInfer and FlashAttention-3, where they are installed, on the same arrays as JAX's.

Written after their documentation; this project has not run them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bench.kernels.arms import Setup, no_null_pages
from bench.measure.timing import CompiledArm

WORKSPACE_BYTES = 128 * 2**20

Call = Callable[[torch.Tensor], torch.Tensor]


def build(name: str, setup: Setup) -> CompiledArm:
    """Compile a library's kernel: a CUDA graph of the setup's calls, each on another cache with the result of
    the one before.

    Raises:
      ImportError: where the library is not installed.
    """
    make = {"flashinfer": _flashinfer_calls, "flash-attn-3": _flash_attention_calls}[name]
    calls = make(setup)
    turns = [calls[index % len(calls)] for index in range(setup.num_calls)]
    queries = torch.from_dlpack(setup.q)

    def run_all() -> torch.Tensor:
        q = queries
        for call in turns:
            q = call(q)
        return q

    side_stream = torch.cuda.Stream()  # the first calls, which may compile, must not be captured
    with torch.cuda.stream(side_stream):
        run_all()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # JAX compiles in other threads
        run_all()

    def many(passes: int) -> None:
        for _ in range(passes):
            graph.replay()
        torch.cuda.synchronize()

    def once() -> jax.Array:
        out = calls[0](queries)
        torch.cuda.synchronize()
        return jnp.from_dlpack(out.reshape(setup.q.shape).contiguous())

    return CompiledArm(name, once, many, setup.num_calls)


def _flashinfer_calls(setup: Setup) -> list[Call]:
    """FlashInfer's decode over pages [num_pages, 2, kv_heads, page_size, head_dim], which it calls HND.
    https://docs.flashinfer.ai/api/decode.html"""
    flashinfer = importlib.import_module("flashinfer")
    case, cache = setup.case, torch.from_dlpack(setup.kv_pages)
    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
    lens = np.asarray(case.kv_lens)
    pages = -(-lens // case.page_size)
    last = torch.tensor(lens - (pages - 1) * case.page_size, dtype=torch.int32, device="cuda")
    first = torch.tensor(np.cumsum([0, *pages]), dtype=torch.int32, device="cuda")
    sizes = (case.heads.num_heads, case.heads.kv_heads, case.heads.head_dim, case.page_size)

    def make(table: np.ndarray) -> Call:
        ids = torch.tensor(table[np.arange(table.shape[1]) < pages[:, None]], device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
        dtypes = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}
        wrapper.plan(first, ids, last, *sizes, sm_scale=setup.scale, **dtypes)
        return lambda q: wrapper.run(q, cache)

    return [make(table) for table in setup.tables]


def _flash_attention_calls(setup: Setup) -> list[Call]:
    """FlashAttention 3 over pages seen as [num_pages, page_size, kv_heads, head_dim], without a copy.
    https://github.com/Dao-AILab/flash-attention, hopper/flash_attn_interface.py"""
    attend = importlib.import_module("flash_attn_interface").flash_attn_with_kvcache
    case, cache = setup.case, torch.from_dlpack(setup.kv_pages)
    keys, values = (cache[:, kind].transpose(1, 2) for kind in (0, 1))
    kv_lens = torch.from_dlpack(setup.lens[-1])
    options: dict[str, Any] = {"cache_seqlens": kv_lens, "softmax_scale": setup.scale, "causal": True}
    if case.op == "prefill":
        starts = torch.tensor(np.cumsum([0, *case.q_lens]), dtype=torch.int32, device="cuda")
        options |= {"cu_seqlens_q": starts, "max_seqlen_q": max(case.q_lens)}

    def make(table: np.ndarray) -> Call:
        page_table = torch.tensor(no_null_pages(table), device="cuda")

        def call(q: torch.Tensor) -> torch.Tensor:
            rows = q if case.op == "prefill" else q.unsqueeze(1)
            out = attend(rows, keys, values, page_table=page_table, **options)
            return out if case.op == "prefill" else out.squeeze(1)

        return call

    return [make(table) for table in setup.tables]
