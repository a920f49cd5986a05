"""What the process that checks kernels says, within this one."""

import json

import jax
import pytest

from jbatch.device.verdict import child
from jbatch.device.verdict.record import Kernel
from jbatch.device.verdict.request import Request
from pallas_kernels import proof
from pallas_kernels.problem import Problem
from tests.helpers.broken_kernels import compile_with

DECODE = Problem("decode", "bfloat16", 2, 2, 2, 1, 16, num_pages=2, page_size=16, pages_per_seq=4)
PREFILL = DECODE._replace(kind="prefill", tokens=32)
MOSAIC, TRITON, MOSAIC_PREFILL = (
    Kernel("mosaic", "decode"),
    Kernel("triton", "decode"),
    Kernel("mosaic", "prefill"),
)


@pytest.fixture(autouse=True)
def jax_has_mosaic(monkeypatch):
    monkeypatch.setattr(child, "declines", lambda *_: None)


def ask(monkeypatch, *kernels, problems=(DECODE, PREFILL), **faults):
    faults = {name.replace("_", " "): fault for name, fault in faults.items()}
    monkeypatch.setattr(proof, "compile_trial", compile_with(faults))
    said = []
    child.answer(Request(kernels, problems, platform="cpu"), said.append)
    return json.loads(json.dumps(said))


def outcomes(said):
    return {" ".join(line["kernel"]): line["outcome"] for line in said if "outcome" in line}


def test_the_device_comes_first_and_each_stage_before_it_begins(monkeypatch):
    said = ask(monkeypatch, MOSAIC)
    assert said[0] == {"gpu": [jax.devices("cpu")[0].device_kind, "", "cpu"]}
    assert [line["stage"] for line in said[1:-1]] == ["prepare", "compile", "run"]
    assert said[-1] == {"kernel": ["mosaic", "decode"], "outcome": ["passed", ""]}


def test_of_an_op_the_first_that_passes_is_enough(monkeypatch):
    said = ask(monkeypatch, MOSAIC, TRITON, MOSAIC_PREFILL)
    assert list(outcomes(said)) == ["mosaic decode", "mosaic prefill"]


@pytest.mark.parametrize(
    "fault, status, reason",
    [
        ("wrong", "failed", "elements of a decode of 2 slots are wrong"),
        ("unequal", "failed", "other bits the second time"),
        ("raises", "failed", "RuntimeError: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access"),
        ("no_memory", "unchecked", "RESOURCE_EXHAUSTED"),
    ],
)
def test_a_kernel_that_does_not_pass_is_named_and_is_the_last(fault, status, reason, monkeypatch):
    said = ask(monkeypatch, MOSAIC, TRITON, mosaic_decode=fault)
    (outcome,) = outcomes(said).values()
    assert outcome[0] == status and reason in outcome[1]


def test_every_problem_of_its_op_must_come_out_right(monkeypatch):
    compiled = []
    monkeypatch.setattr(proof, "make_trial", compiled.append)
    monkeypatch.setattr(proof, "check", lambda run, trial: None)
    monkeypatch.setattr(proof, "compile_trial", lambda *_, **__: None)
    larger = DECODE._replace(slots=4, tokens=4)
    child.answer(Request((MOSAIC,), (DECODE, larger, PREFILL), platform="cpu"), lambda line: None)
    assert compiled == [DECODE, larger]


def test_a_kernel_that_is_not_for_this_device_is_passed_over(monkeypatch):
    monkeypatch.setattr(child, "declines", lambda name, *_: "Hopper only" if name == "mosaic" else None)
    said = ask(monkeypatch, MOSAIC, TRITON)
    assert outcomes(said) == {"mosaic decode": ["declined", "Hopper only"], "triton decode": ["passed", ""]}


def test_no_gpu_is_an_answer():
    said = []
    child.answer(Request((MOSAIC,), (DECODE,), platform="cuda"), said.append)
    (line,) = said
    assert "cuda" in line["no_gpu"]
