"""Plans that a scheduler made, written, read back, and run again."""

import json
import random

import numpy as np
import pytest

from jbatch.errors import JBatchError
from jbatch.host.pack import pack
from jbatch.host.plan import Chunk, Draw, PageCopy, StepPlan, Table, TableUpdate, chunk_of
from jbatch.host.request import Request, Sequence
from jbatch.outputs import FinishReason
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from jbatch.seam.bucket import Bucket, prefill_bucket
from jbatch.seam.rows import RowSetup
from jbatch.seam.shape import StateShape
from jbatch.sim.fake_runner import FakeRunner
from jbatch.sim.plan_file import PlanFileError, PlanWriter, Recording, read_plans
from jbatch.sim.replay import replay, tokens_by_sequence
from tests.helpers.driver import Driver
from tests.helpers.random_schedules import random_config, random_request
from tests.helpers.schedules import VOCAB_SIZE
from tests.helpers.sizes import sized

NUM_SCHEDULES = sized(20, 40)

V1 = """\
{"format":"jbatch-plans","version":1,"num_rows":2,"num_pages":5,"page_size":16,"pages_per_seq":2,"vocab_size":97}
{"step_idx":0,"bucket":["prefill",1,64],"seq_ids":[0],"rows":[1],"table_updates":[[1,0,4]],"chunks":[[[5,6,7],0,0,{"length":3,"budget":2,"seed":9,"stop_ids":[2]},3]]}
{"step_idx":1,"bucket":["decode",2,2],"seq_ids":[0],"rows":[1],"table_updates":[],"frozen":[false],"sampler":1,"preempted":[3]}
{"num_plans":2}
"""

V2 = """\
{"format":"jbatch-plans","version":2,"num_rows":2,"num_pages":5,"page_size":16,"pages_per_seq":2,"vocab_size":97}
{"step_idx":0,"bucket":[0,64],"chunks":[[0,1,[5,6,7],0,0,0,[[0,1,2,{"length":3,"budget":2,"seed":9}]]]],"table_updates":[[1,0,4]]}
{"num_plans":1}
"""

# Two samples of one prompt; then one decodes, and the other goes on with a chunk, in a copy of the page.
V3 = """\
{"format":"jbatch-plans","version":3,"num_rows":2,"num_pages":5,"page_size":16,"pages_per_seq":2,"vocab_size":97}
{"step_idx":0,"bucket":[0,64],"chunks":[[0,1,[5,6,7],0,0,0,[[0,1,2,{"length":3,"budget":2,"seed":9,"stop_ids":[2]}],[1,0,2,{"length":3,"budget":2,"sample_idx":1,"temperature":0.5,"has_bias":true}]],[6,7]]],"table_updates":[[1,0,4]],"tables":[[0,[4]]]}
{"step_idx":1,"bucket":[2,16],"seq_ids":[0],"rows":[1],"frozen":[false],"chunks":[[1,0,[8],3,1,2,[[1,0,0,null]]]],"table_updates":[[0,0,3]],"page_copies":[[4,3]],"sampler":1,"preempted":[3]}
{"num_plans":2}
"""
V3_SETUPS = (
    RowSetup(length=3, budget=2, seed=9, stop_ids=(2,)),
    RowSetup(length=3, budget=2, sample_idx=1, temperature=0.5, has_bias=True),
)
V3_PLANS = (
    StepPlan(
        step_idx=0,
        bucket=Bucket(0, 64),
        chunks=(
            Chunk(
                seq_id=0,
                row=1,
                token_ids=(5, 6, 7),
                start=0,
                draws=(Draw(0, 1, 2, V3_SETUPS[0]), Draw(1, 0, 2, V3_SETUPS[1])),
                targets=(6, 7),
            ),
        ),
        table_updates=(TableUpdate(1, 0, 4),),
        tables=(Table(0, (4,)),),
    ),
    StepPlan(
        step_idx=1,
        bucket=Bucket(2, 16),
        seq_ids=(0,),
        rows=(1,),
        frozen=(False,),
        chunks=(Chunk(1, 0, (8,), 3, num_recomputed=1, attempt=2, draws=(Draw(1, 0, 0, None),)),),
        table_updates=(TableUpdate(0, 0, 3),),
        page_copies=(PageCopy(4, 3),),
        sampler=Sampler.PLAIN,
        preempted=(3,),
    ),
)
V3_RECORDING = Recording(StateShape(2, 5, 16, 2), 97, V3_PLANS)


def record_schedule(path, seed):
    """Requests and aborts at random; the driver, its plans, and what the runner made of them."""
    rng = random.Random(seed)
    modes = ("continuous", "static-padded", "continuous", "static", "unbatched")
    config = random_config(rng, modes[seed % len(modes)], rng.choice(("fcfs", "sjf")))
    driver = Driver(config, depth=rng.randint(0, 2))
    for _ in range(rng.randint(1, 8)):
        driver.submit(random_request(rng, driver.scheduler.max_seq_len), n=rng.choice((1, 1, 3)))
    outputs, plans = [], []
    driver.runner.collect = lambda handle: (outputs.append(handle), (handle, 0.0))[1]
    with PlanWriter(path, config.shape, VOCAB_SIZE) as writer:
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
    assert recording == (driver.config.shape, VOCAB_SIZE, tuple(plans))
    for ours, theirs in zip(recording.plans, plans, strict=True):
        shape = recording.shape
        np.testing.assert_array_equal(pack(ours, shape).packed, pack(theirs, shape).packed)
        assert type(ours.bucket) is Bucket and type(ours.sampler) is type(theirs.sampler)

    if reports(plans):
        with pytest.raises(JBatchError, match="is LOGPROBS"):
            replay(FakeRunner(recording.shape), recording)
        return
    again = replay(FakeRunner(recording.shape), recording, depth=seed % 3)
    assert len(again.outputs) == len(outputs)
    for ours, theirs in zip(again.outputs, outputs, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    tokens = tokens_by_sequence(recording, again.outputs)
    for sequence in driver.sequences:
        known = sequence.output_token_ids  # a host that ended it dropped what was in flight
        assert tokens.get(sequence.seq_id, [])[: len(known)] == known


def reports(plans):
    return any(plan.sampler.reports for plan in plans)


def test_schedules_hold_what_is_hard(tmp_path):
    runs = [record_schedule(tmp_path / "plans", seed)[1] for seed in range(NUM_SCHEDULES)]
    assert sum(map(reports, runs)) < 0.7 * NUM_SCHEDULES
    plans = [plan for run in runs if not reports(run) for plan in run]
    assert any(p.preempted for p in plans) and any(any(p.frozen) for p in plans)
    assert any(not c.draws for p in plans for c in p.chunks)  # a prompt in several chunks
    assert any(c.num_recomputed for p in plans for c in p.chunks)
    assert any(draw.setup.stop_ids for p in plans for c in p.chunks for draw in c.draws)
    assert any(p.sampler for p in plans)


def test_version_3_is_read(tmp_path):
    """What was written once must be readable by later versions: do not change this file, add another."""
    path = tmp_path / "plans.jsonl"
    path.write_text(V3)
    recording = read_plans(path)
    assert recording == V3_RECORDING
    outputs = replay(FakeRunner(recording.shape), recording).outputs
    assert tokens_by_sequence(recording, outputs) == {0: [21, 43], 1: [22, 31]}


def test_version_3_is_written(tmp_path):
    path = tmp_path / "plans.jsonl"
    with PlanWriter(path, V3_RECORDING.shape, V3_RECORDING.vocab_size) as writer:
        for plan in V3_PLANS:
            writer.write(plan)
    assert path.read_text() == V3


@pytest.mark.parametrize(("version", "text"), [(1, V1), (2, V2)])
def test_an_older_version_is_refused_by_name(tmp_path, version, text):
    """Plans of 1 had a slot for each sequence, and no draws; those of 2 no whole block tables."""
    path = tmp_path / "plans.jsonl"
    path.write_text(text)
    with pytest.raises(PlanFileError, match=rf"plans\.jsonl: version {version}: this jbatch reads 3$"):
        read_plans(path)


@pytest.mark.parametrize(
    "params", [{"logit_bias": {3: 1.0}}, {"bad_words": ["x"]}, {"temperature": 1, "presence_penalty": 2}]
)
def test_what_a_request_may_ask_for_comes_back(tmp_path, params):
    path = tmp_path / "plans.jsonl"
    asked = Request("r", (5, 6), SamplingParams(**params), 3, (2,), 2**32 - 1, bad_word_ids=((4,),))
    plan = StepPlan(0, prefill_bucket(64), chunks=(chunk_of(Sequence(0, asked, [5, 6], 2, row=1), 0, 2),))
    with PlanWriter(path, V3_RECORDING.shape, 97) as writer:
        writer.write(plan)
    assert read_plans(path).plans == (plan,)


def edited(line, **changes):
    lines = V3.splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **changes})
    return "\n".join(lines)


def chunk(token_ids=(5,), start=0, draws=(), targets=(), row=0):
    return [[0, row, list(token_ids), start, 0, 0, list(draws), list(targets)]]


def draw(offset=0, setup=None, row=0):
    return [0, row, offset, setup]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no plan file"),
        ("[1]\n", "no plan file"),
        ("not json\n", "line 1: no JSON"),
        (edited(0, format="other"), "no plan file"),
        (edited(0, version=4), "version 4: this jbatch reads 3"),
        (edited(0, version=None), "version None: this jbatch reads 3"),
        (edited(0, num_rows=0), "num_rows=0"),
        (edited(0, page_size=True), "page_size=True"),
        (edited(0, vocab_size=None), "vocab_size=None: must be an integer"),
        (V3[: V3.index('{"num_plans"')], "cut off after 2 plans"),
        (V3[:-40], "line 3: no JSON, or cut off"),
        (V3 + V3.splitlines()[1], "line 4: it must be the last"),
        (edited(3, num_plans=3), "line 4: it must be the last"),
        ("\n".join([*V3.splitlines()[:1], "5", *V3.splitlines()[3:]]), "line 2: plan=5: must be an object"),
        (edited(1, colour=1), "line 2: plan has no 'colour'"),
        ("\n".join([V3.splitlines()[0], '{"bucket":[0,64]}']), "line 2: plan lacks 'step_idx'"),
        # Buckets.
        (edited(1, bucket=[64]), "plan.bucket=.*must be an array of slots, tokens, steps"),
        (edited(1, bucket=[0, 64, 1, 1]), "plan.bucket=.*must be an array of slots, tokens, steps"),
        (edited(1, bucket=["mixed", 64]), "plan.bucket.slots='mixed': must be int"),
        (edited(1, bucket=[0, 0]), r"bucket=\(0, 0, 1\): must have slots or tokens, of 0 to 1048576"),
        (edited(1, bucket=[-1, 64]), r"bucket=\(-1, 64, 1\): must have slots or tokens"),
        (edited(1, bucket=[0, 2**20 + 1]), "must have slots or tokens, of 0 to 1048576"),
        (edited(2, bucket=[2, 16, 2]), r"bucket=\(2, 16, 2\): steps must be from 1 to 64, and 1 with tokens"),
        (edited(2, bucket=[2, 0, 65]), "steps must be from 1 to 64"),
        # What fits into them.
        (edited(1, bucket=[0, 2]), "8 tokens of chunks: at most 2 fit"),
        (edited(1, chunks=chunk(range(57)) + chunk()), "72 tokens of chunks: at most 64 fit"),
        (edited(2, seq_ids=[0, 1, 2], rows=[0, 1, 1], frozen=[]), "3 seq_ids: at most 2 fit"),
        (edited(2, bucket=[0, 16]), "1 seq_ids: at most 0 fit"),
        (edited(1, chunks=chunk() * 3), "3 chunks: at most 2 fit"),
        (edited(2, bucket=[2, 0]), "1 chunks: at most 0 fit"),
        (edited(1, chunks=chunk(draws=[draw()] * 3)), "3 draws of chunks: at most 2 fit"),
        (edited(1, table_updates=[[1, 0, 4]] * 519), "519 table_updates: at most 518 fit"),
        # Rows and pages.
        (edited(2, rows=[2]), "row 2: must be from 0 to 1"),
        (edited(2, rows=[-1]), "row -1: must be from 0 to 1"),
        (edited(1, chunks=chunk(row=2)), "row 2: must be from 0 to 1"),
        (edited(1, chunks=chunk(draws=[draw(row=2)])), "row 2: must be from 0 to 1"),
        (edited(2, rows=[0, 1]), "2 rows and 1 frozen for 1 seq_ids"),
        (edited(2, frozen=[True, False]), "1 rows and 2 frozen for 1 seq_ids"),
        (edited(2, rows=["0"]), r"plan.rows\[0\]='0': must be int"),
        (edited(1, table_updates=[[1, 0, 5]]), "page_id=5"),
        (edited(1, table_updates=[[1, 0, 0]]), "page_id=0"),
        (edited(1, table_updates=[[1, 2, 4]]), "page_idx=2"),
        (edited(1, table_updates=[[2, 0, 4]]), "row=2"),
        (edited(2, page_copies=[[0, 3]]), r"PageCopy\(src=0, dst=3\): must be from 1 to 4"),
        (edited(2, page_copies=[[4, 3], [1, 5]]), r"PageCopy\(src=1, dst=5\): must be from 1 to 4"),
        (edited(2, page_copies=[[4]]), r"page_copies\[0\]=\[4\]: must be an array of src, dst"),
        (edited(1, tables=[[2, [4]]]), r"Table\(row=2, page_ids=\(4,\)\): row must be from 0 to 1"),
        (edited(1, tables=[[0, [4, 0]]]), r"Table\(row=0, .*: pages must be from 1 to 4"),
        (edited(1, tables=[[0, [1, 2, 3]]]), r"Table\(row=0, .*: at most 2 pages"),
        (edited(1, tables=[[0, [1]], [0, [2]]]), "a row has two of them"),
        # Chunks.
        (edited(1, chunks=chunk([97])), "token id 97"),
        (edited(1, chunks=chunk([-1])), "token id -1"),
        (edited(1, chunks=chunk(start=32)), "a chunk from 32 to 33"),
        (edited(1, chunks=chunk(start=-1)), "a chunk from -1 to 0"),
        (edited(1, chunks=chunk(targets=[6, 7])), r"targets=\(6, 7\): must be at most one"),
        (edited(1, chunks=chunk(targets=[97])), r"targets=\(97,\): must be .* from -1 to 96"),
        (edited(1, chunks=chunk(targets=[-2])), r"targets=\(-2,\): must be .* from -1 to 96"),
        (edited(1, chunks=[[0, 0, [5]]]), r"chunks\[0\]=.*must be an array of seq_id, row, token_ids, start"),
        (edited(1, chunks=chunk([])), "a chunk from 0 to 0"),
        # Draws.
        (edited(1, chunks=chunk(draws=[draw(1)])), "a draw at offset 1: must be from 0 to 0"),
        (edited(1, chunks=chunk(draws=[draw(-1)])), "a draw at offset -1: must be from 0 to 0"),
        (edited(1, chunks=chunk(draws=[[0, 0, 0]])), r"draws\[0\]=.*an array of seq_id, row, offset, setup"),
        (edited(1, chunks=chunk(draws=[draw(setup=5)])), r"draws\[0\].setup=5: must be an object"),
        (edited(1, chunks=chunk(draws=[draw(setup={"size": 1})])), r"draws\[0\].setup has no 'size'"),
        (edited(1, chunks=chunk(draws=[draw(setup={"length": "3"})])), "setup.length='3': must be int"),
        (edited(1, chunks=chunk(draws=[draw(setup={"top_p": "1"})])), "setup.top_p='1': must be float"),
        (edited(1, chunks=chunk(draws=[draw(setup={"has_bias": 1})])), "setup.has_bias=1: must be bool"),
        (edited(1, chunks=chunk(draws=[draw(setup={"length": 2**40})])), "setup=RowSetup"),
        (edited(1, chunks=chunk(draws=[draw(setup={"stop_ids": list(range(17))})])), "setup=RowSetup"),
        # Samplers.
        (edited(2, sampler=9), "9 is not a valid Sampler"),
        (edited(2, sampler=2), "2 is not a valid Sampler"),
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
    with pytest.raises(KeyboardInterrupt), PlanWriter(path, StateShape(1, 2, 16, 1), 97):
        raise KeyboardInterrupt
    with pytest.raises(PlanFileError, match="cut off after 0 plans"):
        read_plans(path)
