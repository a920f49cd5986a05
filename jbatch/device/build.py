"""A runner for a model directory: parameters loaded, memory divided, programs compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

import weights
from jbatch.config import EngineConfig, ModelConfig
from jbatch.device.backend import NOTHING_PROVEN, Proven, attention_bytes, choose_attention
from jbatch.device.groups import device_groups
from jbatch.device.memory import Memory, StepSize, choose_num_pages, estimate_step_bytes
from jbatch.device.model import abstract_params
from jbatch.device.platform import memory_of
from jbatch.device.process import extra_bytes
from jbatch.device.process.user_fn import LogitsFn, check_logits_fn
from jbatch.device.programs import DEFAULT_SAMPLERS, Program, StepSpec, programs_for, temp_bytes
from jbatch.device.runner import Runner
from jbatch.device.settings import fixed_settings
from jbatch.device.sharding import forms_of, mesh_of
from jbatch.device.verdict import prove_kernels, proven_on
from jbatch.errors import ConfigError
from jbatch.model_dir.resolve import resolve_dtype
from jbatch.progress import progress_bar
from jbatch.sampler import Sampler, with_unions
from jbatch.seam.bucket import Bucket, buckets_of
from jbatch.seam.shape import StateShape
from jbatch.seam.step_output import num_draws


def build_runner(
    model_dir: Path,
    config: EngineConfig,
    model: ModelConfig,
    max_model_len: int,
    logits_fn: LogitsFn | None = None,
    devices: Sequence[jax.Device] = (),
) -> Runner:
    """Load a model's weights, and choose the size of its cache. `spec.config` of the runner is the model in
    the dtype that "auto" means on the device.

    On a GPU all steps are compiled before the cache takes its memory: to choose among kernels, the compiler
    runs them. On a CPU nothing is compiled yet; `Runner.prepare` does it, for the requests that come.

    Args:
      devices: those to run on, as many as `config.tensor_parallel_size`; by default the first that are there.

    Raises:
      ConfigError: for what does not fit the device or its memory, and for a function that cannot be compiled.
      weights.WeightsError: for weights that do not fit the model, naming the tensor.
    """
    buckets, samplers = buckets_of(config, max_model_len), samplers_of(config, logits_fn)
    verdict = prove_kernels(config, model, max_model_len)  # before this process opens CUDA
    devices = tuple(devices) or device_groups(config)[0]
    model = resolve_dtype(config, model, devices[0].platform)
    spec = spec_for(devices, config, model, max_model_len, logits_fn, proven_on(devices[0], verdict))
    if logits_fn is not None:
        for draws in sorted({num_draws(bucket, spec.shape) for bucket in buckets}):
            check_logits_fn(logits_fn, draws, model.vocab_size)
    with progress_bar("loading weights", enabled=config.show_progress), fixed_settings():
        params = _load(model_dir, config, spec)
        jax.block_until_ready(params)
    memory = memory_of(devices[0], len(devices))
    if memory.on_gpu:
        memory = memory._replace(step=step_bytes_of(spec, buckets))

    def with_pool(memory: Memory) -> StepSpec:
        num_pages = choose_num_pages(config, spec.part, max_model_len, memory)
        return spec._replace(shape=spec.shape._replace(num_pages=num_pages))

    if not memory.on_gpu:
        return Runner(with_pool(memory), params, buckets, samplers, show_progress=config.show_progress)
    programs = programs_for(buckets, with_unions(samplers))
    with progress_bar("compiling", len(programs), enabled=config.show_progress) as update:
        compiled_spec, compiled, memory = compile_beside(programs, memory, with_pool, update)
    runner = Runner(compiled_spec, params, buckets, samplers, compiled, show_progress=config.show_progress)
    try:
        runner.prepare()
        runner.prepare_sharing()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _out_of_memory(config, compiled_spec, params, memory.step) from error
    return runner


def compile_beside(
    programs: Iterable[Program],
    memory: Memory,
    with_pool: Callable[[Memory], StepSpec],
    on_compiled: Callable[[int], None] = lambda done: None,
) -> tuple[StepSpec, dict[Program, jax.stages.Compiled], Memory]:
    """Programs compiled for a pool that leaves room for their temporaries.

    They are compiled for the pool that `memory.step`, an estimate, leaves room for. What they take does not
    depend on the pool, so where it is more than was estimated, another choice of the pool is enough.

    Returns:
      What the programs have in common; the programs; the memory, with what the largest step takes.
    """
    programs = list(programs)
    spec = with_pool(memory)
    compiled = spec.compile_all(programs, on_compiled)
    largest = max(map(temp_bytes, compiled.values()))
    if largest <= memory.step:
        return spec, compiled, memory
    memory = memory._replace(step=largest)
    smaller = with_pool(memory)
    if smaller.shape == spec.shape:  # the number of pages does not depend on what is left
        return spec, compiled, memory
    return smaller, smaller.compile_all(programs, on_compiled), memory


def samplers_of(config: EngineConfig, logits_fn: LogitsFn | None = None) -> tuple[Sampler, ...]:
    """The ways of drawing that an engine compiles at first.

    Raises:
      ConfigError: for ways that leave out a user's function.
    """
    if logits_fn is not None:
        if config.samplers not in (None, ("extended",)):
            raise ConfigError("samplers", config.samplers, "with logits_fn, every step is 'extended'")
        return (Sampler.EXTENDED,)
    if config.samplers is None:
        return DEFAULT_SAMPLERS
    return tuple(Sampler[name.upper()] for name in config.samplers)


def spec_for(
    devices: Sequence[jax.Device | Any],
    config: EngineConfig,
    model: ModelConfig,
    max_model_len: int,
    logits_fn: LogitsFn | None = None,
    proven: Proven = NOTHING_PROVEN,
) -> StepSpec:
    """What an engine compiles for, but with the smallest pool: to ask what does not grow with it.

    Args:
      devices: that compute each step together; the first of them is enough to ask, and to compile nothing.
      proven: kernels that the backend "auto" may use.

    Raises:
      ConfigError: for an attention backend that cannot run the model on the device, saying why.
    """
    shape = StateShape(config.max_num_seqs, 2, config.page_size, -(-max_model_len // config.page_size))
    buckets = buckets_of(config, max_model_len)
    device, part = devices[0], model.split(config.tensor_parallel_size)
    attention = choose_attention(config.attention_backend, part, shape, buckets, device, proven)
    mesh = mesh_of(devices, config.tensor_parallel_size)
    return StepSpec(model, shape, device, attention, logits_fn, config.logprobs_mode, mesh)


def step_bytes_of(spec: StepSpec, buckets: tuple[Bucket, ...]) -> int:
    """Bytes that steps take on each GPU beside weights and cache: the temporaries of the largest one,
    estimated, and the state of all sampling features.

    Of the largest in every variant: those that are compiled later find room, too.
    """
    sizes = [
        StepSize(
            bucket.num_places,
            num_draws(bucket, spec.shape),
            bucket.tokens > 0,
            attention_bytes(spec.attention, spec.part, spec.shape, bucket, spec.device),
        )
        for bucket in buckets
    ]
    sampled = dataclasses.replace(spec.part, vocab_size=spec.config.vocab_size)  # from all ranks' logits
    largest = estimate_step_bytes(sampled, sizes)
    return largest + extra_bytes(Sampler.EXTENDED, spec.shape.num_rows, spec.config.vocab_size)


def _load(model_dir: Path, config: EngineConfig, spec: StepSpec) -> dict[str, jax.Array]:
    like, forms = abstract_params(spec.config), forms_of(spec.config, spec.ranks.size)
    shardings = {name: leaf.sharding for name, leaf in spec.params.items()}
    if config.load_format == "dummy":
        return weights.random(like, config.seed, shardings=shardings, forms=forms)
    return weights.load(model_dir, like, shardings, forms)


def _out_of_memory(
    config: EngineConfig, spec: StepSpec, params: dict[str, jax.Array], step_bytes: int
) -> ConfigError:
    weight_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in params.values())
    num_pages = spec.shape.num_pages
    cache_bytes = num_pages * config.page_size * spec.part.kv_bytes_per_token
    return ConfigError(
        "num_pages",
        num_pages,
        f"out of memory: {weight_bytes} bytes of weights, {cache_bytes} of KV cache and {step_bytes} for the "
        "largest step do not fit; lower num_pages (or gpu_memory_utilization) or max_num_batched_tokens",
    )
