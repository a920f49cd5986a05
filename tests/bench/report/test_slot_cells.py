"""Who is in which slot."""

from bench.report.slot_cells import HELD, IDLE, PADDING, PROMPT, SOMEONE, WAITING, Cell, cells_of
from tests.helpers.bench_results import arms


def column(cells, step):
    return [row[step] for row in cells]


def test_all_states_are_told_apart():
    padded, continuous = (cells_of(arm) for arm in arms())
    assert column(padded, 0) == [Cell(0, PROMPT), Cell(1, PROMPT)]
    assert column(padded, 1) == [Cell(0), Cell(None, HELD)]  # request 1 has ended
    mixed = arms()[1]
    mixed.steps["kind"][1], mixed.steps["rows"][1] = "mixed", [[0, 0, 0], [1, 1, 2]]
    assert column(cells_of(mixed), 1) == [Cell(0), Cell(1, PROMPT)]
    assert continuous[0][-1] == Cell(None, PADDING)  # one sequence in a bucket of two


def test_a_step_with_others_prompts_is_no_gap_in_a_sequence():
    continuous = cells_of(arms()[1])
    assert continuous[0][:3] == [Cell(0, PROMPT), Cell(0, WAITING), Cell(0)]
    alone = arms()[1]
    alone.steps["rows"][2:] = [[[1, 2, 0]]] * len(alone.steps["rows"][2:])
    assert cells_of(alone)[0][1] == IDLE  # it never comes back: nobody waits


def test_where_it_is_not_recorded_who_was_there_it_is_known_how_many():
    padded, continuous = arms()
    for arm in (padded, continuous):
        whole = cells_of(arm)
        arm.steps["rows"][3:] = [[]] * len(arm.steps["rows"][3:])
        for step in range(3, len(arm.steps["kind"])):
            before, after = column(whole, step), column(cells_of(arm), step)
            for shade in (HELD, PADDING):
                assert sum(c.shade == shade for c in before) == sum(c.shade == shade for c in after), step
            assert sum(c.shade == SOMEONE for c in after) == sum(
                c.request is not None and c.shade != WAITING for c in before
            )
