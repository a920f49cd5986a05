"""Outcomes of kernels, as text and as JSON."""

import json

import pytest

from jbatch.device.verdict.record import Gpu, Kernel, Outcome, Verdict

GPU = Gpu("NVIDIA H200", "9.0")
MOSAIC, TRITON = Kernel("mosaic", "decode"), Kernel("triton", "decode")
VERDICT = Verdict(
    GPU,
    {
        MOSAIC: Outcome("failed", "killed by SIGSEGV (run)"),
        TRITON: Outcome("passed"),
        Kernel("mosaic", "prefill"): Outcome("declined", "group 32"),
        Kernel("triton", "prefill"): Outcome("unchecked", "out of memory"),
    },
)


def test_one_line_says_what_is_used_and_what_is_wrong_with_the_rest():
    assert VERDICT.describe() == (
        "attention on NVIDIA H200: decode by triton (mosaic FAILED: killed by SIGSEGV (run)), "
        "prefill by xla (mosaic declined: group 32; triton not checked: out of memory)"
    )


def test_without_a_gpu_the_reason_is_said_once():
    reasons = dict.fromkeys((MOSAIC, TRITON), Outcome("unchecked", "exit status 1: no room"))
    described = Verdict(None, reasons).describe()
    assert described == "attention by xla: no kernel could be checked: exit status 1: no room"


def test_what_passed_is_proven():
    assert VERDICT.proven == {"decode": "triton"}


def test_it_lasts_unless_something_was_not_checked():
    assert not VERDICT.lasts
    checked = {
        kernel: outcome for kernel, outcome in VERDICT.outcomes.items() if outcome.status != "unchecked"
    }
    assert VERDICT._replace(outcomes=checked).lasts
    assert not VERDICT._replace(outcomes=checked, gpu=None).lasts


def test_it_comes_back_from_json():
    for verdict in (VERDICT, VERDICT._replace(gpu=None)):
        assert Verdict.of_json(json.loads(json.dumps(verdict.as_json()))) == verdict


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"gpu": None},
        {"gpu": 3, "kernels": []},
        {"gpu": ["a", 9, "gpu"], "kernels": []},
        {"gpu": None, "kernels": [["mosaic", "decode", "passed"]] * 2 + [["rocm", "decode", "passed"]]},
        {"gpu": None, "kernels": [["mosaic", "encode", "passed"]]},
        {"gpu": None, "kernels": [["mosaic", "decode", "fine"]]},
        {"gpu": None, "kernels": [["mosaic", "decode", "passed", 3]]},
        {"gpu": None, "kernels": [["mosaic", ["decode"], "passed"]]},
    ],
)
def test_what_is_none_is_refused(value):
    with pytest.raises(ValueError, match="no verdict"):
        Verdict.of_json(value)
