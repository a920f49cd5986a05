"""A tiny real model on compiled steps: one runner per process, any number of engines on it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping

import jax

import weights
from jbatch.config import LogprobsMode, ModelConfig
from jbatch.device.model import abstract_params
from jbatch.device.platform import find_device
from jbatch.device.process.user_fn import LogitsFn
from jbatch.device.programs import DEFAULT_SAMPLERS, StepSpec
from jbatch.device.runner import Runner
from jbatch.engine.engine import Engine
from jbatch.engine.intake import Intake
from jbatch.host.config import SchedulerConfig
from jbatch.host.limits import SchedulerView, StepLimits
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES
from jbatch.host.scheduler import Scheduler
from jbatch.model_dir.config_json import parse_config
from jbatch.outputs import RequestOutput
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.shape import StateShape
from tests.helpers.hf_checkpoint import tiny

NUM_ROWS, PAGE_SIZE, MAX_MODEL_LEN, NUM_PAGES = 4, 16, 96, 64
SHAPE = StateShape(NUM_ROWS, NUM_PAGES, PAGE_SIZE, MAX_MODEL_LEN // PAGE_SIZE)
PREFILL, DECODE, MIXED, SEVERAL = prefill_bucket(64), decode_bucket(4), Bucket(4, 64), Bucket(4, 0, 4)
EIGHT = Bucket(4, 0, 8)


@functools.cache
def tiny_config() -> ModelConfig:
    return parse_config(tiny())


@functools.cache
def tiny_params() -> Mapping[str, jax.Array]:
    """Random enough that near-ties are rare."""
    return weights.random(abstract_params(tiny_config()), seed=3, scale=0.15)


def make_runner(
    *samplers: Sampler,
    logits_fn: LogitsFn | None = None,
    shape: StateShape = SHAPE,
    buckets: tuple[Bucket, ...] = (DECODE, PREFILL, MIXED),
    logprobs_mode: LogprobsMode = "raw_logprobs",
) -> Runner:
    """A runner of its own parameters, so that it may be closed."""
    device = find_device("cpu")
    spec = StepSpec(tiny_config(), shape, device, logits_fn=logits_fn, logprobs_mode=logprobs_mode)
    params = jax.tree.map(lambda leaf: leaf.copy(), tiny_params())
    runner = Runner(spec, params, buckets, samplers or DEFAULT_SAMPLERS)
    runner.prepare()
    return runner


@functools.cache
def shared_runner() -> Runner:
    """Do not close it, and leave no request unfinished."""
    return make_runner(buckets=(DECODE, PREFILL, MIXED, SEVERAL, EIGHT))


@functools.cache
def runner_of_all() -> Runner:
    """The same with every way of drawing, and with what sharing pages takes."""
    runner = make_runner(*Sampler)
    runner.prepare_sharing()
    return runner


def buckets_for(mode: str) -> tuple[Bucket, ...]:
    """Those of the tiny runner that an engine of this mode uses."""
    return (DECODE, MIXED) if MODES[mode].refill else (DECODE, PREFILL)


def make_scheduler(
    mode: str = "continuous",
    *,
    limits: Callable[[SchedulerView], StepLimits] | None = None,
    num_pages: int = NUM_PAGES,
    **changes,
) -> Scheduler:
    """For the tiny runner; fields of its configuration may be changed by name."""
    config = SchedulerConfig(
        shape=SHAPE._replace(num_pages=num_pages),
        max_model_len=MAX_MODEL_LEN,
        buckets=buckets_for(mode),
        policy=POLICIES["fcfs"],
        admission=MODES[mode],
        batch_wait_timeout_s=0.01,
    )
    return Scheduler(config._replace(**changes), limits)


def make_engine(
    scheduler: Scheduler | None = None,
    runner=None,
    *,
    overlap: bool = True,
    clock=time.monotonic,
    sleep=time.sleep,
    **intake,
) -> Engine:
    """`intake` may change what its Intake is made of, by name."""
    scheduler = scheduler or make_scheduler()
    options = {"vocab_size": tiny_config().vocab_size, "max_seq_len": scheduler.max_seq_len, **intake}
    desk = Intake(clock=clock, **options)
    return Engine(scheduler, runner or shared_runner(), desk, overlap=overlap, clock=clock, sleep=sleep)


def drain(engine: Engine) -> dict[str, RequestOutput]:
    """Step until idle; outputs by request id."""
    outputs = {}
    while engine.has_unfinished:
        outputs |= {output.request_id: output for output in engine.step().outputs}
    return outputs


def generate_alone(prompt: list[int], params: SamplingParams) -> RequestOutput:
    """Of a request that has the shared runner for itself."""
    engine = make_engine()
    engine.add_request("alone", prompt, params)
    return drain(engine)["alone"]
