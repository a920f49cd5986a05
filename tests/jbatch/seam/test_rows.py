"""A row of device state, in columns."""

import numpy as np

from jbatch.seam.rows import COLUMNS, FLOAT_COLUMNS, NUM_SCALARS, ROW_WIDTH, RowSetup, row_columns

SETUP = RowSetup(9, length=20, budget=4, min_left=1, seed=2**32 - 1, temperature=0.7, stop_ids=(2, 5))


def test_a_row_keeps_its_floats_bit_by_bit():
    setup = SETUP._replace(temperature=0.1, top_p=1 / 3, min_p=1e-30)
    columns = row_columns(setup)
    assert columns.dtype == np.int32 and columns.shape == (ROW_WIDTH,)
    by_name = {name: columns[idx] for name, idx in COLUMNS.items()}
    for name in FLOAT_COLUMNS:
        assert by_name[name].view(np.float32) == np.float32(getattr(setup, name))
    assert by_name["temperature"] == 0x3DCCCCCD
    assert by_name["seed"] == -1 and by_name["seed"].view(np.uint32) == 2**32 - 1
    assert [by_name[name] for name in ("last_token", "length", "budget", "min_left")] == [9, 20, 4, 1]
    assert columns[NUM_SCALARS:].tolist() == [2, 5, *[-1] * 14]


def test_every_column_has_a_place_of_its_own():
    """A value of its own in each: the names lead to it."""
    values = {name: idx + 1 for idx, name in enumerate(COLUMNS) if name != "stop_ids"}
    columns = row_columns(RowSetup(**values, stop_ids=(99,)))
    assert COLUMNS["stop_ids"] == NUM_SCALARS == ROW_WIDTH - 16 and columns[NUM_SCALARS] == 99
    for name, value in values.items():
        column = columns[COLUMNS[name]]
        assert (column.view(np.float32) if name in FLOAT_COLUMNS else column) == value


def test_floats_and_only_they_travel_as_bits():
    assert set(FLOAT_COLUMNS) == {n for n, v in RowSetup._field_defaults.items() if isinstance(v, float)}


def test_a_row_has_room_for_all_stop_ids():
    assert row_columns(RowSetup(stop_ids=tuple(range(16))))[NUM_SCALARS:].tolist() == list(range(16))
