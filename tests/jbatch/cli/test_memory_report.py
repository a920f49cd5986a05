"""`jbatch plan`: what an engine would take, from config.json alone."""

import json
from typing import Any

import jax
import pytest

from jbatch import LLM
from jbatch.cli import memory_report
from jbatch.config import EngineConfig
from jbatch.device import build
from jbatch.device.backend import PLAIN, Proven
from jbatch.device.memory import Memory
from jbatch.device.process import extra_bytes
from jbatch.device.programs import StepSpec, programs_for
from jbatch.device.verdict.record import Gpu as CheckedGpu
from jbatch.device.verdict.record import Kernel, Outcome, Verdict
from jbatch.errors import ConfigError
from jbatch.model_dir.config_json import parse_config
from jbatch.model_dir.tuned import SIZES, Tuned
from jbatch.sampler import Sampler
from tests.helpers.command import run, write_model
from tests.helpers.hf_checkpoint import tiny

LLAMA_3_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
LLAMA_2_7B = LLAMA_3_8B | {
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}


def write_config(model_dir, config):
    """A directory that holds config.json and nothing else."""
    model_dir.mkdir()
    (model_dir / "config.json").write_text(json.dumps(config))
    return model_dir


@pytest.fixture
def eight_b(tmp_path):
    return write_config(tmp_path / "8b", LLAMA_3_8B)


@pytest.fixture(autouse=True)
def no_compiling(monkeypatch):
    monkeypatch.setattr(StepSpec, "lower", lambda *_: pytest.fail("compiled"))


@pytest.mark.parametrize(
    "config, gpu, kv_bytes, weights, tokens",
    [  # tokens that fit beside the weights into 0.9 of the GPU, before temporaries and the runtime's margin
        (LLAMA_3_8B, "80GB", 128 * 2**10, 8_030_261_248 * 2, 427_000),
        (LLAMA_3_8B, "141GB", 128 * 2**10, 8_030_261_248 * 2, 846_000),
        (LLAMA_2_7B, "80GB", 512 * 2**10, 6_738_415_616 * 2, 112_000),
        (LLAMA_2_7B, "141GB", 512 * 2**10, 6_738_415_616 * 2, 216_000),
    ],
)
def test_known_models(config, gpu, kv_bytes, weights, tokens, tmp_path, capsys):
    model = write_config(tmp_path / "m", config)
    ended = run(capsys, "plan", model, "--gpu-memory", gpu, "--max-num-seqs", "4096", "--json")
    assert ended.code == 0, ended.err
    figures = json.loads(ended.out)
    assert (figures["kv_bytes_per_token"], figures["weight_bytes"]) == (kv_bytes, weights)
    taken = figures["step_bytes"] + 0.02 * figures["limit_bytes"]
    assert figures["cache_tokens"] + taken / kv_bytes == pytest.approx(tokens, rel=0.005)


def test_in_words(eight_b, capsys):
    ended = run(capsys, "plan", eight_b, "--gpu-memory", "80GiB", "--max-model-len", "4096")
    assert (ended.code, ended.err) == (0, "")
    for words in (
        "on a GPU with 80.00 GiB",
        "14.96 GiB   8.03 B parameters in bfloat16",
        "4097 pages of 64 tokens: 262144 tokens of 128.00 KiB",
        "339.32 MiB   temporaries, and state of penalties; estimated",
        "of up to 4096 tokens; 64 of that length run at once",
        "34: steps of 1, 2, 4, 8, 16, 24, 32, 48, 64 slots; ",
        "with prompts, 32, 64, 128, 256, 512, 1024, 2048 tokens",
    ):
        assert words in ended.out, words
    assert max(map(len, ended.out.splitlines())) < 130


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--gpu-memory 16GB", "gpu_memory_utilization=0.9: 0 bytes are left for the KV cache"),
        ("--gpu-memory 80GiB --num-pages 10000", "num_pages=10000: pages of 8388608 bytes: at most 72"),
        ("--gpu-memory 18GiB --max-model-len 8192", "max_model_len=8192: the KV cache holds 4736"),
        ("--gpu-memory 18.4GiB --max-num-seqs 4096", "max_num_seqs=256 would do"),
        ("--gpu-memory 24GB --dtype float32", "dtype=bfloat16 would do"),
        ("--gpu-memory 80XB", "gpu_memory='80XB': must be a size"),
        ("--gpu-memory 12GB --max-num-seqs 1", "tensor_parallel_size=2 would do"),
        (
            "--gpu-memory 80GB --tensor-parallel-size 3",
            "tensor_parallel_size=3: must divide the model's num_att",
        ),
        ("--gpu-memory 80GB --page-size 17", "page_size=17: must be one of 16"),
        ("--gpu-memory 80GB --max-model-len 9000", "max_model_len=9000: must be at most 8192"),
    ],
)
def test_what_cannot_fit(eight_b, flags, message, capsys):
    ended = run(capsys, "plan", eight_b, *flags.split())
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err


def test_the_memory_that_would_do_does(eight_b, capsys):
    ended = run(capsys, "plan", eight_b, "--gpu-memory", "16GB")
    size = ended.err.split(" of GPU memory would do")[0].split("; or ")[-1]
    ended = run(capsys, "plan", eight_b, "--gpu-memory", size)
    assert ended.code == 0 and "of up to 8192 tokens; 1 of that length" in ended.out


def test_the_number_of_devices_that_would_do_does(eight_b, capsys):
    """Each of them has half of the weights and of the cache."""
    flags = ("--max-num-seqs", "1", "--gpu-memory")
    ended = run(capsys, "plan", eight_b, *flags, "12GB", "--tensor-parallel-size", "2")
    assert ended.code == 0 and " on 2 devices, on each of them: a GPU with " in ended.out
    one, two = (
        json.loads(run(capsys, "plan", eight_b, *flags, "80GB", "--json", *more).out)
        for more in ((), ("--tensor-parallel-size", "2"))
    )
    assert (one["num_devices"], two["num_devices"]) == (1, 2) and one["num_params"] == two["num_params"]
    assert one["kv_bytes_per_token"] == 2 * two["kv_bytes_per_token"]
    assert 0.5 < two["weight_bytes"] / one["weight_bytes"] < 0.501  # norms are whole on each


def test_no_model(tmp_path, capsys):
    assert "no such directory" in run(capsys, "plan", tmp_path / "no", "--gpu-memory", "1GB").err
    assert "config.json" in run(capsys, "plan", tmp_path, "--gpu-memory", "1GB").err


def test_the_report_is_what_an_engine_does(tmp_path, capsys):
    """Weights, pages, buckets and programs."""
    options = dict(max_num_seqs=2, max_model_len=100, page_size=16, device="cpu")
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").rename(tmp_path / "aside")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    figures = json.loads(run(capsys, "plan", model, *flags, "--json").out)
    assert figures["step_source"].endswith("estimated") and figures["step_bytes"] > 1000

    (tmp_path / "aside").rename(model / "model.safetensors")
    with LLM(model, **options) as llm:
        assert llm.runner.shape.num_pages == figures["num_pages"]
        assert len(programs_for(llm.runner.buckets, llm.runner.samplers)) == figures["num_programs"]
        assert sum(leaf.nbytes for leaf in llm.runner._params.leaves) == figures["weight_bytes"]
        buckets = llm.runner.buckets
    assert [bucket.tokens for bucket in buckets if bucket.tokens] == figures["prefill_tokens"]
    assert [bucket.slots for bucket in buckets if not bucket.tokens] == figures["decode_slots"]
    assert (figures["prefill_tokens"], figures["decode_slots"]) == ([32, 64, 128, 208], [1, 2])


def test_a_gpu_at_hand_is_asked(tmp_path, monkeypatch):
    """Its share of its memory."""

    class Gpu:
        platform, device_kind = "gpu", "NVIDIA Test"

        def memory_stats(self):
            return {"bytes_limit": 10**6, "bytes_in_use": 123}

    monkeypatch.setattr(memory_report, "find_device", lambda _: Gpu())
    verdict = Verdict(CheckedGpu("NVIDIA Test", ""), {Kernel("triton", "decode"): Outcome("passed")})
    proven: list[Proven] = []
    monkeypatch.setattr(memory_report, "kept_verdict", lambda *_: verdict)
    monkeypatch.setattr(build, "choose_attention", lambda *args: proven.append(args[-1]) or PLAIN)
    monkeypatch.setattr(build, "estimate_step_bytes", lambda *_: 5000)
    model = write_config(tmp_path / "m", tiny())
    report = memory_report.report_memory(model, EngineConfig(max_num_seqs=2))
    assert report.device == "NVIDIA Test" and report.step_source == memory_report.ESTIMATE
    extra = extra_bytes(Sampler.EXTENDED, 2, parse_config(tiny()).vocab_size)
    assert (report.memory.limit_bytes, report.memory.step_bytes) == (10**6, 5000 + extra)
    assert proven[0] == {"decode": "triton"}, "an engine would find the verdict, too"
    report = memory_report.report_memory(model, EngineConfig(max_num_seqs=2), 2 * 10**6)
    assert report.memory.limit_bytes == 1_800_000 and report.memory.step_bytes == 5000 + extra


def test_a_shape_has_a_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run(capsys, "plan", "llama3.2-1b", "--gpu-memory", "80GiB")
    assert shown.out.startswith("llama3.2-1b on a GPU with 80.00 GiB")
    (tmp_path / "llama3.2-1b").mkdir()
    assert "it is empty" in run(capsys, "plan", "llama3.2-1b", "--gpu-memory", "80GiB").err


def test_a_name_that_is_no_shape(capsys):
    shown = run(capsys, "plan", "llama3.1-8b", "--gpu-memory", "80GiB")
    assert shown.code == 2 and "no such directory, and none of the shapes llama2-7b, llama3-8b" in shown.err


def test_tuned_options_of_another_model(capsys, tmp_path):
    sizes = dict.fromkeys(SIZES, 1)
    Tuned({"max_num_seqs": 2}, sizes, "cpu", "0", {}).write(tmp_path / "tuned.json")
    shown = run(capsys, "plan", "150m", "--gpu-memory", "80GiB", "--tuned", tmp_path / "tuned.json")
    assert shown.code == 2 and "another model" in shown.err


def test_without_a_gpu_its_memory_is_asked_for(eight_b, monkeypatch):
    """Where the CPU's does not hold the model, unless the CPU is meant."""
    monkeypatch.setattr(memory_report, "find_device", lambda _: jax.devices("cpu")[0])
    monkeypatch.setattr(memory_report, "memory_of", lambda *_: Memory(False, 2**30))
    with pytest.raises(ConfigError, match=r"^gpu_memory=None: .* to plan for, --gpu-memory 80GiB"):
        memory_report.report_memory(eight_b, EngineConfig())
    with pytest.raises(ConfigError, match=r"^kv_cache_memory_bytes=None: 0 bytes"):
        memory_report.report_memory(eight_b, EngineConfig(device="cpu"))
