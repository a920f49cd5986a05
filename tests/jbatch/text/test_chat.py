"""Chat templates: where they come from, what they render, and those that do harm."""

import importlib.util
import os

import pytest

from jbatch.errors import ConfigError, RequestError
from jbatch.text.chat import ChatEncoder, ChatTemplate
from jbatch.text.chat_options import ChatOptions
from jbatch.text.tokenizer import load_tokenizer
from tests.helpers.tokenizers import byte_level, save

ASK = [{"role": "user", "content": "hi"}]


def said(**fields):
    return [{"role": "user", "content": "hi", **fields}]


PLAIN = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
needs_jinja = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("transformers", "jinja2")), reason="the extra chat"
)


# Where a template comes from.


@pytest.mark.parametrize(
    "template, match",
    [
        (None, "no chat template"),
        (5, "no chat template"),
        ([], "no chat template"),
        ([{"name": "a", "template": "x"}, {"name": "b", "template": "y"}], "named default, of .'a', 'b'"),
        ([{"name": "default", "template": 7}, 7, {}], "no chat template: give"),
    ],
)
def test_a_model_without_a_template_says_so(tmp_path, template, match):
    save(byte_level(), tmp_path, chat_template=template)
    with pytest.raises(RequestError, match=match) as error:
        ChatTemplate.load(tmp_path).render(ASK)
    assert error.value.field == "messages"


@pytest.mark.parametrize("text", ["", "[1]", "not JSON", "[" * 100_000, "\xff"])
def test_a_broken_tokenizer_config_has_no_template(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RequestError, match="no chat template") as error:
        ChatTemplate.load(tmp_path).render(ASK)
    assert error.value.code == "no_chat_template"


def test_without_a_tokenizer(tmp_path):
    with pytest.raises(RequestError, match="no tokenizer"):
        ChatEncoder(tmp_path, None).encode(ASK)


def test_a_template_of_ones_own_needs_none_of_the_models(tmp_path):
    """And no process: what is wrong with messages and options is found without one."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        ChatEncoder(tmp_path, None, tmp_path / "none")
    template = ChatTemplate.load(tmp_path, PLAIN)
    with pytest.raises(RequestError, match="the last message has no content to continue"):
        template.render(said(content=""), ChatOptions(continue_final_message=True))
    with pytest.raises(RequestError, match=r"messages=\[\]: must have at least 1 item"):
        template.render([], ChatOptions(chat_template="x"))


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    """A package of that name that cannot be imported."""
    for name in ("transformers", "jinja2"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('it is not there')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    hint = r"pip install '\.\[chat\]' in a clone of jbatch \(it is not there\)"
    with pytest.raises(ConfigError, match=hint):
        ChatTemplate(PLAIN, {}).render(ASK)


# Rendering.


@needs_jinja
def test_what_a_template_is_told():
    """One process for all of it: it takes a second to start."""
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% for c in m.tool_calls %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}"
        "{% endfor %}{% for t in tools or [] %}({{ t.function.name }}){% endfor %}"
        "{% if thinking is defined %}{{ thinking }}{% endif %}"
        "{% if add_generation_prompt %}[answer]{% endif %}"
    )
    template = ChatTemplate(source, {"bos_token": "<s>"})
    try:
        assert template.render(ASK) == "[user]hi[answer]"
        assert template.render(ASK, ChatOptions(add_generation_prompt=False)) == "[user]hi"
        kwargs = {"thinking": False, "none": None}
        assert template.render(ASK, ChatOptions(chat_template_kwargs=kwargs)) == "[user]hiFalse[answer]"
        tools = [{"type": "function", "function": {"name": "add"}}]
        assert template.render(ASK, ChatOptions(tools=tools)) == "[user]hi(add)[answer]"
        call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
        history = [*ASK, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "3"}]
        assert template.render(history) == '[user]hi[assistant]<add {"a": 1}>[tool]3[answer]'
        begun = [*ASK, {"role": "assistant", "content": "x ="}]
        assert template.render(begun, ChatOptions(continue_final_message=True)) == "[user]hi[assistant]x ="
        developer = [{"role": "developer", "content": "brief"}]
        assert template.render(developer) == "[system]brief[answer]"
        own = ChatOptions(chat_template="{{ bos_token }}{{ messages[0].role }}{# developer #}")
        assert template.render(developer, own) == "<s>developer"
        assert template.render(ASK) == "[user]hi[answer]", "the other template has stayed"
        with pytest.raises(RequestError, match="must be what JSON can hold: Object of type set"):
            template.render(ASK, ChatOptions(chat_template="other", chat_template_kwargs={"x": {1}}))
        assert template.render(ASK) == "[user]hi[answer]"
        reason = "the final message does not appear in the chat after applying the chat template"
        with pytest.raises(RequestError, match=reason) as error:
            other = ChatOptions(chat_template="{{ 'content' }}", continue_final_message=True)
            template.render(ASK, other)
        assert len(str(error.value).splitlines()) == 1
    finally:
        template.close()


@needs_jinja
@pytest.mark.parametrize("num", [0, 1, 2])
def test_a_prompt_has_the_templates_bos_and_no_other(num, tmp_path):
    template = "{{ bos_token }}" * num + "{{ messages[0].content }}"
    save(byte_level(bos=True), tmp_path, bos_token="<s>", chat_template=template)
    chat = ChatEncoder(tmp_path, load_tokenizer(tmp_path))
    prompt = chat.encode([{"role": "user", "content": "é</s>"}])
    assert prompt.text == "<s>" * num + "é</s>"
    assert prompt.token_ids[:num] == (256,) * num and prompt.token_ids.count(256) == num
    assert prompt.token_ids.count(257) == 1  # a special token in a message becomes the token
    chat.close()


HARMFUL = """\
{% set what = messages[0].content %}
{% if what == 'loop' %}{% for a in range(9999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}
{% elif what == 'power' %}{{ (messages | length + 8) ** (9 ** 9) }}
{% elif what == 'memory' %}{{ 'a' * 10 ** 12 }}
{% elif what == 'long' %}{{ 'a' * (2 ** 24 + 1) }}
{% elif what == 'escape' %}{{ messages.__class__.__mro__ }}
{% elif what == 'refuse' %}{{ raise_exception('no such role\n') }}
{% else %}{{ what }}{% endif %}"""


@needs_jinja
def test_templates_that_do_harm_end_with_an_error_in_bounded_time():
    """And no other conversation is refused for them, however many there were."""
    template = ChatTemplate(HARMFUL, {}, limit_s=2)

    def ask(content):
        return template.render([{"role": "user", "content": content}])

    def refusal(content):
        with pytest.raises(RequestError) as error:
            ask(content)
        return error.value.reason

    assert "MemoryError" in refusal("memory")
    assert "at most 16777216" in refusal("long")
    assert "SecurityError" in refusal("escape")
    assert "TemplateError: no such role" in refusal("refuse")
    assert ask("hi").strip() == "hi"  # one that fails leaves the others alone
    for what in ("loop", "power", "loop"):
        assert "more than 2 s" in refusal(what)
    assert ask("\u2028\n😀").strip() == "😀"
    template.close()


@needs_jinja
@pytest.mark.filterwarnings("ignore:.*fork:")
def test_a_fork_starts_a_process_of_its_own():
    """Also while the parent's is in use: on one pipe, one would get the other's text."""
    template = ChatTemplate(PLAIN, {"bos_token": "B"})
    assert template.render(ASK) == "Buser:hi;"
    (worker,) = template._renderer._workers.values()
    with worker.lock:
        child = os.fork()
        if not child:
            try:
                right = template.render(said(content="child")) == "Buser:child;"
                template.close()
                os._exit(7 if right else 1)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert worker.process.poll() is None and template.render(ASK) == "Buser:hi;"
    template.close()


@needs_jinja
def test_a_process_that_dies_is_replaced():
    template = ChatTemplate(PLAIN, {"bos_token": "B"})
    assert template.render(ASK) == "Buser:hi;"
    (worker,) = template._renderer._workers.values()
    process = worker.process
    assert os.getpgid(process.pid) != os.getpgid(0), "a Ctrl-C in a terminal would end it"
    process.kill()
    process.wait()
    assert template.render(ASK) == "Buser:hi;" and worker.process is not process
    template.close()
    template.close()


@needs_jinja
def test_a_template_that_cannot_be_compiled():
    with pytest.raises(RequestError, match="the chat template fails: "):
        ChatTemplate("{% for %}", {}).render(ASK)
