"""The ops: attention of ragged queries over a paged KV cache, and writing that cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels import cache, cpu, implementations, reference, tuning, work_list
from pallas_kernels.problem import PAGE_SIZES, Problem


class RaggedMetadata(NamedTuple):
    """Where each slot's queries lie in the packed token axis, and how long its sequence is.

    Every slot starts at a multiple of `TOKEN_ALIGN` tokens; dead slots have `q_lens` and `kv_lens` 0.
    """

    q_starts: Int[Array, " slots"]
    q_lens: Int[Array, " slots"]
    kv_lens: Int[Array, " slots"]  # with this step's tokens
    work: Any = None  # of `add_work_list`, shared by all layers of a step; None: made by the call


def paged_attention(
    q: Float[Array, "tokens heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    metadata: RaggedMetadata,
    *,
    scale: float,
    max_q_len: int | None = None,
    implementation: str | Sequence[str] | None = None,
    interpret: Any = False,
) -> Float[Array, "tokens heads head_dim"]:
    """Causal attention of each slot's queries over its own pages.

    The queries are the last `q_lens[i]` of slot i's `kv_lens[i]` tokens, whose keys and values are
    already in the cache: a fresh prompt, a chunk of one, and a prompt behind a cached prefix are one case.

    Args:
      max_q_len: 1 says that this is a decode step: tokens = slots, and query i is slot i's only one.
      implementation: one of `names.NAMES`, or several in order of preference: what one cannot do falls
        through to the next. None: plain JAX. `choose` says which it is.
      interpret: run a kernel in Pallas' interpreter, on any machine: True, or Mosaic's
        `plgpu.InterpretGPUParams`.

    Returns:
      The attention output, in q's dtype. Zeros for decode slots with `kv_lens` 0; in prefill, rows of no
      slot may hold anything.

    Raises:
      ValueError: for arguments that do not fit together, naming them; where no implementation takes the
        problem, with each one's reason.
    """
    options: dict[str, Any] = {"scale": scale, "implementation": implementation, "interpret": interpret}
    if max_q_len == 1:
        return paged_decode(q, kv_pages, block_tables, metadata.kv_lens, work=metadata.work, **options)
    ragged, work = metadata[:3], metadata.work
    return paged_prefill(q, kv_pages, block_tables, *ragged, work=work, **options)


def paged_decode(
    q: Float[Array, "slots heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    kv_lens: Int[Array, " slots"],
    *,
    scale: float,
    work: work_list.DecodeWork | None = None,
    tiles: tuning.Tiles | None = None,
    implementation: str | Sequence[str] | None = None,
    interpret: Any = False,
) -> Float[Array, "slots heads head_dim"]:
    """One query per slot against the first `kv_lens` tokens of its sequence; zeros where that is 0.

    A slot's bits do not depend on the other slots. `tiles` replace those of the tuning table; `work` must
    come from `add_work_list` with the same ones. The rest is as in `paged_attention`.
    """
    problem = _problem("decode", q, kv_pages, block_tables)
    _check_per_slot(problem, kv_lens=kv_lens)
    name = _choose(problem, implementation, interpret)
    if name == "xla":
        return _in_plain_jax("paged_decode", scale, q, kv_pages, block_tables, kv_lens)
    tiles = tiles or tuning.lookup(name, problem, _device_kind(interpret))
    if work is None:
        work = _decode_work(problem, kv_lens, tiles)
    kernel = _traced_once(implementations.module(name, "decode").paged_decode)
    return kernel(q, kv_pages, block_tables, kv_lens, work, scale=scale, tiles=tiles, interpret=interpret)


def paged_prefill(
    q: Float[Array, "tokens heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    q_starts: Int[Array, " slots"],
    q_lens: Int[Array, " slots"],
    kv_lens: Int[Array, " slots"],
    *,
    scale: float,
    work: work_list.PrefillWork | None = None,
    tiles: tuning.Tiles | None = None,
    implementation: str | Sequence[str] | None = None,
    interpret: Any = False,
) -> Float[Array, "tokens heads head_dim"]:
    """Causal attention of packed queries of any lengths; the arguments are as in `paged_attention`.

    Rows of no slot may hold anything, NaN too.
    """
    problem = _problem("prefill", q, kv_pages, block_tables)
    _check_per_slot(problem, q_starts=q_starts, q_lens=q_lens, kv_lens=kv_lens)
    name = _choose(problem, implementation, interpret)
    if name == "xla":
        ragged = (block_tables, q_starts, q_lens, kv_lens)
        return _in_plain_jax("paged_prefill", scale, q, kv_pages, *ragged)
    tiles = tiles or tuning.lookup(name, problem, _device_kind(interpret))
    if work is None:
        work = _prefill_work(name, problem, q_starts, q_lens, kv_lens, tiles)
    kernel = _traced_once(implementations.module(name, "prefill").paged_prefill)
    return kernel(q, kv_pages, block_tables, work, scale=scale, tiles=tiles, interpret=interpret)


def add_work_list(
    q: Float[Array, "tokens heads head_dim"] | jax.ShapeDtypeStruct,
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    metadata: RaggedMetadata,
    *,
    max_q_len: int | None = None,
    tiles: tuning.Tiles | None = None,
    implementation: str | Sequence[str] | None = None,
    interpret: Any = False,
) -> RaggedMetadata:
    """The metadata with the work list of a `paged_attention` call with these arguments: made once per step,
    for all its layers. Of `q` only the shape and the dtype matter. Plain JAX needs no list."""
    problem = _problem("decode" if max_q_len == 1 else "prefill", q, kv_pages, block_tables)
    name = _choose(problem, implementation, interpret)
    if name == "xla":
        return metadata
    tiles = tiles or tuning.lookup(name, problem, _device_kind(interpret))
    if problem.kind == "decode":
        return metadata._replace(work=_decode_work(problem, metadata.kv_lens, tiles))
    return metadata._replace(work=_prefill_work(name, problem, *metadata[:3], tiles))


def rotate_and_write(
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    qkv: Float[Array, "tokens kv_heads rows head_dim"],
    cos: Float[Array, "tokens half"],
    sin: Float[Array, "tokens half"],
    page_ids: Int[Array, " tokens"],
    offsets: Int[Array, " tokens"],
    *,
    implementation: str = "xla",
    interpret: bool = False,
) -> tuple[Float[Array, "num_pages 2 kv_heads page_size head_dim"], Float[Array, "tokens heads head_dim"]]:
    """Rotate queries and keys, and put each token's key and value at (page, offset) of the cache.

    `qkv` holds for each KV head its queries, then its key, then its value. Tokens whose page id is
    `num_pages` are not written. In place where `kv_pages` is donated. No two live tokens may share a place.

    Args:
      implementation: "xla", plain JAX: on a GPU a kernel for the queries and one for the cache; or "triton",
        which is one for both.

    Returns:
      The cache, and the rotated queries.
    """
    arrays = (kv_pages, qkv, cos, sin, page_ids, offsets)
    if implementation == "xla":
        return cache.rotate_and_write(*arrays)
    kernel = _traced_once(implementations.module(implementation, "rotate").rotate_and_write, ("interpret",))
    return kernel(*arrays, interpret=interpret)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _in_plain_jax(op: str, scale: float, *arrays: jax.Array) -> jax.Array:
    """The reference's function of that name; on a CPU the form that its compiler does well with. A program of
    many layers traces it once."""
    on_cpu, elsewhere = (functools.partial(getattr(module, op), scale=scale) for module in (cpu, reference))
    return lax.platform_dependent(*arrays, cpu=on_cpu, default=elsewhere)


@functools.cache
def _traced_once(
    kernel: Callable[..., Any], static: tuple[str, ...] = ("scale", "tiles", "interpret")
) -> Callable[..., Any]:
    """The kernel behind a jit of its own: a program of many layers traces and lowers it once."""
    return jax.jit(kernel, static_argnames=static)


def _decode_work(problem: Problem, kv_lens: jax.Array, tiles: tuning.Tiles) -> work_list.DecodeWork:
    max_items = work_list.max_items(problem, tiles.chunk)
    return work_list.make_decode_work(kv_lens, chunk=tiles.chunk, max_items=max_items)


def _prefill_work(
    name: str,
    problem: Problem,
    q_starts: jax.Array,
    q_lens: jax.Array,
    kv_lens: jax.Array,
    tiles: tuning.Tiles,
) -> work_list.PrefillWork:
    tile_tokens = implementations.module(name, "prefill").tile_tokens(problem, tiles)
    num_tiles = work_list.num_tiles(problem, tile_tokens)
    return work_list.make_prefill_work(
        q_starts, q_lens, kv_lens, tile_tokens=tile_tokens, num_tiles=num_tiles
    )


def _choose(problem: Problem, implementation: str | Sequence[str] | None, interpret: Any) -> str:
    """A single name is taken at its word about the device, which may be one that is only compiled for."""
    by_device = implementation is not None and not isinstance(implementation, str) and not interpret
    return implementations.choose(problem, implementation, jax.devices()[0] if by_device else None).name


def _device_kind(interpret: Any) -> str:
    return tuning.INTERPRETER if interpret else jax.devices()[0].device_kind


def _problem(kind: Any, q: Any, kv_pages: Any, block_tables: Any) -> Problem:
    if q.ndim != 3 or kv_pages.ndim != 5 or block_tables.ndim != 2:
        raise ValueError(
            "expected q [tokens, heads, head_dim], kv_pages [num_pages, 2, kv_heads, page_size, head_dim], "
            f"block_tables [slots, pages_per_seq]; got {q.shape}, {kv_pages.shape}, {block_tables.shape}"
        )
    num_pages, two, kv_heads, page_size, head_dim = kv_pages.shape
    slots, pages_per_seq = block_tables.shape
    if two != 2:
        raise ValueError(f"kv_pages.shape[1]={two}: must be 2 (keys, values)")
    if page_size not in PAGE_SIZES:
        raise ValueError(f"page_size={page_size}: must be one of {PAGE_SIZES}")
    if head_dim != q.shape[2]:
        raise ValueError(f"head_dim={head_dim} of kv_pages differs from q's {q.shape[2]}")
    if q.shape[1] % kv_heads:
        raise ValueError(f"heads={q.shape[1]} of q is no multiple of kv_heads={kv_heads}")
    if q.dtype != kv_pages.dtype:
        raise ValueError(f"dtype={q.dtype} of q differs from kv_pages' {kv_pages.dtype}")
    if kind == "decode" and q.shape[0] != slots:
        raise ValueError(f"tokens={q.shape[0]} of q: a decode step has one per slot, {slots}")
    sizes = (q.shape[0], slots, q.shape[1], kv_heads, head_dim, num_pages, page_size, pages_per_seq)
    return Problem(kind, str(q.dtype), *sizes)


def _check_per_slot(problem: Problem, **arrays: Any) -> None:
    for name, array in arrays.items():
        if array.shape != (problem.slots,):
            raise ValueError(f"{name}.shape={array.shape}: must be [slots] = ({problem.slots},)")
