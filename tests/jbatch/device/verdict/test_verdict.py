"""What "auto" means on a GPU: which kernels are checked, when, and what comes of it."""

import logging
import types

import pytest

from jbatch.config import EngineConfig, ModelConfig
from jbatch.device import verdict as auto
from jbatch.device.backend import Attention, choose_attention
from jbatch.device.verdict import gpus, kept
from jbatch.device.verdict.record import Gpu, Kernel, Outcome, Verdict
from jbatch.seam.bucket import buckets_of
from jbatch.seam.shape import StateShape
from pallas_kernels import implementations
from pallas_kernels._compat import HAS_MOSAIC

LLAMA_3_8B = ModelConfig(128256, 4096, 14336, 32, 32, 8, 128, 8192)
H200 = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", compute_capability="9.0")
A100 = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA A100", compute_capability="8.0")
CHECKED = Verdict(
    Gpu("NVIDIA H200", "9.0"),
    {
        Kernel("mosaic", "decode"): Outcome("failed", "no answer within 30 s (run)"),
        Kernel("triton", "decode"): Outcome("passed"),
        Kernel("triton", "prefill"): Outcome("passed"),
        Kernel("triton", "rotate"): Outcome("passed"),
    },
)


@pytest.fixture
def asked(monkeypatch):
    """The requests that another process would have got, on a machine with an H200."""
    requests = []
    monkeypatch.setattr(gpus, "may_be_used", lambda: True)
    monkeypatch.setattr(gpus, "describe_all", lambda: "NVIDIA H200, 580.65.06")
    monkeypatch.setattr(auto, "check_kernels", lambda request: requests.append(request) or CHECKED)
    return requests


def config_in(tmp_path, **options) -> EngineConfig:
    return EngineConfig(**{"compilation_cache_dir": str(tmp_path), "show_progress": False} | options)


def attention_on(device, config, verdict) -> Attention:
    shape = StateShape(config.max_num_seqs, 2, config.page_size, 8192 // config.page_size)
    buckets = buckets_of(config, 8192)
    return choose_attention("auto", LLAMA_3_8B, shape, buckets, device, auto.proven_on(device, verdict))


def test_every_kernel_that_claims_the_problem_is_checked_the_fastest_first(asked, tmp_path):
    auto.prove_kernels(config_in(tmp_path), LLAMA_3_8B, 8192)
    (request,) = asked
    names = ["mosaic", "triton"] if HAS_MOSAIC else ["triton"]
    for kind in ("decode", "prefill"):
        assert [kernel.name for kernel in request.kernels if kernel.kind == kind] == names
    assert Kernel("triton", "rotate") in request.kernels and Kernel("mosaic", "rotate") not in request.kernels
    assert request.platform == "cuda" and request.limit_s == 30


def test_the_problems_are_the_engines_own(asked, tmp_path):
    """Of its smallest step, in which a lone sequence has a dead one beside it, and of its largest."""
    auto.prove_kernels(config_in(tmp_path, page_size=32, max_num_seqs=8), LLAMA_3_8B, 1024)
    problems = asked[0].problems
    sizes = {kind: [p.tokens for p in problems if p.kind == kind] for kind in ("decode", "prefill", "rotate")}
    assert sizes == {"decode": [2, 8], "prefill": [32, 2048], "rotate": [2, 8 + 2048]}
    for problem in problems:
        assert problem.dtype == "bfloat16" and (problem.num_heads, problem.kv_heads) == (32, 8)
        assert (problem.head_dim, problem.page_size, problem.pages_per_seq) == (128, 32, 32)


def test_what_passes_is_used_and_the_next_where_one_fails(asked, tmp_path):
    config = config_in(tmp_path)
    verdict = auto.prove_kernels(config, LLAMA_3_8B, 8192)
    assert attention_on(H200, config, verdict) == Attention.all_by("triton")


def test_a_verdict_on_another_device_counts_for_nothing(asked, tmp_path):
    config = config_in(tmp_path)
    verdict = auto.prove_kernels(config, LLAMA_3_8B, 8192)
    assert attention_on(A100, config, verdict) == Attention() == attention_on(H200, config, None)


def test_it_is_said_once_and_kept(asked, tmp_path, caplog):
    config = config_in(tmp_path, show_progress=True)
    with caplog.at_level(logging.INFO, "jbatch"):
        for _ in range(3):
            assert auto.prove_kernels(config, LLAMA_3_8B, 8192) == CHECKED
    assert len(asked) == 1
    assert caplog.messages == [
        "attention on NVIDIA H200: decode by triton (mosaic FAILED: no answer within 30 s (run)), prefill by "
        "triton, rotate by triton"
    ]
    assert auto.kept_verdict(config, LLAMA_3_8B, 8192) == CHECKED
    assert [verdict for _, verdict in kept.read_all(tmp_path / "kernels")] == [CHECKED]
    assert auto.kept_verdict(config_in(tmp_path, page_size=16), LLAMA_3_8B, 8192) is None and len(asked) == 1


@pytest.mark.parametrize(
    "options",
    [{"attention_backend": "triton"}, {"attention_backend": "xla"}, {"device": "cpu"}, {"dtype": "float32"}],
)
def test_nothing_is_checked_where_there_is_nothing_to_choose(options, asked, tmp_path):
    config = config_in(tmp_path, **options)
    model = LLAMA_3_8B
    if config.dtype != "auto":
        model = ModelConfig(*[*LLAMA_3_8B.__dict__.values()][:8], dtype=config.dtype)
    assert auto.prove_kernels(config, model, 8192) is None and not asked


def test_without_a_gpu_nothing_is_checked(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "may_be_used", lambda: False)
    assert auto.prove_kernels(config_in(tmp_path), LLAMA_3_8B, 8192) is None and not asked


def test_a_gpu_that_nobody_names_is_checked_each_time(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "describe_all", lambda: None)
    for _ in range(2):
        assert auto.prove_kernels(config_in(tmp_path), LLAMA_3_8B, 8192) == CHECKED
    assert len(asked) == 2 and not (tmp_path / "kernels").exists()


def test_a_kernel_must_claim_every_problem_of_its_op(asked, monkeypatch, tmp_path):
    def declines(name, problem, device=None):
        return "too many" if name == "triton" and problem.tokens > 1024 else None

    monkeypatch.setattr(auto, "declines", declines)
    monkeypatch.setattr(implementations, "declines", declines)
    auto.prove_kernels(config_in(tmp_path), LLAMA_3_8B, 8192)
    assert [str(kernel) for kernel in asked[0].kernels] == [
        "mosaic decode",
        "triton decode",
        "mosaic prefill",
        "mosaic rotate",
    ]
