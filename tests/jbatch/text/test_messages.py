"""Messages that are refused, in the words of LLM.chat and of JSONL jobs, and what becomes of the others."""

import pytest

from jbatch.errors import RequestError
from jbatch.text.messages import check_messages, list_conversations

ASK = [{"role": "user", "content": "hi"}]
PART = {"type": "text", "text": "hi"}


def said(**fields):
    return [{"role": "user", "content": "hi", **fields}]


@pytest.mark.parametrize(
    "messages, expected",
    [
        (None, "messages=None: must be a list"),
        ("hi", "messages='hi': must be a list"),
        ({"role": "user", "content": "hi"}, "messages={'role': 'user', 'content': 'hi'}: must be a list"),
        ([], "messages=[]: must have at least 1 item"),
        (["hi"], "messages[0]='hi': must be a dictionary"),
        ([*ASK, {}], "messages[1].role=None: must be given"),
        ([{"content": "hi"}], "messages[0].role=None: must be given"),
        (said(role="robot"), "messages[0].role='robot': must be 'system', 'user' or 'assistant'"),
        (said(role=["user"]), "messages[0].role=['user']: must be 'system', 'user' or 'assistant'"),
        (said(role=None), "messages[0].role=None: must be 'system', 'user' or 'assistant'"),
        ([{"role": "user"}], "messages[0].content=None: must be given"),
        ([*ASK, *said(content=None)], "messages[1].content=None: must be a string"),
        (said(content=5), "messages[0].content=5: must be a string"),
        (said(content="\ud800"), r"messages[0].content='\ud800': must be text without lone surrogates"),
        (said(content=["hi"]), "messages[0].content[0]='hi': must be a dictionary"),
        (said(content=[{}]), "messages[0].content[0].type=None: must be given"),
        (
            said(content=[{**PART, "type": "image_url"}]),
            "messages[0].content[0].type='image_url': must be 'text'",
        ),
        (said(content=[{"type": "text"}]), "messages[0].content[0].text=None: must be given"),
        (said(content=[PART, {**PART, "text": 7}]), "messages[0].content[1].text=7: must be a string"),
        (said(name=3), "messages[0].name=3: must be a string"),
        (said(name="\ud800"), r"messages[0].name='\ud800': must be text without lone surrogates"),
    ],
)
def test_messages_that_are_none_are_refused_by_name(messages, expected):
    with pytest.raises(RequestError) as error:
        check_messages(messages)
    assert str(error.value) == expected and error.value.code == "invalid_request"
    assert error.value.field == expected.partition("=")[0]


@pytest.mark.parametrize(
    "messages, expected",
    [
        (said(tool_calls=[]), "messages[0].tool_calls=[]: a message has no option 'tool_calls'; known: "),
        (said(contnt=""), "messages[0].contnt='': a message has no option 'contnt'; did you mean 'content'?"),
        (said(**{"a\nb" + 70 * "x": 1}), rf"messages[0].a\nb{61 * 'x'}=1: a message has no option 'a\nb"),
        ([{**ASK[0], 5: 6}], "messages[0].5=6: a message has no option '5'"),
        (
            said(content=[PART, {"type": "image_url", "image_url": "a.png"}]),
            "messages[0].content[1].image_url='a.png': a part of a content has no option 'image_url'; known:",
        ),
    ],
)
def test_fields_that_there_are_not_are_refused_by_name(messages, expected):
    with pytest.raises(RequestError) as error:
        check_messages(messages)
    assert str(error.value).startswith(expected) and error.value.code == "unknown_field"
    assert error.value.field == expected.partition("=")[0] and len(str(error.value).splitlines()) == 1


def test_text_parts_are_joined_by_line_breaks():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = ({"role": "system", "content": parts, "name": "x"}, {"role": "user", "content": []})
    expected = [{"role": "system", "content": "a\nb", "name": "x"}, {"role": "user", "content": ""}]
    assert check_messages(messages) == expected and messages[0]["content"] is parts
    assert check_messages(expected) == expected


def test_a_name_that_is_none_is_none():
    assert check_messages(said(name=None)) == ASK


def test_one_conversation_needs_no_list():
    assert list_conversations(ASK) == [ASK] and list_conversations([ASK, ASK]) == [ASK, ASK]
    assert list_conversations([]) == [] and list_conversations([[], ASK]) == [[], ASK]
