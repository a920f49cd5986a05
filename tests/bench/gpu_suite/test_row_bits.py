"""What bench.gpu_suite.row_bits concludes from bits; that it computes them, the tiny suite shows."""

import types

import numpy as np
import pytest

from bench.gpu_suite import row_bits
from bench.steps.command import TINY
from jbatch.seam.bucket import decode_bucket, prefill_bucket

BUCKETS = (decode_bucket(8), decode_bucket(4))
MODEL = types.SimpleNamespace(config=TINY.config, context=TINY.context)


def measure(monkeypatch, bits):
    """The row for a forward pass whose bits are `bits(bucket, members)`."""

    class Forward:
        def __init__(self, model, bucket, backend):
            self.bucket = bucket

        def __call__(self, members):
            return bits(self.bucket, [member for member in members if member is not None])

    monkeypatch.setattr(row_bits, "Forward", Forward)
    return row_bits.measure(MODEL, TINY, BUCKETS, "xla")


def watched(members):
    return next(member for member in members if member.row == 0)


def test_a_row_that_is_independent(monkeypatch):
    row = measure(monkeypatch, lambda bucket, members: (bucket, watched(members).token_ids.tolist()))
    assert row["status"] == "ok" and len(row["compared"]) == 3 and row["another_bucket_differs"]


def test_a_row_that_sees_its_neighbours(monkeypatch):
    row = measure(monkeypatch, lambda bucket, members: (len(members), watched(members).token_ids.tolist()))
    assert row["status"] == "WRONG" and "among others" in row["reason"]


def test_a_comparison_that_sees_nothing(monkeypatch):
    row = measure(monkeypatch, lambda bucket, members: 0)
    assert row["status"] == "WRONG" and "compares nothing" in row["reason"]


@pytest.mark.parametrize("bucket", [decode_bucket(4), prefill_bucket(64)])
def test_tokens_lie_as_in_an_engine_step(bucket):
    tables = np.arange(1, 1 + 4 * 3).reshape(4, 3)
    members = [None, row_bits.Member(2, np.array([7]), 5), row_bits.Member(0, np.array([8]), 0), None]
    packed = row_bits.part_of(members, bucket, tables)
    places = [1, 2] if bucket.slots else [0, 8]  # a slot each; end to end, aligned
    assert np.asarray(packed.ids)[places].tolist() == [7, 8]
    assert np.asarray(packed.positions)[places].tolist() == [5, 0]
    assert np.asarray(packed.live).sum() == 2
    assert np.asarray(packed.metadata.kv_lens).tolist() == [0, 6, 1, 0]
    assert np.asarray(packed.metadata.q_starts)[1:3].tolist() == places
    assert np.asarray(packed.block_tables)[1].tolist() == tables[2].tolist()
    assert np.asarray(packed.owners)[places].tolist() == [1, 2]
    assert packed.max_q_len == (1 if bucket.slots else None)
