"""A runner for a model directory: parameters loaded, memory divided, programs compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

import weights
from jbatch.config import EngineConfig, ModelConfig
from jbatch.device.backend import choose_attention
from jbatch.device.memory import choose_num_pages
from jbatch.device.model import abstract_params
from jbatch.device.platform import find_device, memory_of
from jbatch.device.process import extra_bytes
from jbatch.device.process.user_fn import LogitsFn, check_logits_fn
from jbatch.device.programs import DEFAULT_SAMPLERS, StepSpec, largest_programs, programs_for
from jbatch.device.runner import Runner
from jbatch.errors import ConfigError
from jbatch.model_dir.resolve import resolve_dtype
from jbatch.progress import progress_bar
from jbatch.sampling_params import Sampler, with_unions
from jbatch.seam.bucket import Bucket, buckets_of
from jbatch.seam.shape import StateShape
from jbatch.seam.step_output import num_draws


def build_runner(
    model_dir: Path,
    config: EngineConfig,
    model: ModelConfig,
    max_model_len: int,
    logits_fn: LogitsFn | None = None,
) -> Runner:
    """Load a model's weights and compile its steps. `spec.config` of the runner is the model in the dtype
    that "auto" means on the device.

    Raises:
      ConfigError: for what does not fit the device or its memory, and for a function that cannot be compiled.
      weights.WeightsError: for weights that do not fit the model, naming the tensor.
    """
    buckets, samplers = buckets_of(config, max_model_len), samplers_of(config, logits_fn)
    device = find_device(config.device)
    model = resolve_dtype(config, model, device.platform)
    spec = spec_for(device, config, model, max_model_len, logits_fn)
    if logits_fn is not None:
        for draws in sorted({num_draws(bucket, spec.shape) for bucket in buckets}):
            check_logits_fn(logits_fn, draws, model.vocab_size)
    params = _load(model_dir, config, model, device)
    # Temporaries do not grow with the pool: a small one shows them.
    step_bytes = step_bytes_of(spec, buckets) if device.platform != "cpu" else 0
    num_pages = choose_num_pages(config, model, max_model_len, memory_of(device)._replace(step=step_bytes))
    spec = spec._replace(shape=spec.shape._replace(num_pages=num_pages))
    num_programs = len(programs_for(buckets, with_unions(samplers)))
    with progress_bar("compiling", num_programs, enabled=config.show_progress) as update:
        try:
            return Runner(spec, params, buckets, samplers, update)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise _out_of_memory(config, spec, params, step_bytes) from error


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
    device: jax.Device | Any,
    config: EngineConfig,
    model: ModelConfig,
    max_model_len: int,
    logits_fn: LogitsFn | None = None,
) -> StepSpec:
    """What an engine compiles for, but with the smallest pool: to ask what does not grow with it.

    Raises:
      ConfigError: for an attention backend that cannot run the model on the device, saying why.
    """
    shape = StateShape(config.max_num_seqs, 2, config.page_size, -(-max_model_len // config.page_size))
    buckets = buckets_of(config, max_model_len)
    attention = choose_attention(config.attention_backend, model, shape, buckets, device)
    return StepSpec(model, shape, device, attention, logits_fn, config.logprobs_mode)


def step_bytes_of(spec: StepSpec, buckets: tuple[Bucket, ...]) -> int:
    """Bytes that steps take beside weights and cache: the largest one's temporaries, as its compiler says.

    On a GPU the state of all sampling features, too, which may be needed later.
    """
    largest = max(spec.temp_bytes(program) for program in largest_programs(buckets))
    if spec.device.platform == "cpu":
        return largest
    return largest + extra_bytes(Sampler.EXTENDED, spec.shape.num_rows, spec.config.vocab_size)


def _load(
    model_dir: Path, config: EngineConfig, model: ModelConfig, device: jax.Device
) -> dict[str, jax.Array]:
    like = abstract_params(model)
    shardings = dict.fromkeys(like, jax.sharding.SingleDeviceSharding(device))
    if config.load_format == "dummy":
        return weights.random(like, config.seed, shardings=shardings)
    return weights.load(model_dir, like, shardings)


def _out_of_memory(
    config: EngineConfig, spec: StepSpec, params: dict[str, jax.Array], step_bytes: int
) -> ConfigError:
    weight_bytes = sum(leaf.nbytes for leaf in params.values())
    num_pages = spec.shape.num_pages
    cache_bytes = num_pages * config.page_size * spec.config.kv_bytes_per_token
    return ConfigError(
        "num_pages",
        num_pages,
        f"out of memory: {weight_bytes} bytes of weights, {cache_bytes} of KV cache and {step_bytes} for the "
        "largest step do not fit; lower num_pages (or gpu_memory_utilization) or max_num_batched_tokens",
    )
