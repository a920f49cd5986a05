"""Which programs runners must have, for requests to come and for those that are queued."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jbatch.device.programs import programs_for
from jbatch.device.runner import Runner
from jbatch.engine.engine import Engine
from jbatch.engine.replicas import AnyEngine
from jbatch.host.reach import reach
from jbatch.sampler import Sampler, to_compile, with_unions
from jbatch.sampling_params import SamplingParams
from jbatch.seam.bucket import Bucket


class CallPrograms:
    """The programs of one call's requests.

    Args:
      runners: one for each replica.
    """

    def __init__(self, runners: Sequence[Runner], engine: AnyEngine):
        self._runners, self._engine = runners, engine
        self._params: list[SamplingParams] = []

    def declare(self, params: Iterable[SamplingParams]) -> None:
        """Provide for requests with these parameters."""
        self._params = list(params)
        for runner in self._runners:
            declare(runner, self._params)

    def prepare(self) -> None:
        """Compile what the requests that wait can come to need. With several replicas: what any requests of
        the kind can, for nobody knows which ones will be where."""
        if isinstance(self._engine, Engine):
            _prepare_reached(self._runners[0], self._engine)
            return
        for runner in self._runners:
            prepare(runner, self._params, in_run=False)


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


def _prepare_reached(runner: Runner, engine: Engine) -> None:
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
