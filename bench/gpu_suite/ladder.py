"""The ladder of the GPU suite: the three scenarios on one model, a file each, up to date after each repeat.

    python -m bench.gpu_suite.ladder --out DIR [--model NAME] [--steps FILE] [--seconds S] [--tiny]

As `jbatch bench batching`, with a quarter of the scenarios' lengths and few buckets, so that it fits the
suite's time. Files are DIR/batching-SCENARIO.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from bench.gpu_suite.models import TINY_OPTIONS, fastest_attention
from bench.ladder import tables
from bench.ladder.arms import ARMS, choose_arms
from bench.ladder.batching import Experiment, make_workloads, run_batching
from bench.ladder.gains import LEAST_BATCHES
from bench.measure import manifest
from bench.options import Setting
from bench.results import ArmResult, Results, claimed, describe, write

SCENARIOS = ("mixed_length", "uniform_short", "bursty_traffic")  # the most telling first
LENGTH_SCALE, TINY_SCALE = 0.25, 0.1
ALL_ARMS = tuple(name for name in ARMS if name != "static-full")  # all are there at once: it would be static
TINY_ARMS = ("static", "static-padded", "continuous")
SLOTS, REPEATS = 16, 3
OPTIONS: dict[str, Any] = {
    "max_num_seqs": SLOTS,
    "decode_buckets": (1, 2, 4, 8, 16),
    "max_num_batched_tokens": 512,
    "token_buckets": (64, 512),
    "num_pages": 1 + 16 * SLOTS,
    "max_model_len": 192,  # of the longest scenario, so that all share their programs
    "samplers": ("greedy",),
    "show_progress": False,
}


def main() -> int:
    """The command; the exit code is 1 where an arm did not run, or there was no time for a scenario."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="llama3.2-1b", metavar="NAME")
    parser.add_argument("--steps", type=Path, metavar="FILE", help="of bench.steps: the fastest attention")
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no scenario after that long")
    parser.add_argument("--tiny", action="store_true", help="the demo model, few requests: no measurement")
    args = parser.parse_args()
    begin, results, failed, late = time.monotonic(), [], 0, []
    for scenario in SCENARIOS[: 1 if args.tiny else None]:
        if time.monotonic() - begin > args.seconds:
            skip(scenario, args)
            late.append(scenario)
            continue
        (measured,) = run(scenario, args)
        results.append(measured)
        failed += sum(arm.not_run is not None for arm in measured.arms.values())
    if len(results) > 1:
        tables.print_gains(tables.console(), results)
    if late:
        print(f"not run, no time left: {', '.join(late)}", flush=True)  # last: the suite shows it
    return 1 if failed or late else 0


def run(scenario: str, args: argparse.Namespace) -> list[Results]:
    """One scenario's results, which are also in its file."""
    return run_batching(*request(scenario, args))


def skip(scenario: str, args: argparse.Namespace) -> None:
    """Write a file that says of every arm that there was no time for it."""
    experiment, setting, options, scale = request(scenario, args)
    (workload,) = make_workloads(experiment, setting, options, scale)
    arms = {
        arm.name: ArmResult(arm.name, arm.definition, not_run="no time left")
        for arm in choose_arms(list(experiment.arms))
    }
    about = manifest.collect() | {"model": experiment.model, "max_num_seqs": options["max_num_seqs"]}
    assert experiment.output_json is not None
    with claimed(experiment.output_json):
        write(experiment.output_json, Results("batching", about, describe(workload), arms))


def request(
    scenario: str, args: argparse.Namespace
) -> tuple[Experiment, Setting, dict[str, Any], dict[str, Any]]:
    """The arguments of `run_batching` for one scenario."""
    model = "demo" if args.tiny else args.model
    options = TINY_OPTIONS if args.tiny else OPTIONS | {"attention_backend": fastest_attention(args.steps)}
    slots = options["max_num_seqs"]
    setting = Setting(
        num_prompts=LEAST_BATCHES * slots, repeats=1 if args.tiny else REPEATS, no_floor=args.tiny
    )
    arms = TINY_ARMS if args.tiny else ALL_ARMS
    experiment = Experiment(model, (scenario,), arms, output_json=args.out / f"batching-{scenario}.json")
    scale = {"length_scale": TINY_SCALE if args.tiny else LENGTH_SCALE}
    return experiment, setting, options, scale


if __name__ == "__main__":
    sys.exit(main())
