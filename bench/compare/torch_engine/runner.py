"""An executor in PyTorch with the two methods of jbatch's Runner, so that jbatch's engine drives it.

Scheduler, plans, packed inputs, buckets, cache layout and weights are jbatch's: only the executor differs.
On a GPU each decode bucket is a CUDA graph; prefill steps are launched kernel by kernel. On a CPU all is
eager. Written after PyTorch's documentation; its GPU path has not run here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bench.compare.torch_engine import attention, kernels, model, step
from bench.compare.torch_engine.sampling import sample
from jbatch.config import ModelConfig
from jbatch.errors import ConfigError, JBatchError
from jbatch.host.plan import (
    ROW_WIDTH,
    Bucket,
    StepInput,
    StepOutput,
    check_table_updates,
    padding,
    unpack,
    unpack_output,
)
from jbatch.sampling_params import Sampler

SAMPLERS = (Sampler.GREEDY, Sampler.PLAIN)
PREFILL = "; prefill: no graph, attention by one uncompiled SDPA call per sequence and layer"
WARM_UPS = 2  # runs before a capture: the first may compile, the second takes its memory from the pool


class Shape(Protocol):
    """Sizes of the state, such as jbatch's StateShape or PlanShape."""

    @property
    def num_rows(self) -> int: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def pages_per_seq(self) -> int: ...


class Options(NamedTuple):
    """How the steps run."""

    kernel: str = "auto"  # of decode attention: see kernels.NAMES
    compile: bool | None = None  # torch.compile around attention; None: on a GPU
    warm_up: bool = True  # capture every bucket's graph before the first step


class _Graph(NamedTuple):
    """A captured step, and the addresses it reads and writes."""

    graph: Any
    packed: Tensor
    output: Tensor


class TorchRunner:
    """`submit`, `collect` and `samplers` as jbatch's Runner has them.

    Args:
      params: jbatch's parameters by name, on the device to run on; see `model.from_jax`.
      buckets: those that will be submitted: on a GPU, decode buckets are captured now.
      beside: a runner of the same model and sizes, whose weights and cache to use; only one of the two may be
        at work at a time.

    Raises:
      ConfigError: for a kernel that cannot run here, saying why.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Mapping[str, Tensor],
        shape: Shape,
        buckets: Iterable[Bucket],
        options: Options = Options(),  # noqa: B008, immutable
        beside: TorchRunner | None = None,
    ):
        from jbatch.device.rotary import frequencies

        self.config, self.shape = config, shape
        self.device = params["embedding"].device
        self.kernel, decode_attention = kernels.choose(options.kernel, config, shape, self.device)
        self.compiled = self.device.type == "cuda" if options.compile is None else options.compile
        self._functions = _functions(decode_attention, self.compiled)
        inv_freq = torch.from_numpy(frequencies(config.rope, config.head_dim))
        self._llama: model.Llama | None = beside._llama if beside else model.build(config, params, inv_freq)
        self._state: step.State | None = beside._state if beside else _zeros(config, shape, self.device)
        self._graphs: dict[tuple[Bucket, bool], _Graph] = {}
        self._buckets = frozenset(buckets)
        if self.device.type == "cuda" and options.warm_up:
            self.warm_up()

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The ways of drawing tokens that its steps have."""
        return SAMPLERS

    @torch.inference_mode()
    def submit(self, given: StepInput) -> Any:
        """Launch a step; on a CPU, compute it.

        Raises:
          JBatchError: after `close`, for pages that do not exist, and for a sampler that is not here.
          KeyError: for a bucket that was not named.
        """
        if self._state is None or self._llama is None:
            raise JBatchError("this runner was closed: make a new one")
        if given.sampler not in SAMPLERS:
            raise JBatchError(
                f"sampler {given.sampler.name}: the PyTorch engine has greedy sampling and temperature"
            )
        if given.bucket not in self._buckets:
            raise KeyError(given.bucket)
        shape = self.shape
        check_table_updates(
            given,
            num_rows=shape.num_rows,
            num_pages=shape.num_pages,
            pages_per_seq=shape.pages_per_seq,
            page_size=shape.page_size,
        )
        return self._to_host(self._run(given.bucket, given.packed, given.sampler == Sampler.PLAIN))

    def collect(self, handle: Any) -> tuple[StepOutput, float]:
        """Wait for a step's output; with it, when the host had it (time.monotonic, seconds)."""
        output, event = handle
        if event is not None:
            event.synchronize()
        return unpack_output(output.numpy()), time.monotonic()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run every bucket once on padding, which changes nothing; on a GPU, capture decode ones, the largest
        first, so that the others fit into its memory."""
        for bucket in sorted(self._buckets, key=lambda bucket: -bucket.tokens):
            packed = padding(bucket, self.shape.num_rows, self.shape.page_size)
            self._run(bucket, packed, plain=False)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def close(self) -> None:
        """Let go of the device's memory."""
        self._llama = self._state = None
        self._graphs = {}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def describe(self) -> dict[str, Any]:
        """What the steps are made of, for a report."""
        graphs = "CUDA graph per decode bucket" if self.device.type == "cuda" else "eager"
        return {
            "attention": self.kernel,
            "execution": graphs + (", torch.compile" if self.compiled else "") + PREFILL,
            "device": str(self.device),
            "torch": torch.__version__,
        }

    def _run(self, bucket: Bucket, packed: np.ndarray, plain: bool) -> Tensor:
        if bucket.kind == "prefill":
            fields: Any = unpack(packed, bucket, self.shape.page_size)
            columns = (fields.q_starts, fields.q_lens, fields.kv_lens)
            chunks = attention.chunks_of(*(column.tolist() for column in columns))
            args = (self._llama, self._state, self._to_device(packed), bucket, self._functions)
            return step.prefill(*args, chunks, plain)
        if self.device.type != "cuda":
            return self._decode(bucket, self._to_device(packed), plain)
        captured = self._graphs.get((bucket, plain))
        if captured is None:
            captured = self._graphs[bucket, plain] = self._capture(bucket, plain)
        captured.packed.copy_(self._to_device(packed), non_blocking=True)
        captured.graph.replay()
        return captured.output

    def _decode(self, bucket: Bucket, packed: Tensor, plain: bool) -> Tensor:
        return step.decode(self._llama, self._state, packed, bucket, self._functions, plain)

    def _capture(self, bucket: Bucket, plain: bool) -> _Graph:
        """A CUDA graph of a decode step. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs"""
        padded = padding(bucket, self.shape.num_rows, self.shape.page_size)
        packed = torch.from_numpy(padded).to(self.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._decode(bucket, packed, plain)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next((one.graph.pool() for one in self._graphs.values()), None)
        # JAX and compiling threads may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = self._decode(bucket, packed, plain)
        return _Graph(graph, packed, output)

    def _to_device(self, packed: np.ndarray) -> Tensor:
        if self.device.type != "cuda":
            return torch.tensor(packed)  # a copy: padding is shared
        return torch.tensor(packed).pin_memory().to(self.device, non_blocking=True)

    def _to_host(self, output: Tensor) -> tuple[Tensor, Any]:
        if self.device.type != "cuda":
            return output, None
        host = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
        host.copy_(output, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event


def _functions(decode_attention: attention.Decode, compiled: bool) -> step.Functions:
    if not compiled:
        return step.Functions(decode_attention=decode_attention)
    # Static shapes: a bucket is compiled once, and its layers share the result.
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    compile_ = torch.compile(dynamic=False, fullgraph=True)
    parts = (compile_(f) for f in (model.before_attention, model.after_attention, sample))
    return step.Functions(*parts, decode_attention=decode_attention)


def _zeros(config: ModelConfig, shape: Shape, device: torch.device) -> step.State:
    page_shape = (shape.num_pages + 1, 2, config.num_kv_heads, shape.page_size, config.head_dim)
    try:
        return step.State(
            torch.zeros((shape.num_rows + 1, ROW_WIDTH), dtype=torch.int32, device=device),
            torch.zeros((shape.num_rows + 1, shape.pages_per_seq), dtype=torch.int32, device=device),
            tuple(
                torch.zeros(page_shape, dtype=getattr(torch, config.dtype), device=device)
                for _ in range(config.num_layers)
            ),
        )
    except torch.OutOfMemoryError:
        num_bytes = (shape.num_pages + 1) * shape.page_size * config.kv_bytes_per_token
        raise ConfigError(
            "num_pages", shape.num_pages, f"out of memory: {num_bytes} bytes of KV cache do not fit"
        ) from None
