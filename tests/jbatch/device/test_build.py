"""What an engine compiles, and when its cache takes its memory."""

import types
from typing import Any

import jax
import pytest

from jbatch.config import EngineConfig, ModelConfig
from jbatch.device import build
from jbatch.device.backend import Attention
from jbatch.device.build import build_runner, compile_beside, step_bytes_of
from jbatch.device.memory import Memory
from jbatch.device.process import extra_bytes
from jbatch.device.programs import Program, StepSpec
from jbatch.device.runner import Runner
from jbatch.device.verdict.record import Gpu, Kernel, Outcome, Verdict
from jbatch.model_dir.resolve import resolve_model
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import StepInput, padding
from tests.helpers.hf_checkpoint import write_checkpoint

LLAMA_2_7B = ModelConfig(32000, 4096, 11008, 32, 32, 32, 128, 4096, dtype="float16")
LLAMA_3_8B = ModelConfig(128256, 4096, 14336, 32, 32, 8, 128, 8192)
H200: Any = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
SMALL = {
    "device": "cpu",
    "max_model_len": 96,
    "max_num_seqs": 4,
    "page_size": 16,
    "num_pages": 64,
    "decode_buckets": (4,),
    "token_buckets": (64,),
    "compilation_cache_dir": None,
}


@pytest.mark.parametrize(
    "model, bucket, backend, mib, most",
    [  # of programs in the variant `extended`, compiled for an H200 (jax 0.11.2, two layers)
        (LLAMA_3_8B, decode_bucket(64), "mosaic", 126.23, 0.03),
        (LLAMA_3_8B, decode_bucket(256), "mosaic", 510.9, 0.03),
        (LLAMA_3_8B, Bucket(64, 512), "mosaic", 196.06, 0.03),
        (LLAMA_3_8B, Bucket(64, 2048), "mosaic", 271.96, 0.03),
        (LLAMA_3_8B, Bucket(64, 2048), "xla", 271.98, 0.03),
        (LLAMA_2_7B, decode_bucket(64), "mosaic", 66.08, 0.03),
        (LLAMA_2_7B, decode_bucket(256), "mosaic", 264.29, 0.03),
        (LLAMA_2_7B, Bucket(64, 512), "mosaic", 78.05, 0.03),
        (LLAMA_2_7B, Bucket(64, 2048), "mosaic", 183.65, 0.03),
        (LLAMA_2_7B, decode_bucket(64), "xla", 132.05, 0.03),
        (LLAMA_2_7B, prefill_bucket(2048), "xla", 178.04, 0.03),
        (LLAMA_2_7B, Bucket(64, 512), "xla", 140.06, 0.03),
        (LLAMA_2_7B, Bucket(64, 2048), "xla", 183.65, 0.03),
    ],
)
def test_the_estimate_is_what_xla_takes(model, bucket, backend, mib, most):
    shape = StateShape(max(64, bucket.slots), 2, 64, model.max_position_embeddings // 64)
    spec = StepSpec(model, shape, H200, Attention.all_by(backend))
    extra = extra_bytes(Sampler.EXTENDED, shape.num_rows, model.vocab_size)
    assert (step_bytes_of(spec, (bucket,)) - extra) / 2**20 == pytest.approx(mib, rel=most)


def test_the_estimate_is_of_the_largest_step():
    spec = StepSpec(LLAMA_3_8B, StateShape(64, 2, 64, 128), H200)
    buckets = (decode_bucket(1), decode_bucket(64), Bucket(64, 64), Bucket(64, 2048))
    assert step_bytes_of(spec, buckets) == step_bytes_of(spec, buckets[-1:])
    assert step_bytes_of(spec, buckets[:1]) < step_bytes_of(spec, buckets[:2])


@pytest.mark.parametrize(
    "temp, page_bytes, compiled, step",
    [
        (100, 10, [90], 100),  # as estimated
        (40, 10, [90], 100),  # less: room for the variants that come later
        (200, 10, [90, 80], 200),  # more: a smaller pool
        (200, 0, [90], 200),  # more, but the pool is the user's own choice
    ],
)
def test_the_pool_is_chosen_again_only_where_steps_need_more(temp, page_bytes, compiled, step, monkeypatch):
    seen: list[int] = []

    class Spec(StepSpec):
        def compile_all(self, programs, on_compiled):
            seen.append(self.shape.num_pages)
            return dict.fromkeys(programs, jax.jit(lambda: 0).lower().compile())

    def with_pool(memory: Memory) -> StepSpec:
        num_pages = memory.room // page_bytes if page_bytes else 90
        return Spec(LLAMA_3_8B, StateShape(4, num_pages, 16, 4), H200)

    monkeypatch.setattr(build, "temp_bytes", lambda program: temp)
    programs = [Program(decode_bucket(4), Sampler.GREEDY), Program(prefill_bucket(8), Sampler.FILTERED)]
    spec, made, memory = compile_beside(programs, Memory(True, 1000, 0, 100), with_pool)
    assert seen == compiled and spec.shape.num_pages == compiled[-1]
    assert list(made) == programs and memory.step == step


@pytest.fixture
def events(monkeypatch):
    """What is compiled, allocated and run, in order."""
    seen: list[str] = []

    def note(owner: Any, name: str) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args, **options: seen.append(name) or original(*args, **options)
        )

    note(StepSpec, "compile")
    note(Runner, "_new_state")
    note(Runner, "warm_up")
    return seen


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, seed=3)
    return path


def build_tiny(model_dir, **options) -> Runner:
    config = EngineConfig(**SMALL, **options)
    return build_runner(model_dir, config, resolve_model(model_dir, config), 96)


def test_on_a_cpu_nothing_is_compiled_before_it_is_needed(model_dir, events):
    runner = build_tiny(model_dir)
    assert events == [] and runner.num_programs == 0 and runner.samplers == tuple(Sampler)[:3]
    runner.close()


def test_a_device_that_is_given_is_the_one(model_dir, monkeypatch):
    monkeypatch.setattr(build, "device_groups", None)
    config, device = EngineConfig(**SMALL), jax.devices()[-1]
    runner = build_runner(model_dir, config, resolve_model(model_dir, config), 96, devices=[device])
    assert runner.spec.device == device and runner.params["embedding"].devices() == {device}
    runner.close()


def test_on_a_gpu_all_is_compiled_before_the_cache_takes_its_memory(model_dir, events, monkeypatch):
    """And run once it is there."""
    monkeypatch.setattr(build, "memory_of", lambda *_: Memory(True, 2**30))
    monkeypatch.setattr(build, "choose_attention", lambda *_: Attention())
    runner = build_tiny(model_dir, samplers=("greedy",))
    assert events == ["compile", "_new_state"]  # a CPU's programs need no warm-up
    assert runner.num_programs == 1 and runner.compilations_after_warmup == 0
    runner.close()


def test_kernels_are_checked_before_the_device_is_opened(model_dir, monkeypatch):
    """And those that passed are used, on the device that they passed on."""
    order, seen = [], []
    verdict = Verdict(Gpu("cpu", ""), {Kernel("triton", "decode"): Outcome("passed")})

    def noted(name: str, value: Any) -> Any:
        order.append(name)
        return value

    def choose(*args: Any) -> Attention:
        seen.append(args[-1])
        return Attention()

    device_groups = build.device_groups
    monkeypatch.setattr(build, "prove_kernels", lambda *_: noted("checked", verdict))
    monkeypatch.setattr(build, "device_groups", lambda config: noted("opened", device_groups(config)))
    monkeypatch.setattr(build, "choose_attention", choose)
    build_tiny(model_dir).close()
    assert order == ["checked", "opened"] and seen == [{"decode": "triton"}]


def test_a_step_that_nobody_prepared_compiles_all_that_may_follow(model_dir, events):
    runner = build_tiny(model_dir, samplers=("greedy",))
    bucket = Bucket(4, 64)
    step = StepInput(bucket, Sampler.GREEDY, padding(bucket, runner.shape, Sampler.GREEDY))
    for _ in range(2):
        runner.collect(runner.submit(step))
        assert events == ["compile", "_new_state"]
    assert runner.compilations_after_warmup >= 1, "a step has waited for them"
    with pytest.raises(KeyError):
        runner.submit(step._replace(sampler=Sampler.LOGPROBS))
    runner.close()


def test_out_of_memory_names_what_to_lower(model_dir, monkeypatch):
    def no_room(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(build, "memory_of", lambda *_: Memory(True, 2**30))
    monkeypatch.setattr(Runner, "_new_state", no_room)
    with pytest.raises(build.ConfigError, match=r"^num_pages=64: out of memory: .* lower num_pages"):
        build_tiny(model_dir, samplers=("greedy",))
