"""A model's tokenizer by transformers' names."""

import importlib.util

import numpy as np
import pytest

from jbatch.errors import RequestError
from jbatch.text.chat import ChatEncoder
from jbatch.text.model_tokenizer import ModelTokenizer
from jbatch.text.tokenizer import load_tokenizer
from tests.helpers.tokenizers import byte_level, save

needs_jinja = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("transformers", "jinja2")), reason="the extra chat"
)
TEMPLATE = (
    "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ ':' if add_generation_prompt }}{{ more }}"
)


def of(path, **special):
    save(byte_level(bos=True), path, bos_token="<s>", eos_token="</s>", **special)
    tokenizer = load_tokenizer(path)
    return ModelTokenizer(tokenizer, ChatEncoder(path, tokenizer))


def test_ids_and_texts(tmp_path):
    tokenizer = of(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id) == (258, 256, 257)
    ids = tokenizer.encode("hi é")
    assert ids == [256, *tokenizer.encode("hi é", add_special_tokens=False)]
    assert tokenizer.decode(ids) == "<s>hi é" and tokenizer.decode(ids, skip_special_tokens=True) == "hi é"
    assert tokenizer.decode(np.array(ids)) == "<s>hi é" and tokenizer.decode(257) == "</s>"


@needs_jinja
def test_conversations(tmp_path):
    tokenizer, ask = of(tmp_path, chat_template=TEMPLATE), [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(ask, tokenize=False)
    assert text == "<s>hi</s>"
    assert tokenizer.apply_chat_template(ask) == tokenizer.encode(text, add_special_tokens=False)
    begun = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True, more="+")
    assert begun == "<s>hi</s>:+"
    own = tokenizer.apply_chat_template(
        ask, tokenize=False, chat_template="{{ more }}", chat_template_kwargs={"more": 1}
    )
    assert own == "1"
    with pytest.raises(RequestError, match=r"^add_generation_prompt='yes'"):
        tokenizer.apply_chat_template(ask, add_generation_prompt="yes")


def test_a_model_without_a_template(tmp_path):
    with pytest.raises(RequestError, match="no chat template"):
        of(tmp_path).apply_chat_template([{"role": "user", "content": "hi"}])


def test_in_a_line(tmp_path):
    ends = "bos_token_id=256, eos_token_id=257"
    assert repr(of(tmp_path)) == f"<ModelTokenizer: 258 tokens, {ends}, no chat template>"
    assert (
        repr(of(tmp_path, chat_template=TEMPLATE)) == f"<ModelTokenizer: 258 tokens, {ends}, a chat template>"
    )
