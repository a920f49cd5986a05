"""What may be asked of a chat template, and where its text comes from."""

import pytest

from jbatch.errors import ConfigError, RequestError
from jbatch.text.chat_options import MAX_TEMPLATE_CHARS, ChatOptions, read_chat_template

TOOL = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    "options, begins",
    [
        ({}, True),
        ({"continue_final_message": False}, True),
        ({"continue_final_message": True}, False),
        ({"continue_final_message": True, "add_generation_prompt": False}, False),
        ({"add_generation_prompt": False}, False),
        ({"add_generation_prompt": True, "continue_final_message": None}, True),
    ],
)
def test_a_text_ends_with_the_beginning_of_an_answer_unless_a_message_is_continued(options, begins):
    assert ChatOptions(**options).begins_answer == begins


def test_what_asks_for_nothing_is_nothing():
    nothing = dict(tools=[], chat_template_kwargs={"x": None}, chat_template=None)
    assert ChatOptions(**nothing) == ChatOptions()
    assert ChatOptions(tools=[{**TOOL, "strict": None}]).tools == [TOOL]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"add_generation_prompt": 1}, "add_generation_prompt=1: must be true or false"),
        ({"continue_final_message": "no"}, "continue_final_message='no': must be true or false"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message=True: not with add_generation_prompt: ",
        ),
        (
            {"chat_template": ""},
            f"chat_template='': must be a string of 1 to {MAX_TEMPLATE_CHARS} characters",
        ),
        ({"chat_template": 7}, "chat_template=7: must be a string of 1"),
        ({"tools": "add"}, "tools='add': must be a list"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs=[1]: must map names to values"),
        ({"chat_template_kwargs": {1: 2}}, "chat_template_kwargs={1: 2}: must map names to values"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools=[]: is a field of its own"),
    ],
)
def test_errors_name_the_field(options, expected):
    with pytest.raises(RequestError) as error:
        ChatOptions(**options)
    assert str(error.value).startswith(expected) and error.value.field == expected.partition("=")[0]


def test_an_unknown_option():
    with pytest.raises(TypeError, match="did you mean 'chat_template_kwargs'"):
        ChatOptions(chat_template_kwarg={})


def test_a_template_is_a_text_or_the_path_of_one(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{{ é }}", encoding="utf-8")
    for given in (path, str(path), "{{ é }}"):
        assert read_chat_template(given) == "{{ é }}"
    assert read_chat_template("two\nlines") == "two\nlines"
    for missing, reason in ((str(tmp_path / "none"), "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"chat_template=.*: cannot be read: {reason}"):
            read_chat_template(missing)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read: 'utf-8' codec"):
        read_chat_template(path)
