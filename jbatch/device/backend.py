"""Which attention kernels an engine's steps use."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jbatch.config import EngineConfig, ModelConfig
from jbatch.errors import ConfigError
from jbatch.seam.bucket import Bucket, decode_bucket, room_of
from jbatch.seam.shape import StateShape
from pallas_kernels import Problem, choose, tuning
from pallas_kernels.implementations import declines
from pallas_kernels.names import COMPILERS, ROTATES
from pallas_kernels.problem import Kind
from pallas_kernels.reference import BLOCK_KV
from pallas_kernels.work_list import max_items


class Attention(NamedTuple):
    """Names of implementations in `pallas_kernels`; on a CPU kernels run in Pallas' interpreter."""

    decode: str = "xla"
    prefill: str = "xla"
    interpret: bool = False
    rotate: str = "xla"  # of queries and keys, beside the writing of the cache

    @classmethod
    def all_by(cls, name: str, interpret: bool = False) -> Attention:
        """All that a backend has kernels for, by it."""
        return cls(name, name, interpret, "xla" if name == "xla" else ROTATES)


PLAIN = Attention()
Proven = Mapping[Kind, str]  # the compiler whose kernel may be used by itself, by op
NOTHING_PROVEN: Proven = types.MappingProxyType({})


def choose_attention(
    backend: str,
    model: ModelConfig,
    shape: StateShape,
    buckets: tuple[Bucket, ...],
    device: jax.Device | Any,
    proven: Proven = NOTHING_PROVEN,
) -> Attention:
    """What a backend means for a model on a device; "auto" is a kernel that has proven itself there (see
    `verdict`), else plain JAX.

    Raises:
      ConfigError: where the backend cannot run the model there, saying why.
    """
    interpret = backend not in ("auto", "xla") and device.platform == "cpu"
    names: dict[Kind, str] = {}
    for bucket in buckets:
        for problem in problems_of(model, shape, bucket):
            names_to_try = [backend]
            if backend == "auto":
                names_to_try = [name for name in (proven.get(problem.kind), "xla") if name is not None]
            try:
                choice = choose(problem, names_to_try, None if interpret else device)
            except ValueError as error:
                raise ConfigError("attention_backend", backend, str(error)) from None
            names[problem.kind] = choice.name
    rotation = rotation_of(model, shape, max(buckets, key=lambda bucket: bucket.num_places))
    by_itself = {"auto": proven.get("rotate", "xla"), "xla": "xla"}.get(backend, ROTATES)
    rotate = choose(rotation, (by_itself, "xla"), None if interpret else device).name
    return Attention(names.get("decode", "xla"), names.get("prefill", "xla"), interpret, rotate)


def describe(model: ModelConfig, device: jax.Device | Any) -> str:
    """What "auto" means on a device, and what the kernels say to the model that do not take it there."""
    shape, bucket = StateShape(1, 2, EngineConfig.page_size, 1), decode_bucket(1)
    (problem,) = problems_of(model, shape, bucket)
    answers = {name: declines(name, problem, device) for name in COMPILERS}
    able = [name for name, reason in answers.items() if reason is None]
    declined = ", ".join(f"{name} ({reason})" for name, reason in answers.items() if reason is not None)
    first = f"the first of {', '.join(able)} that passes its check, else xla" if able else "xla"
    return f"{first}; {declined}" if declined else first


def problems_of(model: ModelConfig, shape: StateShape, bucket: Bucket) -> tuple[Problem, ...]:
    """The attention of each layer of a step: of its slots, and of its chunks."""
    slots = _slots(bucket)
    decode = (_problem("decode", model, shape, slots, slots),) if slots else ()
    chunks = room_of(bucket, shape).chunks
    return (*decode, _problem("prefill", model, shape, bucket.tokens, chunks)) if bucket.tokens else decode


def rotation_of(model: ModelConfig, shape: StateShape, bucket: Bucket) -> Problem:
    """The rotation of a layer's queries and keys, and the writing of its cache, of all a step's tokens."""
    places = _slots(bucket) + bucket.tokens
    return _problem("rotate", model, shape, places, places)


def _slots(bucket: Bucket) -> int:
    """Those that kernels see: a lone sequence has a dead one beside it (`spans.forward`)."""
    return 2 if bucket.num_places == 1 else bucket.slots


def _problem(kind: Kind, model: ModelConfig, shape: StateShape, tokens: int, slots: int) -> Problem:
    return Problem(
        kind,
        model.dtype,
        tokens=tokens,
        slots=slots,
        num_heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        num_pages=shape.num_pages,
        page_size=shape.page_size,
        pages_per_seq=shape.pages_per_seq,
    )


def attention_bytes(
    attention: Attention, model: ModelConfig, shape: StateShape, bucket: Bucket, device: jax.Device | Any
) -> int:
    """What the attention of a step's slots keeps beside its operands, about.

    A kernel's partial sums: one of each chunk of each sequence, in every head. They are those of a pool that
    holds every sequence in full; a smaller one has fewer chunks. Plain JAX keeps a gathered block of keys and
    one of values.
    """
    if not bucket.slots:
        return 0
    if attention.decode == "xla":
        itemsize = 4 if model.dtype == "float32" else 2
        return 2 * bucket.slots * BLOCK_KV * model.num_kv_heads * model.head_dim * itemsize
    large = shape._replace(num_pages=bucket.slots * shape.pages_per_seq)
    problem = problems_of(model, large, bucket)[0]
    chunk = tuning.lookup(attention.decode, problem, device.device_kind).chunk
    return max_items(problem, chunk) * model.num_heads * (model.head_dim + 2) * 4  # output, peak and total
