"""Messages that are refused, in the words of LLM.chat and of JSONL jobs, and what becomes of the others."""

import pytest

from jbatch.errors import RequestError
from jbatch.text.messages import check_messages, check_tools, list_conversations

ASK = [{"role": "user", "content": "hi"}]
PART = {"type": "text", "text": "hi"}
ROLES = "'system', 'developer', 'user', 'assistant', 'tool'"
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
AS_DICT = {**CALL, "function": {"name": "add", "arguments": {"a": 1}}}


def said(**fields):
    return [{"role": "user", "content": "hi", **fields}]


def calls(**fields):
    return [{"role": "assistant", "tool_calls": [{**CALL, **fields}]}]


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
        (said(role="robot"), "messages[0].role='robot': must be one of " + ROLES),
        (said(role=["user"]), "messages[0].role=['user']: must be one of " + ROLES),
        (said(role=None), "messages[0].role=None: must be given"),
        ([{"role": "user"}], "messages[0].content=None: must be given"),
        ([*ASK, *said(content=None)], "messages[1].content=None: must be given"),
        (said(content=5), "messages[0].content=5: must be a string"),
        (said(content="\ud800"), r"messages[0].content='\ud800': must be text without lone surrogates"),
        (said(content=["hi"]), "messages[0].content[0]='hi': must be a dictionary"),
        (said(content=[{}]), "messages[0].content[0].type=None: must be given"),
        (
            said(content=[{**PART, "type": "image_url"}]),
            "messages[0].content[0].type='image_url': must be 'text' or 'refusal'",
        ),
        (said(content=[{"type": "text"}]), "messages[0].content[0].text=None: must be given"),
        (said(content=[PART, {**PART, "text": 7}]), "messages[0].content[1].text=7: must be a string"),
        (said(name=3), "messages[0].name=3: must be a string"),
        (said(name="\ud800"), r"messages[0].name='\ud800': must be text without lone surrogates"),
        ([{"role": "assistant", "tool_calls": []}], "messages[0].content=None: must be given"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls={}: must be a list"),
        ([{"role": "assistant", "tool_calls": [7]}], "messages[0].tool_calls[0]=7: must be a dictionary"),
        (calls(type="custom"), "messages[0].tool_calls[0].type='custom': must be 'function'"),
        (calls(function=None), "messages[0].tool_calls[0].function=None: must be given"),
        (calls(function={}), "messages[0].tool_calls[0].function.name=None: must be given"),
        (calls(id=7), "messages[0].tool_calls[0].id=7: must be a string"),
        *(
            (
                calls(function={"name": "add", "arguments": arguments}),
                f"messages[0].tool_calls[0].function.arguments={arguments!r}: must be a JSON object",
            )
            for arguments in ("{", "[]", "7", 7, [])
        ),
        ([{"role": "tool", "tool_call_id": "c1"}], "messages[0].content=None: must be given"),
        (
            [{"role": "tool", "content": "", "tool_call_id": 1}],
            "messages[0].tool_call_id=1: must be a string",
        ),
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
        (said(tool_calls=[CALL]), "messages[0].tool_calls=[{'id': 'c1', 'type': 'function', 'function': "),
        (calls(index=0), "messages[0].tool_calls[0].index=0: a tool call has no option 'index'; known: "),
        (
            calls(function={"name": "f", "argument": "{}"}),
            "messages[0].tool_calls[0].function.argument='{}': a call of a function has no option "
            "'argument'; did you mean 'arguments'?",
        ),
        (said(contnt=""), "messages[0].contnt='': a message has no option 'contnt'; did you mean 'content'?"),
        (said(**{"a\nb" + 70 * "x": 1}), rf"messages[0].a\nb{61 * 'x'}=1: a message has no option 'a\nb"),
        ([{**ASK[0], 5: 6}], "messages[0].5=6: a message has no option '5'"),
        (
            said(content=[PART, {**PART, "image_url": "a.png"}]),
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


def test_null_is_as_good_as_missing():
    """As OpenAI's client dumps its own answers."""
    nulls = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "tool_calls", "name", "odd"))
    assert check_messages(said(**nulls)) == ASK
    assert check_messages(said(content=[{**PART, "cache_control": None}], tool_calls=[])) == ASK
    assert check_messages(said(annotations=[{"type": "url_citation"}])) == ASK
    (answered,) = check_messages([{"role": "assistant", "content": None, **nulls, "tool_calls": [CALL]}])
    assert answered == {"role": "assistant", "content": "", "tool_calls": [AS_DICT]}


@pytest.mark.parametrize("name, value", [("refusal", "No."), ("audio", {"id": "a"}), ("function_call", {})])
def test_what_no_template_can_show_is_refused_by_name(name, value):
    with pytest.raises(RequestError) as error:
        check_messages([*ASK, {"role": "assistant", "content": "x", name: value}])
    assert str(error.value) == f"messages[1].{name}={value!r}: is not supported: leave it out"
    assert error.value.code == "unsupported_field"


def test_tool_calls_and_their_results():
    bare = {"type": "function", "function": {"name": "now", "arguments": None}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": None, "tool_calls": [CALL, bare], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": [PART]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    now = {"type": "function", "function": {"name": "now", "arguments": {}}}
    expected = [
        messages[0],
        {"role": "assistant", "content": "", "tool_calls": [AS_DICT, now], "reasoning_content": "hm"},
        {"role": "tool", "content": "hi", "tool_call_id": "c1"},
        {"role": "assistant", "content": "No."},
    ]
    assert check_messages(messages) == expected == check_messages(expected)


TOOL = {"type": "function", "function": {"name": "add", "description": None, "parameters": {"default": None}}}


def test_tools():
    cleaned = {"type": "function", "function": {"name": "add", "parameters": {"default": None}}}
    assert check_tools([TOOL, {**TOOL, "x": None}]) == [cleaned, cleaned] and check_tools([]) == []


@pytest.mark.parametrize(
    "tools, expected",
    [
        ({}, "tools={}: must be a list"),
        ([TOOL, 7], "tools[1]=7: must be a dictionary"),
        ([{"type": "code_interpreter"}], "tools[0].type='code_interpreter': must be 'function'"),
        ([{"type": "function"}], "tools[0].function=None: must be given"),
        ([{"function": {"name": 7}}], "tools[0].function.name=7: must be a string"),
        ([{"function": {"name": None}}], "tools[0].function.name=None: must be given"),
    ],
)
def test_tools_that_are_none(tools, expected):
    with pytest.raises(RequestError) as error:
        check_tools(tools)
    assert str(error.value) == expected


def test_one_conversation_needs_no_list():
    assert list_conversations(ASK) == [ASK] and list_conversations([ASK, ASK]) == [ASK, ASK]
    assert list_conversations([]) == [] and list_conversations([[], ASK]) == [[], ASK]


def test_a_text_is_no_conversation():
    with pytest.raises(TypeError, match="a text is no conversation"):
        list_conversations("hi")
