"""What finding pages again costs the host: nanoseconds of processor time per token, and bytes per page."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from jbatch.host.pages import PagePool
from jbatch.host.prefix import PrefixIndex, extend_digests

PAGE_SIZE, PROMPT_LEN, NUM_ASKED = 16, 1024, 300
GOAL_NS = 100.0  # per token, at a million pages, on an idle machine


class PrefixCost(NamedTuple):
    """Of prompts of 1,024 tokens on a full pool of pages of 16."""

    num_pages: int
    digest_ns: float  # per token: its share of a page's digest
    find_ns: float
    share_ns: float  # taking what was found, and giving it back
    new_ns: float  # a prompt that is not there: digests, pages that others give way for, publication
    bytes_per_page: float  # of the process, pool and index together

    @property
    def hit_ns(self) -> float:
        """Of a token that is found."""
        return self.digest_ns + self.find_ns + self.share_ns


def time_prefixes(num_pages: int) -> PrefixCost:
    """Fill a pool, then look up some of its prompts in random order, and add new ones."""
    rng, before = random.Random(0), _resident()
    prompt = [rng.randrange(100_000) for _ in range(PROMPT_LEN)]
    pool = PagePool(num_pages + 1, PAGE_SIZE, PrefixIndex(num_pages + 1))
    num_prompts = num_pages * PAGE_SIZE // PROMPT_LEN
    for first in range(num_prompts):
        _add(pool, [first, *prompt])
    bytes_per_page = (_resident() - before) / num_pages
    asked = rng.sample(range(num_prompts), min(NUM_ASKED, num_prompts))
    parts = [0.0, 0.0, 0.0]
    for first in asked:
        moments = [time.process_time()]
        digests: list[bytes] = []
        extend_digests(digests, b"root", [first, *prompt], PAGE_SIZE)
        moments.append(time.process_time())
        pages = pool.prefixes.find(digests)
        moments.append(time.process_time())
        pool.share(pages)
        pool.free(reversed(pages))
        moments.append(time.process_time())
        assert len(pages) == PROMPT_LEN // PAGE_SIZE
        parts = [part + end - begin for part, begin, end in zip(parts, moments, moments[1:], strict=False)]
    begin = time.process_time()
    for first in range(num_prompts, num_prompts + len(asked)):
        _add(pool, [first, *prompt])
    new = time.process_time() - begin
    per_token = 1e9 / (len(asked) * PROMPT_LEN)
    digest, find, share = (part * per_token for part in parts)
    return PrefixCost(num_pages, digest, find, share, new * per_token, bytes_per_page)


def describe(cost: Mapping[str, Any]) -> str:
    """In one line."""
    hit = PrefixCost(**cost).hit_ns
    return (
        f"finding pages at {cost['num_pages']:,} of them: {hit:.0f} ns per token found "
        f"({cost['digest_ns']:.0f} its digest), {cost['new_ns']:.0f} per new one; "
        f"{cost['bytes_per_page']:.0f} bytes per page; goal at a million: {GOAL_NS:.0f} ns"
    )


def _add(pool: PagePool, token_ids: list[int]) -> None:
    digests: list[bytes] = []
    extend_digests(digests, b"root", token_ids, PAGE_SIZE)
    pages = pool.allocate(len(digests))
    for digest, page_id in zip(digests, pages, strict=True):
        pool.prefixes.publish(digest, page_id)
    pool.free(reversed(pages))


def _resident() -> int:
    """Bytes of this process, at their most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
