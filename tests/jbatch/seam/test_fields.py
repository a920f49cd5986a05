"""Several arrays in one."""

import numpy as np

from jbatch.seam.fields import Field, fields_of, split


def test_arrays_stand_one_behind_the_other():
    fields = fields_of([(2,), (), (0,), (2, 3), (3, 0)])
    assert fields == (
        Field(0, 2, (2,)), Field(2, 3, ()), Field(3, 3, (0,)), Field(3, 9, (2, 3)), Field(9, 9, (3, 0)),
    )  # fmt: skip


def test_split_gives_each_its_shape():
    parts = [*split(np.arange(9), fields_of([(2,), (), (2, 3)]))]
    assert [part.tolist() for part in parts] == [[0, 1], 2, [[3, 4, 5], [6, 7, 8]]]
