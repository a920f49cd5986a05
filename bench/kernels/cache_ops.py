"""The small operations around attention: writing the cache, copying pages, making a step's work list."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.kernels import problems as attention_problems
from bench.kernels.arms import Declined
from bench.kernels.problems import DTYPE, GQA, ITEM_BYTES, TINY, Case, Heads
from bench.measure import random_data
from bench.measure.timing import CompiledArm
from pallas_kernels import copy_pages, implementations, tuning, work_list, write_kv

CHAIN = 16
POOL_BYTES = 2 * 10**9  # many times the L2; every call writes pages that no other does


class CacheCase(NamedTuple):
    """A call that writes tokens to a pool, or copies pages of it."""

    op: str  # "write_kv": `num` tokens; "copy_pages": `num` pages
    heads: Heads
    page_size: int
    num: int
    label: str = ""  # "rows": tokens of as many sequences, "prompt": consecutive ones

    @property
    def name(self) -> str:
        """How rows and tables call the case."""
        unit = "tokens" if self.op == "write_kv" else "pages"
        return f"{self.op} {self.heads.name} page {self.page_size} {self.num} {unit} {self.label}".strip()

    @property
    def bytes(self) -> int:
        """The bytes that a call moves: each number is read once and written once."""
        numbers = 2 * self.heads.kv_heads * self.heads.head_dim * self.num
        return 2 * ITEM_BYTES * numbers * (1 if self.op == "write_kv" else self.page_size)

    @property
    def pages(self) -> int:
        """Pages that one call writes."""
        return -(-self.num // self.page_size) if self.label == "prompt" else self.num

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """The shape of a pool of so many pages."""
        return (num_pages, 2, self.heads.kv_heads, self.page_size, self.heads.head_dim)


def grid(smoke: bool) -> list[CacheCase]:
    """The cases to measure; those of a smoke run are tiny."""
    if smoke:
        return [CacheCase("write_kv", TINY, 16, 8, "rows"), CacheCase("copy_pages", TINY, 16, 2)]
    return [
        CacheCase("write_kv", GQA, 64, 64, "rows"),
        CacheCase("write_kv", GQA, 64, 2048, "prompt"),
        CacheCase("write_kv", GQA, 16, 64, "rows"),
        CacheCase("copy_pages", GQA, 64, 64),
    ]


def places(case: CacheCase, num_pages: int, calls: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each call, where its tokens go (pages, offsets), or what is copied where (sources, targets)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.arange(1, num_pages, dtype=np.int32))
    result = []
    for call in range(calls):
        pages = order[call * case.pages :][: case.pages]
        if case.op == "copy_pages":
            source = rng.choice(order, case.num, replace=False)
            result.append((source, pages))
        elif case.label == "prompt":
            tokens = np.arange(case.num)
            result.append((pages[tokens // case.page_size], (tokens % case.page_size).astype(np.int32)))
        else:
            result.append((pages, rng.integers(0, case.page_size, case.num, dtype=np.int32)))
    return result


def expected(case: CacheCase, pool: np.ndarray, k: np.ndarray, v: np.ndarray, at: Any) -> np.ndarray:
    """The pool after one call, in NumPy."""
    result = pool.copy()
    if case.op == "copy_pages":
        source, target = at
        result[target] = pool[source]
    else:
        for token, (page, offset) in enumerate(zip(*at, strict=True)):
            result[page, 0, :, offset], result[page, 1, :, offset] = k[token], v[token]
    return result


def call_for(op: str) -> Callable[..., jax.Array]:
    """What applies an op to (pool, k, v, places)."""
    if op == "write_kv":
        return write_kv
    return lambda pool, k, v, source, target: copy_pages(pool, source, target)


def check(case: CacheCase, call: Callable[..., jax.Array]) -> bool:
    """Whether a small pool comes out exactly as it should, pages included that are not written."""
    return compile_check(case, call)()


def compile_check(case: CacheCase, call: Callable[..., jax.Array]) -> Callable[[], bool]:
    """The check, compiled and not yet run."""
    num_pages = 2 * case.pages + 1
    k, v = _new_tokens(case)
    pool = random_data.normal(case.kv_shape(num_pages), DTYPE, 2)
    (at,) = places(case, num_pages, calls=1)
    want = expected(case, np.asarray(pool), np.asarray(k), np.asarray(v), at)
    compiled = jax.jit(call, donate_argnums=0).lower(pool, k, v, *at).compile()
    return lambda: np.array_equal(np.asarray(compiled(pool, k, v, *at)), want)


def build(name: str, case: CacheCase, call: Callable[..., jax.Array], pool_bytes: int) -> CompiledArm:
    """Compile a chain of calls on one pool, in place, each writing pages of its own."""
    page_bytes = int(np.prod(case.kv_shape(1))) * ITEM_BYTES
    num_pages = 1 + max(CHAIN * case.pages, pool_bytes // page_bytes)
    k, v = _new_tokens(case)
    at = [tuple(jnp.asarray(array) for array in pair) for pair in places(case, num_pages, CHAIN)]

    def program(pool: jax.Array, k: jax.Array, v: jax.Array, at: Any) -> jax.Array:
        for pair in at:
            pool = call(pool, k, v, *pair)
        return pool

    pool = [random_data.normal(case.kv_shape(num_pages), DTYPE, 2)]
    compiled = jax.jit(program, donate_argnums=0).lower(pool[0], k, v, at).compile()

    def many(passes: int) -> None:
        for _ in range(passes):
            pool[0] = compiled(pool[0], k, v, at)
        pool[0].block_until_ready()

    return CompiledArm(name, lambda: None, many, CHAIN)


def build_work_list(name: str, case: Case, interpret: bool) -> CompiledArm:
    """Compile the making of a step's work list, which is done once for all layers. Each list's lengths depend
    on the list before; there is no floor to compare with, only the layers' time.

    Raises:
      Declined: as the implementation's kernel does.
    """
    problem = case.problem(num_pages=attention_problems.pool_pages(case, 1))
    device = jax.devices()[0]
    if reason := implementations.declines(name, problem, None if interpret else device):
        raise Declined(reason)
    tiles: Any = tuning.lookup(name, problem, tuning.INTERPRETER if interpret else device.device_kind)
    lens = jnp.asarray(case.kv_lens, jnp.int32)
    if case.op == "decode":
        sizes = {"chunk": tiles.chunk, "max_items": work_list.max_items(problem, tiles.chunk)}
        step: Callable[..., Any] = functools.partial(work_list.make_decode_work, **sizes)
    else:
        tile_tokens = implementations.module(name, "prefill").tile_tokens(problem, tiles)
        starts, q_lens = jnp.asarray(attention_problems.q_starts(case)), jnp.asarray(case.q_lens, jnp.int32)
        sizes = {"tile_tokens": tile_tokens, "num_tiles": work_list.num_tiles(problem, tile_tokens)}
        step = functools.partial(work_list.make_prefill_work, starts, q_lens, **sizes)

    def program(lens: jax.Array) -> tuple[jax.Array, list[Any]]:
        works = []
        for _ in range(CHAIN):
            works.append(step(lens))
            lens = lens + jnp.minimum(works[-1][1][0], 0)  # which is 0, as only the device knows
        return lens, works

    compiled = jax.jit(program).lower(lens).compile()

    def many(passes: int) -> None:
        now = lens
        for _ in range(passes):
            now, _ = compiled(now)
        now.block_until_ready()

    return CompiledArm(name, lambda: None, many, CHAIN, tiles._asdict())


def _new_tokens(case: CacheCase) -> tuple[jax.Array, jax.Array]:
    """Keys and values to write; where pages are copied, a token that nobody reads."""
    tokens = case.num if case.op == "write_kv" else 1
    shape = (tokens, case.heads.kv_heads, case.heads.head_dim)
    return random_data.normal(shape, DTYPE, 3), random_data.normal(shape, DTYPE, 4)
