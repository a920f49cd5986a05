"""The generator of combinations that the kernels' tests draw on."""

import itertools

import pytest

from tests.helpers import kernel_points
from tests.helpers.kernel_params import NUM_POINTS
from tests.helpers.kernels import interpreted
from tests.helpers.pairwise import cover, pairs

AXES = {"colour": ("red", "green", "blue"), "size": (1, 2, 3, 4), "round": (True, False), "price": (5, 7)}


def held(rows):
    return set(itertools.chain.from_iterable(map(pairs, rows)))


def test_every_pair_of_values_occurs():
    rows = cover(AXES)
    for one, other in itertools.combinations(AXES, 2):
        for values in itertools.product(AXES[one], AXES[other]):
            assert tuple(zip((one, other), values, strict=True)) in held(rows)


def test_it_is_much_smaller_than_the_product():
    assert 12 <= len(cover(AXES)) <= 15  # no fewer than the two longest axes give


def test_only_allowed_combinations_occur_and_all_of_their_pairs():
    def allowed(row):
        return not (row["colour"] == "red" and row["size"] > 1) and (row["round"] or row["price"] == 5)

    everything = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
    rows = cover(AXES, allowed)
    assert all(map(allowed, rows))
    assert held(rows) == held(filter(allowed, everything))


def test_the_same_seed_gives_the_same_rows():
    assert cover(AXES, seed=3) == cover(AXES, seed=3)


@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("name", ["xla", "triton"])
def test_the_short_tests_of_a_kernel_hold_every_value(name, kind):
    kernel = interpreted(name)
    points = kernel_points.cover(kernel, kind)

    def values(points):
        return {value for point in points for value in point._asdict().items()}

    assert values(points[:NUM_POINTS]) == values(points)


def test_so_do_those_of_the_cache_write():
    points = kernel_points.write_cover()
    assert {v for p in points[:NUM_POINTS] for v in p._asdict().items()} == {
        (axis, value) for axis, values in kernel_points.WRITE_AXES.items() for value in values
    }
