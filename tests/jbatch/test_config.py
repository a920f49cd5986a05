"""EngineConfig: every field is checked, and an error names the field and its value."""

import dataclasses
import typing

import numpy as np
import pytest

from jbatch.config import DECODE_SIZES, BackendName, EngineConfig, ModelConfig, RopeConfig
from jbatch.errors import ConfigError
from pallas_kernels.names import NAMES


def test_every_implementation_of_the_kernels_may_be_named():
    assert set(typing.get_args(BackendName)) == {"auto", *NAMES}


@pytest.mark.parametrize(
    "field, values",
    [
        ("dtype", ["int8", "fp16", None, 16]),
        ("load_format", ["pickle", None]),
        ("max_model_len", [0, 1, -5, 2.0, "128", True, 2**63]),
        ("max_num_seqs", [0, -1, 5000, 1.5, None, "4"]),
        ("max_num_batched_tokens", [0, 7, 2**30, None]),
        ("page_size", [0, 1, 8, 24, 256, 16.5, 16.0, None, "16", True]),
        ("num_pages", [0, 1, -1, 2.5, "9"]),
        ("kv_cache_memory_bytes", [0, -1, 1e9, "9", "4 parrots"]),
        ("gpu_memory_utilization", [0, -0.1, 1.01, float("nan"), "0.9", None, True]),
        ("batch_wait_timeout_s", [-0.1, 3600.5, float("nan"), "1", None, True]),
        ("mode", ["dynamic", None, 3]),
        ("policy", ["random", None]),
        ("seed", [-1, 2**32, 0.5, None]),
        ("overlap", ["yes", 1, None]),
        ("show_progress", [0, None]),
        ("device", ["tpu", "cuda:0", None]),
        (
            "decode_buckets",
            [(), (0,), (-4, 64), (8,), (1.5, 64), (5000000,), 64, "64", ("64",), (64, None), [[64]]],
        ),
        ("token_buckets", [(), (0,), (12,), (-8,), (8.0,), (2**30,), 64, ("64", 8)]),
    ],
)
def test_bad_values(field, values):
    for value in values:
        with pytest.raises(ConfigError, match=f"^{field}=") as error:
            EngineConfig(**{field: value})
        assert error.value.field == field


def test_scalars_of_numpy_are_numbers():
    config = EngineConfig(
        max_num_seqs=np.int64(8), seed=np.uint32(3), overlap=np.bool_(False), decode_buckets=[np.int32(8)]
    )
    assert (config.max_num_seqs, config.seed, config.overlap, config.decode_buckets) == (8, 3, False, (8,))
    assert [type(value) for value in (config.max_num_seqs, config.overlap, config.decode_buckets[0])] == [
        int, bool, int
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"^max_num_seqs="):
        EngineConfig(max_num_seqs=np.float32(8))


def test_a_negative_seed_says_what_may_be_negative():
    reason = (
        r"^seed=-1: must be an integer from 0 to 4294967295; only a request's own seed may be another one"
    )
    with pytest.raises(ConfigError, match=reason):
        EngineConfig(seed=-1)


def test_bytes_may_be_a_text():
    assert EngineConfig(kv_cache_memory_bytes="4GiB") == EngineConfig(kv_cache_memory_bytes=2**32)


def test_pages_are_given_once():
    with pytest.raises(ConfigError, match="not both"):
        EngineConfig(num_pages=10, kv_cache_memory_bytes=10**6)


def test_it_is_frozen_and_says_how_it_is_changed():
    copy = r"dataclasses\.replace\(\.\.\., seed=3\) makes a copy with it"
    with pytest.raises(
        dataclasses.FrozenInstanceError, match=f"^cannot assign to 'seed' of EngineConfig: {copy}$"
    ):
        EngineConfig().seed = 3


@pytest.mark.parametrize(
    "max_num_seqs, sizes",
    [(1, (1,)), (3, (1, 2, 3)), (4, (1, 2, 4)), (256, DECODE_SIZES), (300, (*DECODE_SIZES, 300))],
)
def test_decode_buckets(max_num_seqs, sizes):
    assert EngineConfig(max_num_seqs=max_num_seqs).decode_sizes() == sizes


def test_buckets_are_sorted_and_unique():
    config = EngineConfig(max_num_seqs=4, decode_buckets=(4, 1, 4), token_buckets=(64, 8, 64))
    assert (config.decode_sizes(), config.token_sizes(100)) == ((1, 4), (8, 64))


@pytest.mark.parametrize(
    "max_num_seqs, batched, max_len, sizes",
    [
        (64, 2048, 4096, (32, 64, 128, 256, 512, 1024, 2048)),
        (1, 2048, 100, (32, 64, 104)),  # one sequence never fills more
        (2, 2048, 100, (32, 64, 128, 208)),
        (64, 30, 100, (32,)),
        (64, 64, 100, (32, 64)),
    ],
)
def test_token_buckets(max_num_seqs, batched, max_len, sizes):
    config = EngineConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=batched, page_size=16)
    assert config.token_sizes(max_len) == sizes
    assert all(size % 8 == 0 for size in sizes)


def model(**changes):
    return ModelConfig(
        vocab_size=96, embed_dim=32, mlp_dim=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        max_position_embeddings=256, **changes,
    )  # fmt: skip


def test_what_follows_from_a_model():
    assert model().group == 2
    assert (
        model().kv_bytes_per_token == 2 * 2 * 2 * 8 * 2 and model(dtype="float32").kv_bytes_per_token == 256
    )
    assert model().context_len == 256
    yarn = RopeConfig(kind="yarn", factor=4.0, original_max_len=256)
    assert model(rope=yarn).context_len == 1024


def test_linear_scaling_may_serve_the_length_after_it():
    scaled = model(rope=RopeConfig(kind="linear", factor=4.0))
    assert (scaled.context_len, scaled.max_context_len) == (256, 1024)


def test_a_context_must_fit_the_sliding_window():
    model(sliding_window=100).check_context(100)
    with pytest.raises(ConfigError, match=r"sliding_window=100: .*max_model_len=101"):
        model(sliding_window=100).check_context(101)


@pytest.mark.parametrize("samplers", [(), "greedy", ("greedy", "best"), [3], {"greedy": 1}])
def test_samplers_are_names(samplers):
    with pytest.raises(ConfigError, match=r"^samplers="):
        EngineConfig(samplers=samplers)
    assert EngineConfig(samplers=["extended", "greedy"]).samplers == ("extended", "greedy")


def test_the_mode_of_log_probabilities_is_one_of_two():
    assert EngineConfig(logprobs_mode="processed_logprobs").logprobs_mode == "processed_logprobs"
    with pytest.raises(ConfigError, match="'raw_logits': must be one of raw_logprobs, processed_logprobs"):
        EngineConfig(logprobs_mode="raw_logits")


def test_a_policy_that_is_a_function_belongs_to_new_engine():
    with pytest.raises(ConfigError, match=r"policy=<function .*: is a function: give it to LLM.new_engine"):
        EngineConfig(policy=lambda request, now, view: 1)
