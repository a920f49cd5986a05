"""Who computed where, and when each arm is done."""

import re

from bench.report import slot_timeline
from tests.helpers.bench_results import arms


def test_whole_runs_share_one_axis():
    padded, continuous = arms()
    longest, shorter = len(padded.steps["kind"]), 5
    for column_ in continuous.steps.values():
        del column_[shorter:]
    picture = slot_timeline.draw([padded, continuous], "slots.svg")
    done = [re.findall(r"done at [^<]*", panel.elements) for panel in picture.panels]
    assert done == [[f"done at {longest} of {longest} steps"], [f"done at {shorter} of {longest} steps"], []]
    widths = [re.findall(r'viewBox="0 0 (\d+)', panel.elements) for panel in picture.panels]
    assert widths == [[str(longest)], [str(longest)], []]
    assert (
        f"continuous: done after {shorter} steps" in picture.alt
        and "% of computed slots useful" in picture.alt
    )


def test_a_run_that_is_recorded_in_part_is_drawn_whole():
    _, arm = arms()
    total = len(arm.steps["rows"])
    arm.steps["rows"][3:] = [[]] * (total - 3)
    picture = slot_timeline.draw([arm], "slots.svg")
    assert f"done at {total} of {total} steps" in picture.panels[0].elements
    assert f"done after {total} steps (requests are known of the first 3)" in picture.alt
    assert "a request, not recorded which" in [key.label for key in picture.keys]


def test_neighbours_in_a_slot_differ_in_colour():
    padded, _ = arms()
    for rows in padded.steps["rows"]:
        for row in rows:
            row[1] *= 8  # requests as a policy may choose them: all of one colour, were it by number
    elements = slot_timeline.draw([padded], "slots.svg").panels[0].elements
    assert sum(f'fill="{colour}"' in elements for colour in slot_timeline.COLOURS) == 6
