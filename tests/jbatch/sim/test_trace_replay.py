"""Traces: every decision is repeated byte for byte, whatever was asked; holes are named."""

import random

import pytest

from jbatch.errors import JBatchError
from jbatch.host.lengths.find import find_predictor
from jbatch.host.limits import StepLimits
from jbatch.host.policy import Policy
from jbatch.host.request import Request
from jbatch.host.scheduler import Scheduler
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import FakeRunner
from jbatch.sim.trace_chrome import to_chrome
from jbatch.sim.trace_file import TraceError, read_trace
from jbatch.sim.trace_replay import repeat
from jbatch.sim.trace_rerun import recorded, rerun
from tests.helpers import tiny_engine
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.sizes import sized
from tests.helpers.tokenizers import numbered, wrapped


def make_engine(predictor=None, **config):
    config = scheduler_config(**config)
    runner = FakeRunner(config.shape, VOCAB_SIZE)
    intake = {"vocab_size": VOCAB_SIZE, "tokenizer": wrapped(numbered()), "predictor": predictor}
    return tiny_engine.make_engine(Scheduler(config), runner, **intake)


def random_params(rng):
    return SamplingParams(
        max_tokens=rng.randint(1, 40),
        n=rng.choice((1, 1, 1, 3)),
        stop="23" if rng.random() < 0.2 else None,
        stop_token_ids=[47] if rng.random() < 0.3 else None,
        prompt_logprobs=1 if rng.random() < 0.1 else None,
    )


def run(engine, seed, num_requests=30):
    """Requests of all kinds, some with a common beginning, some aborted."""
    rng, number = random.Random(seed), 0
    beginning = [rng.randrange(VOCAB_SIZE) for _ in range(40)]
    while number < num_requests or engine.has_unfinished:
        while number < num_requests and rng.random() < 0.4:
            prompt = [
                *beginning[: rng.choice((0, 20, 40))],
                *rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 30)),
            ]
            engine.add_request(
                str(number), prompt, random_params(rng), priority=rng.randint(0, 3),
                user=rng.choice("abc"), predicted_len=rng.choice((None, rng.randint(1, 40))),
                cache_salt=rng.choice((None, "salt")), first_scored=rng.choice((0, len(prompt) - 1)),
            )  # fmt: skip
            number += 1
        if number and rng.random() < 0.05:
            engine.abort(str(rng.randrange(number)))
        engine.step()


def traced(tmp_path, seed=0, **config):
    engine = make_engine(**config)
    trace = engine.trace_to(tmp_path / "trace")
    run(engine, seed)
    trace.close()
    assert trace.error is None
    return engine, read_trace(tmp_path / "trace")


@pytest.mark.parametrize("policy", ["fcfs", "sjf", "priority", "fair", "adaptive"])
def test_all_decisions_are_repeated(tmp_path, policy):
    preempted = found = 0
    for seed in range(sized(4, 100)):
        engine, trace = traced(tmp_path, seed, policy=policy, num_pages=11)
        done = repeat(trace)
        assert done.differs is None, (done.differs, done.now)
        assert done.plans == engine.summary.num_steps > 20
        preempted, found = preempted + engine.summary.num_preempted, found + engine.summary.found
    assert preempted > 0 and found > 0


@pytest.mark.parametrize("mode", ["static", "static-padded", "unbatched", "static-full"])
def test_decisions_of_other_modes_are_repeated(tmp_path, mode):
    _, trace = traced(tmp_path, mode=mode, num_pages=33)
    assert repeat(trace).differs is None


@pytest.mark.parametrize("reserve", ["forecast", "no-evict"])
def test_decisions_of_other_admissions_are_repeated(tmp_path, reserve):
    predictor = find_predictor("running-mean")
    for seed in range(sized(3, 30)):
        _, trace = traced(tmp_path, seed, predictor=predictor, reserve=reserve, num_pages=11)
        assert repeat(trace).differs is None


def test_every_field_of_a_request_is_in_a_trace_or_decides_nothing(tmp_path):
    nothing = {"request_id", "stop_ids", "seed", "prompt", "bad_word_ids", "request_idx"}
    other_names = {
        "prompt_token_ids": "pages",
        "params": "scored",
        "sample_idx": "sample",
        "streamed": "watched",
    }
    other_names["cache_salt"] = "pages"
    _, trace = traced(tmp_path, num_pages=33)
    written = next(line.value["add"] for line in trace.lines if line.kind == "add")
    for name in Request.__dataclass_fields__.keys() - nothing:
        assert other_names.get(name, name) in written, f"{name}: does the scheduler look at it?"


def test_own_policy_again_takes_as_many_steps(tmp_path):
    engine, trace = traced(tmp_path, policy="fcfs", num_pages=11)
    before = recorded(trace)
    assert (before.steps, before.preemptions) == (engine.summary.num_steps, engine.summary.num_preempted)
    again = rerun(trace, "fcfs")
    assert abs(again.steps - before.steps) <= 0.1 * before.steps


def test_another_policy_is_compared(tmp_path):
    engine = make_engine(num_rows=2)
    trace = engine.trace_to(tmp_path / "trace")
    for number, length in enumerate((30, 30, 2, 2, 2, 2)):
        engine.add_request(str(number), [number], SamplingParams(max_tokens=length, ignore_eos=True))
    tiny_engine.drain(engine)
    trace.close()
    read = read_trace(tmp_path / "trace")
    fcfs, sjf = recorded(read), rerun(read, "sjf")
    assert rerun(read, "fcfs")[:3] == fcfs[:3]
    assert sjf.mean_latency < 0.7 * fcfs.mean_latency


def test_a_plan_that_differs_is_the_first_one(tmp_path):
    _, trace = traced(tmp_path, num_pages=33)
    number = [line.number for line in trace.lines if line.kind == "plan"][7]
    raw = trace.path and (tmp_path / "trace").read_text().splitlines(keepends=True)
    raw[number] = raw[number].replace('"preempted":[]', '"preempted":[99]')
    (tmp_path / "trace").write_text("".join(raw))
    differs = repeat(read_trace(tmp_path / "trace")).differs
    assert differs is not None and differs.number == number


def test_what_was_said_and_cannot_follow_is_named(tmp_path):
    _, trace = traced(tmp_path, num_pages=33)
    first = next(line.number for line in trace.lines if line.kind == "result")
    raw = (tmp_path / "trace").read_text().splitlines(keepends=True)
    raw[first] = raw[first].replace('"step":0', '"step":5')
    (tmp_path / "trace").write_text("".join(raw))
    with pytest.raises(TraceError, match=rf"trace, line {first + 1}: it cannot be followed: .*step 5"):
        repeat(read_trace(tmp_path / "trace"))


def test_a_function_of_the_users_cannot_be_repeated(tmp_path):
    def mine(request, now, view):
        return (request.arrival,)

    engine, trace = traced(tmp_path, num_pages=33)
    config = engine.scheduler.config._replace(policy=Policy(mine))
    engine = tiny_engine.make_engine(Scheduler(config), FakeRunner(config.shape, VOCAB_SIZE))
    trace = engine.trace_to(tmp_path / "mine")
    engine.add_request("a", [1], SamplingParams(max_tokens=3))
    tiny_engine.drain(engine)
    trace.close()
    read = read_trace(tmp_path / "mine")
    with pytest.raises(TraceError, match="mine: its policy is a function"):
        repeat(read)
    assert rerun(read, "fcfs").steps == recorded(read).steps


def test_a_trace_begins_with_nothing(tmp_path):
    engine = make_engine()
    engine.add_request("a", [1], SamplingParams(max_tokens=3))
    with pytest.raises(JBatchError, match="unfinished requests: 1, held prompts: 0"):
        engine.trace_to(tmp_path / "trace")
    tiny_engine.drain(engine)
    first = engine.trace_to(tmp_path / "first")
    with engine.trace_to(tmp_path / "second") as second:
        engine.add_request("a", [1], SamplingParams(max_tokens=3))
        tiny_engine.drain(engine)
    assert first.error is None is second.error
    assert repeat(read_trace(tmp_path / "first")).plans == 0
    assert repeat(read_trace(tmp_path / "second")).plans > 0


def test_a_step_that_fails_ends_the_trace(tmp_path):
    engine = make_engine()
    with engine.trace_to(tmp_path / "trace"):
        engine.add_request("a", [1], SamplingParams(max_tokens=9))
        engine.step()
        engine.runner.submit = None
        with pytest.raises(TypeError):
            engine.step()
        tiny_engine.drain(engine)
    read = read_trace(tmp_path / "trace")
    assert "cut off" in read.closed and repeat(read).differs is None


def test_neither_text_nor_tokens_nor_names_are_in_a_trace(tmp_path):
    engine = make_engine()
    with engine.trace_to(tmp_path / "trace"):
        engine.add_request("secret-id", [83] * 40, SamplingParams(max_tokens=9), user="secret-user")
        tiny_engine.drain(engine)
    text = (tmp_path / "trace").read_text()
    assert "secret" not in text and "83,83" not in text


def test_weights_that_change_are_repeated(tmp_path):
    engine = make_engine()
    with engine.trace_to(tmp_path / "trace"):
        for number in range(3):
            engine.add_request(str(number), [number] * 40, SamplingParams(max_tokens=9))
        for _ in range(4):
            engine.step()
        engine.update(lambda: engine.tenancy.weights.count(None), "retract")
        tiny_engine.drain(engine)
        assert engine.reset_prefix_cache()
        engine.add_request("again", [1] * 40, SamplingParams(max_tokens=9))
        tiny_engine.drain(engine)
    text = (tmp_path / "trace").read_text()
    assert '"told":"retract"' in text and '"told":"reset_prefix_cache"' in text
    assert engine.summary.num_preempted == 3 and repeat(read_trace(tmp_path / "trace")).differs is None


def test_pages_that_are_held_end_a_trace_and_begin_none(tmp_path):
    engine = make_engine()
    with engine.trace_to(tmp_path / "trace"):
        engine.add_request("a", [1] * 40, SamplingParams(max_tokens=1))
        tiny_engine.drain(engine)
        hold_id = engine.hold([1] * 40, None)
    read = read_trace(tmp_path / "trace")
    assert "held" in read.closed and repeat(read).differs is None
    with pytest.raises(JBatchError, match="unfinished requests: 0, held prompts: 1"):
        engine.trace_to(tmp_path / "other")
    engine.let_go(hold_id)
    engine.trace_to(tmp_path / "other").close()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seq":0', '"sequ":0'),
        ('"pages":[', '"pages":7,"x":['),
        ('"rows":', '"rowss":'),
        ('"prompt_len":', '"prompt_len":-'),
        ('"ends":[', '"ends":7,"x":['),
        ('"limits":[', '"limits":["x",'),
        ('"shape":{', '"shape":{"x":1,'),
    ],
)
def test_what_was_changed_is_named_whatever_reads_it(tmp_path, old, new):
    """None of these is an error that nobody foresaw."""
    traced(tmp_path, num_pages=33)
    text = (tmp_path / "trace").read_text()
    assert old in text
    (tmp_path / "trace").write_text(text.replace(old, new, 1))
    trace, refused = read_trace(tmp_path / "trace"), 0
    for use in (repeat, recorded, lambda read: rerun(read, "sjf"), to_chrome):
        try:
            use(trace)
        except TraceError as error:
            refused += str(tmp_path / "trace") in str(error)
    assert refused


def test_limits_that_begin_with_nothing_do_not_stop_a_rerun(tmp_path):
    """Else nothing would ever run under another policy."""
    budgets = iter([0, 0])
    config = scheduler_config(num_pages=33)
    scheduler = Scheduler(config, lambda view: StepLimits(next(budgets, 32), config.shape.num_rows))
    engine = tiny_engine.make_engine(scheduler, FakeRunner(config.shape, VOCAB_SIZE))
    with engine.trace_to(tmp_path / "trace"):
        engine.add_request("a", [1], SamplingParams(max_tokens=3))
        tiny_engine.drain(engine)
    trace = read_trace(tmp_path / "trace")
    assert rerun(trace, "sjf").steps == recorded(trace).steps
