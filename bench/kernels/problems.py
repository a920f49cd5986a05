"""Attention problems to time: their sizes, what they cost at least, and where their caches lie."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pallas_kernels.problem import Kind, Problem

DTYPE = "bfloat16"
ITEM_BYTES = 2
L2_BYTES = 64 * 10**6  # no less than any device's here: an H200 has 60 MB, an A100 40 MB
MIN_CALLS = 16  # of a timed program
LARGE_CACHE = 16 * L2_BYTES  # a cache of which nothing is left in the L2 when it is read again


class Heads(NamedTuple):
    """A model's attention."""

    name: str
    num_heads: int
    kv_heads: int
    head_dim: int


MHA = Heads("mha", 32, 32, 128)  # Llama-2 7B
GQA = Heads("gqa", 32, 8, 128)  # Llama-3 8B
GQA_64 = Heads("gqa-64", 32, 8, 64)  # Llama-3.2 1B
TINY = Heads("tiny", 8, 2, 64)  # for --smoke
HEADS = {heads.name: heads for heads in (MHA, GQA, TINY)}


class Case(NamedTuple):
    """One step's attention: slot i's last `q_lens[i]` of `kv_lens[i]` tokens are queries."""

    op: Kind
    heads: Heads
    page_size: int
    label: str  # how the lengths are distributed
    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]

    @property
    def name(self) -> str:
        """How rows and tables call the case."""
        size = f"{self.batch} x {self.context}" if self.op == "decode" else f"{self.tokens} tokens"
        return f"{self.op} {self.heads.name} page {self.page_size} {size} {self.label}"

    @property
    def batch(self) -> int:
        """Sequences of the step."""
        return len(self.kv_lens)

    @property
    def context(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.kv_lens)

    @property
    def tokens(self) -> int:
        """Queries of the step, of all sequences together."""
        return sum(self.q_lens)

    @property
    def pages(self) -> int:
        """Live pages of one cache."""
        return sum(-(-length // self.page_size) for length in self.kv_lens)

    @property
    def kv_bytes(self) -> int:
        """The bytes of all live keys and values, each read once."""
        return sum(self.kv_lens) * 2 * self.heads.kv_heads * self.heads.head_dim * ITEM_BYTES

    @property
    def bytes(self) -> int:
        """The fewest bytes that a call moves: keys, values, queries, page ids and lengths in, results out."""
        queries = self.tokens * self.heads.num_heads * self.heads.head_dim * ITEM_BYTES
        return self.kv_bytes + 2 * queries + 4 * (self.pages + self.batch)

    @property
    def flop(self) -> int:
        """Floating-point operations of the two products, for the keys that causality leaves: the query at
        position p has p + 1 keys."""
        pairs = sum(
            q_len * (kv_len - q_len) + q_len * (q_len + 1) // 2
            for q_len, kv_len in zip(self.q_lens, self.kv_lens, strict=True)
        )
        return 4 * self.heads.num_heads * self.heads.head_dim * pairs

    def problem(self, num_pages: int) -> Problem:
        """The case as a problem of pallas_kernels, over a pool of `num_pages`."""
        heads, pages_per_seq = self.heads, -(-self.context // self.page_size)
        sizes = (self.tokens, self.batch, heads.num_heads, heads.kv_heads, heads.head_dim)
        return Problem(self.op, DTYPE, *sizes, num_pages, self.page_size, pages_per_seq)


def decode_case(heads: Heads, page_size: int, batch: int, context: int, label: str = "uniform") -> Case:
    """A decode step, whose first sequence has `context` tokens. The others have: `uniform`: as many;
    `ragged`: from 1 to that; `one long`: 256."""
    lengths = np.full(batch, context)
    if label == "ragged":
        lengths[1:] = np.random.default_rng(batch * context).integers(1, context, batch - 1, endpoint=True)
    elif label == "one long":
        lengths[1:] = min(256, context)
    return Case("decode", heads, page_size, label, (1,) * batch, tuple(int(n) for n in lengths))


def prefill_case(heads: Heads, page_size: int, tokens: int, label: str) -> Case:
    """A prefill step. `fresh`: one prompt; `chunk`: the next tokens of one whose first 8192 are cached;
    `prefix`: 8 prompts, each behind 2048 cached tokens; `packed`: 8 fresh prompts."""
    num, cached = {"fresh": (1, 0), "chunk": (1, 8192), "prefix": (8, 2048), "packed": (8, 0)}[label]
    q_lens = (tokens // num,) * num
    return Case("prefill", heads, page_size, label, q_lens, tuple(cached + n for n in q_lens))


def decode_grid(quick: bool) -> list[Case]:
    """Decode steps to time, the most telling first; `quick`: about a tenth of them, at every batch size."""
    if quick:
        first = [(64, 1024), (64, 8192), (1, 32768), (8, 4096), (256, 1024), (1, 1024), (256, 4096)]
        cases = [decode_case(GQA, 64, *size) for size in first]
        cases += [decode_case(GQA, 64, 64, 4096, "ragged"), decode_case(GQA, 64, 64, 32768, "one long")]
        cases += [decode_case(GQA, 16, 64, 1024), decode_case(GQA, 16, 64, 8192)]
        cases += [decode_case(MHA, 64, *size) for size in ((64, 1024), (8, 8192), (256, 1024))]
        return [*cases, decode_case(MHA, 16, 64, 1024)]
    cases = []
    for heads, page_size in ((GQA, 64), (GQA, 16), (MHA, 64), (MHA, 16)):
        for batch in (64, 256, 8, 1):
            for context in (1024, 4096, 8192, 32768, 256):
                cases.append(decode_case(heads, page_size, batch, context))
                if batch > 1:
                    cases.append(decode_case(heads, page_size, batch, context, "ragged"))
        cases.append(decode_case(heads, page_size, 64, 32768, "one long"))
    return cases


def prefill_grid(quick: bool) -> list[Case]:
    """Prefill steps to time; `quick`: about a tenth of them."""
    if quick:
        sizes = [(2048, "fresh"), (8192, "fresh"), (2048, "chunk"), (2048, "packed"), (512, "prefix")]
        cases = [prefill_case(GQA, 64, *size) for size in [*sizes, (512, "fresh")]]
        return [*cases, prefill_case(GQA, 16, 2048, "fresh"), prefill_case(MHA, 64, 2048, "fresh")]
    return [
        prefill_case(heads, page_size, tokens, label)
        for heads, page_size in ((GQA, 64), (GQA, 16), (MHA, 64), (MHA, 16))
        for label in ("fresh", "chunk", "prefix", "packed")
        for tokens in (2048, 8192, 512, 4096, 1024)
    ]


def smoke_grid() -> list[Case]:
    """Steps of sizes for an interpreter."""
    return [
        decode_case(TINY, 16, 2, 48),
        decode_case(TINY, 16, 3, 40, "ragged"),
        Case("prefill", TINY, 16, "packed", (24, 16), (24, 40)),
    ]


def num_caches(case: Case) -> int:
    """How many distinct caches a case needs: together more than four times the L2, so that nothing is still
    there from the turn before; one is enough where it is many times as large."""
    if case.kv_bytes > LARGE_CACHE:
        return 1
    return max(2, 1 + 4 * L2_BYTES // case.kv_bytes)


def pool_pages(case: Case, caches: int) -> int:
    """Pages of a pool that holds so many caches, and the null page."""
    return 1 + caches * case.pages


def pool_bytes(case: Case, caches: int) -> int:
    """Bytes of a pool that holds so many caches, and the null page."""
    return pool_pages(case, caches) * math.prod(page_shape(case)) * ITEM_BYTES


def page_shape(case: Case) -> tuple[int, ...]:
    """The shape of a page: keys and values of all heads."""
    return (2, case.heads.kv_heads, case.page_size, case.heads.head_dim)


def block_tables(case: Case, caches: int, num_pages: int, seed: int = 0) -> np.ndarray:
    """Tables [caches, slots, pages_per_seq] over the pool's pages in random order, no page in two places."""
    pages_of_slot = -(-np.asarray(case.kv_lens) // case.page_size)
    live = np.arange(pages_of_slot.max()) < pages_of_slot[:, None]
    tables = np.zeros((caches, *live.shape), np.int32)
    order = np.random.default_rng(seed).permutation(np.arange(1, num_pages, dtype=np.int32))
    tables[np.broadcast_to(live, tables.shape)] = order[: caches * case.pages]
    return tables


def q_starts(case: Case) -> np.ndarray:
    """Where each slot's queries begin; the lengths are multiples of 8, so that no gaps are left."""
    return np.cumsum([0, *case.q_lens[:-1]]).astype(np.int32)
