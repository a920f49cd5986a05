"""Every table that a command prints, found by walking: at 80 and at 120 columns nothing is cut or broken."""

import ast
import dataclasses
import importlib
import io
from pathlib import Path

import pytest

from bench.compare import arms as compare_arms
from bench.ladder.arms import ARMS, STATIC
from bench.ladder.prefix import Pass
from bench.predict.judge import COVERED, Score
from bench.results import ArmResult, Counts, Latencies, Rates, Spread, SweepPoint
from bench.simulate.accuracy import Comparison
from bench.simulate.cluster import Cluster
from bench.simulate.policies import Outcome
from bench.tune import gain
from bench.tune.aim import Figures
from bench.tune.candidate import Candidate
from bench.tune.gain import Gain
from bench.tune.search import Search
from bench.tune.tune import Tuned
from bench.workloads.lengths import SCENARIOS
from jbatch.cli.demo import MODE_TEXTS, ModeRun
from jbatch.cli.tables import Page
from jbatch.cli.terms import MEANINGS
from jbatch.host.metrics import Summary
from jbatch.host.router import ROUTERS
from jbatch.seam.bucket import Bucket
from jbatch.sim.cost import BucketCost, CostTable, HostCost
from jbatch.sim.trace_rerun import Outcome as Rerun

ROOT = Path(__file__).parents[1]
PACKAGES = ("jbatch", "bench", "tools", "pallas_kernels", "weights")


def filled(cls, count=123456, share=0.994):
    """A record with wide figures: shares by their names, and counts."""
    shares = ("slot_use", "padded_share", "kv_use", "kv_of_contiguous", "device_busy_share", "floor_share")
    values = {
        field.name: share if field.name in shares or field.name.endswith("rate") else count
        for field in dataclasses.fields(cls)
    }
    return cls(**values)


def wide_arm(name):
    """An arm as a long run on a slow machine leaves it."""
    spread = Spread(123456.7, 123456.7, 123456.7, 123456.7)
    latencies = Latencies(*[spread] * len(dataclasses.fields(Latencies)))
    rates = filled(Rates, count=12345.67)
    check = {
        "equal": 1024,
        "requests": 1024,
        "near_ties": 123,
        "largest_gap": 0.00012,
        "compared_tokens": 123,
    }
    extra = {"warm_up_s": 1234.5, "check": check}
    return ArmResult(name, "", 256, filled(Counts), rates, latencies, (1.0, 9.0), extra=extra)


LADDER = {name: wide_arm(name) for name in ARMS}
COMPARED = {name: wide_arm(name) for name in compare_arms.ARMS}
GAINS = {f"{base} / unbatched": 12.345 for base in ARMS} | {f"continuous / {base}": 1.234 for base in STATIC}
GAINS |= {f"slot_steps {base} / continuous": 1.234 for base in STATIC}
WORKLOADS = dict.fromkeys(SCENARIOS, GAINS)
OUTCOMES = [
    Outcome(policy, "prompt-length", admission, *[1234.56] * 5, 0.99, 0.987, 12345, 1234567, 0.99, 1.234)
    for policy in ("adaptive", "priority")
    for admission in ("optimistic", "no-evict")
] + [Outcome("fcfs", "oracle", "forecast", *[1.0] * 5, 0.99, 0.987, 12345, 1234567, 0.99)]
CANDIDATES = [
    Candidate(256, 2048, 128, "priority", "optimistic"),
    Candidate(64, 2048, 64, "adaptive", "no-evict"),
]
FIGURES = Figures(12345.6, 123456.7, 123456.7, 1234.5, 12.34, 12345)
FOUND = Search(CANDIDATES[0], dict.fromkeys(CANDIDATES, FIGURES), True)
TUNED = Tuned(FOUND, CANDIDATES[1], CANDIDATES[0], FIGURES, FIGURES, 123, 12, None)
RUN = ModeRun([], Summary(*[123456] * 19), 1e-3, 0, [])
COSTS = CostTable({Bucket(256, 2048): BucketCost(*[1.234567] * 6, 128, 12345, (1.0, 2.0))}, HostCost())

PASSES = {name: [Pass(123456, 0.99, 12345.6, 123456.7)] for name in ("off", "cold", "warm")}

# What each table is shown with; one that is not here is found below.
SHOWN = {
    "bench.compare.table.speed_table": (COMPARED,),
    "bench.compare.table.check_table": (COMPARED, 123),
    "bench.ladder.gain_tables.over_unbatched_table": (WORKLOADS,),
    "bench.ladder.gain_tables.over_static_table": (WORKLOADS,),
    "bench.ladder.gain_tables.counted_table": (WORKLOADS, "slot_steps"),
    "bench.ladder.gain_tables._by_workload": (tuple(ARMS), WORKLOADS, lambda workload, arm: "12.34 (2.9)"),
    "bench.ladder.prefix.passes_table": (PASSES,),
    "bench.ladder.tables.summary_table": (LADDER,),
    "bench.ladder.tables.rates_table": (LADDER,),
    "bench.ladder.tables.counts_table": (LADDER,),
    "bench.ladder.tables.pages_table": (LADDER,),
    "bench.ladder.tables.latency_table": (LADDER,),
    "bench.ladder.tables.parts_table": (LADDER,),
    "bench.ladder.tables.sweep_table": (
        {name: [SweepPoint(size, 12345.6) for size in (2, 4, 8, 16, 32, 64)] for name in ARMS},
        "output_throughput",
        "{:.0f}",
    ),
    "bench.predict.command.scores_table": (
        dict.fromkeys(
            ("running mean", "prompt length", "learned"), Score(1234.5, -0.123, dict.fromkeys(COVERED, 0.9))
        ),
    ),
    "bench.simulate.accuracy.errors_table": (
        [Comparison("mixed_length", "p99 TTFT", 1234.5, 0.1, 1234.5, (-0.323, -0.456))],
    ),
    "bench.simulate.calibrate.costs_table": (COSTS,),
    "bench.simulate.command.routers_table": (
        dict.fromkeys(ROUTERS, Cluster(*[1234.56] * 5, 12.34, 0.99)),
        123.4,
    ),
    "bench.simulate.policies_command.outcomes_table": (OUTCOMES,),
    "bench.tune.gain.gain_table": (
        [Gain(name, (12345.6, 12345.6), (12345.6, 12345.6), (0.12, 12.34)) for name in gain.SHOWN],
    ),
    "bench.tune.report.frontier_table": (TUNED,),
    "jbatch.cli.demo.runs_table": (dict.fromkeys(MODE_TEXTS, RUN),),
    "jbatch.cli.replay.outcomes_table": (
        [("priority*", "optimistic*", Rerun(1234567, 1234567, 12345, 12345.6))],
    ),
}


def trees():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).with_suffix(""), ast.parse(path.read_text(encoding="utf-8"))


def test_every_table_is_among_these():
    found = {
        ".".join((*path.parts, node.name))
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and isinstance(node.returns, ast.Name)
        and node.returns.id == "Table"
    }
    assert found == SHOWN.keys()


def test_there_is_one_kind_of_table():
    """Or one of another kind would not be found."""
    imported = {
        str(path)
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "rich.table"
    }
    assert not imported


def made(name):
    module, function = name.rsplit(".", 1)
    return getattr(importlib.import_module(module), function)(*SHOWN[name])


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", SHOWN)
def test_nothing_is_cut_and_no_word_is_broken(name, width):
    table = made(name)
    page = Page(width=width, file=io.StringIO())
    page.show(table)
    lines = page.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    expected = [word for cells in (table.headings, *table.rows) for cell in cells for word in cell.split()]
    assert expected and all(words.count(word) >= expected.count(word) for word in expected)
    parts = sum("──" in line for line in lines)
    assert parts == 1, "it comes in parts"


@pytest.mark.parametrize("name", SHOWN)
def test_headings_use_one_word_for_one_thing_and_its_units(name):
    headings = made(name).headings
    assert not {"method", "mode", "contender", "candidate", "entry", "rung"} & set(" ".join(headings).split())
    for heading in headings:
        for term in ("TTFT", "TPOT", "ITL", "E2EL", "makespan", "time", "idle"):
            assert term not in heading.split()[0] or heading.endswith((", s", ", ms", ", steps")), heading
        assert all(
            word in MEANINGS for word in heading.replace(",", "").split() if word.isupper() and len(word) > 2
        )
