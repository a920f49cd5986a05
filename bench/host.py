"""What the host costs per step: planning, packing and taking in results, and one dispatch.

    python -m bench.host [--quick] [--json FILE]

Sequences end and arrive all the time (about 1 % per step). No model runs: results are made up from the
plan, outside the timed sections. Sizes take turns, so that a slow spell of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.measure.prefixes import describe, time_prefixes
from jbatch.config import EngineConfig, ModelConfig
from jbatch.host.config import SchedulerConfig
from jbatch.host.pack import pack
from jbatch.host.plan import StepPlan
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES
from jbatch.host.request import Request
from jbatch.host.scheduler import Scheduler
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from jbatch.seam.bucket import Bucket, buckets_of, decode_bucket
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import StepInput, input_size, padding
from jbatch.seam.step_output import Status, StepOutput, num_draws

if TYPE_CHECKING:
    from jbatch.device.runner import Runner

PROMPT_LEN, MEAN_OUTPUT_LEN, PAGE_SIZE, MAX_MODEL_LEN = 64, 100, 64, 1024
GOAL_US = 300.0  # schedule + pack + apply at 256 sequences, on an idle machine


class Timing(NamedTuple):
    """Microseconds of one step's host work."""

    prefills: bool
    schedule: float
    pack: float
    apply: float

    @property
    def total(self) -> float:
        return self.schedule + self.pack + self.apply


class Churn:
    """A scheduler that is kept at `num_seqs` running sequences, one step ahead of made-up results."""

    def __init__(self, num_seqs: int, seed: int = 0):
        self.num_seqs, self._random = num_seqs, random.Random(seed)
        self.shape = _state_shape(num_seqs, num_pages=1 + num_seqs * MAX_MODEL_LEN // PAGE_SIZE)
        self.scheduler = Scheduler(
            SchedulerConfig(
                shape=self.shape,
                max_model_len=MAX_MODEL_LEN,
                buckets=buckets_of(EngineConfig(max_num_seqs=num_seqs), MAX_MODEL_LEN),
                policy=POLICIES["fcfs"],
                admission=MODES["continuous"],
            )
        )
        self._left: dict[int, int] = {}  # tokens that a sequence has still to get
        self._num_added = 0
        self._in_flight: tuple[StepPlan, StepOutput, Timing] | None = None
        for _ in range(3 * MEAN_OUTPUT_LEN):  # until sequences of all ages run
            self.step()

    def step(self) -> Timing | None:
        """Plan and pack a step, then take in the result of the one before, whose timing is then complete."""
        missing = self.num_seqs - len(self.scheduler.running) - self.scheduler.num_waiting
        for _ in range(missing):
            self.scheduler.add(self._request())
        begin = time.perf_counter()
        plan = self.scheduler.schedule(float(self._num_added))
        scheduled = time.perf_counter()
        if plan is not None:
            pack(plan, self.shape)
        packed = time.perf_counter()
        before, self._in_flight = self._in_flight, None
        if plan is not None:
            timing = Timing(bool(plan.chunks), 1e6 * (scheduled - begin), 1e6 * (packed - scheduled), 0.0)
            self._in_flight = (plan, self._output(plan), timing)
        if before is None:
            return None
        plan, output, timing = before
        begin = time.perf_counter()
        self.scheduler.apply(plan, output)
        return timing._replace(apply=1e6 * (time.perf_counter() - begin))

    def _request(self) -> Request:
        self._num_added += 1
        return Request(
            request_id=str(self._num_added),
            prompt_token_ids=tuple(range(1, PROMPT_LEN + 1)),
            params=SamplingParams(temperature=0.0),
            max_tokens=self._random.randint(MEAN_OUTPUT_LEN // 2, MEAN_OUTPUT_LEN * 3 // 2),
            stop_ids=(2,),
            seed=self._num_added,
            arrival=float(self._num_added),
        )

    def _output(self, plan: StepPlan) -> StepOutput:
        """A token for each draw; half of the sequences end early, at a stop id."""
        draws = num_draws(plan.bucket, self.shape)
        output = StepOutput(
            np.full((draws, 1), 7, np.int32), np.zeros(draws, np.int32), np.zeros(draws, np.int32)
        )
        for slot, seq_id in enumerate(plan.seq_ids):
            self._draw(slot, seq_id, output)
        begun = (draw for chunk in plan.chunks for draw in chunk.draws)
        for idx, draw in enumerate(begun, start=plan.bucket.slots):
            if draw.setup is not None:
                self._left[draw.seq_id] = draw.setup.budget
            self._draw(idx, draw.seq_id, output)
        return output

    def _draw(self, idx: int, seq_id: int, output: StepOutput) -> None:
        if seq_id not in self._left:
            return  # it ended in the step before
        output.num_tokens[idx] = 1
        self._left[seq_id] -= 1
        if not self._left[seq_id]:
            output.status[idx] = Status.OUT_OF_BUDGET
        elif self._random.random() < 0.5 / MEAN_OUTPUT_LEN:
            output.status[idx] = Status.STOPPED
        if output.status[idx]:
            del self._left[seq_id]


def _state_shape(num_rows: int, num_pages: int) -> StateShape:
    return StateShape(num_rows, num_pages, PAGE_SIZE, MAX_MODEL_LEN // PAGE_SIZE)


def time_host(sizes: tuple[int, ...], rounds: int, steps: int) -> dict[str, Any]:
    """Median microseconds per step at each number of running sequences, and the slope."""
    churns = {size: Churn(size) for size in sizes}
    timings: dict[int, list[Timing]] = {size: [] for size in sizes}
    user_s = dict.fromkeys(sizes, 0.0)
    for _ in range(rounds):
        for size, churn in churns.items():
            begin = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            timings[size] += [timing for _ in range(steps) if (timing := churn.step())]
            user_s[size] += resource.getrusage(resource.RUSAGE_SELF).ru_utime - begin
    rows = [_row(size, timings[size], user_s[size]) for size in sizes]
    slope = (rows[-1]["total_us"] - rows[0]["total_us"]) / (sizes[-1] - sizes[0])
    return {"rows": rows, "slope_us_per_sequence": slope, "goal_us_at_256": GOAL_US}


def _row(size: int, timings: list[Timing], user_s: float) -> dict[str, Any]:
    decode = [timing.total for timing in timings if not timing.prefills]
    mixed = [timing.total for timing in timings if timing.prefills]
    parts = {
        f"{part}_us": statistics.median(getattr(timing, part) for timing in timings)
        for part in ("schedule", "pack", "apply", "total")
    }
    return {
        "running": size,
        "decode_steps": len(decode),  # the others have prompts, too: someone's first tokens
        **parts,
        "best_total_us": statistics.quantiles((timing.total for timing in timings), n=10)[0],
        "decode_total_us": statistics.median(decode) if decode else math.nan,
        "mixed_total_us": statistics.median(mixed) if mixed else math.nan,
        "user_us_per_step": user_s / len(timings) * 1e6,  # making up requests and results included
    }


def time_dispatch(num_layers: int, slots: int, calls: int) -> dict[str, Any]:
    """Microseconds of `Runner.submit` with a decode step's arguments, for a program that computes nothing."""
    import jax

    from jbatch.device.state import abstract_state

    config = ModelConfig(
        vocab_size=64,
        embed_dim=32,
        mlp_dim=32,
        num_layers=num_layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        max_position_embeddings=MAX_MODEL_LEN,
        dtype="float32",
    )
    bucket = decode_bucket(slots)
    runner = _idle_runner(config, bucket)
    packed = padding(bucket, runner.shape, Sampler.GREEDY)
    leaves = len(jax.tree.leaves((runner.params, abstract_state(config, runner.shape), packed)))
    spans = []
    for _ in range(calls):
        begin = time.perf_counter()
        handle = runner.submit(StepInput(bucket, Sampler.GREEDY, packed))
        spans.append(time.perf_counter() - begin)
        runner.collect(handle)
    runner.close()
    return {"layers": num_layers, "leaves_per_call": leaves, "submit_us": statistics.median(spans) * 1e6}


def _idle_runner(config: ModelConfig, bucket: Bucket) -> Runner:
    """A runner on the CPU whose programs take and give what a step does, and compute nothing."""
    import jax
    import jax.numpy as jnp

    from jbatch.device.model import abstract_params
    from jbatch.device.programs import Program, StepSpec
    from jbatch.device.runner import Runner
    from jbatch.device.state import EngineState, abstract_state, zeros

    like = abstract_params(config)

    class Idle(StepSpec):
        """What such a runner's programs have in common."""

        def compile(self, program: Program) -> jax.stages.Compiled:
            draws = num_draws(program.bucket, self.shape)

            def step(params: Any, state: EngineState, extra: Any, packed: jax.Array, token_mask: None) -> Any:
                return state, extra, jnp.zeros((draws, 3), jnp.int32)

            size = input_size(program.bucket, self.shape, program.sampler)
            state, packed = abstract_state(config, self.shape), jax.ShapeDtypeStruct((size,), jnp.int32)
            jitted = jax.jit(step, donate_argnums=1, keep_unused=True)
            with jax.default_device(self.device):
                return jitted.lower(tuple(like.values()), state, {}, packed, None).compile()

    spec = Idle(config, _state_shape(bucket.slots, num_pages=4), jax.devices("cpu")[0])
    runner = Runner(spec, zeros(like, spec.device), [bucket], [Sampler.GREEDY])
    runner.prepare()
    return runner


def print_table(result: dict[str, Any]) -> None:
    """The result, for people."""
    columns: tuple[str, ...] = (
        "running",
        "schedule_us",
        "pack_us",
        "apply_us",
        "total_us",
        "best_total_us",
        "decode_total_us",
        "mixed_total_us",
    )
    columns += ("user_us_per_step",)
    print("microseconds per step (median), results one step late, 1 % of the sequences end per step")
    print("  ".join(column.removesuffix("_us").rjust(16) for column in columns))
    for row in result["host"]["rows"]:
        print("  ".join(f"{row[column]:16.0f}" for column in columns))
    dispatch = result["dispatch"]
    print(
        f"slope: {result['host']['slope_us_per_sequence']:.2f} us per sequence; goal at 256: {GOAL_US:.0f} us"
    )
    print(
        f"dispatch of a decode step, {dispatch['layers']} layers: {dispatch['leaves_per_call']} leaves, "
        f"{dispatch['submit_us']:.0f} us"
    )
    print(describe(result["prefixes"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few steps: does it run at all")
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    args = parser.parse_args()
    rounds, steps = (1, 60) if args.quick else (20, 100)
    result = {
        "schema": 1,
        "quick": args.quick,
        "prefixes": time_prefixes(num_pages=20_000 if args.quick else 1_000_000)._asdict(),
        "host": time_host((64, 256, 1024), rounds, steps),
        "dispatch": time_dispatch(num_layers=32, slots=64, calls=20 if args.quick else 500),
    }
    print_table(result)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
