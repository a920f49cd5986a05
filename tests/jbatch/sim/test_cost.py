"""Tables of costs: what they say, and what is refused."""

import json
import math

import pytest

from jbatch.seam.bucket import Bucket, decode_bucket
from jbatch.sim.cost import BucketCost, Chance, CostError, CostTable, HostCost, read_costs
from jbatch.sim.load import Load

DECODE = decode_bucket(4)
COST = BucketCost(1e-3, 1e-6, 1e-5, block=16, num_steps=30, factors=(0.5, 1.0, 1.5))
TABLE = CostTable({DECODE: COST, Bucket(4, 32): COST}, HostCost(1e-5, 2e-4, 1e-6), {"model": "tiny"})


def test_a_step_costs_what_it_computes():
    assert TABLE.step_s(Load(DECODE, 3, 100, 50, 0, 0, 0)) == pytest.approx(1e-3 + 1e-4 + 6.4e-4)


def test_a_table_is_written_and_read(tmp_path):
    TABLE.write(tmp_path / "costs.json")
    assert read_costs(tmp_path / "costs.json") == TABLE


def test_an_unknown_bucket_is_named():
    with pytest.raises(CostError, match="no costs of a step of 9 slots and 8 tokens; there are"):
        TABLE.step_s(Load(Bucket(9, 8), 0, 0, 0, 0, 0, 0))


def test_chance_is_that_of_the_measured_steps_and_of_its_seed():
    load = Load(DECODE, 1, 0, 0, 0, 0, 0)
    drawn = [
        [chance.step_s(load) for _ in range(9)] for chance in (Chance(TABLE, seed) for seed in (3, 3, 4))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    chance = Chance(TABLE, 0)
    times = [chance.step_s(load) for _ in range(2000)]
    assert set(times) == {0.5e-3, 1e-3, 1.5e-3}
    assert sum(times) / len(times) == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "batching"}, "is no table of costs"),
        ({"schema": 1}, "schema=1: must be 2"),
        ({"host": {"step_s": -1}}, "host.step_s=-1: must be a number of at least 0"),
        ({"host": {"steps": 1}}, "steps"),
        ({"buckets": [{"slots": 1}]}, r"buckets\[0\].tokens=None: must be an integer"),
        ({"buckets": []}, r"buckets=\[\]: must be a list of at least one"),
        ({"host": None}, "host=None: must be an object"),
        ({"about": [1]}, r"about=\[1\]: must be an object"),
        ({"buckets": [{**DECODE._asdict(), **COST._asdict(), "key_s": None}]}, r"buckets\[0\].key_s=None"),
        (
            {"buckets": [{**DECODE._asdict(), **COST._asdict(), "block": 0}]},
            r"buckets\[0\].block=0: must be an",
        ),
        ({"buckets": [{**DECODE._asdict(), **COST._asdict(), "factors": []}]}, r"buckets\[0\].factors=\[\]"),
    ],
)
def test_a_bad_file_is_named(tmp_path, change, message):
    path = tmp_path / "costs.json"
    TABLE.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CostError, match=f"costs.json: .*{message}"):
        read_costs(path)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(CostError, match=r"absent.json: cannot be read"):
        read_costs(tmp_path / "absent.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(CostError, match=r"list.json: is no table"):
        read_costs(tmp_path / "list.json")


def test_numbers_that_are_none_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        CostTable({DECODE: COST._replace(base_s=math.nan)}, HostCost()).write(tmp_path / "costs.json")
