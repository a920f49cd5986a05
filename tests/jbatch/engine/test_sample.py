"""How the samples of requests end, and what their texts are then."""

import pytest

from jbatch.errors import RequestError
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import continuation
from tests.helpers.pencil_engine import PROMPT, TOKENS, generate, make_engine
from tests.helpers.schedules import VOCAB_SIZE
from tests.helpers.tiny_engine import drain

# Ends.

LONG = 40 * "4"  # a stop string whose length must not bring another one back


INCLUDE = {"include_stop_str_in_output": True}


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    "params, eos, num_tokens, reason, stop_reason, text",
    [
        ({"max_tokens": 3}, (), 3, "length", None, "05.11.23."),
        ({"max_tokens": 1}, (), 1, "length", None, "05."),
        ({"max_tokens": 0}, (), 0, "length", None, ""),
        ({"max_tokens": 9}, (23,), 3, "stop", None, "05.11."),
        ({"max_tokens": 3}, (23,), 3, "stop", None, "05.11."),  # a stop at the very last token
        ({"max_tokens": 5, "ignore_eos": True}, (23,), 5, "length", None, "05.11.23.47.95."),
        ({"max_tokens": 9, "stop_token_ids": [47]}, (), 4, "stop", 47, "05.11.23."),
        ({"max_tokens": 9, "stop_token_ids": [47]}, (23,), 3, "stop", None, "05.11."),
        ({"max_tokens": 9, "stop_token_ids": [23], "ignore_eos": True}, (23,), 3, "stop", 23, "05.11."),
        ({"max_tokens": 9, "stop": "23"}, (), 3, "stop", "23", "05.11."),
        ({"max_tokens": 9, "stop": "1.2"}, (), 3, "stop", "1.2", "05.1"),  # across two tokens
        ({"max_tokens": 3, "stop": ["23."]}, (), 3, "stop", "23.", "05.11."),  # and its length ends too
        ({"max_tokens": 9, "stop": ["47", "1."]}, (), 2, "stop", "1.", "05.1"),
        ({"max_tokens": 9, "stop": "1.2", **INCLUDE}, (), 3, "stop", "1.2", "05.11.2"),
        ({"max_tokens": 9, **INCLUDE}, (23,), 3, "stop", None, "05.11.23."),
        ({"max_tokens": 9, "stop": "23", "min_tokens": 2}, (), 3, "stop", "23", "05.11."),
        ({"max_tokens": 9, "stop": "1.2", "min_tokens": 2}, (), 3, "stop", "1.2", "05.1"),
        ({"max_tokens": 5, "stop": "1.2", "min_tokens": 3}, (), 5, "length", None, "05.11.23.47.95."),
        ({"max_tokens": 9, "stop": ["1.", "95", LONG], "min_tokens": 2}, (), 5, "stop", "95", "05.11.23.47."),
        ({"max_tokens": 3, "stop": "xyz"}, (), 3, "length", None, "05.11.23."),
        ({"max_tokens": 3, "detokenize": False}, (), 3, "length", None, ""),
    ],
)  # fmt: skip
def test_ends(params, eos, num_tokens, reason, stop_reason, text, overlap):
    output = generate(params, eos_token_ids=eos, overlap=overlap).outputs[0]
    assert output.token_ids == TOKENS[:num_tokens]
    assert (output.finish_reason, output.stop_reason, output.text) == (reason, stop_reason, text)


def test_min_tokens_holds_stops_back():
    tokens = generate({"max_tokens": 9, "min_tokens": 3}, eos_token_ids=(11, 23)).outputs[0].token_ids
    assert tokens == continuation(PROMPT, 9, VOCAB_SIZE, (11, 23), 3)
    assert len(tokens) >= 3 and not {11, 23} & set(tokens[:3])


def test_without_max_tokens_the_context_is_the_end():
    output = generate({})
    assert len(output.outputs[0].token_ids) == 128 - len(PROMPT)
    assert output.outputs[0].finish_reason == "length" and output.finished


def test_without_a_tokenizer_ids_work_and_text_is_empty():
    output = generate({"max_tokens": 3}, tokenizer=False).outputs[0]
    assert (output.token_ids, output.text) == (TOKENS[:3], "")


def test_output_that_cannot_be_decoded_ends_its_request_alone(monkeypatch):
    engine = make_engine()
    engine.add_request("bad", PROMPT, SamplingParams(max_tokens=9, stop="x"))
    engine.add_request("good", PROMPT, SamplingParams(max_tokens=9))

    def fail(self, token_id, search):
        raise RequestError("stop", ["x"], "the output cannot be decoded: boom")

    monkeypatch.setattr("jbatch.text.tokenizer.Detokenizer.push", fail)
    outputs = drain(engine)
    assert outputs["bad"].outputs[0].finish_reason == "error" and "boom" in outputs["bad"].error
    assert outputs["good"].outputs[0].token_ids == TOKENS[:9]


def test_a_stop_finder_that_fails_is_that_requests_error_alone():
    engine = make_engine()
    real = engine.tokenizer.detokenizer

    def detokenizer(stop, *, after, **options):
        if after == (1, 13):
            raise ValueError("no such token")
        return real(stop, after=after, **options)

    engine.tokenizer.detokenizer = detokenizer
    params = SamplingParams(max_tokens=2, stop="x", n=2)
    for idx in (2, 13, 3):
        engine.add_request(str(idx), [1, idx], params)
    outputs = drain(engine)
    assert outputs["13"].error == "no such token" and outputs["13"].outputs[0].finish_reason == "error"
    assert outputs["2"].outputs[1].token_ids == continuation(PROMPT, 2, VOCAB_SIZE, sample_idx=1)
    assert outputs["3"].error is None and not engine.num_unfinished


def test_a_text_that_cannot_be_decoded_is_that_requests_error_alone():
    engine = make_engine()
    real = type(engine.tokenizer).decode

    def decode(token_ids, **options):
        if 23 in token_ids:
            raise RequestError("token_ids", token_ids, "cannot be decoded")
        return real(engine.tokenizer, token_ids, **options)

    engine.tokenizer.decode = decode
    engine.add_request("bad", PROMPT, SamplingParams(max_tokens=3))
    engine.add_request("good", PROMPT, SamplingParams(max_tokens=2))
    outputs = drain(engine)
    assert outputs["bad"].outputs[0].finish_reason == "error" and "cannot be decoded" in outputs["bad"].error
    assert outputs["good"].outputs[0].text == "05.11."
