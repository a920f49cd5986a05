"""What an engine takes in, and what it refuses."""

import contextlib

import numpy as np
import pytest

from jbatch.engine.intake import derive_seed
from jbatch.errors import RequestError
from jbatch.host.policy import Policy
from jbatch.host.scheduler import Scheduler
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import FakeRunner, continuation
from tests.helpers import tiny_engine
from tests.helpers.pencil_engine import PROMPT, TOKENS, generate, make_engine
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.tiny_engine import drain


def test_the_tokens_above_are_right():
    assert continuation(PROMPT, 10, VOCAB_SIZE) == TOKENS


def test_a_text_prompt_and_its_output():
    engine = make_engine()
    engine.add_request("r", "01.02.", SamplingParams(max_tokens=2))
    output = drain(engine)["r"]
    assert (output.prompt, output.prompt_token_ids, output.request_id) == ("01.02.", PROMPT, "r")
    assert output.outputs[0].text == "05.11." and output.error is None


@pytest.mark.parametrize("prompt", [(1, 2), np.asarray([1, 2]), [np.int64(1), np.int32(2)]])
def test_token_ids_of_any_integer_kind(prompt):
    output = generate({"max_tokens": 2}, prompt)
    assert output.outputs[0].token_ids == TOKENS[:2] and output.prompt is None
    assert [type(token_id) for token_id in output.prompt_token_ids] == [int, int]


# Refusals.


@pytest.mark.parametrize(
    "prompt, params, field",
    [
        ("", {}, "prompt"),
        ([], {}, "prompt_token_ids"),
        ([97], {}, "prompt_token_ids"),
        ([-1], {}, "prompt_token_ids"),
        ([1.0], {}, "prompt_token_ids"),
        ([True], {}, "prompt_token_ids"),
        (["a"], {}, "prompt_token_ids"),
        ([None], {}, "prompt_token_ids"),
        ([2**70], {}, "prompt_token_ids"),
        (None, {}, "prompt"),
        (7, {}, "prompt"),
        (b"bytes", {}, "prompt"),
        ([1] * 128, {}, "prompt_token_ids + max_tokens"),
        ([1] * 1000, {"max_tokens": 1}, "prompt_token_ids + max_tokens"),
        ([1], {"max_tokens": 128}, "prompt_token_ids + max_tokens"),
        ([1], {"stop_token_ids": [97]}, "stop_token_ids"),
        ([1], {"stop_token_ids": list(range(16))}, "stop_token_ids"),  # and one end-of-sequence id
    ],
)
def test_refusals_name_the_field_and_leave_no_trace(prompt, params, field):
    engine = make_engine(eos_token_ids=(50,))
    with pytest.raises(RequestError) as error:
        engine.add_request("r", prompt, SamplingParams(**params))
    assert error.value.field == field and str(error.value).startswith(f"{field}=")
    assert not engine.has_unfinished and engine.num_unfinished == 0
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=1))  # the id is free
    assert drain(engine)["r"].outputs[0].token_ids == TOKENS[:1]


@pytest.mark.parametrize("prompt, params", [("text", {}), (PROMPT, {"stop": "a"})])
def test_without_a_tokenizer_text_is_refused(prompt, params):
    engine = make_engine(tokenizer=False)
    with pytest.raises(RequestError, match="no tokenizer"):
        engine.add_request("r", prompt, SamplingParams(**params))


def test_a_request_id_is_unique_while_it_lives():
    engine = make_engine()
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=2))
    with pytest.raises(RequestError, match="request_id"):
        engine.add_request("r", PROMPT)
    drain(engine)
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=1))
    assert drain(engine).keys() == {"r"}


# Seeds, times.


def test_seeds_derive_from_the_index_in_the_input():
    engine = make_engine(seed=3)
    engine.add_request("a", PROMPT)
    engine.add_request("b", PROMPT, index=7)
    engine.add_request("c", PROMPT, SamplingParams(seed=11))
    engine.add_request("d", PROMPT, index=0)
    seeds = [sequence.request.seed for sequence in engine.scheduler.lifecycle.sequences.values()]
    assert seeds == [derive_seed(3, 0), derive_seed(3, 7), 11, derive_seed(3, 0)]
    assert len({derive_seed(seed, index) for seed in range(30) for index in range(30)}) == 900


@pytest.mark.parametrize(
    "field, value",
    [
        ("priority", None), ("priority", "high"), ("priority", 0.5), ("arrival", float("nan")),
        ("arrival", "now"), ("deadline", float("inf")), ("predicted_len", -1), ("predicted_len", 2.5),
    ],
)  # fmt: skip
def test_what_a_policy_cannot_sort_by_is_refused(field, value):
    engine = make_engine(policy="priority")
    if value is None:
        value = [None]
    with pytest.raises(RequestError, match=field):
        engine.add_request("bad", PROMPT, **{field: value})
    engine.add_request("good", PROMPT, SamplingParams(max_tokens=2))
    assert drain(engine)["good"].outputs[0].token_ids == TOKENS[:2]


BAD_KEYS = {2: ("x",), 4: (float("nan"),), 6: 3, 8: None, 10: ZeroDivisionError()}


def test_a_policy_that_fails_once_refuses_that_request_and_no_other():
    """Also where it is incomparable with the keys of those that wait."""
    engine = make_engine(num_rows=1)

    def policy(request, now, view):
        key = BAD_KEYS.get(request.prompt_token_ids[1], (0.0,))
        if isinstance(key, Exception):
            raise key
        return key

    engine.scheduler.config = engine.scheduler.config._replace(policy=Policy(policy))
    for idx in range(12):
        with (
            contextlib.nullcontext()
            if idx not in BAD_KEYS
            else pytest.raises(RequestError, match=r"^policy=")
        ):
            engine.add_request(str(idx), [1, idx], SamplingParams(max_tokens=3, n=2))
    outputs = drain(engine)
    assert outputs.keys() == {str(idx) for idx in range(12) if idx not in BAD_KEYS}
    for idx, output in outputs.items():
        assert output.outputs[0].token_ids == continuation([1, int(idx)], 3, VOCAB_SIZE)
    assert engine.scheduler.pool.num_used == 0 and engine.scheduler.num_waiting == 0


def test_a_policy_whose_keys_stay_is_asked_once_however_often_a_request_waits():
    asked = []

    def policy(request, now, view):
        asked.append(request.request_id)
        return (0.0,)

    config = scheduler_config(num_rows=3, num_pages=5, page_size=4, max_model_len=16)
    config = config._replace(policy=Policy(policy, rerank_steps=0))
    engine = tiny_engine.make_engine(
        Scheduler(config), FakeRunner(config.shape, VOCAB_SIZE), vocab_size=VOCAB_SIZE
    )
    for idx in range(4):
        engine.add_request(str(idx), [1, idx], SamplingParams(max_tokens=10))
    drain(engine)
    assert engine.summary.num_preempted and asked == ["0", "1", "2", "3"]


def test_scalars_of_numpy_are_numbers():
    engine = make_engine(policy="priority")
    params = SamplingParams(max_tokens=np.int64(3), temperature=np.float32(0), ignore_eos=np.bool_(True))
    fields = {"arrival": np.float64(1), "priority": np.int32(2), "predicted_len": np.int64(4)}
    engine.add_request("r", PROMPT, params, index=np.int64(7), request_idx=np.int32(1), **fields)
    (sequence,) = engine.scheduler.unfinished
    request = sequence.request
    assert [type(value) for value in (request.arrival, request.priority, request.predicted_len)] == [
        float,
        int,
        int,
    ]
    assert request.seed == derive_seed(0, 7) and drain(engine)["r"].outputs[0].token_ids == TOKENS[:3]
