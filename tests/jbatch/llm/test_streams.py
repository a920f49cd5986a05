"""Samples, streams and conversations."""

import asyncio
import dataclasses

import pytest

from jbatch import SamplingParams
from jbatch.errors import RequestError
from jbatch.text.chat import ChatTemplate
from jbatch.text.messages import check_messages
from tests.helpers.small_llm import GREEDY, ids_of

# Samples and streams.


def test_samples_of_a_prompt(llm):
    params = SamplingParams(n=3, temperature=1.0, seed=7, max_tokens=8, ignore_eos=True)
    one, many = llm.generate([[5, 6]] * 2, [dataclasses.replace(params, n=1), params])
    assert [completion.index for completion in many.outputs] == [0, 1, 2]
    assert many.outputs[0].token_ids == one.outputs[0].token_ids
    assert len({completion.text for completion in many.outputs}) == 3


STREAMED = [
    GREEDY,
    SamplingParams(n=2, seed=3, max_tokens=20, ignore_eos=True, stop=["1.2", ".3", "7"]),
    SamplingParams(max_tokens=999),  # refused
]


def test_a_stream_gives_the_texts_of_generate(llm):
    prompts = ["05.06.", [7, 8], "01."]
    full = llm.generate(prompts, STREAMED)
    texts = {}
    for delta in llm.stream(prompts, STREAMED):
        key = delta.prompt_idx, delta.sample_idx
        texts[key] = texts.get(key, "") + delta.text
        if delta.output is not None:
            assert delta.output.outputs == full[delta.prompt_idx].outputs
    assert texts == {(i, c.index): c.text for i, output in enumerate(full) for c in output.outputs}
    assert texts[0, 0] and texts[1, 0] != texts[1, 1] and not llm.engine.has_unfinished


def test_a_stream_checks_its_arguments_at_once_and_does_nothing_before_it_is_read(llm):
    with pytest.raises(ValueError, match="2 sampling_params for 1 prompts"):
        llm.stream([[1]], [GREEDY] * 2)
    unread = llm.stream([[1]] * 3, GREEDY)
    assert not llm.engine.has_unfinished
    del unread


def test_leaving_a_stream_early_leaves_the_llm_usable(llm):
    expected = ids_of(llm.generate([[5, 6]], GREEDY))
    for _ in llm.stream([[5, 6], [7]] * 4, GREEDY):
        break
    assert ids_of(llm.generate([[5, 6]], GREEDY)) == expected


def test_an_async_stream(llm):
    expected = [(d.prompt_idx, d.text, d.token_ids) for d in llm.stream([[5, 6], [7]], GREEDY)]

    async def read():
        return [(d.prompt_idx, d.text, d.token_ids) async for d in llm.astream([[5, 6], [7]], GREEDY)]

    assert asyncio.run(asyncio.wait_for(read(), 120)) == expected and not llm.engine.has_unfinished


# Chat.

QUESTION = [{"role": "user", "content": "05.06."}]


def test_a_model_without_a_chat_template(llm):
    (output,) = llm.chat(QUESTION, GREEDY)
    assert output.outputs[0].finish_reason == "error" and "no chat template" in output.error
    with pytest.raises(RequestError, match="no chat template"):
        llm.chat_token_ids(QUESTION)


def test_chat_is_generate_on_the_rendered_text(llm, monkeypatch):
    def render(self, messages, options):
        return "01." + "".join(message["content"] for message in check_messages(messages))

    monkeypatch.setattr(llm.chat_encoder, "_template", ChatTemplate("", {}))
    monkeypatch.setattr(ChatTemplate, "render", render)
    (expected,) = llm.generate([[1, 5, 6]], GREEDY)
    outputs = llm.chat([QUESTION, [{"role": "user", "content": 5}], QUESTION], [GREEDY] * 3)
    assert [output.prompt for output in outputs] == ["01.05.06.", None, "01.05.06."]
    assert outputs[0].outputs == outputs[2].outputs == expected.outputs
    assert "messages[0].content=5" in outputs[1].error
    with pytest.raises(RequestError, match="continue_final_message='yes': must be true or false"):
        llm.chat(QUESTION, GREEDY, continue_final_message="yes")
    with pytest.raises(TypeError, match="did you mean 'chat_template'"):
        llm.chat_token_ids(QUESTION, chat_templat="x")
    assert llm.chat(QUESTION, GREEDY)[0].prompt_token_ids == [1, 5, 6] == list(llm.chat_token_ids(QUESTION))
