"""The tuner's choices and its table: no figure here is a measurement."""

import json
import sys

import pytest

from bench.kernels import tile_search
from bench.kernels import tune as tune_kernels
from bench.kernels.problems import GQA, decode_case
from pallas_kernels import tuning
from pallas_kernels.mosaic.decode import Tiles
from pallas_kernels.names import COMPILERS

H200 = "NVIDIA H200"
PROBLEM = decode_case(GQA, 64, 64, 1024).problem(num_pages=2000)


def measured(**us: float) -> dict:
    """Times by chunk and stages: measured(c256_s2=10.0)."""
    times = {}
    for name, time in us.items():
        chunk, stages = (int(part[1:]) for part in name.split("_"))
        times[Tiles(chunk, 64, stages, 132)] = {"us": time, "floor_us": 10.0}
    return times


@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("implementation", COMPILERS)
def test_tiles_to_try(implementation, kind):
    problem = PROBLEM._replace(kind=kind)
    tried = tile_search.tiles_to_try(implementation, problem, H200, limit=None)
    assert tried[0] == tuning.default_tiles(implementation, problem, H200)
    assert len(tried) == len(set(tried)) <= 128
    assert all(getattr(tiles, "chunk", 0) % tiles.block_kv == 0 for tiles in tried)
    quick = tile_search.tiles_to_try(implementation, problem, H200, limit=2)
    assert set(quick) < set(tried) and quick[0] == tried[0]


def test_problems_share_an_order_of_summation():
    small = measured(c256_s2=10.0, c256_s3=12.0, c512_s2=20.0, c512_s3=19.0)
    large = measured(c256_s2=30.0, c256_s3=25.0, c512_s2=21.0, c512_s3=22.0)
    # Alone each would take another chunk. 256: 10 x 25; 512: 19 x 21.
    chosen = tile_search.choose([small, large])
    assert [(tiles.chunk, tiles.num_stages) for tiles in chosen] == [(256, 2), (256, 3)]


def test_an_order_must_work_everywhere():
    assert tile_search.choose([measured(c256_s2=1.0, c512_s2=9.0), measured(c512_s3=9.0)])[0].chunk == 512
    assert tile_search.choose([measured(c256_s2=1.0), measured(c512_s3=9.0)]) == []
    assert tile_search.choose([{}, measured(c512_s3=9.0)]) == []


def row(batch: int, device: str = H200, **tiles: int) -> dict:
    fields = {"chunk": 256, "block_kv": 64, "num_stages": 2, "num_ctas": 132} | tiles
    key = (device, "mosaic", "decode", 4, 128, 64, batch, 1024)
    return tuning.Row(*key, fields, {"us": 1.0})._asdict()


def test_rows_replace_those_of_their_model(tmp_path):
    table = tmp_path / "tuning.json"
    tile_search.rewrite(table, [row(8), row(64)])
    tile_search.rewrite(table, [row(8, "NVIDIA H100")])
    tile_search.rewrite(table, [row(256, chunk=512), row(8, chunk=512)])  # another order: all rows go
    written = [(r["device"], r["batch"], r["tiles"]["chunk"]) for r in json.loads(table.read_text())["rows"]]
    assert written == [("NVIDIA H100", 8, 256), (H200, 8, 512), (H200, 256, 512)]
    before = table.read_text()
    with pytest.raises(ValueError, match="an engine's bits need one"):
        tile_search.rewrite(table, [row(8), row(64, chunk=512)])
    with pytest.raises(TypeError):
        tile_search.rewrite(table, [row(8, unknown=1)])
    assert table.read_text() == before


def test_smoke_run_writes_a_table(tmp_path, monkeypatch):
    shipped = tune_kernels.TABLE.read_text()
    arguments = ["--smoke", "--implementations", "triton", "--ops", "decode", "--output-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tune_kernels", *arguments])
    assert tune_kernels.main() == 0
    (row_written,) = json.loads((tmp_path / "tuning.json").read_text())["rows"]
    tuning.check((tuning.Row(**row_written),))
    tiles = tuning.tiles_of(row_written["implementation"], row_written["kind"], row_written["tiles"])
    assert tiles.chunk % tiles.block_kv == 0 and (row_written["batch"], row_written["context"]) == (2, 64)
    assert row_written["measured"]["status"] == "smoke" and "us" not in row_written["measured"]
    assert row_written["measured"]["jax"]
    rows = [json.loads(line) for line in (tmp_path / "tuning.jsonl").read_text().splitlines()]
    assert len(rows) == tune_kernels.SMOKE_TILES
    assert tune_kernels.TABLE.read_text() == shipped
