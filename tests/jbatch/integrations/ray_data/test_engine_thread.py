"""An engine in a thread: outputs go to who waits for them, and slots are filled across batches."""

import threading
import time

import pytest

from jbatch.errors import JobError, RequestError
from jbatch.integrations.ray_data.engine_thread import EngineThread
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import continuation
from tests.jbatch.engine.test_stream import VOCAB_SIZE, is_clean, make_engine

TIMEOUT_S = 30


@pytest.fixture
def running():
    thread = EngineThread(make_engine(None, num_rows=4))
    yield thread
    thread.close()


def add(thread, name: str, prompt, num_tokens: int):
    def to_engine():
        thread._engine.add_request(name, prompt, SamplingParams(max_tokens=num_tokens, ignore_eos=True))
        return [name]

    (future,) = thread.submit(to_engine)
    return future


def test_each_gets_its_own_from_any_thread(running):
    answers = {}

    def ask(number):
        prompt = [3 + number, 5]
        futures = [add(running, f"{number} {idx}", prompt, idx + 1) for idx in range(20)]
        for idx, future in enumerate(futures):
            expected = continuation(prompt, idx + 1, VOCAB_SIZE)
            answers[number, idx] = future.result(TIMEOUT_S).outputs[0].token_ids == list(expected)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 80 and all(answers.values())
    assert is_clean(running._engine)


def test_a_request_that_is_refused_is_nobody_elses_concern(running):
    first = add(running, "a", [3], 4)
    with pytest.raises(RequestError):
        add(running, "b", [], 4)
    assert len(first.result(TIMEOUT_S).outputs[0].token_ids) == 4


def test_a_step_that_fails_ends_it(running, monkeypatch):
    def on_fire(step):
        raise RuntimeError("on fire")

    monkeypatch.setattr(running._engine.runner, "submit", on_fire)
    with pytest.raises(JobError, match="a step failed: RuntimeError: on fire"):
        add(running, "a", [3], 4).result(TIMEOUT_S)
    with pytest.raises(JobError, match="on fire"):
        add(running, "b", [3], 4)


def test_who_waits_at_the_end_is_told(monkeypatch):
    engine = make_engine(None, num_rows=4)
    submit = engine.runner.submit
    monkeypatch.setattr(engine.runner, "submit", lambda step: time.sleep(0.05) or submit(step))
    thread = EngineThread(engine)
    future = add(thread, "a", [3], 100)
    thread.close()
    with pytest.raises(JobError, match="closed"):
        future.result(TIMEOUT_S)
