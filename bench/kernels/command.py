"""Times the attention kernels against what the device can do at most, and against others' kernels.

    python -m bench.kernels [--quick | --smoke] [--ops decode prefill ...] [--implementations mosaic xla ...]

First the device's ceilings; then, problem by problem, each implementation's result is checked, and only
then are those that are right timed in turns. A time is that of a chain of calls in one compiled program,
each on another cache (together more than four times the L2) and with the queries that the call before made,
over the number of calls; nothing is subtracted. The floor beside it is the larger of the problem's bytes
over the measured rate of reading, and its operations over the measured rate of matrix products.

Rows go to kernels.jsonl as soon as they exist, all to kernels.json at the end, with a table and pictures,
under bench/results/MACHINE. After a crash, `--resume` goes on behind the rows that are there, and leaves
out what crashed. `--smoke` is for machines without a GPU: tiny sizes, interpreted kernels, no times.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import jax

from bench.kernels import arms as attention_arms
from bench.kernels import cache_ops
from bench.kernels import problems as attention_problems
from bench.kernels import report as kernel_report
from bench.kernels.check import is_right, reference_error
from bench.kernels.names import KERNELS, NAMES
from bench.kernels.rows import DeviceLost, Run, measure_attention, measure_cache_ops, measure_work_lists
from bench.measure import ceilings, manifest
from bench.measure.ceilings import Ceilings
from bench.measure.journal import Journal

OPS = ("decode", "prefill", "cache", "plan")
ROUNDS = 7
DEVICE_LOST = 3  # exit status: go on with --resume


def _ceilings(journal: Journal, smoke: bool) -> Ceilings | None:
    """The device's rates: measured, or those of the run that is resumed; None of a smoke run."""
    for row in journal.rows:
        if row["op"] == "ceilings":
            return Ceilings(*(row[field] for field in Ceilings._fields))
    print("ceilings ...", flush=True)
    rates = ceilings.measure(ceilings.SMOKE if smoke else ceilings.Sizes(), rounds=0 if smoke else ROUNDS)
    if smoke:
        return None
    journal.add({"op": "ceilings", "case": "", "implementation": "", "status": "ok", **rates._asdict()})
    print(ceilings.table(rates), flush=True)
    return rates


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a representative tenth, in minutes")
    size.add_argument("--smoke", action="store_true", help="tiny sizes and no times: does it run at all")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--implementations", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there, and go on")
    parser.add_argument("--output-dir", type=pathlib.Path)
    return parser.parse_args()


def main() -> int:
    """The command; the exit code is 1 where a kernel is wrong, 2 without a GPU, 3 where the device was
    lost."""
    args = _parse()
    if args.smoke:
        manifest.prepare_smoke()
    on_cpu = jax.devices()[0].platform == "cpu"
    if on_cpu and not args.smoke:
        print("no NVIDIA GPU found: nothing to measure; --smoke runs the same code on tiny sizes")
        return 2
    folder = manifest.results_dir(args.smoke, args.output_dir)
    journal = Journal(folder / "kernels.jsonl", args.resume)
    about = {"op": "manifest", "case": "", "implementation": "", "status": "ok"}
    journal.add(about | {"quick": args.quick, "smoke": args.smoke} | manifest.collect())
    limits = _ceilings(journal, args.smoke)
    run = Run(journal, limits, rounds=0 if args.smoke else ROUNDS, interpret=on_cpu)
    status = 0
    try:
        _measure_all(args, run)
    except DeviceLost as error:
        print(f"the device is lost, go on with --resume: {error}", flush=True)
        status = DEVICE_LOST
    kernel_report.write(journal.rows, folder)
    wrong = [row for row in journal.rows if row["status"] == "WRONG"]
    return status or (1 if wrong else 0)


def _measure_all(args: argparse.Namespace, run: Run) -> None:
    error = reference_error()
    print(f"plain JAX against float64 NumPy: relative error {error:.1e}", flush=True)
    if not is_right(error):
        raise SystemExit("plain JAX is wrong on this device: there is nothing to compare with")
    grids = {
        "decode": attention_problems.decode_grid(args.quick),
        "prefill": attention_problems.prefill_grid(args.quick),
    }
    if args.smoke:
        smoke = attention_problems.smoke_grid()
        grids = {op: [case for case in smoke if case.op == op] for op in grids}
    for op, cases in grids.items():
        if op in args.ops:
            measure_attention(cases, attention_arms.builders(op, args.implementations), run)
    if "cache" in args.ops:
        measure_cache_ops(cache_ops.grid(args.smoke), run)
    if "plan" in args.ops:
        names = [name for name in KERNELS if name in args.implementations]
        measure_work_lists([cases[0] for cases in grids.values()], names, run)


if __name__ == "__main__":
    sys.exit(main())
