"""The demo model's tasks, tokenizer and files."""

import json
import pathlib
import random

import pytest
import tokenizers
from safetensors import safe_open

from weights.demo import tasks

DEMO = pathlib.Path(tasks.__file__).parent


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def solve(example: tasks.Example) -> str:
    """The answer read off the prompt alone."""
    question = example.prompt.removesuffix("=")
    if example.task == "add":
        return str(sum(map(int, question.split("+"))))
    if example.task == "lookup":
        pairs, _, key = question.partition(" ?")
        return dict(tuple(pair) for pair in pairs.split(", "))[key]
    verb, first, *rest = question.split()
    if verb == "count":
        return " ".join(map(str, range(int(first), int(rest[1]) + 1)))
    return {"reverse": first[::-1], "sort": "".join(sorted(first))}[verb]


def test_answers_are_right():
    prompts = tasks.demo_prompts(500, seed=3)
    assert {example.task for example in prompts} == set(tasks.SIZES)
    assert all(solve(example) == example.answer for example in prompts)


def test_demo_prompts_are_held_out_and_repeatable():
    prompts = tasks.demo_prompts(300, seed=1)
    assert all(tasks.is_held_out(example) for example in prompts)
    assert prompts == tasks.demo_prompts(300, seed=1) != tasks.demo_prompts(300, seed=2)
    assert prompts[:40] == tasks.demo_prompts(40, seed=1)


@pytest.mark.parametrize("task", tasks.SIZES)
def test_about_a_tenth_is_held_out(task):
    rng = random.Random(0)
    drawn = [tasks.draw(task, tasks.SIZES[task][1], rng) for _ in range(2000)]
    assert 0.05 < sum(map(tasks.is_held_out, drawn)) / len(drawn) < 0.15


def test_a_held_out_answer_leaks_through_no_sibling():
    """Swapped operands and the other keys of a list fall on the same side of the split."""
    for first, second in ((12, 345), (7, 7), (98, 1)):
        swapped = [tasks.Example("add", f"{a}+{b}=", "") for a, b in ((first, second), (second, first))]
        assert len(set(map(tasks.is_held_out, swapped))) == 1
    asked = [tasks.Example("lookup", f"a5, k2, z9 ?{key}=", "") for key in "akz"]
    assert len(set(map(tasks.is_held_out, asked))) == 1


def test_lengths_vary(tokenizer):
    """What the demo of continuous batching needs: lists over several KV pages, answers short and long."""
    prompts = tasks.demo_prompts(400, seed=0)
    lists = [len(tokenizer.encode(example.prompt)) for example in prompts if example.task == "lookup"]
    answers = [len(example.answer) for example in prompts]
    assert 48 <= min(lists) < 64 and 176 < max(lists) <= 192
    assert min(answers) == 1 and 40 <= max(answers) <= 48


@pytest.mark.parametrize(
    "text", ["12+345=", "", "  two  spaces\n\ttab", "naïve café", "日本語の文", "👩‍👩‍👧 and 🏳️‍🌈", "\x00\x7f"]
)
def test_tokenizer_keeps_any_text(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert ids[0] == tokenizer.token_to_id("<s>")
    assert tokenizer.decode(ids) == text
    assert len(ids) == 1 + len(text.encode())  # one token per byte


def test_special_tokens_are_the_configured_ones(tokenizer):
    config = json.loads((DEMO / "config.json").read_text())
    names = json.loads((DEMO / "tokenizer_config.json").read_text())
    for kind in ("bos", "eos", "pad"):
        assert tokenizer.token_to_id(names[f"{kind}_token"]) == config[f"{kind}_token_id"]
    assert tokenizer.get_vocab_size() <= config["vocab_size"]


def test_weights_are_small_and_have_the_shapes_of_the_config():
    config = json.loads((DEMO / "config.json").read_text())
    hidden, head_dim, mlp = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    with safe_open(DEMO / "model.safetensors", "numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (config["vocab_size"], hidden)
    assert len(shapes) == 3 + 9 * config["num_hidden_layers"]
    layer = "model.layers.0."
    assert shapes[layer + "self_attn.q_proj.weight"] == (config["num_attention_heads"] * head_dim, hidden)
    assert shapes[layer + "self_attn.k_proj.weight"] == (config["num_key_value_heads"] * head_dim, hidden)
    assert shapes[layer + "mlp.down_proj.weight"] == (hidden, mlp)
    assert sum(path.stat().st_size for path in DEMO.iterdir() if path.is_file()) < 8e6
