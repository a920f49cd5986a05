"""A model's steps without an engine: weights and a full cache on the device, and any step again and again."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import weights
from bench.measure import ceilings, manifest, random_data
from bench.measure.timing import Times, summary
from jbatch.config import ModelConfig
from jbatch.device.backend import Attention, problems_of
from jbatch.device.model import abstract_params
from jbatch.device.programs import StepSpec, program_for
from jbatch.device.state import EngineState, abstract_state, free
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket
from jbatch.seam.rows import ROW_WIDTH, RowSetup, row_columns
from jbatch.seam.shape import StateShape
from pallas_kernels.implementations import declines

BACKENDS = ("mosaic", "triton", "xla")
STRETCH_S = 0.06  # of one timed stretch: what starting it costs is then below 1 %
MAX_CALLS = 64  # steps of a stretch, by which a decode step's context grows
GREEDY = RowSetup()
MEMORY_SHARE = 0.85  # of what JAX may take, for weights and cache; the rest is for temporaries


class Size(NamedTuple):
    """What is measured of a model: its shape, and how long its sequences are."""

    name: str
    config: ModelConfig
    context: int  # tokens in the cache of each sequence
    page_size: int = 64


class Model:
    """Random weights, random keys and values, and a row for each slot; page 0 holds NaN.

    Row i owns pages 1 + i * pages_per_seq and on, and has `context` tokens of cache. Its tokens are drawn as
    `drawing` says.
    """

    def __init__(self, size: Size, num_rows: int, device: jax.Device, drawing: RowSetup = GREEDY):
        self.config, self.context, self.device = size.config, size.context, device
        self._drawing = drawing
        self.shape = state_shape(size, num_rows)
        like = abstract_params(size.config)
        sharding = jax.sharding.SingleDeviceSharding(device)
        drawn = weights.random(like, 0, shardings=dict.fromkeys(like, sharding))
        self.params = tuple(drawn[name] for name in like)
        leaves = abstract_state(size.config, self.shape)
        pools = [
            random_data.kv_pool(leaf.shape, size.config.dtype, 1 + idx, 1.0)
            for idx, leaf in enumerate(leaves.kv_pages)
        ]
        self.state = EngineState(self._rows(), self._tables(), tuple(pools))
        jax.block_until_ready(self.state)

    def reset(self) -> None:
        """Every sequence as it was at first: the steps made it longer."""
        self.state = self.state._replace(rows=self._rows())

    def run(self, program: Any, packed: np.ndarray) -> jax.Array:
        """Dispatch a step; its output, still on the device."""
        self.state, _, output = program(self.params, self.state, {}, packed, None)
        return output

    @property
    def lost(self) -> bool:
        """Whether a step failed on the device: it took the state along."""
        return self.state.rows.is_deleted()

    def close(self) -> None:
        """Free the device's memory, for the next model."""
        free((self.params, self.state))

    def _rows(self) -> jax.Array:
        rows = np.zeros((self.shape.num_rows, ROW_WIDTH), np.int32)
        for idx in range(self.shape.num_rows):
            token = (7919 * (idx + 1)) % self.config.vocab_size
            setup = self._drawing._replace(last_token=token, length=self.context, budget=2**30)
            rows[idx] = row_columns(setup)
        return jax.device_put(rows, self.device)

    def _tables(self) -> jax.Array:
        return jax.device_put(own_pages(self.shape), self.device)


def state_shape(size: Size, num_rows: int) -> StateShape:
    """With room for what the steps add to each sequence."""
    pages_per_seq = -(-(size.context + MAX_CALLS + 1) // size.page_size)
    return StateShape(num_rows, 1 + num_rows * pages_per_seq, size.page_size, pages_per_seq)


def own_pages(shape: StateShape) -> np.ndarray:
    """Block tables [num_rows, pages_per_seq] in which no page comes twice, in random order."""
    pages = 1 + np.random.default_rng(0).permutation(shape.num_rows * shape.pages_per_seq)
    return pages.astype(np.int32).reshape(shape.num_rows, shape.pages_per_seq)


def memory_needed(size: Size, num_rows: int) -> int:
    """Bytes of weights and cache."""
    params = sum(int(np.prod(leaf.shape)) for leaf in abstract_params(size.config).values())
    shape = state_shape(size, num_rows)
    itemsize = jnp.dtype(size.config.dtype).itemsize
    return params * itemsize + shape.num_pages * shape.page_size * size.config.kv_bytes_per_token


def why_too_large(size: Size, num_rows: int, device: jax.Device) -> str | None:
    """Why the device cannot hold weights and cache; None where it can."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    need = memory_needed(size, num_rows)
    if limit is None or need <= MEMORY_SHARE * limit:
        return None
    return f"needs {need / 1e9:.0f} GB of weights and cache, the device has {limit / 1e9:.0f} GB"


def why_not(backend: str, model: Model, bucket: Bucket) -> str | None:
    """Why an attention backend cannot run a step on this device, uninterpreted; None where it can."""
    if backend == "xla":
        return None
    problems = problems_of(model.config, model.shape, bucket)
    return next(filter(None, (declines(backend, problem, model.device) for problem in problems)), None)


def compile_greedy(model: Model, bucket: Bucket, backend: str) -> Any:
    """The engine's own program of a bucket for greedy requests, with an attention backend."""
    spec = StepSpec(model.config, model.shape, model.device, Attention.all_by(backend))
    return spec.compile(program_for(bucket, Sampler.GREEDY))


def time_step(model: Model, program: Any, packed: np.ndarray, number: int, rounds: int) -> Times | str:
    """Seconds per step of a step of `number` sequences; what is wrong with it, where its rows end or are not
    finite."""
    ended = np.asarray(model.run(program, packed))[:number, 1:]  # how many tokens, and a Status
    if not (ended == (1, 0)).all():
        return f"rows ended or are not finite: {ended[:4].tolist()} ..."
    return time_steps(model, program, packed, rounds)


def time_steps(model: Model, program: Any, packed: np.ndarray, rounds: int) -> Times:
    """Seconds per step of stretches of steps that are dispatched back to back: nothing waits in between."""
    model.run(program, packed).block_until_ready()
    calls = 3
    _, estimate = _stretch(model, program, packed, calls)
    calls = min(MAX_CALLS, max(3, round(STRETCH_S / (estimate / calls))))
    return summary([_stretch(model, program, packed, calls)[1] for _ in range(rounds)], calls)


def _stretch(model: Model, program: Any, packed: np.ndarray, calls: int) -> tuple[np.ndarray, float]:
    model.reset()
    jax.block_until_ready(model.state.rows)
    begin = time.perf_counter()
    for _ in range(calls):
        output = model.run(program, packed)
    output.block_until_ready()
    return np.asarray(output), time.perf_counter() - begin


class Rows:
    """Rows of results in a JSON file that is whole after each of them."""

    def __init__(self, path: Path | None, about: Mapping[str, Any]):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.result = {"schema": 1, **about, "manifest": manifest.collect(), "rows": self.rows}

    def add(self, row: Mapping[str, Any], line: str) -> None:
        """Keep a row, and print it as a line for people."""
        print(line, flush=True)
        self.rows.append(dict(row))
        if self.path is not None:
            whole = self.path.with_suffix(".tmp")
            whole.write_text(json.dumps(self.result, indent=1) + "\n")
            whole.replace(self.path)


class Rates(NamedTuple):
    """What the device was measured to do at most."""

    read_bytes_per_s: float
    gemm_flop_per_s: float


def rates(path: Path | None, tiny: bool) -> Rates:
    """Those in the file that bench.measure.ceilings wrote, where there is one; else measured now."""
    if path is not None and path.exists():
        found = json.loads(path.read_text())["ceilings"]
        return Rates(found["read_bytes_per_s"], found["gemm_flop_per_s"])
    print("ceilings ...", flush=True)
    sizes, rounds = (ceilings.SMOKE, 1) if tiny else (ceilings.Sizes(), ceilings.ROUNDS)
    measured = ceilings.measure(sizes, rounds)
    return Rates(measured.read_bytes_per_s, measured.gemm_flop_per_s)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What all programs take that time steps."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, after each")
    parser.add_argument(
        "--ceilings", type=Path, metavar="FILE", help="of bench.measure.ceilings; else measured"
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="begin nothing after that long")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU too: not a measurement")
