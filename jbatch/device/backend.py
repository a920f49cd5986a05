"""Which attention kernels an engine's steps use."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jbatch.config import EngineConfig, ModelConfig
from jbatch.device.state import StateShape
from jbatch.errors import ConfigError
from jbatch.host.plan import Bucket, decode_bucket
from pallas_kernels import Problem, choose
from pallas_kernels.implementations import NAMES, declines
from pallas_kernels.problem import Kind


class Attention(NamedTuple):
    """Names of implementations in `pallas_kernels`; on a CPU kernels run in Pallas' interpreter."""

    decode: str = "xla"
    prefill: str = "xla"
    interpret: bool = False


PLAIN = Attention()


def choose_attention(
    backend: str, model: ModelConfig, shape: StateShape, buckets: tuple[Bucket, ...], device: jax.Device
) -> Attention:
    """What a backend means for a model on a device; "auto" is the device's default.

    Raises:
      ConfigError: where the backend cannot run the model there, saying why.
    """
    interpret = backend not in ("auto", "xla") and device.platform == "cpu"
    names = {}
    for bucket in buckets:
        problem = problem_of(model, shape, bucket)
        try:
            choice = choose(problem, None if backend == "auto" else [backend], None if interpret else device)
        except ValueError as error:
            raise ConfigError("attention_backend", backend, str(error)) from None
        names[bucket.kind] = choice.name
    return Attention(names.get("decode", "xla"), names.get("prefill", "xla"), interpret)


def describe(model: ModelConfig, device: jax.Device) -> str:
    """The default on a device, and what each kernel would say to the model there."""
    shape, bucket = StateShape(1, 2, EngineConfig.page_size, 1), decode_bucket(1)
    default = choose_attention("auto", model, shape, (bucket,), device).decode
    problem = problem_of(model, shape, bucket)
    others = [name for name in NAMES if name != default]
    answers = [f"{name} ({declines(name, problem, device) or 'possible'})" for name in others]
    return f"{default}; {', '.join(answers)}"


def problem_of(model: ModelConfig, shape: StateShape, bucket: Bucket) -> Problem:
    """The attention of each layer of a step."""
    kind: Kind = "decode" if bucket.kind == "decode" else "prefill"
    return Problem(
        kind,
        model.dtype,
        tokens=bucket.slots if kind == "decode" else bucket.tokens,
        slots=bucket.slots,
        num_heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        num_pages=shape.num_pages,
        page_size=shape.page_size,
        pages_per_seq=shape.pages_per_seq,
    )
