"""Check the kernels of `pallas_kernels` in all combinations of what they take, and with random cases.

    python -m tests.long.check_kernels                             # all, interpreted on a CPU: hours
    python -m tests.long.check_kernels --cases 200 --seed 1        # of each implementation and op, at random
    python -m tests.long.check_kernels --cases 0 --fuzz 1000       # random lengths and tables of a few sizes
    python -m tests.long.check_kernels --device                    # not interpreted, on this machine's GPU

A line for each failure, then a summary; the exit code is 1 if there are any, and 4 if nothing can run here.
The tests draw a part of the same cases.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pallas_kernels.names import NAMES

OPS = ("decode", "prefill")
NOTHING_RUNS = 4  # exit status


class Check(NamedTuple):
    name: str
    run: Callable[[], None]


def checks(kernel: Any, op: Any, num_cases: int | None, num_fuzz: int, seed: int) -> Iterator[Check]:
    """Of one op of an implementation: what its callers rely on, `num_cases` of the product in random order
    (all by default), and `num_fuzz` random ones."""
    from tests.helpers import kernel_checks, kernel_fuzz, kernel_points
    from tests.helpers.kernel_properties import PROPERTIES

    points = kernel_points.points(kernel, op)
    random.Random(seed).shuffle(points)

    for holds_for in PROPERTIES.get(op, ()):
        yield Check(f"{kernel.name} {op} {holds_for.__name__}", functools.partial(holds_for, kernel))
    for point in points[:num_cases]:
        yield Check(
            f"{kernel.name} {op} {point}", functools.partial(kernel_checks.check_point, kernel, point, seed)
        )
    for index in range(num_fuzz):
        name = f"{kernel.name} {op} fuzz seed {seed} index {index}"
        yield Check(name, functools.partial(kernel_fuzz.check_fuzz, kernel, op, seed, index))


def kernels(names: list[str], device: bool) -> tuple[list[Any], dict[str, str]]:
    """The implementations asked for that can run here, and why the others cannot."""
    import jax

    from tests.helpers.kernels import NAMES, interpreted, on_device, uninterpretable

    names = names or list(NAMES)
    if device:
        able = {kernel.name: kernel for kernel in on_device(jax.devices()[0])}
        missing = {name: f"not on {jax.devices()[0].device_kind}" for name in names if name not in able}
    else:
        missing = {name: reason for name in names if (reason := uninterpretable(name))}
        able = {name: interpreted(name) for name in names if name not in missing}
    return [able[name] for name in names if name in able], missing


def run(check: Check) -> str | None:
    """The first line of what went wrong, or None."""
    try:
        check.run()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"FAILED {check.name}: {type(error).__name__}: {' '.join(lines)[:400]}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--implementation", action="append", choices=NAMES[::-1])
    parser.add_argument("--op", action="append", choices=OPS)
    parser.add_argument("--cases", type=int, help="of each implementation and op; by default all")
    parser.add_argument("--fuzz", type=int, default=0, help="random cases of each implementation and op")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", action="store_true", help="on the GPU, not interpreted")
    args = parser.parse_args()
    if not args.device:
        os.environ["JAX_PLATFORMS"] = "cpu"
    # Mosaic's interpreter blocks a thread of XLA's pool for each warpgroup.
    os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))

    num_failed, num_run, start = 0, 0, time.monotonic()
    able, missing = kernels(args.implementation or [], args.device)
    for name, reason in missing.items():
        print(f"left out: {name}: {reason}")
    if not able:
        return NOTHING_RUNS
    for kernel in able:
        for op in args.op or OPS:
            before, began = (num_run, num_failed), time.monotonic()
            for check in checks(kernel, op, args.cases, args.fuzz, args.seed):
                failure = run(check)
                num_run += 1
                num_failed += failure is not None
                if failure:
                    print(failure, flush=True)
            ran, failed = num_run - before[0], num_failed - before[1]
            print(
                f"{kernel.name} {op}: {ran} run, {failed} failed, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    print(f"{num_run} run, {num_failed} failed, {time.monotonic() - start:.0f} s")
    return 1 if num_failed or not num_run else 0


if __name__ == "__main__":
    sys.exit(main())
