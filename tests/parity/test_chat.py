"""Chat prompts against transformers' own apply_chat_template: text and ids."""

import pytest
import transformers

from jbatch.text.chat import ChatEncoder
from jbatch.text.tokenizer import load_tokenizer
from tests.helpers.tokenizers import byte_fallback, byte_level, save

# Written after the models' manuals, in the idioms that their own templates use. A template's spaces are text.
# ruff: noqa: E501
LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}\
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}\
{% for message in rest %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA_3 = """\
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}
        {%- set content = bos_token + content %}
    {%- endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN = """\
{%- if tools %}
    {{- raise_exception('no tools here') }}
{%- else %}
    {%- if messages[0].role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and message.content is string %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.name is defined %}{{- message.name + ': ' }}{%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- if loop.index0 == ns.last %}{{- '<!-- ' ~ (message | tojson) ~ ' -->' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

CONVERSATIONS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be  brief."}, {"role": "user", "content": " 日本語 👩‍👩‍👧 \n\n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b <|eot_id|> </s> é"},
        {"role": "user", "content": "c\u2028<|im_end|>"},
    ],
]


def llama_3_like():
    tokenizer = byte_level(bos=True)
    tokenizer.add_special_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    return tokenizer


def qwen_like():
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer


@pytest.mark.parametrize(
    "template, make, place, num_bos",
    [
        (LLAMA_2, byte_fallback, "config", [1, 1, 2]),
        (LLAMA_3, llama_3_like, "named", [1, 1, 1]),
        (QWEN, qwen_like, "file", [0, 0, 0]),
    ],
    ids=["llama-2", "llama-3", "qwen"],
)
def test_prompts_equal_those_of_transformers(tmp_path, template, make, place, num_bos):
    special = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}}
    if place == "config":
        special["chat_template"] = template
    elif place == "named":
        other = {"name": "tool_use", "template": "{{ messages }}"}
        special["chat_template"] = [other, {"name": "default", "template": template}]
    else:
        special["chat_template"] = "not this one"
    save(make(), tmp_path, tokenizer_class="PreTrainedTokenizerFast", **special)
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(template)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    chat = ChatEncoder(tmp_path, tokenizer)
    for messages, bos in zip(CONVERSATIONS, num_bos, strict=True):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        prompt = chat.encode(messages)
        assert (prompt.text, list(prompt.token_ids)) == (text, list(ids))
        assert prompt.token_ids.count(tokenizer.bos_token_id) == bos  # one for each question, in Llama 2
    chat.close()
