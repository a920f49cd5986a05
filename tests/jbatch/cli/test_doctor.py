"""`jbatch doctor`."""

import json
import os

import pytest

from jbatch.cli import doctor
from jbatch.device.verdict import kept
from jbatch.device.verdict.record import Gpu, Kernel, Outcome, Verdict
from pallas_kernels.problem import Problem
from tests.helpers.command import run, write_model


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


def test_versions_and_devices(capsys):
    ended = run(capsys, "doctor")
    assert ended.code == 0 and not ended.err
    for words in ("python 3.", "jbatch ", "jax ", "orbax-checkpoint ", "CUDA plugin: ", "devices: "):
        assert words in ended.out


def test_kernels_that_were_checked_here(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "checked" not in run(capsys, "doctor").out
    problem = Problem("decode", "bfloat16", 64, 64, 32, 8, 128, num_pages=2, page_size=64, pages_per_seq=128)
    key = kept.Key.here("NVIDIA H200, 580.65.06", (problem,))
    verdict = Verdict(Gpu("NVIDIA H200", "9.0"), {Kernel("triton", "decode"): Outcome("passed")})
    kept.read_or_make(key, tmp_path / ".cache/jbatch/kernels", lambda: verdict)
    assert (
        "checked: attention on NVIDIA H200: decode by triton [bfloat16, 32 heads over 8 of 128, pages of 64, "
        "64 slots; NVIDIA H200, 580.65.06]\n" in run(capsys, "doctor").out
    )


def test_a_healthy_model(model, capsys):
    ended = run(capsys, "doctor", model)
    assert ended.code == 0 and ended.out.endswith("  ok\n")
    for words in (
        "1 layers, 4 heads, 2 KV",
        "every tensor present",
        "tokenizer: 259 tokens",
        "ids: [2]",
        "sampling defaults: jbatch has its own",
        "attention: xla; mosaic (",
        "triton (device cpu: an NVIDIA GPU only",
    ):
        assert words in ended.out


def test_a_model_without_tokenizer_is_usable(model, capsys):
    (model / "tokenizer.json").unlink()
    ended = run(capsys, "doctor", model)
    assert (
        ended.code == 0
        and "tokenizer: none; the directory has no tokenizer.json: it takes token ids" in ended.out
    )


def change_config(model_dir, **changes):
    path = model_dir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage, problem",
    [
        (lambda d: (d / "config.json").unlink(), "no config.json: no Hugging Face model directory"),
        (lambda d: (d / "generation_config.json").write_text('{"top_p": 2}'), "top_p=2: "),
        (lambda d: change_config(d, model_type="mamba"), "model_type="),
        (lambda d: change_config(d, intermediate_size=64), "mlp.gate_proj"),
        (lambda d: os.truncate(d / "model.safetensors", 3000), "model.safetensors"),
        (lambda d: (d / "tokenizer.json").write_text("[]"), "tokenizer.json="),
        (lambda d: write_model(d).joinpath("model.safetensors").unlink(), "model.safetensors"),
    ],
)
def test_problems(damage, problem, model, capsys):
    damage(model)
    ended = run(capsys, "doctor", model)
    assert ended.code == 1 and not ended.err
    last = ended.out.splitlines()[-1]
    assert last.startswith("  problem: ") and problem in last


def test_a_tokenizer_of_another_model(tmp_path, capsys):
    from tests.helpers.hf_checkpoint import write_checkpoint

    model = write_model(tmp_path / "model")
    write_checkpoint(model)  # 96 tokens
    ended = run(capsys, "doctor", model)
    assert ended.code == 1 and "problem: the tokenizer has more tokens than the model's 96" in ended.out


def test_jax_does_not_start(capsys, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend\nand more")

    monkeypatch.setattr(doctor.jax, "devices", devices)
    ended = run(capsys, "doctor")
    assert ended.code == 1 and "JAX does not start: Unable to initialize backend\n" in ended.out
