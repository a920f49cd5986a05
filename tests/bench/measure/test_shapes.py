"""Shapes by name, and the directories that they run from."""

import pytest

from bench.measure.floor import floor_of
from bench.measure.models import DEMO, MODEL_NAMES, model_dir
from jbatch.errors import ConfigError
from jbatch.model_dir.config_json import load_config, load_eos_token_ids
from jbatch.model_dir.shapes import RUNNABLE, model_config


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_directory_describes_the_shape(name):
    config, shape = load_config(model_dir(name)), RUNNABLE[name]
    assert config.context_len == shape.context_len and config.dtype == "bfloat16"
    expected = model_config(name, shape.num_layers, shape.context_len)
    assert config.embed_dim == expected.embed_dim and config.vocab_size == expected.vocab_size
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim, config.mlp_dim) == (
        *(expected.num_layers, expected.num_heads, expected.num_kv_heads, expected.head_dim),
        expected.mlp_dim,
    )
    assert config.tie_word_embeddings == expected.tie_word_embeddings
    assert config.rope.theta == expected.rope.theta and not load_eos_token_ids(model_dir(name))


def test_the_demo_is_the_model_with_weights():
    assert DEMO in MODEL_NAMES and (model_dir(DEMO) / "tokenizer.json").exists()


def test_unknown_shapes_are_refused():
    with pytest.raises(ConfigError, match="model='llama9': must be a model directory or one of llama2-7b"):
        model_dir("llama9")


@pytest.mark.parametrize(
    "name, gigabytes, kv_bytes",
    [("llama2-7b", 13.21, 512), ("llama3-8b", 15.01, 128), ("llama3.2-1b", 2.47, 32)],
)
def test_the_floor_of_a_decode_step(name, gigabytes, kv_bytes):
    """At 4.3 TB/s: weights once, and each cached token once."""
    floor = floor_of(load_config(model_dir(name)), 4.3e12, 790e12)
    read = gigabytes * 1e9 / 4.3e12
    assert floor.decode_s(1, 0) == pytest.approx(read, rel=1e-3)
    kv_s = 64 * 1024 * kv_bytes * 1024 / 4.3e12
    assert floor.decode_s(64, 64 * 1024) == pytest.approx(read + kv_s, rel=1e-3)
    assert floor.decode_s(1024, 0) > 4 * read, "many rows are bound by arithmetic"
    assert floor.step_s(4096, 1, 4096, 4096 * 4097 // 2) > 10 * read
