"""Whether a sequence's bits depend on its neighbours: one sequence alone, and among random others.

    python -m bench.gpu_suite.row_bits [--json FILE] [--tiny]

Within a bucket, its logits and its keys and values must be equal bit for bit, whoever else is in the step and
wherever its slot is. Two controls: another token must change them (or the comparison sees nothing), and what
another bucket does to them is reported.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.measure.shapes import model_config
from bench.steps.command import TINY
from bench.steps.step_model import BACKENDS, Model, Rows, Size, add_arguments, own_pages, why_not
from jbatch.config import EngineConfig
from jbatch.device import model as llama_model
from jbatch.device.backend import Attention
from jbatch.device.platform import prepare_jax
from jbatch.device.step import Tokens, forward
from jbatch.host.plan import Bucket, align
from pallas_kernels import RaggedMetadata

FULL = Size("llama3-8b, 2 layers", model_config("llama3-8b", 2, 8192), context=700)
SLOTS, TOKENS = (64, 8), (2048, 512)  # buckets; the second of each is what the first is compared with
TINY_SLOTS, TINY_TOKENS = (8, 4), (128, 64)


class Member(NamedTuple):
    """A sequence of a step: whose pages it has, its new tokens, and its tokens before them."""

    row: int
    token_ids: np.ndarray
    cached: int


def tokens_of(members: Sequence[Member | None], bucket: Bucket, tables: np.ndarray) -> Tokens:
    """A step's tokens: a member in each slot, or nobody."""
    ids, positions = np.zeros((2, bucket.tokens), np.int32)
    live, slots = np.zeros(bucket.tokens, bool), np.zeros(bucket.tokens, np.int32)
    starts = np.full(bucket.slots, bucket.tokens, np.int32)
    q_lens, kv_lens = np.zeros((2, bucket.slots), np.int32)
    block_tables = np.zeros((bucket.slots, tables.shape[1]), np.int32)
    if bucket.kind == "decode":
        starts = np.arange(bucket.slots, dtype=np.int32)
    begin = 0
    for slot, member in enumerate(members):
        if member is not None:
            begin = slot if bucket.kind == "decode" else begin
            length = len(member.token_ids)
            span = slice(begin, begin + length)
            ids[span], positions[span] = member.token_ids, member.cached + np.arange(length)
            live[span], slots[span] = True, slot
            starts[slot], q_lens[slot], kv_lens[slot] = begin, length, member.cached + length
            block_tables[slot] = tables[member.row]
            begin += align(length)
    metadata = RaggedMetadata(*map(jnp.asarray, (starts, q_lens, kv_lens)))
    fields = (ids, positions, live, slots, block_tables)
    return Tokens(*map(jnp.asarray, fields), metadata)  # type: ignore[call-arg]


class Forward:
    """A model's forward pass in one bucket; row 0 is the sequence that is watched."""

    def __init__(self, model: Model, bucket: Bucket, backend: str):
        self.model, self.bucket, self.tables = model, bucket, own_pages(model.shape)
        attention, config = Attention(backend, backend), model.config
        max_q_len = 1 if bucket.kind == "decode" else None

        def run(params: Any, kv_pages: Any, tokens: Tokens, watched: Any) -> Any:
            llama = llama_model.build(config, params)
            pages, hidden = forward(llama, kv_pages, tokens, attention, max_q_len=max_q_len)
            logits = llama.logits(jax.lax.dynamic_slice_in_dim(hidden, watched, 1))
            return logits, tuple(layer[self.tables[0]] for layer in pages)

        like = self._tokens([None] * bucket.slots)
        precision = "highest" if config.dtype == "float32" else None
        with jax.default_matmul_precision(precision):
            lowered = jax.jit(run).lower(model.params, model.state.kv_pages, like, jnp.int32(0))
        self._run = lowered.compile()

    def __call__(self, members: Sequence[Member | None]) -> list[bytes]:
        """The bits of row 0's logits and of its pages in each layer."""
        tokens = self._tokens(members)
        (slot,) = (index for index, member in enumerate(members) if member and member.row == 0)
        watched = jnp.int32(tokens.metadata.q_starts[slot] + tokens.metadata.q_lens[slot] - 1)
        result = self._run(self.model.params, self.model.state.kv_pages, tokens, watched)
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(result)]

    def _tokens(self, members: Sequence[Member | None]) -> Tokens:
        return tokens_of(members, self.bucket, self.tables)


def cases(kind: str, bucket: Bucket, model: Model) -> dict[str, list[Member | None]]:
    """The watched sequence alone, and in several companies."""
    rng = np.random.default_rng(1)
    vocab, slots = model.config.vocab_size, bucket.slots
    room = bucket.tokens // slots if kind == "prefill" else 1
    length = room if kind == "prefill" else 1
    watched = Member(0, rng.integers(0, vocab, length), 0 if kind == "prefill" else model.context // 2 + 3)
    nobody: list[Member | None] = [None] * (slots - 1)

    def others() -> list[Member | None]:
        return [
            Member(
                row,
                rng.integers(0, vocab, int(rng.integers(1, room + 1))),
                int(rng.integers(0, model.context)) if kind == "decode" else 0,
            )
            for row in range(1, slots)
        ]

    changed = watched._replace(token_ids=(watched.token_ids + 1) % vocab)
    middle = slots // 2
    company = others()
    return {
        "alone": [watched, *nobody],
        "among others": [watched, *others()],
        "among different others": [watched, *others()],
        "in another slot": [*company[:middle], watched, *company[middle:]],
        "another token": [changed, *nobody],
    }


def measure(model: Model, size: Size, buckets: tuple[Bucket, Bucket], backend: str) -> dict[str, Any]:
    """A row of the results: in the first bucket all must be equal; the second is there to compare with."""
    bucket, other = buckets
    row = {"model": size.name, "kind": bucket.kind, "bucket": bucket.tokens, "attention": backend}
    if reason := why_not(backend, model, bucket) or why_not(backend, model, other):
        return row | {"status": "not run", "reason": reason}
    begin = time.monotonic()
    run = Forward(model, bucket, backend)
    bits = {name: run(members) for name, members in cases(bucket.kind, bucket, model).items()}
    alone, control = bits.pop("alone"), bits.pop("another token")
    unequal = [name for name, others in bits.items() if others != alone]
    watched = cases(bucket.kind, bucket, model)["alone"][0]
    elsewhere = Forward(model, other, backend)([watched, *[None] * (other.slots - 1)])
    row |= {
        "compared": list(bits),
        "unequal": unequal,
        "another_token_differs": control != alone,
        "another_bucket": other.tokens,
        "another_bucket_differs": elsewhere != alone,
        "seconds": round(time.monotonic() - begin, 1),
    }
    if unequal:
        return row | {"status": "WRONG", "reason": f"other bits {', '.join(unequal)}"}
    if control == alone:
        return row | {"status": "WRONG", "reason": "another token gave the same bits: this compares nothing"}
    return row | {"status": "ok"}


def line(row: dict[str, Any]) -> str:
    """A row as a line for people."""
    head = f"{row['model']}, {row['kind']} bucket {row['bucket']}, {row['attention']}: {row['status']}"
    if row["status"] != "ok":
        return f"{head}: {row['reason']}"
    word = "differ" if row["another_bucket_differs"] else "are equal too"
    return f"{head}: equal bits {', '.join(row['compared'])}; in bucket {row['another_bucket']} they {word}"


def main() -> int:
    """The command; the exit code is 1 where a comparison is WRONG."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    args = parser.parse_args()
    prepare_jax(EngineConfig())
    size = TINY if args.tiny else FULL
    slots, tokens = (TINY_SLOTS, TINY_TOKENS) if args.tiny else (SLOTS, TOKENS)
    rows = Rows(args.json, {"kind": "row-bits", "tiny": args.tiny})
    model = Model(size, max(slots), jax.devices()[0])
    decode = tuple(Bucket("decode", number, number) for number in slots)
    prefill = tuple(Bucket("prefill", 4, number) for number in tokens)
    for buckets in (decode, prefill):
        for backend in BACKENDS:
            row = measure(model, size, (buckets[0], buckets[1]), backend)
            rows.add(row, line(row))
    return 1 if any(row["status"] == "WRONG" for row in rows.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
