"""What is known of GPUs before CUDA is opened."""

import importlib.util

import jax
import pytest

from jbatch.device.verdict import gpus


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine with a driver, a plugin and nothing that hides the GPU."""
    driver = tmp_path / "nvidiactl"
    driver.write_text("")
    monkeypatch.setattr(gpus, "DRIVER_FILES", (str(driver),))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "jax", FakeJax())
    return driver


class FakeJax:
    def __init__(self, platforms=None):
        self.config = type("Config", (), {"jax_platforms": platforms})


def test_a_gpu_may_be_used(gpu, monkeypatch):
    for platforms in (None, "", "cuda", "gpu,cpu", "cpu,cuda"):
        monkeypatch.setattr(gpus, "jax", FakeJax(platforms))
        assert gpus.may_be_used()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpus.may_be_used()


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_is_hidden(hidden, gpu, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not gpus.may_be_used()


def test_a_platform_that_is_none(gpu, monkeypatch):
    monkeypatch.setattr(gpus, "jax", FakeJax("cpu"))
    assert not gpus.may_be_used()


def test_no_driver(gpu):
    gpu.unlink()
    assert not gpus.may_be_used()


def test_no_plugin(gpu, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not gpus.may_be_used()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU")
def test_this_machine_has_none():
    assert not gpus.may_be_used()


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """The driver's tool, which prints such lines."""

    def print_lines(*lines: str, code: int = 0) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    return print_lines


def test_gpus_of_one_kind_are_one(tool):
    tool("NVIDIA H200, 580.65.06", "NVIDIA H200, 580.65.06")
    assert gpus.describe_all() == "NVIDIA H200, 580.65.06"


def test_where_they_differ_it_matters_which_is_chosen(tool):
    tool("NVIDIA H200, 580.65.06", "NVIDIA A100, 580.65.06")
    assert gpus.describe_all() == "NVIDIA A100, 580.65.06; NVIDIA H200, 580.65.06; CUDA_VISIBLE_DEVICES=1"


def test_a_tool_that_fails_or_is_not_there(tool, monkeypatch):
    tool("no devices were found", code=6)
    assert gpus.describe_all() is None
    tool()
    assert gpus.describe_all() is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpus.describe_all() is None
