"""Verdicts in a directory."""

import os
import threading

import pytest

from jbatch.device.verdict import kept
from jbatch.device.verdict.kept import Key
from jbatch.device.verdict.record import Gpu, Kernel, Outcome, Verdict
from pallas_kernels.problem import Problem

DECODE = Problem("decode", "bfloat16", 64, 64, 32, 8, 128, num_pages=2, page_size=64, pages_per_seq=128)
KEY = Key.here("NVIDIA H200, 580.65.06", (DECODE, DECODE._replace(kind="prefill", tokens=2048)))
GPU = Gpu("NVIDIA H200", "9.0")
VERDICT = Verdict(GPU, {Kernel("mosaic", "decode"): Outcome("passed")})
OTHER = Verdict(GPU, {Kernel("mosaic", "decode"): Outcome("failed", "wrong")})


def never() -> Verdict:
    raise AssertionError("checked again")


def test_a_verdict_is_made_once(tmp_path):
    directory = tmp_path / "a" / "b"
    assert kept.read(KEY, directory) is None
    assert kept.read_or_make(KEY, directory, lambda: VERDICT) == VERDICT
    assert kept.read_or_make(KEY, directory, never) == VERDICT == kept.read(KEY, directory)
    assert sorted(path.suffix for path in directory.iterdir()) == [".json", ".lock"]


@pytest.mark.parametrize("field", Key._fields)
def test_another_device_driver_jax_kernel_or_shape_is_another_verdict(field, tmp_path):
    kept.read_or_make(KEY, tmp_path, lambda: VERDICT)
    changed = (DECODE,) if field == "problems" else "other"
    assert kept.read_or_make(KEY._replace(**{field: changed}), tmp_path, lambda: OTHER) == OTHER
    assert kept.read(KEY, tmp_path) == VERDICT


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", '{"schema": 1}', '{"schema": 2, "key": [], "verdict": {}}', b"\xff\xfe", None],
)
def test_a_file_that_is_broken_or_foreign_is_made_again(text, tmp_path):
    path = KEY.path(tmp_path)
    if text is None:  # of another key
        other = KEY._replace(gpus="NVIDIA A100")
        kept.read_or_make(other, tmp_path, lambda: OTHER)
        os.rename(other.path(tmp_path), path)
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert kept.read(KEY, tmp_path) is None
    assert kept.read_or_make(KEY, tmp_path, lambda: VERDICT) == VERDICT
    assert kept.read_or_make(KEY, tmp_path, never) == VERDICT


def test_what_was_not_checked_is_not_kept(tmp_path):
    unchecked = Verdict(
        GPU, VERDICT.outcomes | {Kernel("mosaic", "prefill"): Outcome("unchecked", "no memory")}
    )
    assert kept.read_or_make(KEY, tmp_path, lambda: unchecked) == unchecked
    assert kept.read_or_make(KEY, tmp_path, lambda: VERDICT) == VERDICT


def test_a_check_that_is_interrupted_leaves_nothing(tmp_path):
    def interrupted() -> Verdict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.read_or_make(KEY, tmp_path, interrupted)
    assert kept.read_or_make(KEY, tmp_path, lambda: VERDICT) == VERDICT


def test_without_a_directory_every_start_checks(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (None, tmp_path / "file" / "below"):
        for verdict in (VERDICT, OTHER):
            assert kept.read_or_make(KEY, directory, lambda verdict=verdict: verdict) == verdict


def test_two_at_once_check_once(tmp_path):
    """Threads take the lock of a file as processes do: each opens it for itself."""
    made, barrier = [], threading.Barrier(4)

    def make() -> Verdict:
        made.append(threading.get_ident())
        barrier_or_not.wait(0.2)
        return VERDICT

    barrier_or_not, found = threading.Event(), []

    def start() -> None:
        barrier.wait()
        found.append(kept.read_or_make(KEY, tmp_path, make))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and found == [VERDICT] * 4


def test_doctor_sees_those_of_this_jax_and_these_kernels(tmp_path):
    assert kept.read_all(tmp_path / "none") == []
    kept.read_or_make(KEY, tmp_path, lambda: VERDICT)
    kept.read_or_make(KEY._replace(jax="0.1"), tmp_path, lambda: OTHER)
    (tmp_path / "foreign.json").write_text("{}")
    assert kept.read_all(tmp_path) == [(KEY, VERDICT)]
    assert KEY.shape == "bfloat16, 32 heads over 8 of 128, pages of 64, 64 slots, 2048 tokens"


def test_the_digest_is_of_every_source(monkeypatch, tmp_path):
    import pallas_kernels

    def digest() -> str:
        kept.kernels_digest.cache_clear()
        return kept.kernels_digest()

    before = digest()
    for name in ("mosaic", "triton"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "decode.py").write_text("1")
    (tmp_path / "tuning.json").write_text("{}")
    monkeypatch.setattr(pallas_kernels, "__file__", str(tmp_path / "__init__.py"))
    seen = {before, digest()}
    for name in ("mosaic/decode.py", "triton/decode.py", "tuning.json"):
        (tmp_path / name).write_text("2")
        seen.add(digest())
    assert len(seen) == 5
    monkeypatch.undo()
    assert digest() == before
