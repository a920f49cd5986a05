"""Structure only: times belong to the machine."""

from bench.measure.prefixes import describe, time_prefixes


def test_every_part_is_measured():
    cost = time_prefixes(num_pages=2_000)
    assert min(cost.digest_ns, cost.find_ns, cost.share_ns, cost.new_ns) > 0
    assert cost.hit_ns == cost.digest_ns + cost.find_ns + cost.share_ns
    assert "finding pages at 2,000 of them" in describe(cost._asdict())
