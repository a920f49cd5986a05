"""Which programs a runner must have, for requests to come and for those that are queued."""

from __future__ import annotations

from collections.abc import Iterable

from jbatch.device.programs import programs_for
from jbatch.device.runner import Runner
from jbatch.engine.engine import Engine
from jbatch.host.reach import reach
from jbatch.sampling_params import Sampler, SamplingParams, to_compile, with_unions
from jbatch.seam.bucket import Bucket


def declare(runner: Runner, params: Iterable[SamplingParams]) -> tuple[Sampler, ...]:
    """Provide for requests with these parameters; in which ways they draw."""
    needed = to_compile(sampling.sampler for sampling in params)
    runner.declare(sampler for sampler in needed if sampler.choose(runner.samplers) is None)
    return with_unions(needed)


def prepare(runner: Runner, params: Iterable[SamplingParams] | None, *, in_run: bool) -> None:
    """See `LLM.prepare`."""
    params = None if params is None else list(params)
    samplers = runner.samplers if params is None else declare(runner, params)
    compile_buckets(runner, runner.buckets, samplers, in_run=in_run)
    if params is None or any(sampling.n > 1 for sampling in params):
        runner.prepare_sharing(in_run=in_run)


def prepare_reached(runner: Runner, engine: Engine) -> None:
    """Compile what the requests that wait can come to need."""
    reached = reach(engine.scheduler)
    compile_buckets(runner, reached.buckets, reached.samplers)
    if reached.shares_pages:
        runner.prepare_sharing()


def compile_buckets(
    runner: Runner, buckets: Iterable[Bucket], samplers: Iterable[Sampler], *, in_run: bool = False
) -> None:
    """By the least of the provided ways of drawing that can do each."""
    provided = runner.samplers
    chosen = [best for sampler in samplers if (best := sampler.choose(provided)) is not None]
    runner.prepare(programs_for(buckets, chosen), in_run=in_run)
