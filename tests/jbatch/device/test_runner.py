"""The runner: fixed shapes, donated state, no compilation after warm-up."""

import random

import jax
import numpy as np
import pytest

from jbatch.device.compile_counter import compile_counter
from jbatch.device.platform import find_device
from jbatch.device.runner import Program, compile_programs, programs_for
from jbatch.errors import JBatchError
from jbatch.host.plan import Bucket, StepInput, padding, unpack
from jbatch.sampling_params import Sampler, SamplingParams
from tests.helpers.tiny_engine import (
    DECODE,
    MAX_MODEL_LEN,
    NUM_PAGES,
    NUM_ROWS,
    PAGE_SIZE,
    PREFILL,
    drain,
    make_engine,
    make_runner,
    make_scheduler,
    shared_runner,
)


def test_programs_are_buckets_and_variants():
    programs = programs_for([PREFILL, DECODE])
    assert programs == [
        Program(PREFILL, Sampler.FILTERED),
        Program(DECODE, Sampler.GREEDY),
        Program(DECODE, Sampler.PLAIN),
        Program(DECODE, Sampler.FILTERED),
    ]
    assert shared_runner().num_programs == 4
    assert programs_for([PREFILL, DECODE], [Sampler.EXTENDED, Sampler.GREEDY, Sampler.GREEDY]) == [
        Program(PREFILL, Sampler.FILTERED),
        Program(PREFILL, Sampler.EXTENDED),
        Program(DECODE, Sampler.GREEDY),
        Program(DECODE, Sampler.EXTENDED),
    ]


def test_nothing_compiles_in_200_mixed_steps():
    """Greedy and sampled requests, chunks, preemption, stops, aborts."""
    rng = random.Random(0)
    runner, before = shared_runner(), compile_counter().count
    engine = make_engine(make_scheduler(num_pages=9))
    steps = 0
    while steps < 200:
        prompt = rng.choices(range(96), k=rng.randint(1, 40))
        params = SamplingParams(
            temperature=rng.choice((0, 0.9)), top_k=rng.choice((0, 5)), max_tokens=rng.randint(1, 50),
            stop_token_ids=rng.choice(([], [1, 2, 3])), seed=steps,
        )  # fmt: skip
        engine.add_request(str(steps), prompt, params)
        if rng.random() < 0.1:
            engine.abort(str(steps))
        for _ in range(3):
            steps += engine.step().record is not None
    drain(engine)
    assert engine.summary.num_preempted > 0 and engine.summary.decode_steps > 50
    assert compile_counter().count == before
    assert runner.compilations_after_warmup == before - runner._compiled_before


def test_the_state_is_updated_in_place():
    """On the very same memory, step after step. (pytest.ini makes the warning about donation an error.)"""
    runner = shared_runner()
    pointers = [leaf.unsafe_buffer_pointer() for leaf in runner._state.kv_pages]
    old = runner._state
    engine = make_engine()
    engine.add_request("r", [1, 2, 3], SamplingParams(max_tokens=5))
    drain(engine)
    assert [leaf.unsafe_buffer_pointer() for leaf in runner._state.kv_pages] == pointers
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))


def test_alias_bytes_are_the_whole_state():
    runner = shared_runner()
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(runner._state))
    for program in runner._programs.values():
        assert program.memory_analysis().alias_size_in_bytes == state_bytes


@pytest.mark.parametrize("bucket", [Bucket("decode", 8, 8), Bucket("prefill", 4, 128)])
def test_an_unknown_bucket_is_an_error_and_not_a_compilation(bucket):
    before = compile_counter().count
    with pytest.raises(KeyError):
        shared_runner().submit(StepInput(bucket, Sampler.GREEDY, padding(bucket, NUM_ROWS, PAGE_SIZE)))
    assert compile_counter().count == before


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: a.astype(np.float32), lambda a: a[None]])
def test_a_wrong_shape_is_an_error_and_not_a_compilation(change):
    runner, before = shared_runner(), compile_counter().count
    packed = padding(DECODE, NUM_ROWS, PAGE_SIZE)
    with pytest.raises(TypeError):
        runner.submit(StepInput(DECODE, Sampler.GREEDY, change(packed)))
    assert compile_counter().count == before
    runner.collect(runner.submit(StepInput(DECODE, Sampler.GREEDY, packed)))  # the state has survived


def test_close_frees_the_memory():
    runner = make_runner()
    leaves = jax.tree.leaves((runner._params, runner._state))
    runner.close()
    assert all(leaf.is_deleted() for leaf in leaves)
    runner.close()  # again: nothing to do


def test_a_closed_runner_says_so():
    runner = make_runner()
    runner.close()
    with pytest.raises(JBatchError, match="closed"):
        runner.submit(StepInput(DECODE, Sampler.GREEDY, padding(DECODE, NUM_ROWS, PAGE_SIZE)))


def test_progress_is_reported_while_compiling():
    done = []
    shape = shared_runner().shape
    compile_programs(
        shared_runner().config, shape, [Program(DECODE, Sampler.GREEDY)], find_device("cpu"), done.append
    )
    assert done == [1]


@pytest.mark.parametrize(
    "update, message",
    [
        ((0, 0, NUM_PAGES), "page=64: must be from 1 to 63"),
        ((0, 0, 0), "page=0: must be from 1"),  # the null page
        ((0, MAX_MODEL_LEN // PAGE_SIZE, 5), "index=6: must be from 0 to 5"),
        ((-1, 0, 5), "row=-1: must be from 0 to 3"),
    ],
)
@pytest.mark.parametrize("bucket", [DECODE, PREFILL])
def test_pages_that_do_not_exist_never_reach_the_device(bucket, update, message):
    packed = padding(bucket, NUM_ROWS, PAGE_SIZE).copy()
    unpack(packed, bucket, PAGE_SIZE).table_updates[1] = update
    with pytest.raises(JBatchError, match=message):
        shared_runner().submit(StepInput(bucket, Sampler.GREEDY, packed))
