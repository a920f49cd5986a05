"""Measure the kernels' tiles on the device at hand, and rewrite pallas_kernels/tuning.json.

    python -m bench.kernels.tune [--quick | --smoke] [--implementations mosaic ...] [--ops decode ...]

Tiles that decide the order of summation must be the same for all problems of a model: of these, the ones
with the least geometric mean of time over floor are taken, over all problems, each with the best of the
others. The others are then those that are best for each problem by itself. What is wrong or does not compile
is left out. Every measurement goes to tuning.jsonl, beside the other results of this machine, as soon as it
exists; the table changes each time a kernel is done for a model. `--smoke` goes the same way through tiny
problems without measuring anything.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench.kernels import problems as attention_problems
from bench.kernels.arms import VALUE_SCALE, Setup, build_kernel, kernel_call, make_setup
from bench.kernels.check import is_right, relative_error
from bench.kernels.problems import DTYPE, HEADS, MIN_CALLS, Case, Heads, decode_case, num_caches, prefill_case
from bench.kernels.rows import timing_fields
from bench.kernels.tile_search import Measured, choose, rewrite, tiles_to_try
from bench.measure import ceilings, manifest, random_data
from bench.measure.ceilings import Ceilings
from bench.measure.journal import Journal
from bench.measure.timing import CompiledArm, time_in_turns
from pallas_kernels import implementations, tuning
from pallas_kernels.names import COMPILERS
from pallas_kernels.tuning import Tiles

TABLE = Path(tuning.__file__).with_name("tuning.json")
COMPILE_THREADS = 8
ROUNDS = 5
COMPILE_AHEAD = 16  # tiles compiled together; nothing is timed meanwhile
QUICK_VALUES = 2  # of each field, the likeliest first
SMOKE_TILES = 2


class Job(NamedTuple):
    """A kernel to tune for a model: its rows in the table go together."""

    implementation: str
    cases: tuple[Case, ...]  # problems over one pool, of one kind

    @property
    def name(self) -> str:
        """How the output calls the job."""
        case = self.cases[0]
        return f"{self.implementation} {case.op} {case.heads.name} page {case.page_size}"


class Tuner(NamedTuple):
    """What all jobs share."""

    journal: Journal
    ceilings: Ceilings | None  # None: a smoke run, in which the first tiles that are right win
    quick: bool
    device_kind: str
    interpret: bool


def tune(job: Job, tuner: Tuner) -> list[dict[str, Any]]:
    """Measure a kernel's tiles for a model: its rows of the table; none where no tiles work."""
    caches = {case: 2 if tuner.ceilings is None else num_caches(case) for case in job.cases}
    num_pages = max(attention_problems.pool_pages(case, num) for case, num in caches.items())
    problem = job.cases[0].problem(num_pages)
    device = None if tuner.interpret else jax.devices()[0]
    if reason := implementations.declines(job.implementation, problem, device):
        print(f"{job.name}: {reason}", flush=True)
        return []
    kind = tuning.INTERPRETER if tuner.interpret else tuner.device_kind
    shape = (num_pages, *attention_problems.page_shape(job.cases[0]))
    kv_pages = random_data.kv_pool(shape, DTYPE, 0, VALUE_SCALE)
    calls = 2 if tuner.ceilings is None else MIN_CALLS
    setups = [make_setup(case, kv_pages, num, calls, tuner.interpret) for case, num in caches.items()]
    tried = tiles_to_try(job.implementation, problem, kind, QUICK_VALUES if tuner.quick else None)
    tried = tried[: SMOKE_TILES if tuner.ceilings is None else None]
    measured = [measure(setup, job.implementation, tried, tuner) for setup in setups]
    chosen = choose(measured)
    about = manifest.collect() if chosen else {}
    rows = [
        table_row(job.implementation, setup, tiles, times[tiles], about)
        for setup, times, tiles in zip(setups, measured, chosen, strict=False)
    ]
    kv_pages.delete()
    return rows


def measure(setup: Setup, implementation: str, tried: Sequence[Tiles], tuner: Tuner) -> Measured:
    """Compile, check and time tiles on one problem; the times of those that work."""
    call = kernel_call("xla", setup)
    expected = call.function(setup.q, setup.kv_pages, jnp.asarray(setup.tables[0]), setup.lens, call.work)
    expected.block_until_ready()
    result: Measured = {}
    for index in range(0, len(tried), COMPILE_AHEAD):
        result |= _measure(setup, implementation, tried[index : index + COMPILE_AHEAD], expected, tuner)
    return result


def _measure(
    setup: Setup, implementation: str, tried: Sequence[Tiles], expected: jax.Array, tuner: Tuner
) -> Measured:
    """Compile some tiles together, then check and time them; the times of those that work."""
    with ThreadPoolExecutor(COMPILE_THREADS) as pool:
        built = list(pool.map(lambda tiles: attempt(build_kernel, implementation, setup, tiles), tried))
    right: dict[Tiles, CompiledArm] = {}
    for tiles, outcome in zip(tried, built, strict=True):
        reason = outcome if isinstance(outcome, str) else attempt(_wrong, outcome, expected)
        if reason is None:
            right[tiles] = outcome._replace(name=str(tuple(tiles)))
        else:
            report(setup.case, implementation, tiles, {"status": "failed", "reason": reason}, tuner)
    times = time_in_turns(list(right.values()), 0 if tuner.ceilings is None else ROUNDS)
    result = {}
    for tiles, arm in right.items():
        fields = timing_fields(times[arm.name], setup.case.bytes, setup.case.flop, tuner.ceilings)
        report(setup.case, implementation, tiles, fields, tuner)
        result[tiles] = {"us": 1.0, "floor_us": 1.0} | fields
    return result


def _wrong(arm: CompiledArm, expected: jax.Array) -> str | None:
    """What is wrong with a result, or None."""
    error = float(relative_error(arm.once(), expected))
    return None if is_right(error) else f"WRONG: relative error {error:.1e}"


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function: its result, or what went wrong, as a string."""
    try:
        return function(*args)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def report(case: Case, implementation: str, tiles: Tiles, fields: dict[str, Any], tuner: Tuner) -> None:
    """Write and print a measurement."""
    row = {"op": case.op, "case": case.name, "implementation": f"{implementation} {tuple(tiles)}"}
    tuner.journal.add(row | {"tiles": tiles._asdict()} | fields)
    text = f"{fields['us']:8.1f} us, {100 * fields['share']:.1f} %" if "us" in fields else fields["reason"]
    print(f"{case.name:44} {implementation} {tuple(tiles)}: {text}", flush=True)


def table_row(
    implementation: str, setup: Setup, tiles: Tiles, measured: dict[str, Any], about: dict[str, Any]
) -> dict[str, Any]:
    """A row of tuning.json, with what was measured."""
    problem = setup.case.problem(setup.kv_pages.shape[0])
    kept = ["status"]
    if measured["status"] == "ok":
        kept += ["us", "us_best", "us_worst", "floor_us", "share", "calls"]
    seen = {name: round(v, 3) if isinstance(v := measured[name], float) else v for name in kept}
    key = (about["device"], implementation, problem.kind, problem.group, problem.head_dim, problem.page_size)
    row = tuning.Row(*key, *tuning.bucket(problem), tiles._asdict(), seen)
    versions = {name: about[name] for name in ("jax", "driver", "commit", "date")}
    return row._asdict() | {"measured": seen | {"case": setup.case.name} | versions}


def jobs(args: argparse.Namespace) -> list[Job]:
    """What to tune: the most used first."""
    to_tune = []
    for implementation, op in itertools.product(args.implementations, args.ops):
        for model, page_size in itertools.product(args.models, args.page_sizes):
            cases = smoke_cases(op) if args.smoke else problems(op, HEADS[model], page_size, args.quick)
            to_tune.append(Job(implementation, cases))
    return list(dict.fromkeys(to_tune))


def problems(op: str, heads: Heads, page_size: int, quick: bool) -> tuple[Case, ...]:
    """The problems that the rows of a model are measured on."""
    if op == "prefill":
        tokens = (2048, 512) if quick else (2048, 512, 8192)
        return tuple(prefill_case(heads, page_size, num, "fresh") for num in tokens)
    sizes = [(64, 1024), (1, 8192)] if quick else [(64, 1024), (1, 8192), (8, 4096), (64, 8192), (256, 1024)]
    return tuple(decode_case(heads, page_size, *size) for size in sizes)


def smoke_cases(op: str) -> tuple[Case, ...]:
    """A problem for an interpreter."""
    return tuple(case for case in attention_problems.smoke_grid() if case.op == op)[:1]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="few values and problems, GQA with page 64")
    size.add_argument("--smoke", action="store_true", help="tiny problems, no times")
    parser.add_argument("--implementations", nargs="+", default=list(COMPILERS), choices=COMPILERS)
    parser.add_argument("--ops", nargs="+", default=["decode", "prefill"], choices=("decode", "prefill"))
    parser.add_argument("--models", nargs="+", choices=HEADS)
    parser.add_argument("--page-sizes", nargs="+", type=int)
    parser.add_argument("--table", type=Path, help="the table to rewrite (default: the one that is shipped)")
    parser.add_argument("--output-dir", type=Path)
    args = parser.parse_args()
    args.models = args.models or (["gqa"] if args.quick else ["gqa", "mha"])
    args.page_sizes = args.page_sizes or ([64] if args.quick else [64, 16])
    return args


def main() -> int:
    """The command; the exit code is 2 where there is nothing to measure on."""
    args = _parse()
    if args.smoke:
        manifest.prepare_smoke()
    on_cpu = jax.devices()[0].platform == "cpu"
    if on_cpu and not args.smoke:
        print("no NVIDIA GPU found: nothing to measure; --smoke runs the same code on tiny problems")
        return 2
    folder = manifest.results_dir(args.smoke, args.output_dir)
    table = args.table or (folder / "tuning.json" if args.smoke else TABLE)
    limits = None if args.smoke else ceilings.measure(ceilings.Sizes())
    device_kind = jax.devices()[0].device_kind
    tuner = Tuner(Journal(folder / "tuning.jsonl"), limits, args.quick or args.smoke, device_kind, on_cpu)
    for job in jobs(args):
        rows = tune(job, tuner)
        if rows:
            rewrite(table, rows)
        print(f"{job.name}: {len(rows)} rows in {table}", flush=True)
        for row in rows:
            print(f"  {row['batch']} x {row['context']}: {row['tiles']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
