"""The runner: fixed shapes, donated state, no compilation after warm-up."""

import gc
import random

import jax
import numpy as np
import pytest

from jbatch.device.compile_counter import compile_counter
from jbatch.device.programs import Program, program_for, programs_for
from jbatch.errors import JBatchError
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.step_input import StepInput, padding, unpack
from tests.helpers.interrupts import interrupt_the_runner
from tests.helpers.tiny_engine import (
    DECODE,
    MIXED,
    PREFILL,
    SHAPE,
    drain,
    generate_alone,
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
    assert shared_runner().num_programs == 4 + 1 + 2 * 3  # of MIXED, and of several steps
    assert programs_for([PREFILL, DECODE], [Sampler.EXTENDED, Sampler.GREEDY, Sampler.GREEDY]) == [
        Program(PREFILL, Sampler.FILTERED),
        Program(PREFILL, Sampler.EXTENDED),
        Program(DECODE, Sampler.GREEDY),
        Program(DECODE, Sampler.EXTENDED),
    ]


@pytest.mark.parametrize("sampler", Sampler)
def test_steps_with_prompts_always_filter(sampler):
    """So they have four variants at most, of six."""
    assert program_for(DECODE, sampler).sampler == sampler
    for bucket in (PREFILL, MIXED):
        assert program_for(bucket, sampler).sampler == sampler.union(Sampler.FILTERED)
    assert len(programs_for([DECODE], Sampler)) == 6 and len(programs_for([PREFILL], Sampler)) == 4


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
    assert runner.compilations_after_warmup == before - compile_counter().outside - runner._compiled_before


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


@pytest.mark.parametrize("bucket", [decode_bucket(8), prefill_bucket(128), Bucket(4, 128), Bucket(4, 0, 2)])
def test_an_unknown_bucket_is_an_error_and_not_a_compilation(bucket):
    before = compile_counter().count
    with pytest.raises(KeyError):
        shared_runner().submit(StepInput(bucket, Sampler.GREEDY, padding(bucket, SHAPE, Sampler.GREEDY)))
    assert compile_counter().count == before


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: a.astype(np.float32), lambda a: a[None]])
def test_a_wrong_shape_is_an_error_and_not_a_compilation(change):
    runner, before = shared_runner(), compile_counter().count
    packed = padding(DECODE, SHAPE, Sampler.GREEDY)
    with pytest.raises(TypeError):
        runner.submit(StepInput(DECODE, Sampler.GREEDY, change(packed)))
    assert compile_counter().count == before
    runner.collect(runner.submit(StepInput(DECODE, Sampler.GREEDY, packed)))  # the state has survived


def test_close_frees_the_memory():
    runner = make_runner()
    leaves = jax.tree.leaves((runner._params.leaves, runner._state))
    runner.close()
    assert all(leaf.is_deleted() for leaf in leaves)
    runner.close()  # again: nothing to do


def test_a_closed_runner_says_so():
    runner = make_runner()
    runner.close()
    with pytest.raises(JBatchError, match="closed"):
        runner.submit(StepInput(DECODE, Sampler.GREEDY, padding(DECODE, SHAPE, Sampler.GREEDY)))


def test_progress_is_reported_while_compiling():
    done = []
    shared_runner().spec.compile_all([Program(DECODE, Sampler.GREEDY)], done.append)
    assert done == [1]


@pytest.mark.parametrize(
    "update, message",
    [
        ((0, 0, SHAPE.num_pages), "page=64: must be from 1 to 63"),
        ((0, 0, 0), "page=0: must be from 1"),  # the null page
        ((0, SHAPE.pages_per_seq, 5), "index=6: must be from 0 to 5"),
        ((-1, 0, 5), "row=-1: must be from 0 to 3"),
    ],
)
@pytest.mark.parametrize("bucket", [DECODE, PREFILL])
def test_pages_that_do_not_exist_never_reach_the_device(bucket, update, message):
    packed = padding(bucket, SHAPE, Sampler.GREEDY).copy()
    unpack(packed, bucket, SHAPE, Sampler.GREEDY).table_updates[1] = update
    with pytest.raises(JBatchError, match=message):
        shared_runner().submit(StepInput(bucket, Sampler.GREEDY, packed))


# Interrupts. A step takes the state, and who is interrupted before it is given back has none.


@pytest.mark.parametrize("event", ["line", "opcode"])
def test_an_interrupt_anywhere_leaves_the_runner_usable(event):
    """Before each line, and each instruction, of submit, collect, and JAX's call of a program."""
    runner, engine, params = shared_runner(), make_engine(), SamplingParams(temperature=0, max_tokens=2)
    alone = generate_alone([5, 6], params).outputs[0].token_ids
    number = lost = 0
    while interrupt_the_runner(engine, params, number, event):
        lost += runner._is_lost()
        assert generate_alone([5, 6], params).outputs[0].token_ids == alone
        number += 1
    assert number > (50 if event == "line" else 300)
    assert lost or event == "line", "none came where the state was away"


def test_a_state_that_was_lost_is_not_held_beside_the_new_one():
    """By the frames of the exception, which may be kept: there is no room for two."""
    runner, kept = shared_runner(), None
    shape = runner._state.kv_pages[0].shape

    def num_alive():
        return sum(array.shape == shape for array in jax.live_arrays())

    gc.collect()  # what other tests left
    others = num_alive() - len(runner._state.kv_pages)
    step = padding(DECODE, SHAPE, Sampler.GREEDY)
    program = runner._programs[Program(DECODE, Sampler.GREEDY)]

    def interrupted(*args):
        held = program(*args)
        raise KeyboardInterrupt(len(held))

    runner._programs[Program(DECODE, Sampler.GREEDY)] = interrupted
    try:
        runner.submit(StepInput(DECODE, Sampler.GREEDY, step))
    except KeyboardInterrupt as error:
        kept = error
    finally:
        runner._programs[Program(DECODE, Sampler.GREEDY)] = program
    assert kept.args == (3,) and kept.__traceback__ is not None and runner._is_lost()
    assert num_alive() == others
    runner.collect(runner.submit(StepInput(DECODE, Sampler.GREEDY, step)))
    assert num_alive() == others + len(runner._state.kv_pages)


def test_a_step_that_fails_on_the_device_does_not_break_the_next_ones():
    """What it computed is not to be trusted: the next step has a state of its own."""

    class Failed:
        def __array__(self, *_, **__):
            raise RuntimeError("INTERNAL: the device")

    runner = shared_runner()
    step = StepInput(DECODE, Sampler.GREEDY, padding(DECODE, SHAPE, Sampler.GREEDY))
    handle, old = runner.submit(step), runner._state
    with pytest.raises(RuntimeError, match="INTERNAL"):
        runner.collect(handle._replace(output=Failed()))
    runner.collect(runner.submit(step))
    assert not old.rows.is_deleted() and not runner._is_lost(), "the state of the step that failed was used"
