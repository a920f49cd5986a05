"""The example that is in the repository, and the picture that opens the README."""

import json
import re
from pathlib import Path

from bench.report import slot_timeline
from bench.report.arm import read_arms

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "bench" / "results" / "example-cpu-demo"
PICTURE = ROOT / "docs" / "images" / "slots.svg"


def test_the_picture_is_drawn_from_the_example():
    content = json.loads((EXAMPLE / "batching-mixed_length.json").read_text())
    arms, _ = read_arms(content)
    drawn = slot_timeline.draw(slot_timeline.choose(arms), PICTURE.name).data
    assert drawn == PICTURE.read_bytes(), "draw it again: see the example's README"
    assert len(drawn) < 60_000


def test_the_page_is_small_and_shows_the_example():
    page = (EXAMPLE / "report.html").read_text()
    content = json.loads((EXAMPLE / "batching-mixed_length.json").read_text())
    assert len(page) < 200_000 and content["workload"]["hash"] in page and content["manifest"]["date"] in page
    steps = {name: arm["num_steps"] for name, arm in content["arms"].items()}
    assert f"<b>{steps['continuous']}</b>" in page and f"static: {steps['static']}, gain" in page


def test_the_example_holds_no_place_of_a_machine():
    content = (EXAMPLE / "batching-mixed_length.json").read_text()
    assert not re.search(r'"/(tmp|home|root|work|Users)/', content)
