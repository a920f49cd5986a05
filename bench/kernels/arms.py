"""The arms of bench.kernels: implementations of attention, each compiled for one problem on this device."""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.kernels import problems as attention_problems
from bench.kernels.names import FOREIGN, KERNELS, NAMES
from bench.kernels.problems import DTYPE, Case
from bench.measure import random_data
from bench.measure.timing import CompiledArm
from pallas_kernels import RaggedMetadata, add_work_list, implementations, paged_decode, paged_prefill, tuning

VALUE_SCALE = 8.0  # an average of many values is small, and results are the next call's queries
XLA_CALLS = {"decode": 16, "prefill": 2}  # of a program of plain JAX: its loops take long


class Declined(Exception):
    """An implementation does not take a problem, or is not there; the message says why."""


class Setup(NamedTuple):
    """A problem's arrays on the device, and as many caches for it as the timing needs."""

    case: Case
    q: jax.Array
    kv_pages: jax.Array
    tables: tuple[np.ndarray, ...]  # [slots, pages_per_seq] of each cache
    lens: tuple[jax.Array, ...]  # what paged_decode or paged_prefill take behind the tables
    num_calls: int
    interpret: bool = False

    @property
    def scale(self) -> float:
        """The scale of the scores."""
        return self.case.heads.head_dim**-0.5

    @property
    def metadata(self) -> RaggedMetadata:
        """The lengths, as pallas_kernels takes them."""
        if self.case.op == "prefill":
            return RaggedMetadata(*self.lens)
        starts = np.arange(self.case.batch, dtype=np.int32)
        return RaggedMetadata(starts, np.ones_like(starts), self.lens[0])


Builder = Callable[[Setup], CompiledArm]


def make_setup(case: Case, kv_pages: jax.Array, num_caches: int, num_calls: int, interpret: bool) -> Setup:
    """A problem over `num_caches` caches in the pool, whose tables take turns in `num_calls` calls."""
    heads = case.heads
    tables = attention_problems.block_tables(case, num_caches, kv_pages.shape[0])
    lens = [np.asarray(case.kv_lens, np.int32)]
    if case.op == "prefill":
        lens = [attention_problems.q_starts(case), np.asarray(case.q_lens, np.int32), *lens]
    q = random_data.normal((case.tokens, heads.num_heads, heads.head_dim), DTYPE, 1)
    on_device = tuple(jnp.asarray(array) for array in lens)
    return Setup(case, q, kv_pages, tuple(tables), on_device, max(num_calls, num_caches), interpret)


def builders(op: str, names: Iterable[str]) -> dict[str, Builder]:
    """What compiles each named implementation of an op, in the order of `NAMES`."""
    return {
        name: _BUILDERS.get(name) or functools.partial(build_kernel, name)
        for name in NAMES
        if name in set(names) and name in (*KERNELS, *FOREIGN[op])
    }


class KernelCall(NamedTuple):
    """A call of pallas_kernels with everything chosen."""

    function: Callable[..., jax.Array]  # of q, kv_pages, table, lens, work
    work: Any
    tiles: tuning.Tiles | None


def kernel_call(name: str, setup: Setup, tiles: tuning.Tiles | None = None) -> KernelCall:
    """One of pallas_kernels' implementations, with the work list of the setup's problem.

    Raises:
      Declined: with its reason.
    """
    case = setup.case
    problem = case.problem(setup.kv_pages.shape[0])
    reason = implementations.declines(name, problem, None if setup.interpret else jax.devices()[0])
    if reason is not None:
        raise Declined(reason)
    work = None
    options: dict[str, Any] = {"implementation": name, "interpret": setup.interpret}
    if name != "xla":
        kind = tuning.INTERPRETER if setup.interpret else jax.devices()[0].device_kind
        tiles = tiles or tuning.lookup(name, problem, kind)
        max_q_len = 1 if case.op == "decode" else None
        shapes = (setup.q, setup.kv_pages, jnp.asarray(setup.tables[0]))
        add = functools.partial(add_work_list, *shapes, max_q_len=max_q_len, tiles=tiles, **options)
        work = jax.jit(add)(setup.metadata).work
    attention = paged_decode if case.op == "decode" else paged_prefill

    def call(q: jax.Array, kv_pages: jax.Array, table: jax.Array, lens: Any, work: Any) -> jax.Array:
        return attention(q, kv_pages, table, *lens, scale=setup.scale, work=work, tiles=tiles, **options)

    return KernelCall(jax.jit(call), work, tiles)


def build_kernel(name: str, setup: Setup, tiles: tuning.Tiles | None = None) -> CompiledArm:
    """One of pallas_kernels' implementations, compiled.

    Raises:
      Declined: with its reason.
    """
    call = kernel_call(name, setup, tiles)
    per_program = XLA_CALLS[setup.case.op] if name == "xla" else setup.num_calls
    chosen = call.tiles._asdict() if call.tiles else None
    return chain(name, setup, call.function, call.work, per_program=per_program, tiles=chosen)


def chain(
    name: str,
    setup: Setup,
    call: Callable[..., jax.Array],
    work: Any = None,
    *,
    per_program: int,
    convert: Callable[[np.ndarray], Any] = lambda table: table,
    tiles: dict[str, Any] | None = None,
) -> CompiledArm:
    """Compile a program of `per_program` calls, each of which reads another cache with the queries that the
    one before made. It is one CUDA graph of attention kernels alone: tables and work lists are inputs.

    Args:
      convert: makes `call`'s table of one of the setup's.
    """
    sets = _table_sets(name, setup, per_program, convert)

    def program(
        q: jax.Array, first: jax.Array, kv_pages: jax.Array, tables: Any, lens: Any, work: Any
    ) -> tuple[jax.Array, jax.Array]:
        """The results of the last call and of the first, in the memory of `q` and `first`: CUDA graphs are
        patched where addresses change."""
        del first
        results = [q]
        for table in tables:
            results.append(call(results[-1], kv_pages, table, lens, work))
        return results[-1], results[1]

    args = (setup.q, setup.q, setup.kv_pages, sets[0], setup.lens, work)
    compiled = jax.jit(program, donate_argnums=(0, 1), keep_unused=True).lower(*args).compile()

    buffers: list[jax.Array] = []  # of the last results, which are the next pass's inputs

    def once() -> jax.Array:
        buffers[:] = jax.block_until_ready((setup.q + 0, setup.q + 0))
        many(1, sets[:1])
        return buffers[1] + 0

    def many(passes: int, sets: Sequence[Any] = sets) -> None:
        q, first = buffers
        for chosen in itertools.chain.from_iterable(itertools.repeat(sets, passes)):
            q, first = compiled(q, first, setup.kv_pages, chosen, setup.lens, work)
        buffers[:] = jax.block_until_ready((q, first))

    return CompiledArm(name, once, many, sum(map(len, sets)), tiles)


def _table_sets(
    name: str, setup: Setup, per_program: int, convert: Callable[[np.ndarray], Any]
) -> list[tuple[Any, ...]]:
    """The tables of each turn of the program, on the device: the setup's, one after the other."""
    per_program = min(per_program, setup.num_calls)
    num_calls = per_program if name == "xla" and setup.case.op == "prefill" else setup.num_calls
    num_calls = -(-num_calls // per_program) * per_program
    tables = [jax.device_put(convert(table)) for table in setup.tables]
    turns = [tables[index % len(tables)] for index in range(num_calls)]
    return [tuple(turns[index : index + per_program]) for index in range(0, num_calls, per_program)]


def build_cudnn(setup: Setup) -> CompiledArm:
    """cuDNN's paged attention, through what jax has of it for its own use.

    jax's public wrapper wants a pool of exactly batch x table width pages; the shape check is left out
    here, as cuDNN itself takes a shared pool. Keys and values are one array: page p's are 2p and 2p + 1.
    """
    if jax.devices()[0].platform == "cpu":
        raise Declined("needs an NVIDIA GPU")
    try:
        fused = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
        version = fused.check_cudnn_version()
    except (ImportError, RuntimeError) as error:
        raise Declined(f"no cuDNN: {error}") from error
    mask, layout = fused.MaskType.PADDING, fused.AttentionLayout.BNTH.value

    def call(q: jax.Array, kv_pages: jax.Array, table: Any, lens: Any, work: Any) -> jax.Array:
        del work
        pages = kv_pages.reshape(-1, *kv_pages.shape[2:])
        none = jnp.zeros(0, q.dtype)
        queries, ones = q[:, :, None], jnp.ones_like(lens[0])
        options = (setup.scale, 42, 0.0, (False, False), mask, layout, None, version, False)
        out = fused._dot_product_attention(
            queries, pages, pages, none, ones, lens[0], none, none, *table, *options
        )
        return jnp.reshape(out[0] if isinstance(out, list | tuple) else out, q.shape)

    def convert(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keys = 2 * no_null_pages(table)[:, None, :, None]
        return keys, keys + 1

    return chain("cudnn", setup, call, per_program=setup.num_calls, convert=convert)


def no_null_pages(table: np.ndarray) -> np.ndarray:
    """The table padded with pages that hold numbers: others may read what they then mask."""
    return np.where(table == 0, table[:, :1], table)


def _build_torch(name: str, setup: Setup) -> CompiledArm:
    """A kernel of a PyTorch library, compiled. Raises Declined where it cannot run here."""
    if jax.devices()[0].platform == "cpu":
        raise Declined("needs an NVIDIA GPU")
    try:
        torch_arms = importlib.import_module("bench.kernels.torch_arms")
        return torch_arms.build(name, setup)
    except ImportError as error:
        raise Declined(f"not installed: {error}") from error


_BUILDERS: dict[str, Builder] = {
    "cudnn": build_cudnn,
    "flashinfer": functools.partial(_build_torch, "flashinfer"),
    "flash-attn-3": functools.partial(_build_torch, "flash-attn-3"),
}
