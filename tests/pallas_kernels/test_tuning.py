"""The tuning table: measured rows first, a rule for the rest, one order of summation per model."""

import pytest

from pallas_kernels import implementations, tuning
from pallas_kernels.mosaic.decode import Tiles
from pallas_kernels.names import COMPILERS
from pallas_kernels.problem import Problem
from pallas_kernels.tuning import Row

H200 = "NVIDIA H200"


def problem(slots=64, group=4, pages_per_seq=16, kind="decode", head_dim=128):
    return Problem(kind, "bfloat16", slots, slots, 8 * group, 8, head_dim, 1000, 64, pages_per_seq)


def row(batch=64, context=1024, device=H200, **tiles):
    fields = {"chunk": 256, "block_kv": 64, "num_stages": 2, "num_ctas": 132} | tiles
    return Row(device, "mosaic", "decode", 4, 128, 64, batch, context, fields, {})


@pytest.fixture
def rows(monkeypatch):
    """Sets the table."""
    return lambda *rows: monkeypatch.setattr(tuning, "table", lambda: tuning.check(rows))


def test_the_shipped_table_is_sound():
    for measured in tuning.table():
        tuning.tiles_of(measured.implementation, measured.kind, measured.tiles)


def test_a_measured_row_wins(rows):
    rows(row(num_stages=4))
    assert tuning.lookup("mosaic", problem(), H200) == Tiles(256, 64, 4, 132)


def test_the_nearest_bucket_is_taken(rows):
    rows(row(batch=8, num_stages=4), row(batch=64, num_stages=3), row(batch=64, context=8192, num_stages=5))
    assert tuning.lookup("mosaic", problem(slots=40), H200).num_stages == 3
    assert tuning.lookup("mosaic", problem(slots=3), H200).num_stages == 4
    assert tuning.lookup("mosaic", problem(slots=64, pages_per_seq=128), H200).num_stages == 5


@pytest.mark.parametrize("other", [dict(group=8), dict(head_dim=64)])
def test_other_models_and_devices_follow_the_rule(rows, other):
    rows(row(num_stages=7))
    assert tuning.lookup("mosaic", problem(**other), H200).num_stages != 7
    assert tuning.lookup("mosaic", problem(), "NVIDIA A100-SXM4-80GB").num_stages != 7


@pytest.mark.parametrize("change", [dict(chunk=512), dict(block_kv=128)])
def test_rows_of_one_model_share_the_order_of_summation(change):
    with pytest.raises(ValueError, match="an engine's bits need one"):
        tuning.check((row(batch=8), row(batch=64, **change)))
    tuning.check((row(batch=8), row(batch=64, device="NVIDIA H100", **change)))


@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("implementation", COMPILERS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 3, 8, 16])
def test_the_rule_covers_everything_and_ignores_the_batch(implementation, kind, head_dim, group):
    def order(slots):
        tiles = tuning.lookup(implementation, problem(slots, group, kind=kind, head_dim=head_dim), H200)
        assert isinstance(tiles, implementations.module(implementation, kind).Tiles)
        return {name: value for name, value in tiles._asdict().items() if name in tuning.ORDER_FIELDS}

    assert order(1) == order(8) == order(256)


def test_a_persistent_grid_follows_the_device():
    by_device = {name: tuning.lookup("mosaic", problem(), name).num_ctas for name in (H200, "NVIDIA A100-X")}
    assert by_device == {H200: 264, "NVIDIA A100-X": 216}
    assert tuning.lookup("mosaic", problem(), tuning.INTERPRETER).num_ctas < 8
