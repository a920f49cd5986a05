"""Counting, checking and reporting: no figure here depends on the machine's speed."""

import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from bench.kernels import arms as attention_arms
from bench.kernels import cache_ops
from bench.kernels import command as kernels
from bench.kernels import problems as attention_problems
from bench.kernels import report as kernel_report
from bench.kernels import rows as kernel_rows
from bench.kernels.arms import Declined, build_kernel
from bench.kernels.cache_ops import CacheCase
from bench.kernels.problems import GQA, L2_BYTES, MHA, TINY, Case, decode_case, prefill_case
from bench.kernels.rows import Run, measure_attention, measure_cache_ops, timing_fields
from bench.measure.ceilings import Ceilings
from bench.measure.journal import Journal
from bench.measure.timing import CompiledArm, Times, summary, time_in_turns

CEILINGS = Ceilings(1e12, 1e12, 1e15, {})
CASE = decode_case(TINY, 16, 2, 40)


def test_decode_bytes_and_flop_by_hand():
    case = decode_case(GQA, 64, 2, 100)
    assert case.kv_bytes == 200 * 2 * 8 * 128 * 2 == 819_200
    queries = 2 * 32 * 128 * 2
    page_ids, lengths = 4 * 4, 2 * 4
    assert case.bytes == 819_200 + 2 * queries + page_ids + lengths == 851_992
    assert case.flop == 4 * 32 * 128 * 200
    assert decode_case(MHA, 64, 2, 100).kv_bytes == 4 * 819_200


def test_prefill_flop_is_causal():
    case = Case("prefill", TINY, 16, "packed", (3, 2), (5, 2))
    assert case.flop == 4 * 8 * 64 * ((3 + 4 + 5) + (1 + 2))
    assert case.tokens == 5 and case.pages == 2
    fresh = prefill_case(GQA, 64, 2048, "fresh")
    assert fresh.flop == 4 * 32 * 128 * 2048 * 2049 // 2
    assert prefill_case(GQA, 64, 512, "prefix").kv_lens == (2048 + 64,) * 8


def test_lengths():
    assert decode_case(GQA, 64, 3, 1024).kv_lens == (1024,) * 3
    assert decode_case(GQA, 64, 3, 1024, "one long").kv_lens == (1024, 256, 256)
    ragged = decode_case(GQA, 64, 64, 1024, "ragged").kv_lens
    assert ragged[0] == max(ragged) == 1024 and min(ragged) >= 1 and len(set(ragged)) > 32
    assert ragged == decode_case(GQA, 64, 64, 1024, "ragged").kv_lens


def test_caches_are_larger_than_the_l2():
    for case in attention_problems.decode_grid(quick=False):
        caches = attention_problems.num_caches(case)
        assert caches * case.kv_bytes > 4 * L2_BYTES
        assert caches >= 2 or case.kv_bytes > 16 * L2_BYTES


def test_grids():
    decode = attention_problems.decode_grid(quick=False)
    uniform = {(case.batch, case.context) for case in decode if case.label == "uniform"}
    assert uniform == {(b, c) for b in (1, 8, 64, 256) for c in (256, 1024, 4096, 8192, 32768)}
    models = {(case.heads.name, case.page_size) for case in decode}
    assert models == {(name, page) for name in ("mha", "gqa") for page in (16, 64)}
    quick = attention_problems.decode_grid(quick=True)
    assert {case.batch for case in quick} == {1, 8, 64, 256} and len(quick) <= len(decode) / 8
    prefill = attention_problems.prefill_grid(quick=False)
    assert {case.tokens for case in prefill} == {512, 1024, 2048, 4096, 8192}
    assert {case.label for case in attention_problems.prefill_grid(quick=True)} == {
        *("fresh", "chunk", "prefix", "packed")
    }
    assert all(length % 8 == 0 for case in prefill for length in case.q_lens)
    for cases in (decode, prefill):
        assert len({case.name for case in cases}) == len(cases)


def test_block_tables_share_no_page():
    case = decode_case(TINY, 16, 3, 100, "ragged")
    num_pages = attention_problems.pool_pages(case, 4)
    tables = attention_problems.block_tables(case, 4, num_pages)
    live = tables[tables > 0]
    assert len(live) == len(set(live)) == 4 * case.pages and live.max() < num_pages
    for slot, length in enumerate(case.kv_lens):
        assert np.all((tables[:, slot] > 0).sum(axis=1) == -(-length // 16))
        assert np.all(tables[:, slot, : -(-length // 16)] > 0)


def test_arms_take_turns():
    order = []

    def arm(name: str) -> CompiledArm:
        return CompiledArm(name, lambda: None, lambda passes: order.append(name), num_calls=4)

    times = time_in_turns([arm("a"), arm("b")], rounds=3)
    assert order[-6:] == ["a", "b"] * 3
    assert times["a"].rounds == 3 and times["a"].calls % 4 == 0
    order.clear()
    assert math.isnan(time_in_turns([arm("a")], rounds=0)["a"].median) and order == ["a"]


def test_time_per_call():
    assert summary([0.4, 0.2, 0.6], calls=2) == Times(0.2, 0.1, 0.3, 2, 3)


def test_floor_and_share():
    times = Times(4e-6, 2e-6, 8e-6, 16, 7)
    memory = timing_fields(times, num_bytes=2_000_000, flop=10**9, ceilings=CEILINGS)
    assert memory["floor_us"] == pytest.approx(2.0) and memory["bound"] == "memory"
    assert memory["share"] == pytest.approx(0.5)
    assert (memory["us"], memory["us_best"], memory["us_worst"]) == pytest.approx((4.0, 2.0, 8.0))
    compute = timing_fields(times, num_bytes=2_000_000, flop=3 * 10**9, ceilings=CEILINGS)
    assert compute["floor_us"] == pytest.approx(3.0) and compute["bound"] == "compute"
    assert compute["flop_per_s"] == pytest.approx(7.5e14)
    assert timing_fields(times, 1, 1, ceilings=None) == {"status": "smoke", "reason": kernel_rows.SMOKE_LABEL}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that times, against made-up ceilings and on few caches."""
    monkeypatch.setattr(attention_problems, "num_caches", lambda case: 2)
    return Run(Journal(tmp_path / "rows.jsonl"), CEILINGS, rounds=1, interpret=True)


def broken(change):
    """What builds plain JAX with its results changed."""

    def build(setup):
        arm = build_kernel("xla", setup)
        return arm._replace(name="triton", once=lambda: change(arm.once()))

    return build


@pytest.mark.parametrize(
    "change",
    [
        lambda out: out.at[1].multiply(1.03),  # one sequence, by little
        lambda out: out.at[0, 0].set(out[0, 1]),  # one head of another
        lambda out: out.at[0, 0, 0].set(jnp.nan),
        lambda out: jnp.zeros_like(out),
    ],
)
def test_a_wrong_kernel_gets_no_time(run, capsys, change):
    builders = {"triton": broken(change), "xla": lambda setup: build_kernel("xla", setup)}
    measure_attention([CASE], builders, run._replace(ceilings=None, rounds=0))
    wrong, right = run.journal.rows
    assert wrong["status"] == "WRONG" and not any(field.startswith("us") for field in wrong)
    assert right["implementation"] == "xla" and right["status"] == "smoke"
    assert "WRONG" in capsys.readouterr().out


def test_rows(run):
    def fails(setup):
        raise RuntimeError("ptxas says no\nat length")

    def declines(setup):
        raise Declined("not today")

    builders = {"triton": fails, "cudnn": declines, "xla": lambda setup: build_kernel("xla", setup)}
    measure_attention([CASE], builders, run)
    failed, declined, right = run.journal.rows
    assert failed["reason"] == "RuntimeError: ptxas says no at length" and failed["status"] == "failed"
    assert declined["reason"] == "not today" and declined["status"] == "declined"
    assert right["status"] == "ok" and right["us"] > 0 and right["floor_us"] == CASE.bytes / 1e6
    assert right["error"] == 0 and right["bytes"] == CASE.bytes and right["batch"] == 2
    lines = run.journal.path.read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == [
        "failed",
        "declined",
        "started",
        "checked",
        "ok",
    ]
    table = kernel_report.table(run.journal.rows)
    assert "cudnn: 1 x not today" in table and "ptxas says no" in table


def test_what_ended_a_process_is_left_out(run, tmp_path):
    row = {"op": "decode", "case": "earlier", "implementation": "triton", "status": "started"}
    run.journal.add(row)
    run.journal.add(row | {"case": CASE.name, "implementation": "xla", "status": "ok"})
    journal = Journal(run.journal.path, resume=True)
    assert journal.deadly() == {("decode", "triton")}
    assert [row["status"] for row in journal.rows] == ["ok", "failed"]
    called = []
    measure_attention([CASE], dict.fromkeys(("triton", "xla"), called.append), run._replace(journal=journal))
    assert not called
    assert not Journal(tmp_path / "rows.jsonl").rows  # without resume, from the start


def test_what_does_not_fit(run, monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000}

    monkeypatch.setattr(kernel_rows.jax, "devices", lambda: [Device()])
    measure_attention([CASE], {"xla": lambda setup: build_kernel("xla", setup)}, run)
    (row,) = run.journal.rows
    assert row["status"] == "declined" and "GB of cache" in row["reason"]


def test_others_kernels_say_why_not(run):
    names = ("cudnn", "flashinfer", "flash-attn-3")
    builders = attention_arms.builders("decode", names)
    assert tuple(builders) == names
    assert tuple(attention_arms.builders("prefill", names)) == ("flash-attn-3",)
    for build in builders.values():
        with pytest.raises(Declined, match="NVIDIA GPU"):
            build(None)


def test_cache_ops_are_checked(run, monkeypatch):
    writes = CacheCase("write_kv", TINY, 16, 24, "prompt")
    assert writes.bytes == 2 * 24 * 2 * 2 * 64 * 2 and writes.pages == 2
    copies = CacheCase("copy_pages", TINY, 16, 3)
    assert copies.bytes == 2 * 3 * (2 * 2 * 16 * 64) * 2 and copies.pages == 3
    write, copy = map(cache_ops.call_for, ("write_kv", "copy_pages"))
    assert cache_ops.check(writes, write) and cache_ops.check(copies, copy)

    def off_by_one(pool, k, v, pages, offsets):
        return write(pool, k, v, pages, (offsets + 1) % 16)

    assert not cache_ops.check(writes, off_by_one)
    monkeypatch.setattr(cache_ops, "call_for", lambda op: off_by_one)
    measure_cache_ops([writes], run)
    assert {row["status"] for row in run.journal.rows} == {"WRONG"}


def test_smoke_run(tmp_path, monkeypatch, capsys):
    argv = ["kernels", "--smoke", "--output-dir", str(tmp_path), "--implementations", "xla", "cudnn"]
    monkeypatch.setattr(sys, "argv", [*argv, "--ops", "decode", "prefill"])
    assert kernels.main() == 0
    result = json.loads((tmp_path / "kernels.json").read_text())
    assert result["schema"] == 1 and result["manifest"]["smoke"] and result["manifest"]["jax"]
    assert "ceilings" not in result
    statuses = {(row["op"], row["implementation"], row["status"]) for row in result["rows"]}
    assert statuses == {
        ("decode", "xla", "smoke"),
        ("decode", "cudnn", "declined"),
        ("prefill", "xla", "smoke"),
    }
    assert not any("us" in row or "share" in row for row in result["rows"])
    assert "not a measurement" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.png"))


def test_only_a_gpu_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kernels", "--quick", "--output-dir", str(tmp_path)])
    if kernels.jax.default_backend() == "cpu":
        assert kernels.main() == 2 and "--smoke" in capsys.readouterr().out


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    cases = [*attention_problems.decode_grid(quick=True), *attention_problems.prefill_grid(quick=True)]
    rows = [
        kernel_rows._row(case, name, "ok") | timing_fields(times, case.bytes, case.flop, CEILINGS)
        for case in cases
        for name in ("mosaic", "xla")
        for times in [Times(1e-3, 1e-3, 1e-3, 16, 7)]
    ]
    pictures = kernel_report.draw(rows, CEILINGS._asdict(), tmp_path)
    assert [picture.name for picture in pictures] == ["kernels-decode.png", "kernels-prefill.png"]
    assert all(picture.stat().st_size > 10_000 for picture in pictures)
