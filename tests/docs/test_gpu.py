"""docs/gpu.md prints the suite's timetable, and says of every part what its rows mean."""

from pathlib import Path

from bench.gpu_suite import plan

TEXT = (Path(__file__).parents[2] / "docs/gpu.md").read_text(encoding="utf-8")


def test_the_timetable_is_the_plans():
    assert plan.table(plan.pack(plan.PARTS, 570)) in TEXT


def test_every_part_is_explained():
    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    assert [name for name in plan.BY_NAME if not any(f"`{name}`" in row for row in rows)] == []
