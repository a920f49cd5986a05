"""Who computed where, and when each arm is done."""

import re

from bench.report import slot_timeline
from bench.report.slot_timeline import HELD, IDLE, PADDING, PROMPT, WAITING, Cell
from tests.helpers.bench_results import arms


def column(cells, step):
    return [row[step] for row in cells]


def test_all_states_are_told_apart():
    padded, continuous = (slot_timeline.cells_of(arm) for arm in arms())
    assert column(padded, 0) == [Cell(0, PROMPT), Cell(1, PROMPT)]
    assert column(padded, 1) == [Cell(0), Cell(None, HELD)]  # request 1 has ended
    mixed = arms()[1]
    mixed.steps["kind"][1], mixed.steps["rows"][1] = "mixed", [[0, 0, 0], [1, 1, 2]]
    assert column(slot_timeline.cells_of(mixed), 1) == [Cell(0), Cell(1, PROMPT)]
    assert continuous[0][-1] == Cell(None, PADDING)  # one sequence in a bucket of two


def test_a_step_with_others_prompts_is_no_gap_in_a_sequence():
    continuous = slot_timeline.cells_of(arms()[1])
    assert continuous[0][:3] == [Cell(0, PROMPT), Cell(0, WAITING), Cell(0)]
    alone = arms()[1]
    alone.steps["rows"][2:] = [[[1, 2, 0]]] * len(alone.steps["rows"][2:])
    assert slot_timeline.cells_of(alone)[0][1] == IDLE  # it never comes back: nobody waits


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


def test_a_run_that_is_recorded_in_part_says_so():
    _, arm = arms()
    total = len(arm.steps["rows"])
    arm.steps["rows"][3:] = [[]] * (total - 3)
    picture = slot_timeline.draw([arm], "slots.svg")
    assert (
        f"first 3 of {total} steps" in picture.panels[0].elements
        and f"first 3 of {total} steps" in picture.alt
    )


def test_neighbours_in_a_slot_differ_in_colour():
    padded, _ = arms()
    for rows in padded.steps["rows"]:
        for row in rows:
            row[1] *= 8  # requests as a policy may choose them: all of one colour, were it by number
    elements = slot_timeline.draw([padded], "slots.svg").panels[0].elements
    assert sum(f'fill="{colour}"' in elements for colour in slot_timeline.COLOURS) == 6
