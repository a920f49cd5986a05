"""How many pages a memory holds, and how an engine divides it."""

import dataclasses
from typing import Any

import pytest

from jbatch.config import EngineConfig, ModelConfig
from jbatch.device import memory as device_memory
from jbatch.device.memory import CPU_CACHE_BYTES, Memory, MemoryUse
from jbatch.errors import ConfigError

MODEL = ModelConfig(96, 32, 48, 2, 4, 2, 8, 256, dtype="float32")
PAGE = 16 * MODEL.kv_bytes_per_token
CPU = Memory(False, 2**36)


def gpu(limit: int, used: int = 0, step: int = 0) -> Memory:
    return Memory(True, limit, used, step)


def num_pages(memory: Memory, max_model_len: int = 64, **options: Any) -> int:
    config = EngineConfig(page_size=16, **{"max_num_seqs": 4, **options})
    return device_memory.choose_num_pages(config, MODEL, max_model_len, memory)


def test_as_many_as_can_be_used():
    assert num_pages(CPU) == num_pages(gpu(2**34)) == 1 + 4 * 4
    assert num_pages(CPU, max_model_len=65) == 1 + 4 * 5


def test_as_asked_for():
    assert num_pages(CPU, num_pages=3) == num_pages(gpu(2**30), num_pages=3) == 3
    assert num_pages(CPU, num_pages=1000) == 1000  # more than can be used
    assert num_pages(CPU, kv_cache_memory_bytes=5 * PAGE - 1) == 4
    assert num_pages(gpu(2**30), kv_cache_memory_bytes=5 * PAGE) == 5
    assert num_pages(gpu(20 * PAGE), kv_cache_memory_bytes=2**40) == 17, "more than can be used"


def test_what_the_memory_holds():
    limit = 100 * PAGE
    assert num_pages(gpu(limit), max_num_seqs=64) == 98  # MARGIN
    assert num_pages(gpu(limit, used=20 * PAGE, step=8 * PAGE), max_num_seqs=64) == 70
    assert num_pages(CPU, max_num_seqs=4096, max_model_len=2**20) == CPU_CACHE_BYTES // PAGE


@pytest.mark.parametrize(
    "memory, options, message",
    [
        (
            CPU,
            dict(kv_cache_memory_bytes=PAGE),
            f"kv_cache_memory_bytes={PAGE}: {PAGE} bytes are left .* {PAGE}",
        ),
        (gpu(4 * PAGE, 3 * PAGE), {}, "gpu_memory_utilization=0.9: .* bytes are left"),
        (gpu(4 * PAGE, step=5 * PAGE), {}, "gpu_memory_utilization=0.9: 0 bytes are left"),
        (gpu(4 * PAGE), dict(num_pages=5), "num_pages=5: .* at most 4 fit"),
        (gpu(9 * PAGE, 3 * PAGE, 2 * PAGE), dict(num_pages=5), "num_pages=5: .* at most 4 fit"),
        (
            gpu(9 * PAGE, 3 * PAGE),
            dict(kv_cache_memory_bytes=8 * PAGE),
            f"kv_cache_memory_bytes={8 * PAGE}: at most {6 * PAGE} bytes",
        ),
        (CPU, dict(num_pages=2**50), f"num_pages={2**50}: .* fit into the memory"),
        (Memory(True, None), {}, "gpu_memory_utilization=0.9: .* set num_pages or kv_cache_memory_bytes"),
    ],
)
def test_what_does_not_fit(memory, options, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        num_pages(memory, **options)


def test_a_gpu_that_says_nothing_does_what_it_is_told():
    assert num_pages(Memory(True, None), num_pages=7) == 7


# ---- what goes where ----


def divide(memory: Memory, step: Any = 0, context: int = 64, **options: Any) -> MemoryUse:
    config = EngineConfig(page_size=16, **{"max_num_seqs": 4, **options})
    step_bytes = step if callable(step) else lambda config: step
    max_model_len = config.max_model_len or context

    def weight_bytes(num_ranks: int) -> int:
        return memory.in_use // num_ranks

    return device_memory.divide_memory(config, MODEL, max_model_len, memory, step_bytes, weight_bytes)


def test_a_memory_divided_by_hand():
    """Limit 100 pages: 20 of weights, 8 of a step, 2 of margin; a sequence of 64 tokens takes 4 pages."""
    use = divide(gpu(100 * PAGE, 20 * PAGE), 8 * PAGE, max_num_seqs=64)
    assert (use.num_pages, use.cache_bytes, use.cache_tokens) == (70, 70 * PAGE, 69 * 16)
    assert (use.longest_request, use.full_length_seqs) == (64, 17)


def test_a_pool_smaller_than_the_context():
    use = divide(gpu(10 * PAGE), 0, num_pages=3)
    assert (use.longest_request, use.full_length_seqs) == (32, 1)


def step_of(config: EngineConfig) -> int:
    """A page for each 64 tokens of prefill, or for each sequence."""
    return PAGE * max(config.max_num_batched_tokens // 64, config.max_num_seqs)


@pytest.mark.parametrize(
    "memory, options, words",
    [
        # 2,048 tokens take 32 of the 30 pages
        (gpu(30 * PAGE), dict(max_model_len=16), ["max_num_batched_tokens=1024 would do"]),
        (gpu(30 * PAGE), dict(max_num_seqs=64, max_num_batched_tokens=64), ["max_num_seqs=16 would do"]),
        (gpu(30 * PAGE, 29 * PAGE), dict(max_num_batched_tokens=64), ["dtype=bfloat16 would do"]),
        (
            gpu(8 * PAGE),
            dict(max_num_batched_tokens=64, num_pages=7),
            ["num_pages=7", "at most 4 fit", "of GPU memory would do"],
        ),
        (
            gpu(8 * PAGE),
            dict(max_num_batched_tokens=64, max_model_len=64),
            ["max_model_len=64", "holds 32 tokens", "; 32 would do"],
        ),
        (gpu(30 * PAGE, 29 * PAGE), dict(max_num_batched_tokens=64), ["tensor_parallel_size=2 would do"]),
        (Memory(False, 3 * PAGE), {}, ["kv_cache_memory_bytes", "of memory would do"]),
    ],
)
def test_what_would_do_instead(memory, options, words):
    with pytest.raises(ConfigError) as refused:
        divide(memory, step_of, **options)
    for word in words:
        assert word in str(refused.value)


def test_devices_share_what_one_would_hold():
    """Weights, and half of each page."""
    one = divide(gpu(100 * PAGE, 20 * PAGE), 8 * PAGE, max_num_seqs=64)
    two = divide(gpu(100 * PAGE, 20 * PAGE), 8 * PAGE, max_num_seqs=64, tensor_parallel_size=2)
    assert two.page_bytes == PAGE / 2 and two.weight_bytes == one.weight_bytes / 2
    assert two.num_pages == 2 * (one.num_pages + 10)


def test_every_suggestion_would_do():
    memory = gpu(30 * PAGE)
    tight = gpu(30 * PAGE, 29 * PAGE)
    assert divide(tight, step_of, max_num_batched_tokens=64, tensor_parallel_size=2).num_pages >= 2
    assert divide(memory, step_of, max_num_batched_tokens=1024).num_pages >= 2
    assert divide(memory, step_of, max_num_seqs=16, max_num_batched_tokens=64).num_pages >= 2
    with pytest.raises(ConfigError):
        divide(memory, step_of, max_num_seqs=32, max_num_batched_tokens=64)


@pytest.mark.parametrize("used", [0, 10**9 + 1, 2**35])
def test_the_smallest_gpu_would_do(used):
    """A page that holds a MiB less would not."""
    need = used + 2048 * PAGE  # 8 MiB
    config = EngineConfig()
    gpu_bytes = device_memory.gpu_bytes(need, config)
    options = dict(max_num_seqs=4096, max_num_batched_tokens=64)
    assert divide(gpu(int(gpu_bytes * 0.9), used), 0, 16, **options).num_pages >= 2048
    assert divide(gpu(int((gpu_bytes - 2**21) * 0.9), used), 0, 16, **options).num_pages < 2048


def test_what_is_divided_is_frozen():
    use = divide(gpu(100 * PAGE))
    with pytest.raises(dataclasses.FrozenInstanceError):
        use.num_pages = 3  # type: ignore[misc]
