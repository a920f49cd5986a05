"""Times single steps of jbatch beside the same steps of the PyTorch executor, and both beside their floor.

    python -m bench.compare.steps [--model 150m] [--dtype float32] [--context 128] [--json FILE] [--tiny]

Both compute the same packed inputs on the same weights and caches, with one thread per core; they run in
turns. Decode steps of 1, 16 and 64 sequences of `context` tokens; prefill steps of one prompt of 256 and of
1,024 tokens. The floor is what the step must read and multiply at the rates that
`ceilings` measured on this device in the same dtype.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bench.measure import ceilings
from bench.measure.timing import CompiledArm, Times, time_in_turns
from bench.steps import step_model
from bench.steps.command import TINY, Case
from bench.steps.step_model import MAX_CALLS, Model, Rates, Rows, Size
from jbatch.config import EngineConfig
from jbatch.device.backend import PLAIN, Attention
from jbatch.device.platform import prepare_jax
from jbatch.device.programs import StepSpec, program_for
from jbatch.model_dir.shapes import RUNNABLE, model_config
from jbatch.sampler import Sampler
from jbatch.seam.step_input import StepInput

ROUNDS = 15
SLOTS = (1, 16, 64)
PROMPTS = (256, 1024)
PAGE_SIZE = EngineConfig.page_size


class Arms(NamedTuple):
    """One step, as both compute it."""

    arms: list[CompiledArm]
    tokens: dict[str, np.ndarray]  # that each arm drew


def build(model: Model, torch_state: Any, runner: Any, case: Case, attention: Attention) -> Arms:
    """Both arms of a step, each run once. A stretch begins with the sequences as they were at first."""
    spec = StepSpec(model.config, model.shape, model.device, attention)
    program, packed = spec.compile(program_for(case.bucket, Sampler.GREEDY)), case.pack(model)
    step = StepInput(case.bucket, Sampler.GREEDY, packed)

    def jax_steps(steps: int) -> np.ndarray:
        model.reset()
        for _ in range(steps):
            output = model.run(program, packed)
        return np.asarray(output)

    def torch_steps(steps: int) -> np.ndarray:
        torch_state.reset()
        for _ in range(steps):
            handle = runner.submit(step)
        runner.collect(handle)
        return np.asarray(handle.output)

    def passes_of(run: Callable[[int], np.ndarray]) -> Callable[[int], None]:
        """Stretches of back-to-back steps, as long as the sequences have room for."""

        def many(passes: int) -> None:
            for begin in range(0, passes, MAX_CALLS):
                run(min(MAX_CALLS, passes - begin))

        return many

    arms = {"jbatch": jax_steps, "torch": torch_steps}
    tokens = {name: run(1)[: case.number, 0].copy() for name, run in arms.items()}
    compiled = [CompiledArm(name, functools.partial(run, 1), passes_of(run), 1) for name, run in arms.items()]
    return Arms(compiled, tokens)


class TorchState:
    """The state of the PyTorch executor, with the rows, tables and cache of a jbatch model."""

    def __init__(self, runner: Any, model: Model):
        import torch

        self._state = runner.memory.state
        self._rows = torch.from_dlpack(model.state.rows).clone()
        self._state.block_tables[:-1] = torch.from_dlpack(model.state.block_tables)
        for ours, theirs in zip(self._state.kv_pages, model.state.kv_pages, strict=True):
            ours[:-1] = torch.from_dlpack(theirs)
        if self._rows.is_cuda:
            torch.cuda.synchronize()  # JAX's arrays are given away by the next step
        self.reset()

    def reset(self) -> None:
        """Every sequence as it was at first."""
        self._state.rows[:-1] = self._rows


def measure(
    size: Size,
    cases: list[Case],
    rates: Rates,
    rounds: int,
    add: Callable[[dict[str, Any], str], None],
    attention: Attention = PLAIN,
) -> None:
    """A row for each step and arm, and a line for people."""
    from bench.compare.torch_engine.model import from_jax
    from bench.compare.torch_engine.runner import Options, TorchRunner
    from jbatch.device.model import abstract_params

    model = Model(size, max(case.number for case in cases), jax.devices()[0])
    params = dict(zip(abstract_params(size.config), model.params, strict=True))
    buckets = [case.bucket for case in cases]
    runner = TorchRunner(size.config, from_jax(params), model.shape, buckets, Options(warm_up=False))
    torch_state = TorchState(runner, model)
    for case in cases:
        arms, tokens = build(model, torch_state, runner, case, attention)
        times = time_in_turns(arms, rounds)
        differ = int((tokens["jbatch"] != tokens["torch"]).sum())
        floor = case.floor(size.config, 1, rates)
        for name, spans in times.items():
            row = _row(size, case, name, spans, floor) | {"tokens_that_differ": differ}
            row["times_as_fast_as_torch"] = times["torch"].median / spans.median
            add(row, line(row))
    runner.close()
    model.close()


def _row(size: Size, case: Case, arm: str, spans: Times, floor: float) -> dict[str, Any]:
    return {
        "model": size.name,
        **case._asdict(),
        "arm": arm,
        "ms": 1e3 * spans.median,
        "ms_best": 1e3 * spans.best,
        "ms_worst": 1e3 * spans.worst,
        "rounds": spans.rounds,
        "floor_ms": 1e3 * floor,
        "share_of_floor": floor / spans.median,
    }


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    return (
        f"{row['model']:8} {row['kind']:8} {row['number']:4} x {row['length']:5}  {row['arm']:8}"
        f" {row['ms']:8.2f} ms ({row['ms_best']:.2f} to {row['ms_worst']:.2f})"
        f"  floor {row['floor_ms']:7.2f}  {100 * row['share_of_floor']:5.1f} %"
        f"  {row['times_as_fast_as_torch']:5.2f} x torch"
        + (f"  {row['tokens_that_differ']} tokens differ" if row["tokens_that_differ"] else "")
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="150m", choices=sorted(RUNNABLE), metavar="NAME")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--context", type=int, default=128, help="tokens in the cache, before a decode step")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    step_model.add_arguments(parser)
    args = parser.parse_args()
    prepare_jax(EngineConfig(compilation_cache_dir=None))
    device = jax.devices()[0]
    sizes = ceilings.SMOKE if args.tiny else ceilings.sizes_beside(device, args.dtype)
    measured = ceilings.measure(sizes)
    rates = Rates(measured.read_bytes_per_s, measured.gemm_flop_per_s)
    print(f"reads {rates[0] / 1e9:.1f} GB/s, multiplies {rates[1] / 1e9:.0f} GFLOP/s", flush=True)
    rows = Rows(args.json, {"kind": "steps-compared", "tiny": args.tiny, "rates": rates._asdict()})
    if args.tiny:
        measure(TINY, [Case("decode", 2, TINY.context), Case("prefill", 1, 32)], rates, 2, rows.add)
        return 0
    config = dataclasses.replace(
        model_config(args.model, RUNNABLE[args.model].num_layers, 8192), dtype=args.dtype
    )
    decode = [Case("decode", number, args.context) for number in SLOTS]
    measure(Size(args.model, config, args.context, PAGE_SIZE), decode, rates, args.rounds, rows.add)
    prefill = [Case("prefill", 1, length) for length in PROMPTS]
    measure(Size(args.model, config, max(PROMPTS), PAGE_SIZE), prefill, rates, args.rounds, rows.add)
    return 0


if __name__ == "__main__":
    sys.exit(main())
