"""What the device can do at most: reading memory, copying it, and multiplying matrices.

    python -m bench.measure.ceilings [--smoke] [--json FILE]

Shares of a ceiling elsewhere are of these figures, not of a data sheet's. All data is random: products of
zeros run faster. Programs chain many operations, each of which needs the result of the one before.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench.measure import manifest, random_data
from bench.measure.timing import CompiledArm, time_in_turns

ROUNDS = 7
CHAIN = 16  # matrix products of a program


class Sizes(NamedTuple):
    """How much is read, and how large the matrices are."""

    num_arrays: int = 2
    array_bytes: int = 4 * 10**9  # of each
    matrix: int = 8192
    dtype: str = "bfloat16"


SMOKE = Sizes(2, 2**16, 64)


def sizes_beside(device: jax.Device, dtype: str) -> Sizes:
    """Sizes for rates that a model's steps are compared with, in its own dtype: measured in a second or two,
    and on a CPU too, where arrays need only be larger than its caches."""
    if device.platform == "cpu":
        return Sizes(2, 2**26, 512, dtype)
    return Sizes(2, 2**30, 8192, dtype)


class Ceilings(NamedTuple):
    """Rates; `details` holds each way of reading, and what was seen at best and worst."""

    read_bytes_per_s: float
    copy_bytes_per_s: float  # bytes read plus bytes written
    gemm_flop_per_s: float
    details: dict[str, Any]


def measure(sizes: Sizes, rounds: int = ROUNDS) -> Ceilings:
    """Measure the device's rates; that of reading is of the fastest of several programs that read everything
    once."""
    num_bytes, memory = _memory(sizes)
    makers = memory | {"gemm": functools.partial(_gemm, sizes)}
    with ThreadPoolExecutor(len(makers)) as pool:  # first all that is compiled
        arms = list(pool.map(lambda name: makers[name](name), makers))
    details = _rates(arms[:-1], {"copy": 2 * num_bytes}, num_bytes, rounds)
    details |= _rates(arms[-1:], {}, 2 * sizes.matrix**3, rounds)
    read = max(timed["rate"] for name, timed in details.items() if name.startswith("read"))
    return Ceilings(read, details["copy"]["rate"], details["gemm"]["rate"], details)


def _memory(sizes: Sizes) -> tuple[int, dict[str, Callable[[str], CompiledArm]]]:
    """How many bytes the programs read, and what compiles each by its name."""
    shape = (sizes.array_bytes // jnp.dtype(sizes.dtype).itemsize // 8192, 8192)
    arrays = [random_data.normal(shape, sizes.dtype, seed) for seed in range(sizes.num_arrays)]
    return sum(array.nbytes for array in arrays), {
        "read whole": functools.partial(_read, arrays, jnp.sum),
        "read rows": functools.partial(_read, arrays, lambda x, dtype: x.sum(axis=1, dtype=dtype).max()),
        "read columns": functools.partial(_read, arrays, lambda x, dtype: x.sum(axis=0, dtype=dtype).max()),
        "copy": functools.partial(_copy, arrays),
    }


def _rates(
    arms: list[CompiledArm], work: dict[str, int], default: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Each arm's work over its time; `default` is the work of an arm that `work` does not name."""
    times = time_in_turns(arms, rounds)
    return {
        name: {
            "rate": work.get(name, default) / spans.median,
            "best": work.get(name, default) / spans.best,
            "worst": work.get(name, default) / spans.worst,
        }
        for name, spans in times.items()
    }


def _read(arrays: list[jax.Array], total: Callable[..., jax.Array], name: str) -> CompiledArm:
    """Compile sums of all arrays, of elements no smaller than a limit that changes nothing and that the sum
    before decides, so that no sum can be left out or made ready early."""

    def program(limit: jax.Array, arrays: list[jax.Array]) -> jax.Array:
        for array in arrays:
            summed = total(jnp.maximum(array, limit), dtype=jnp.float32)
            limit = jnp.minimum(limit, -jnp.abs(summed).astype(limit.dtype))
        return limit

    compiled = jax.jit(program).lower(jnp.asarray(-100, arrays[0].dtype), arrays).compile()

    def many(passes: int) -> None:
        limit = jnp.asarray(-100, arrays[0].dtype)
        for _ in range(passes):
            limit = compiled(limit, arrays)
        limit.block_until_ready()

    return CompiledArm(name, lambda: None, many, num_calls=1)


def _copy(arrays: list[jax.Array], name: str) -> CompiledArm:
    compiled = jax.jit(jnp.negative).lower(arrays[0]).compile()

    def many(passes: int) -> None:
        for _ in range(passes):
            for array in arrays:
                result = compiled(array)
        result.block_until_ready()

    return CompiledArm(name, lambda: None, many, num_calls=1)


def _gemm(sizes: Sizes, name: str) -> CompiledArm:
    """Compile a chain of matrix products."""
    shape = (sizes.matrix, sizes.matrix)
    start = random_data.normal(shape, sizes.dtype, 100)
    weight = random_data.normal(shape, sizes.dtype, 101) * sizes.matrix**-0.5  # results stay of order one
    weight = weight.astype(sizes.dtype)

    def program(x: jax.Array, weight: jax.Array) -> jax.Array:
        for _ in range(CHAIN):
            x = jnp.dot(x, weight)
        return x

    compiled = jax.jit(program).lower(start, weight).compile()

    def many(passes: int) -> None:
        x = start
        for _ in range(passes):
            x = compiled(x, weight)
        x.block_until_ready()

    return CompiledArm(name, lambda: None, many, CHAIN)


def table(ceilings: Ceilings) -> str:
    """The rates, a line each."""
    lines = [
        f"{name:12} {timed['rate'] / 1e12:8.3f} {'TFLOP/s' if name == 'gemm' else 'TB/s'}"
        f"  ({timed['worst'] / 1e12:.3f} to {timed['best'] / 1e12:.3f})"
        for name, timed in ceilings.details.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """The command: measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run at all")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the result there")
    args = parser.parse_args()
    ceilings = measure(SMOKE if args.smoke else Sizes(), rounds=1 if args.smoke else ROUNDS)
    print("smoke run: not a measurement" if args.smoke else table(ceilings))
    if args.json:
        result = {"schema": 1, "kind": "ceilings", "tiny": args.smoke, "manifest": manifest.collect()}
        result["ceilings"] = ceilings._asdict()
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
