"""Proof that a kernel is right on the device it is to run on: its answers beside plain JAX in float32.

A trial has the sizes of a problem that somebody means to compute. Pages are permuted and shared, sequences
end on their borders, and NaN is wherever nothing may be read. A kernel that is right answers within the
rounding of its dtype, and with the same bits the second time.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from pallas_kernels import api, tuning, work_list
from pallas_kernels.problem import TOKEN_ALIGN, Problem
from pallas_kernels.rotary import rotated

LONG = 1100  # tokens of the longest sequence: more than a chunk of any kernel
MAX_QUERIES = 2048  # of a prefill trial, about: plain JAX computes it on a CPU
MAX_ROTATED = 256  # tokens of a rotation's trial: the kernel computes one like the other
LOUDNESS = 2.0  # the standard deviation of scores

Answer = Shaped[np.ndarray, "tokens heads head_dim"]  # in the problem's dtype


class WrongAnswer(Exception):
    """A kernel's answer is wrong, or another one the second time. The message says where and by how much."""


class Trial(NamedTuple):
    """Numbers that are exact in the problem's dtype, and what is right to answer."""

    problem: Problem
    q: Float[np.ndarray, "tokens heads head_dim"]  # of a rotation q, k and v, by KV head
    kv_pages: Float[np.ndarray, "num_pages 2 kv_heads page_size head_dim"]
    ragged: tuple[np.ndarray, ...]  # what the op takes beside them: block tables, lengths
    counts: Bool[np.ndarray, " tokens"]  # rows whose answer counts
    expected: Float[np.ndarray, "tokens heads head_dim"]
    max_error: Float[np.ndarray, "tokens heads head_dim"]


class _Slots(NamedTuple):
    """What each slot computes, of which sequence."""

    q_starts: Int[np.ndarray, " slots"]
    q_lens: Int[np.ndarray, " slots"]
    kv_lens: Int[np.ndarray, " slots"]
    sequences: Int[np.ndarray, " slots"]


def make_trial(problem: Problem, seed: int = 0) -> Trial:
    """A trial of a problem's sizes, but over a small pool of pages."""
    rng = np.random.default_rng(seed)
    if problem.kind == "rotate":
        return _rotation(problem, rng)
    wanted = _wanted(problem)
    slots = _slots_of(problem, wanted)
    kv_pages, tables = _cache(problem, [kv_len for _, kv_len in wanted], rng)
    live = np.zeros(problem.tokens, bool)
    for start, length in zip(slots.q_starts, slots.q_lens, strict=True):
        live[start : start + length] = True
    q = LOUDNESS * rng.standard_normal((problem.tokens, problem.num_heads, problem.head_dim))
    q = np.where(live[:, None, None], _rounded(q, problem.dtype), np.float32(np.nan))
    lengths = (slots.kv_lens,) if problem.kind == "decode" else slots[:3]
    ragged = (tables[slots.sequences], *lengths)
    expected, magnitude = _in_plain_jax(problem, q, kv_pages, ragged)
    max_error = _max_error(expected, magnitude, problem.dtype)
    counts = live | (problem.kind == "decode")  # a dead slot of a decode step answers zeros
    return Trial(problem, q, kv_pages, ragged, counts, expected, max_error)


def compile_trial(name: str, trial: Trial, *, interpret: bool = False) -> Callable[[], Answer]:
    """An implementation, compiled for a trial on JAX's default device: each call computes it once more."""
    problem = trial.problem
    rotate = functools.partial(_rotate, implementation=name, interpret=interpret)
    function = rotate if problem.kind == "rotate" else _attention(name, trial, interpret)
    floats = (jnp.asarray(array, problem.dtype) for array in (trial.q, trial.kv_pages))
    arrays = (*floats, *map(jnp.asarray, trial.ragged))
    compiled = jax.jit(function).lower(*arrays).compile()
    return lambda: np.asarray(compiled(*arrays))


def _attention(name: str, trial: Trial, interpret: bool) -> Callable[..., jax.Array]:
    """An op of attention, with the tiles of the device."""
    problem = trial.problem
    kind = tuning.INTERPRETER if interpret else jax.devices()[0].device_kind
    tiles = tuning.lookup(name, problem, kind)
    options = {
        "scale": problem.head_dim**-0.5, "implementation": name, "tiles": tiles, "interpret": interpret
    }  # fmt: skip

    def decode(q: jax.Array, kv_pages: jax.Array, tables: jax.Array, kv_lens: jax.Array) -> jax.Array:
        # Sequences share pages here, so the items are more than the pool would have room for.
        num_items = problem.slots + int((-(-trial.ragged[1] // tiles.chunk)).sum())
        work = work_list.make_decode_work(kv_lens, chunk=tiles.chunk, max_items=num_items)
        return api.paged_decode(q, kv_pages, tables, kv_lens, work=work, **options)

    return decode if problem.kind == "decode" else functools.partial(api.paged_prefill, **options)


def _rotate(
    qkv: jax.Array,
    kv_pages: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    page_ids: jax.Array,
    offsets: jax.Array,
    **options: Any,
) -> jax.Array:
    """Rotated queries, and what is in the cache then, [tokens, heads + 2 kv_heads, head_dim]."""
    kv_pages, q = api.rotate_and_write(kv_pages, qkv, cos, sin, page_ids, offsets, **options)
    new = kv_pages[page_ids, :, :, offsets]
    return jnp.concatenate([q, new.reshape(len(q), -1, q.shape[-1])], axis=1)


def _rotation(problem: Problem, rng: np.random.Generator) -> Trial:
    """Tokens at places of their own, or, every third, nowhere, in a cache of NaN."""
    problem = problem._replace(tokens=min(problem.tokens, MAX_ROTATED), slots=min(problem.slots, MAX_ROTATED))
    tokens, kv_heads, page_size = problem.tokens, problem.kv_heads, problem.page_size
    rows = (tokens, kv_heads, problem.group + 2, problem.head_dim)
    qkv = _rounded(rng.standard_normal(rows), problem.dtype)
    num_pages = tokens // page_size + 2
    kv_pages = np.full((num_pages, 2, kv_heads, page_size, problem.head_dim), np.nan, np.float32)
    places = rng.permutation(num_pages * page_size)[:tokens]
    live = np.arange(tokens) % 3 != 1
    page_ids = np.where(live, places // page_size, num_pages).astype(np.int32)
    angles = rng.uniform(0, 2 * np.pi, (tokens, problem.head_dim // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    with jax.default_device(jax.devices("cpu")[0]):
        parts = [np.asarray(part) for part in rotated(*map(jnp.asarray, (qkv, cos, sin)))]
    expected = np.concatenate(parts, axis=1)
    both = np.abs(qkv) + np.abs(np.roll(qkv, problem.head_dim // 2, axis=-1))  # of a pair
    queries = both[:, :, :-2].reshape(tokens, -1, problem.head_dim)
    magnitude = np.concatenate([queries, both[:, :, -2], both[:, :, -1]], axis=1)
    max_error = _max_error(expected, magnitude, problem.dtype)
    ragged = (cos, sin, page_ids, (places % page_size).astype(np.int32))
    return Trial(problem, qkv, kv_pages, ragged, live, expected, max_error)


def check(run: Callable[[], Answer], trial: Trial) -> None:
    """Raise WrongAnswer unless a kernel answers a trial right, and with the same bits twice."""
    first, second = (run()[trial.counts] for _ in range(2))
    error = np.abs(first.astype(np.float32) - trial.expected[trial.counts])
    max_error = trial.max_error[trial.counts]
    wrong = ~(error <= max_error)  # NaN is wrong
    if wrong.any():
        worst = np.unravel_index(
            np.argmax(np.where(wrong, np.nan_to_num(error, nan=np.inf), -1)), wrong.shape
        )
        raise WrongAnswer(
            f"{wrong.sum()} of {wrong.size} elements of a {_describe(trial.problem)} are wrong: "
            f"{float(first[worst]):.4g} instead of {trial.expected[trial.counts][worst]:.4g} "
            f"+- {max_error[worst]:.2g}"
        )
    differ = (first.view(np.uint8) != second.view(np.uint8)).any(-1).sum()
    if differ:
        heads = first.shape[0] * first.shape[1]
        raise WrongAnswer(
            f"{differ} of {heads} rows of a {_describe(trial.problem)} have other bits the second time"
        )


def _describe(problem: Problem) -> str:
    size = f"of {problem.slots} slots" if problem.kind == "decode" else f"of {problem.tokens} tokens"
    return f"{problem.kind} {size}"


def _wanted(problem: Problem) -> list[tuple[int, int]]:
    """(queries, tokens) of the sequences that slots take in turn: at, before and behind the borders of pages,
    dead ones, and a long one."""
    page = problem.page_size
    if problem.kind == "decode":
        lengths = [LONG, page, page + 1, page - 1, 0, 3 * page + 5, 1, 2 * page]
        return [(min(n, 1), min(n, problem.max_len)) for n in lengths]
    pairs = [
        (9, page + 9), (1, page), (0, 0), (page, 2 * page), (3, page + 1), (8, 8), (200, LONG), (130, 130)
    ]  # fmt: skip
    return [(min(queries, problem.max_len), min(n, problem.max_len)) for queries, n in pairs]


def _slots_of(problem: Problem, wanted: Sequence[tuple[int, int]]) -> _Slots:
    """The slots of a trial: the sequences in turn, until there is no more room; the rest is dead."""
    room = min(problem.tokens, MAX_QUERIES) if problem.kind == "prefill" else problem.tokens
    starts, q_lens, kv_lens, sequences = (np.zeros(problem.slots, np.int32) for _ in range(4))
    begin = 0
    for slot, (index, (q_len, kv_len)) in zip(
        range(problem.slots), itertools.cycle(enumerate(wanted)), strict=False
    ):
        fits = max(0, min(q_len, room - begin))  # a sequence that does not fit has its last queries left out
        starts[slot] = slot if problem.kind == "decode" else min(begin, problem.tokens)
        q_lens[slot], kv_lens[slot], sequences[slot] = fits, (kv_len - q_len + fits) * (fits > 0), index
        begin += fits if problem.kind == "decode" else -(-fits // TOKEN_ALIGN) * TOKEN_ALIGN
    return _Slots(starts, q_lens, kv_lens, sequences)


def _cache(
    problem: Problem, lengths: Sequence[int], rng: np.random.Generator
) -> tuple[
    Float[np.ndarray, "num_pages 2 kv_heads page_size head_dim"], Int[np.ndarray, "sequences pages_per_seq"]
]:
    """Sequences on permuted pages, with NaN behind their ends and in pages of nobody; and their tables."""
    page_size = problem.page_size
    counts = [-(-length // page_size) for length in lengths]
    num_pages = sum(counts) + 4  # the null page, and three that nobody has
    page_shape = (2, problem.kv_heads, page_size, problem.head_dim)
    kv_pages = np.full((num_pages, *page_shape), np.nan, np.float32)
    tables = np.zeros((len(lengths), problem.pages_per_seq), np.int32)
    free = iter(rng.permutation(np.arange(1, num_pages)))
    for sequence, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        for index in range(count):
            page = tables[sequence, index] = next(free)
            live = min(page_size, length - index * page_size)
            kv_pages[page] = _rounded(rng.standard_normal(page_shape), problem.dtype)
            kv_pages[page, :, :, live:] = np.nan
    return kv_pages, tables


def _rounded(x: Float[np.ndarray, "*n"], dtype: str) -> Float[np.ndarray, "*n"]:
    """The nearest numbers of a dtype, as float32."""
    return x.astype(jnp.dtype(dtype)).astype(np.float32)


def _in_plain_jax(
    problem: Problem, q: np.ndarray, kv_pages: np.ndarray, ragged: tuple[np.ndarray, ...]
) -> tuple[Float[np.ndarray, "tokens heads head_dim"], Float[np.ndarray, "tokens heads head_dim"]]:
    """The answer in float32, zeros in rows of no slot; and the same of |v|: the error of a sum is relative to
    it. Computed on the CPU."""
    op = api.paged_decode if problem.kind == "decode" else api.paged_prefill
    function = jax.jit(functools.partial(op, scale=problem.head_dim**-0.5, implementation="xla"))
    magnitudes = np.concatenate([kv_pages[:, :1], np.abs(kv_pages[:, 1:])], axis=1)
    with jax.default_device(jax.devices("cpu")[0]):
        expected, magnitude = (
            np.asarray(function(*map(jnp.asarray, (q, pages, *ragged)))) for pages in (kv_pages, magnitudes)
        )
    return expected, magnitude


def _max_error(expected: np.ndarray, magnitude: np.ndarray, dtype: str) -> np.ndarray:
    """What rounding may cost. A weight is rounded to the dtype before its product with a value, and the
    result once more, each by half a unit in the last place; scores and sums are of float32."""
    info = jnp.finfo(dtype)
    rounding = float(info.eps) / 2 * (magnitude + np.abs(expected))
    return rounding + (4e-5 + float(info.smallest_subnormal)) * magnitude
