"""Whether a sequence's bits depend on its neighbours: one sequence alone, and among random others.

Within a bucket, its logits and its keys and values must be equal bit for bit, whoever else is in the step and
wherever its slot is. Two controls: another token must change them (or the comparison sees nothing), and what
another bucket does to them is reported.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.gpu_suite.task import Task
from bench.steps.command import TINY
from bench.steps.step_model import Model, Size, own_pages, why_not
from jbatch.device import model as llama_model
from jbatch.device.backend import Attention
from jbatch.device.spans import Part, forward
from jbatch.model_dir.shapes import model_config
from jbatch.seam.bucket import Bucket, align, decode_bucket, prefill_bucket
from pallas_kernels import RaggedMetadata

FULL = Size("llama3-8b, 2 layers", model_config("llama3-8b", 2, 8192), context=700)
SLOTS, TOKENS = (64, 8), (2048, 512)  # buckets; the second of each is what the first is compared with
TINY_SLOTS, TINY_TOKENS = (8, 4), (128, 64)
CHUNKS = 4  # of a prefill step


class Member(NamedTuple):
    """A sequence of a step: whose pages it has, its new tokens, and its tokens before them."""

    row: int
    token_ids: np.ndarray
    cached: int


def num_members(bucket: Bucket) -> int:
    """How many sequences a step has, those of its slots or its chunks."""
    return bucket.slots or CHUNKS


def part_of(members: Sequence[Member | None], bucket: Bucket, tables: np.ndarray) -> Part:
    """The one part of a step: a member in each slot or chunk, or nobody."""
    ids, positions, owners = np.zeros((3, bucket.num_places), np.int32)
    live = np.zeros(bucket.num_places, bool)
    starts = np.arange(bucket.slots) if bucket.slots else np.full(CHUNKS, bucket.tokens)
    q_lens, kv_lens = np.zeros((2, len(members)), np.int32)
    block_tables = np.zeros((len(members), tables.shape[1]), np.int32)
    begin = 0
    for idx, member in enumerate(members):
        if member is not None:
            begin = idx if bucket.slots else begin
            length = len(member.token_ids)
            span = slice(begin, begin + length)
            ids[span], positions[span] = member.token_ids, member.cached + np.arange(length)
            live[span], owners[span] = True, idx
            starts[idx], q_lens[idx], kv_lens[idx] = begin, length, member.cached + length
            block_tables[idx] = tables[member.row]
            begin += align(length)
    metadata = RaggedMetadata(*(jnp.asarray(lens, jnp.int32) for lens in (starts, q_lens, kv_lens)))
    return Part(
        ids=jnp.asarray(ids),
        positions=jnp.asarray(positions),
        live=jnp.asarray(live),
        owners=jnp.asarray(owners),
        block_tables=jnp.asarray(block_tables),
        metadata=metadata,
        max_q_len=1 if bucket.slots else None,
    )


class Forward:
    """A model's forward pass in one bucket; row 0 is the sequence that is watched."""

    def __init__(self, model: Model, bucket: Bucket, backend: str):
        self.model, self.bucket, self.tables = model, bucket, own_pages(model.shape)
        attention, config = Attention.all_by(backend), model.config
        like = self._part([None] * num_members(bucket))

        def run(params: Any, kv_pages: Any, arrays: Part, watched: Any) -> Any:
            llama, part = llama_model.build(config, params), arrays._replace(max_q_len=like.max_q_len)
            pages, hidden = forward(llama, kv_pages, [part], attention)
            logits = llama.logits(jax.lax.dynamic_slice_in_dim(hidden, watched, 1))
            return logits, tuple(layer[self.tables[0]] for layer in pages)

        precision = "highest" if config.dtype == "float32" else None
        with jax.default_matmul_precision(precision):
            lowered = jax.jit(run).lower(*self._arguments(like, 0))
        self._run = lowered.compile()

    def __call__(self, members: Sequence[Member | None]) -> list[bytes]:
        """The bits of row 0's logits and of its pages in each layer."""
        part = self._part(members)
        (idx,) = (index for index, member in enumerate(members) if member and member.row == 0)
        watched = int(part.metadata.q_starts[idx] + part.metadata.q_lens[idx] - 1)
        result = self._run(*self._arguments(part, watched))
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(result)]

    def _arguments(self, part: Part, watched: int) -> tuple[Any, ...]:
        arrays = part._replace(max_q_len=None)  # a shape of the program
        return self.model.params, self.model.state.kv_pages, arrays, jnp.int32(watched)

    def _part(self, members: Sequence[Member | None]) -> Part:
        return part_of(members, self.bucket, self.tables)


def cases(bucket: Bucket, model: Model) -> dict[str, list[Member | None]]:
    """The watched sequence alone, and in several companies."""
    rng = np.random.default_rng(1)
    vocab, number, decodes = model.config.vocab_size, num_members(bucket), bucket.slots > 0
    room = bucket.num_places // number
    watched = Member(0, rng.integers(0, vocab, room), model.context // 2 + 3 if decodes else 0)
    nobody: list[Member | None] = [None] * (number - 1)

    def others() -> list[Member | None]:
        return [
            Member(
                row,
                rng.integers(0, vocab, int(rng.integers(1, room + 1))),
                int(rng.integers(0, model.context)) if decodes else 0,
            )
            for row in range(1, number)
        ]

    changed = watched._replace(token_ids=(watched.token_ids + 1) % vocab)
    middle = number // 2
    company = others()
    return {
        "alone": [watched, *nobody],
        "among others": [watched, *others()],
        "among different others": [watched, *others()],
        "in another slot": [*company[:middle], watched, *company[middle:]],
        "another token": [changed, *nobody],
    }


def measure(model: Model, size: Size, buckets: tuple[Bucket, Bucket], backend: str) -> dict[str, Any]:
    """A row: in the first bucket all must be equal; the second is there to compare with."""
    bucket, other = buckets
    kind = "decode" if bucket.slots else "prefill"
    row = {"model": size.name, "kind": kind, "bucket": bucket.num_places, "attention": backend}
    if reason := why_not(backend, model, bucket) or why_not(backend, model, other):
        return row | {"status": "not run", "reason": reason}
    begin = time.monotonic()
    run = Forward(model, bucket, backend)
    bits = {name: run(members) for name, members in cases(bucket, model).items()}
    alone, control = bits.pop("alone"), bits.pop("another token")
    unequal = [name for name, others in bits.items() if others != alone]
    watched = cases(bucket, model)["alone"][0]
    elsewhere = Forward(model, other, backend)([watched, *[None] * (num_members(other) - 1)])
    row |= {
        "compared": list(bits),
        "unequal": unequal,
        "another_token_differs": control != alone,
        "another_bucket": other.num_places,
        "another_bucket_differs": elsewhere != alone,
        "seconds": round(time.monotonic() - begin, 1),
    }
    if unequal:
        return row | {"status": "WRONG", "reason": f"other bits {', '.join(unequal)}"}
    if control == alone:
        return row | {"status": "WRONG", "reason": "another token gave the same bits: this compares nothing"}
    return row | {"status": "ok"}


def run(task: Task) -> None:
    """Two rows: of a decode step, and of one with prompts."""
    size = TINY if task.tiny else FULL
    slots, tokens = (TINY_SLOTS, TINY_TOKENS) if task.tiny else (SLOTS, TOKENS)
    model, attention = Model(size, max(slots), jax.devices()[0]), task.attention()
    for backend, (bucket, other) in (
        (attention.decode, map(decode_bucket, slots)),
        (attention.prefill, map(prefill_bucket, tokens)),
    ):
        row = measure(model, size, (bucket, other), backend)
        task.emit({"case": f"{size.name} {row['kind']}", **row})
