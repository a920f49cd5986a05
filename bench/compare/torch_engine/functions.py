"""The parts of a step that may be replaced: by compiled ones, or by another kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.compare.torch_engine import attention, model
from bench.compare.torch_engine.sampling import sample


class Functions(NamedTuple):
    """Plain PyTorch by default."""

    before_attention: Callable[..., tuple[Tensor, Tensor]] = model.before_attention
    after_attention: Callable[..., Tensor] = model.after_attention
    sample: Callable[..., tuple[Tensor, Tensor]] = sample
    decode_attention: attention.Decode = attention.gather_decode


def build(decode_attention: attention.Decode, compiled: bool) -> Functions:
    """With a kernel for decoding; all but attention with `torch.compile`, or eager."""
    if not compiled:
        return Functions(decode_attention=decode_attention)
    # Static shapes: a bucket is compiled once, and its layers share the result.
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    compile_: Any = functools.partial(torch.compile, dynamic=False, fullgraph=True)
    return Functions(
        compile_(model.before_attention), compile_(model.after_attention), compile_(sample), decode_attention
    )
