"""Plans that a scheduler made, written, read back, and run again."""

import json
import random

import numpy as np
import pytest

from jbatch.errors import JBatchError
from jbatch.host.plan import Bucket, StepPlan, pack
from jbatch.outputs import FinishReason
from jbatch.sampling_params import Sampler
from jbatch.sim.fake_runner import FakeRunner
from jbatch.sim.plan_file import PlanFileError, PlanShape, PlanWriter, read_plans
from jbatch.sim.replay import replay, tokens_by_sequence
from tests.helpers.schedules import VOCAB_SIZE, Driver, random_config, random_request

NUM_SCHEDULES = 40

V1 = """\
{"format":"jbatch-plans","version":1,"num_rows":2,"num_pages":5,"page_size":16,"pages_per_seq":2,"vocab_size":97}
{"step_idx":0,"bucket":["prefill",1,64],"seq_ids":[0],"rows":[1],"table_updates":[[1,0,4]],"chunks":[[[5,6,7],0,0,{"length":3,"budget":2,"seed":9,"stop_ids":[2]},3]]}
{"step_idx":1,"bucket":["decode",2,2],"seq_ids":[0],"rows":[1],"table_updates":[],"frozen":[false],"sampler":1,"preempted":[3]}
{"num_plans":2}
"""


def shape_of(config):
    pages_per_seq = -(-config.max_model_len // config.page_size)
    return PlanShape(config.num_rows, config.num_pages, config.page_size, pages_per_seq, VOCAB_SIZE)


def record_schedule(path, seed):
    """Requests and aborts at random; the driver, its plans, and what the runner made of them."""
    rng = random.Random(seed)
    modes = ("continuous", "continuous", "static", "static-padded", "unbatched")
    config = random_config(rng, rng.choice(modes), rng.choice(("fcfs", "sjf")))
    driver = Driver(config, depth=rng.randint(0, 2))
    room = min(config.max_model_len, (config.num_pages - 1) * config.page_size)
    for _ in range(rng.randint(1, 8)):
        driver.submit(random_request(rng, room))
    outputs, plans = [], []
    driver.runner.collect = lambda handle: (outputs.append(handle), (handle, 0.0))[1]
    with PlanWriter(path, shape_of(config)) as writer:
        while driver.scheduler.has_unfinished or driver.in_flight:
            if rng.random() < 0.02:
                driver.end(rng.choice(driver.sequences), FinishReason.ABORT)
            plan = driver.step()
            if plan is not None:
                writer.write(plan)
                plans.append(plan)
    return driver, plans, outputs


@pytest.mark.parametrize("seed", range(NUM_SCHEDULES))
def test_plans_come_back_equal_and_replay_to_the_same_outputs(tmp_path, seed):
    path = tmp_path / "plans.jsonl"
    driver, plans, outputs = record_schedule(path, seed)
    recording = read_plans(path)
    assert recording.shape == shape_of(driver.config)
    assert recording.plans == tuple(plans)
    for ours, theirs in zip(recording.plans, plans, strict=True):
        sizes = driver.config.num_rows, driver.config.page_size
        np.testing.assert_array_equal(pack(ours, *sizes).packed, pack(theirs, *sizes).packed)
        assert type(ours.bucket) is Bucket and type(ours.sampler) is type(theirs.sampler)

    if is_extended(plans):
        with pytest.raises(JBatchError, match="is EXTENDED"):
            replay(FakeRunner(*recording.shape), recording)
        return
    again = replay(FakeRunner(*recording.shape), recording, depth=seed % 3)
    assert len(again.outputs) == len(outputs)
    for ours, theirs in zip(again.outputs, outputs, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    tokens = tokens_by_sequence(recording, again.outputs)
    for sequence in driver.sequences:
        known = sequence.output_token_ids  # a host that ended it dropped what was in flight
        assert tokens.get(sequence.seq_id, [])[: len(known)] == known


def is_extended(plans):
    return any(plan.sampler == Sampler.EXTENDED for plan in plans)


def test_schedules_hold_what_is_hard(tmp_path):
    runs = [record_schedule(tmp_path / "plans", seed)[1] for seed in range(NUM_SCHEDULES)]
    assert sum(map(is_extended, runs)) < 0.7 * NUM_SCHEDULES
    plans = [plan for run in runs if not is_extended(run) for plan in run]
    assert any(p.preempted for p in plans) and any(any(p.frozen) for p in plans)
    assert any(c.setup is None for p in plans for c in p.chunks)  # a prompt in several chunks
    assert any(c.num_recomputed for p in plans for c in p.chunks)
    assert any(c.setup and c.setup.stop_ids for p in plans for c in p.chunks)
    assert any(p.sampler for p in plans)


def test_version_1_is_read(tmp_path):
    """What is written today must be readable by later versions: do not change this file, add another."""
    path = tmp_path / "plans.jsonl"
    path.write_text(V1)
    recording = read_plans(path)
    assert recording.shape == PlanShape(2, 5, 16, 2, 97)
    first, second = recording.plans
    assert first.chunks[0].token_ids == (5, 6, 7) and first.chunks[0].setup.stop_ids == (2,)
    assert second == StepPlan(1, Bucket("decode", 2, 2), (0,), (1,), (), (), (False,), 1, (3,))


def edited(line, **changes):
    lines = V1.splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **changes})
    return "\n".join(lines)


def chunk(token_ids=(5,), start=0, setup=None):
    return [[list(token_ids), start, 0, setup]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no plan file"),
        ("[1]\n", "no plan file"),
        ("not json\n", "line 1: no JSON"),
        (edited(0, format="other"), "no plan file"),
        (edited(0, version=2), "version 2: this jbatch reads 1"),
        (edited(0, num_rows=0), "num_rows=0"),
        (edited(0, page_size=True), "page_size=True"),
        (V1[: V1.index('{"num_plans"')], "cut off after 2 plans"),
        (V1[:-40], "line 3: no JSON, or cut off"),
        (V1 + V1.splitlines()[1], "line 4: it must be the last"),
        (edited(3, num_plans=3), "line 4: it must be the last"),
        (edited(1, colour=1), "line 2: plan has no 'colour'"),
        (edited(1, bucket=["prefill", 1]), "plan.bucket=.*must be an array of kind, slots, tokens"),
        (edited(1, bucket=["mixed", 1, 64]), "plan.bucket.kind='mixed'"),
        (edited(1, bucket=["prefill", 0, 64]), "slots and tokens must be from 1"),
        (edited(1, bucket=["prefill", 1, 2]), "chunks of 8 tokens in a bucket of 2"),
        (edited(1, rows=[2]), "row 2: must be from 0 to 1"),
        (edited(1, rows=[0, 1]), "1 seq_ids and 2 rows"),
        (edited(1, rows=["0"]), r"plan.rows\[0\]='0': must be int"),
        (edited(1, table_updates=[[1, 0, 5]]), "page_id=5"),
        (edited(1, table_updates=[[1, 0, 0]]), "page_id=0"),
        (edited(1, table_updates=[[1, 0, 4]] * 9), "9 table_updates: 5 fit"),
        (edited(1, chunks=[]), "0 chunks in a prefill step of 1"),
        (edited(1, chunks=chunk([97])), "token id 97"),
        (edited(1, chunks=chunk(start=32)), "a chunk from 32 to 33"),
        (edited(1, chunks=[[[5], 0, 0, None, 1, [6, 7]]]), r"targets=\(6, 7\): must be at most one"),
        (edited(1, chunks=[[[5], 0, 0, None, 1, [97]]]), r"targets=\(97,\): must be .* from -1 to 96"),
        (edited(1, chunks=[[[5], 0, 0]]), r"chunks\[0\]=.*must be an array of token_ids, start"),
        (edited(1, chunks=chunk([])), "a chunk from 0 to 0"),
        (edited(1, chunks=chunk(setup={"length": "3"})), r"chunks\[0\].setup.length='3': must be float"),
        (edited(1, chunks=chunk(setup={"length": 2**40})), "setup=RowSetup"),
        (edited(1, chunks=chunk(setup={"stop_ids": list(range(17))})), "setup=RowSetup"),
        (edited(2, sampler=9), "9 is not a valid Sampler"),
        (edited(2, frozen=[True, False]), "2 frozen in a decode step"),
        ("\n".join([*V1.splitlines()[:1], "5", *V1.splitlines()[3:]]), "line 2: plan=5: must be an object"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, reason):
    path = tmp_path / "plans.jsonl"
    path.write_text(text)
    with pytest.raises(PlanFileError, match=reason) as caught:
        read_plans(path)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "plans.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanFileError, match="no text"):
        read_plans(path)


def test_a_run_that_failed_leaves_a_file_that_says_so(tmp_path):
    path = tmp_path / "plans.jsonl"
    with pytest.raises(KeyboardInterrupt), PlanWriter(path, PlanShape(1, 2, 16, 1, 97)):
        raise KeyboardInterrupt
    with pytest.raises(PlanFileError, match="cut off after 0 plans"):
        read_plans(path)


def test_extended_steps_are_not_replayed(tmp_path):
    path = tmp_path / "plans.jsonl"
    path.write_text(edited(2, sampler=3))
    recording = read_plans(path)
    with pytest.raises(JBatchError, match="step 1 is EXTENDED"):
        replay(FakeRunner(*recording.shape), recording)
