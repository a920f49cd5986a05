"""Buckets by what steps cost, worked out with a pencil."""

from bench.ladder.arms import ARMS
from bench.measure.drive import drive
from bench.simulate.subject import SimulatedSubject
from bench.tune.buckets import Need, Sizes, needs_of, worthwhile
from bench.workloads.workload import WorkItem, Workload
from jbatch.seam.bucket import Bucket
from jbatch.sim.cost import BucketCost, CostTable, HostCost
from jbatch.sim.load import Load
from tests.bench.simulate.test_simulate import simulated

SIZES = Sizes((1, 2, 4, 8), (32, 64, 128))


def costs(seconds):
    """A table by the places of a step."""
    shapes = [Bucket(slots, 0) for slots in SIZES.decode] + [Bucket(8, tokens) for tokens in SIZES.tokens]
    return CostTable({shape: BucketCost(seconds(shape)) for shape in shapes}, HostCost())


TIMES = {Need(1, 0): 100, Need(3, 0): 100, Need(8, 0): 100, Need(4, 40): 50, Need(4, 100): 50}
NEEDS = {
    need: (times, Load(Bucket(0, 0), need.slots, 0, 0, need.tokens, 0, 0)) for need, times in TIMES.items()
}


def test_where_all_steps_cost_the_same_no_small_bucket_is_worth_its_program():
    kept = worthwhile(SIZES, NEEDS, costs(lambda shape: 1e-3))
    assert len(kept.decode) + len(kept.tokens) == 3  # one size of each kind would be another engine
    assert kept.decode[-1] == 8 and kept.tokens[-1] == 128


def test_where_steps_cost_their_places_every_bucket_that_is_used_stays():
    kept = worthwhile(SIZES, NEEDS, costs(lambda shape: 1e-3 * shape.num_places))
    assert kept == Sizes((1, 4, 8), (64, 128))  # nobody needed 2 slots or 32 tokens


def test_a_bucket_goes_by_its_cost_and_not_by_its_size():
    """A step of 4 slots costs as much as one of 8: it saves nothing, however often it is used."""
    kept = worthwhile(SIZES, NEEDS, costs(lambda shape: 1e-3 * (8 if shape.slots == 4 else shape.num_places)))
    assert 4 not in kept.decode and 1 in kept.decode


def test_the_smallest_bucket_that_holds_a_step():
    assert SIZES.bucket(Need(3, 0)) == Bucket(4, 0)
    assert SIZES.bucket(Need(3, 40)) == Bucket(8, 64)


def test_what_a_pass_had_to_hold():
    """Two prompts of 9 tokens take 16 places each; then both decode twice, attending to 10 and 11 tokens."""
    items = tuple(WorkItem((3, 4, 5, 6, 7, 8, 9, 10, number), 3, 0.0) for number in (11, 12))
    loads = []
    engine = SimulatedSubject(simulated()).new_engine(ARMS["continuous"], 4, loads=loads)
    needs = needs_of(drive(engine, Workload("two", items, 0, {})), loads)
    assert needs[Need(0, 32)] == (1, Load(Bucket(0, 0), 0, 0, 0, 18, 90, 2))
    assert needs[Need(2, 0)] == (2, Load(Bucket(0, 0), 2, 21, 10, 0, 0, 0))
