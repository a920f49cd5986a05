"""A tiny real model on compiled steps: one runner per process, any number of engines on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax

import weights
from jbatch.config import ModelConfig
from jbatch.device.logits import LogitsFn
from jbatch.device.model import abstract_params
from jbatch.device.platform import find_device
from jbatch.device.runner import Runner, Variants
from jbatch.device.state import StateShape
from jbatch.engine.engine import Engine
from jbatch.host.plan import Bucket, decode_bucket, prefill_bucket
from jbatch.host.policy import MODES, POLICIES
from jbatch.host.scheduler import Scheduler, SchedulerConfig, SchedulerView, StepLimits
from jbatch.model_dir.config_json import parse_config
from jbatch.outputs import RequestOutput
from jbatch.sampling_params import Sampler, SamplingParams
from tests.helpers.hf_checkpoint import tiny

NUM_ROWS, PAGE_SIZE, MAX_MODEL_LEN, NUM_PAGES = 4, 16, 96, 64
PREFILL = Bucket("prefill", 4, 64)
DECODE = decode_bucket(4)
assert prefill_bucket(64, NUM_ROWS) == PREFILL


@functools.cache
def tiny_config() -> ModelConfig:
    return parse_config(tiny())


@functools.cache
def tiny_params() -> Mapping[str, jax.Array]:
    """Random enough that near-ties are rare."""
    return weights.random(abstract_params(tiny_config()), seed=3, scale=0.15)


def make_runner(*samplers: Sampler, logits_fn: LogitsFn | None = None) -> Runner:
    """A runner of its own parameters, so that it may be closed: one prefill and one decode bucket."""
    variants = Variants(samplers or Variants().samplers, logits_fn)
    shape = StateShape(NUM_ROWS, NUM_PAGES, PAGE_SIZE, MAX_MODEL_LEN // PAGE_SIZE)
    params = jax.tree.map(lambda leaf: leaf.copy(), tiny_params())
    return Runner(tiny_config(), params, shape, [PREFILL, DECODE], find_device("cpu"), variants=variants)


@functools.cache
def shared_runner() -> Runner:
    """Do not close it, and leave no request unfinished."""
    return make_runner()


@functools.cache
def extended_runner() -> Runner:
    """The same with EXTENDED steps alone."""
    return make_runner(Sampler.EXTENDED)


def make_scheduler(
    mode: str = "continuous", *, limits: Callable[[SchedulerView], StepLimits] | None = None, **changes
) -> Scheduler:
    """For the tiny runner; fields of its configuration may be changed by name."""
    config = SchedulerConfig(
        num_rows=NUM_ROWS,
        num_pages=NUM_PAGES,
        page_size=PAGE_SIZE,
        max_model_len=MAX_MODEL_LEN,
        decode_buckets=(DECODE,),
        prefill_buckets=(PREFILL,),
        policy=POLICIES["fcfs"],
        admission=MODES[mode],
    )
    return Scheduler(config._replace(**changes), limits)


def make_engine(scheduler: Scheduler | None = None, runner=None, **options) -> Engine:
    options = {"vocab_size": tiny_config().vocab_size, **options}
    return Engine(scheduler or make_scheduler(), runner or shared_runner(), **options)


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
