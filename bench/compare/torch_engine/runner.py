"""An executor in PyTorch with the methods of jbatch's Runner, so that jbatch's engine drives it.

Scheduler, plans, packed inputs, buckets, cache layout and weights are jbatch's: only the executor differs.
On a GPU each decode bucket is a CUDA graph; steps with chunks of prompts are launched kernel by kernel. On a
CPU all is eager. Written after PyTorch's documentation; its GPU path has not run here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bench.compare.torch_engine import attention, functions, kernels, model
from bench.compare.torch_engine.state import State, copy_pages, put_tables, zeros
from bench.compare.torch_engine.step import step as compute_step
from jbatch.config import ModelConfig
from jbatch.errors import JBatchError
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import StepInput, check_pages, padding, unpack
from jbatch.seam.step_output import StepOutput, unpack_output
from jbatch.seam.tenancy import Tenancy

SAMPLERS = (Sampler.GREEDY, Sampler.PLAIN)
PREFILL = "; prefill: no graph, attention by one uncompiled SDPA call per sequence and layer"
WARM_UPS = 2  # runs before a capture: the first may compile, the second takes its memory from the pool


class Options(NamedTuple):
    """How the steps run."""

    kernel: str = "auto"  # of decode attention: see kernels.NAMES
    compile: bool | None = None  # torch.compile around attention; None: on a GPU
    warm_up: bool = True  # capture every bucket's graph before the first step


class Memory(NamedTuple):
    """What lives on the device."""

    llama: model.Llama
    state: State


class Handle(NamedTuple):
    """A step that was launched: its output on the way to the host, and the program that reads it."""

    output: Tensor
    event: Any  # when it is there; None: it is
    bucket: Bucket
    sampler: Sampler


class _Graph(NamedTuple):
    """A captured step, and the addresses it reads and writes."""

    graph: Any
    packed: Tensor
    output: Tensor


class TorchRunner:
    """A `jbatch.seam.runner.Runner`.

    Args:
      params: jbatch's parameters by name, on the device to run on; see `model.from_jax`.
      buckets: those that will be submitted: on a GPU, decode buckets are captured now.
      beside: a runner of the same model and sizes, whose weights and cache to use; only one of the two may be
        at work at a time.

    Raises:
      ConfigError: for a kernel that cannot run here, saying why.
    """

    samplers = SAMPLERS
    counts_all = False

    def __init__(
        self,
        config: ModelConfig,
        params: Mapping[str, Tensor],
        shape: StateShape,
        buckets: Iterable[Bucket],
        options: Options = Options(),  # noqa: B008, immutable
        beside: TorchRunner | None = None,
    ):
        from jbatch.device.rotary import frequencies

        self.config, self.shape = config, shape
        self.device = params["embedding"].device
        self.kernel, decode_attention = kernels.choose(options.kernel, config, shape, self.device)
        self.compiled = self.device.type == "cuda" if options.compile is None else options.compile
        self._functions = functions.build(decode_attention, self.compiled)
        inv_freq = torch.from_numpy(frequencies(config.rope, config.head_dim))
        self.memory: Memory | None = (
            beside.memory
            if beside
            else Memory(model.build(config, params, inv_freq), zeros(config, shape, self.device))
        )
        self._graphs: dict[tuple[Bucket, Sampler], _Graph] = {}
        self._buckets = frozenset(buckets)
        self.tenancy: Tenancy = beside.tenancy if beside else Tenancy()
        if self.device.type == "cuda" and options.warm_up:
            self.warm_up()

    @torch.inference_mode()
    def submit(self, step: StepInput) -> Handle:
        """Launch a step; on a CPU, compute it.

        Raises:
          JBatchError: after `close`, for pages that do not exist, and for a sampler that is not here.
          KeyError: for a bucket that was not named.
        """
        if self.memory is None:
            raise JBatchError("this runner was closed: make a new one")
        if step.sampler not in SAMPLERS:
            raise JBatchError(
                f"sampler {step.sampler.name}: the PyTorch engine has greedy sampling and temperature"
            )
        if step.bucket not in self._buckets:
            raise KeyError(step.bucket)
        check_pages(step, self.shape)
        if step.tables is not None:
            put_tables(self.memory.state, self._to_device(step.tables))
        if step.page_copies is not None:
            copy_pages(self.memory.state, self._to_device(step.page_copies))
        output, event = self._to_host(self._run(self.memory, step))
        return Handle(output, event, step.bucket, step.sampler)

    def is_ready(self, handle: Handle) -> bool:
        """Whether a step has ended."""
        return handle.event is None or bool(handle.event.query())

    def collect(self, handle: Handle) -> tuple[StepOutput, float]:
        """Wait for a step's output; with it, when the host had it (time.monotonic, seconds)."""
        if handle.event is not None:
            handle.event.synchronize()
        packed = handle.output.numpy()
        return unpack_output(packed, handle.bucket, self.shape, handle.sampler), time.monotonic()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run every bucket once on padding, which changes nothing; on a GPU, capture decode ones, the largest
        first, so that the others fit into its memory."""
        for bucket in sorted(self._buckets, key=lambda bucket: -bucket.num_places):
            packed = padding(bucket, self.shape, Sampler.GREEDY)
            self.submit(StepInput(bucket, Sampler.GREEDY, packed))
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def close(self) -> None:
        """Let go of the device's memory."""
        self.memory = None
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

    def _run(self, memory: Memory, step: StepInput) -> Tensor:
        bucket, sampler = step.bucket, step.sampler
        if self.device.type != "cuda" or bucket.tokens:
            fields = unpack(step.packed, bucket, self.shape, sampler)
            columns = (fields.q_starts, fields.q_lens, fields.kv_lens)
            chunks = attention.chunks_of(*(column.tolist() for column in columns))
            return self._compute(memory, self._to_device(step.packed), bucket, sampler, chunks)
        captured = self._graphs.get((bucket, sampler))
        if captured is None:
            captured = self._graphs[bucket, sampler] = self._capture(memory, bucket, sampler)
        captured.packed.copy_(self._to_device(step.packed), non_blocking=True)
        captured.graph.replay()
        return captured.output

    def _compute(
        self,
        memory: Memory,
        packed: Tensor,
        bucket: Bucket,
        sampler: Sampler,
        chunks: Sequence[attention.Chunk] = (),
    ) -> Tensor:
        fields = unpack(packed, bucket, self.shape, sampler)
        return compute_step(*memory, fields, chunks, self._functions, plain=sampler == Sampler.PLAIN)

    def _capture(self, memory: Memory, bucket: Bucket, sampler: Sampler) -> _Graph:
        """A CUDA graph of a decode step. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs"""
        packed = torch.from_numpy(padding(bucket, self.shape, sampler)).to(self.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._compute(memory, packed, bucket, sampler)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next((one.graph.pool() for one in self._graphs.values()), None)
        # JAX and compiling threads may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = self._compute(memory, packed, bucket, sampler)
        return _Graph(graph, packed, output)

    def _to_device(self, array: Int[np.ndarray, "..."]) -> Tensor:
        if self.device.type != "cuda":
            return torch.tensor(array)  # a copy: padding is shared
        return torch.tensor(array).pin_memory().to(self.device, non_blocking=True)

    def _to_host(self, output: Tensor) -> tuple[Tensor, Any]:
        if self.device.type != "cuda":
            return output, None
        host = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
        host.copy_(output, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event
