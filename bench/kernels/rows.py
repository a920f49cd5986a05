"""What the rows of bench.kernels hold, and how problems become rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench.kernels import cache_ops
from bench.kernels import problems as attention_problems
from bench.kernels import report as kernel_report
from bench.kernels.arms import VALUE_SCALE, Builder, Declined, Setup, build_kernel, make_setup
from bench.kernels.cache_ops import CacheCase
from bench.kernels.check import TOLERANCE, is_right, relative_error
from bench.kernels.problems import DTYPE, MIN_CALLS, Case
from bench.measure import random_data
from bench.measure.ceilings import Ceilings
from bench.measure.journal import Journal, Row
from bench.measure.timing import CompiledArm, Times, time_in_turns

COMPILE_THREADS = 12
COMPILE_AHEAD = 4  # problems compiled together; nothing is timed meanwhile
MEMORY_SHARE = 0.8  # of what JAX may take, for a pool
SMOKE_LABEL = "smoke run: not a measurement"

Built = dict[str, "Future[CompiledArm]"]


class Run(NamedTuple):
    """What all measurements of a run share."""

    journal: Journal
    ceilings: Ceilings | None  # None: a smoke run, which takes no times
    rounds: int
    interpret: bool

    @property
    def smoke(self) -> bool:
        """Whether times are left out, as on a machine without a GPU."""
        return self.ceilings is None

    def report(self, row: Row) -> None:
        """Write a row, and print it, but for what is declined for the same reason again."""
        same = [r for r in self.journal.rows if _why_not(r) == _why_not(row)]
        self.journal.add(row)
        if row["status"] != "declined" or not same:  # once is enough for what is not installed
            print(kernel_report.line(row), flush=True)


def _why_not(row: Row) -> tuple[Any, ...]:
    return row["op"], row["implementation"], row["status"], row.get("reason")


class DeviceLost(Exception):
    """The process can compute nothing more."""


def measure_attention(cases: Sequence[Case], builders: Mapping[str, Builder], run: Run) -> None:
    """Check and time the problems' implementations; those of the same model and page size share a pool."""
    for _, group in itertools.groupby(cases, key=lambda case: (case.heads, case.page_size)):
        todo = [case for case in group if _fits(case, run) and _names_to_do(case, builders, run.journal)]
        if not todo:
            continue
        num_pages = max(attention_problems.pool_pages(case, _num_caches(case, run)) for case in todo)
        shape = (num_pages, *attention_problems.page_shape(todo[0]))
        print(f"... a cache of {num_pages} pages of {todo[0].page_size} tokens", flush=True)
        kv_pages = random_data.kv_pool(shape, DTYPE, 0, VALUE_SCALE).block_until_ready()
        for batch in _batches(todo, COMPILE_AHEAD):
            for setup, built, reference in _compile(batch, kv_pages, builders, run):
                measure_case(setup, built, reference, run)
        kv_pages.delete()


def _fits(case: Case, run: Run) -> bool:
    """Whether the memory holds the problem's caches; a row says so where it does not."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    need = attention_problems.pool_bytes(case, _num_caches(case, run))
    if limit is None or need <= MEMORY_SHARE * limit:
        return True
    reason = f"needs {need / 1e9:.0f} GB of cache, the device has {limit / 1e9:.0f} GB"
    run.report(_row(case, "all", "declined", reason=reason))
    return False


def _num_caches(case: Case, run: Run) -> int:
    return 2 if run.smoke else attention_problems.num_caches(case)


def _names_to_do(case: Case, builders: Mapping[str, Builder], journal: Journal) -> list[str]:
    return [name for name in builders if _is_to_do(case.op, case.name, name, journal)]


def _is_to_do(op: str, case_name: str, name: str, journal: Journal) -> bool:
    return not journal.is_done(op, case_name, name) and (op, name) not in journal.deadly()


def _batches(items: Sequence[Case], size: int) -> Iterator[Sequence[Case]]:
    return (items[index : index + size] for index in range(0, len(items), size))


def _compile(
    cases: Sequence[Case], kv_pages: jax.Array, builders: Mapping[str, Builder], run: Run
) -> list[tuple[Setup, Built, Future[CompiledArm]]]:
    """Compile some problems' arms in parallel, and wait: compilers try kernels out on the device."""
    compiled = []
    with ThreadPoolExecutor(COMPILE_THREADS) as pool:
        for case in cases:
            calls = 2 if run.smoke else MIN_CALLS
            setup = make_setup(case, kv_pages, _num_caches(case, run), calls, run.interpret)
            names = _names_to_do(case, builders, run.journal)
            built = {name: pool.submit(builders[name], setup) for name in names}
            reference = built.get("xla") or pool.submit(build_kernel, "xla", setup._replace(num_calls=1))
            compiled.append((setup, built, reference))
    return compiled


def measure_case(setup: Setup, built: Built, reference: Future[CompiledArm], run: Run) -> None:
    """Check and time one problem: a row for each implementation, with a time for those whose result is
    right."""
    case, right = setup.case, {}
    try:
        expected = reference.result().once()
    except Exception as error:
        _report_failure(_row(case, "xla", "failed"), error, run)
        return
    for name, future in built.items():
        try:
            arm = future.result()
        except Declined as error:
            run.report(_row(case, name, "declined", reason=str(error)))
        except Exception as error:  # whatever a compiler says: the other implementations go on
            run.report(_row(case, name, "failed", reason=_reason(error)))
        else:
            row = _check(case, arm, expected, run)
            if row["status"] == "checked":
                right[name] = arm, row
    try:
        times = time_in_turns([arm for arm, _ in right.values()], run.rounds)
    except Exception as error:  # they ran in turns: nobody knows whose it was
        for _, row in right.values():
            _report_failure(row, error, run)
        return
    for name, (arm, row) in right.items():
        row |= {"caches": min(len(setup.tables), arm.num_calls)}
        run.report(row | timing_fields(times[name], case.bytes, case.flop, run.ceilings))


def _check(case: Case, arm: CompiledArm, expected: jax.Array, run: Run) -> Row:
    """Check an arm's result: a row without a time, which is "checked" or says what is wrong."""
    row = run.journal.add(_row(case, arm.name, "started", tiles=arm.tiles))
    try:
        error = float(relative_error(jnp.asarray(arm.once()), expected))
    except Exception as failure:
        return _report_failure(row, failure, run)
    row = row | {"status": "checked", "error": error, "tolerance": TOLERANCE}
    if is_right(error):
        return run.journal.add(row)
    row["status"] = "WRONG"
    run.report(row)
    return row


def _report_failure(row: Row, error: Exception, run: Run) -> Row:
    """Write and print why an arm has no time. Raises DeviceLost where nothing can be computed any more."""
    row = row | {"status": "failed", "reason": _reason(error)}
    try:
        (jnp.zeros(()) + 1).block_until_ready()
    except Exception as dead:
        run.report(row | {"fatal": True})
        raise DeviceLost(f"{row['case']}, {row['implementation']}: {row['reason']}") from dead
    run.report(row)
    return row


def measure_cache_ops(cases: Sequence[CacheCase], run: Run) -> None:
    """Check and time writes and copies; bytes read and bytes written count alike."""
    for case in cases:
        if not _is_to_do(case.op, case.name, "xla", run.journal):
            continue
        row = run.journal.add(_named(case.op, case.name, "xla", "started"))
        call = cache_ops.call_for(case.op)
        try:
            if not cache_ops.check(case, call):
                run.report(row | {"status": "WRONG", "error": 1.0})
                continue
            arm = cache_ops.build("xla", case, call, 0 if run.smoke else cache_ops.POOL_BYTES)
            run.journal.add(row | {"status": "checked"})
        except Exception as error:
            _report_failure(row, error, run)
            continue
        for times in time_in_turns([arm], run.rounds).values():
            run.report(row | {"status": "ok"} | timing_fields(times, case.bytes, 0, run.ceilings))


def measure_work_lists(cases: Sequence[Case], names: Sequence[str], run: Run) -> None:
    """Time the making of a step's work list, once for all its layers: no floor, and nothing to check."""
    for case, name in itertools.product(cases, names):
        case_name = f"plan of {case.name}"
        if name == "xla" or not _is_to_do("plan", case_name, name, run.journal):
            continue
        row = run.journal.add(_named("plan", case_name, name, "started"))
        try:
            arm = cache_ops.build_work_list(name, case, run.interpret)
            times = time_in_turns([arm], run.rounds)[name]
        except Declined as error:
            run.report(row | {"status": "declined", "reason": str(error)})
        except Exception as error:
            _report_failure(row, error, run)
        else:
            run.report(row | {"tiles": arm.tiles} | timing_fields(times, 0, 0, run.ceilings))


def timing_fields(times: Times, num_bytes: int, flop: int, ceilings: Ceilings | None) -> Row:
    """A row's times, and its floor: the larger of bytes over the rate of reading and operations over that
    of matrix products. For a smoke run, that there are none."""
    if ceilings is None:
        return {"status": "smoke", "reason": SMOKE_LABEL}
    memory_s, compute_s = num_bytes / ceilings.read_bytes_per_s, flop / ceilings.gemm_flop_per_s
    floor = max(memory_s, compute_s)
    fields: Row = {
        "status": "ok",
        "us": 1e6 * times.median,
        "us_best": 1e6 * times.best,
        "us_worst": 1e6 * times.worst,
        "calls": times.calls,
        "rounds": times.rounds,
    }
    if floor:
        fields |= {
            "floor_us": 1e6 * floor,
            "bound": "memory" if memory_s >= compute_s else "compute",
            "share": floor / times.median,
            "bytes_per_s": num_bytes / times.median,
            "flop_per_s": flop / times.median,
        }
    return fields


def _named(op: str, case_name: str, implementation: str, status: str) -> Row:
    return {"op": op, "case": case_name, "implementation": implementation, "status": status}


def _row(case: Case, implementation: str, status: str, **fields: Any) -> Row:
    return {
        **_named(case.op, case.name, implementation, status),
        "heads": case.heads.name,
        "page_size": case.page_size,
        "batch": case.batch,
        "context": case.context,
        "tokens": case.tokens,
        "lengths": case.label,
        "kv_tokens": sum(case.kv_lens),
        "bytes": case.bytes,
        "flop": case.flop,
        **fields,
    }


def _reason(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 400 else text[:400] + " ..."
