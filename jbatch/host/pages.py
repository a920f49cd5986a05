"""The pool of KV-cache pages: who owns which. The pages' contents live on the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from jbatch.host.prefix import PrefixIndex

NULL_PAGE = 0  # padding entries of block tables point to it; nobody ever owns it


class PagePool:
    """Pages 1 to num_pages - 1, each free or owned by `ref_count` block tables.

    Free pages are handed out in the order in which they were freed: until then, what they hold may be found
    in `prefixes`. All of them wait in one line, those too that nobody can find. To take those first would
    take the pages that a step under way is about to fill, of a sequence that has left.

    Ask before you act: `allocate` needs `can_allocate`.
    """

    def __init__(self, num_pages: int, page_size: int, prefixes: PrefixIndex | None = None):
        if num_pages < 2:
            raise ValueError(f"num_pages={num_pages}: must be at least 2, as page 0 is the null page")
        self.num_pages = num_pages
        self.page_size = page_size
        self.prefixes = PrefixIndex(num_pages) if prefixes is None else prefixes
        self._free = OrderedDict.fromkeys(range(NULL_PAGE + 1, num_pages))  # the next one to take is first
        self._ref_counts = [0] * num_pages
        self._num_owners = 0  # of all pages
        self._times_taken = [0] * num_pages

    @property
    def num_usable(self) -> int:
        return self.num_pages - 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_usable - len(self._free)

    @property
    def any_shared(self) -> bool:
        """Whether a page has two owners."""
        return self._num_owners > self.num_used

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def ref_count(self, page_id: int) -> int:
        return self._ref_counts[page_id]

    def times_taken(self, page_id: int) -> int:
        """How often the page was handed out: while this stays, it holds what it held."""
        return self._times_taken[page_id]

    def can_allocate(self, num_pages: int) -> bool:
        return num_pages <= len(self._free)

    def allocate(self, num_pages: int) -> list[int]:
        """Take pages, each with one owner; what they held is not found any more. Raises RuntimeError where
        `can_allocate` is false."""
        if not self.can_allocate(num_pages):
            raise RuntimeError(f"{num_pages} pages asked for, {len(self._free)} free")
        self._num_owners += num_pages
        taken = [self._free.popitem(last=False)[0] for _ in range(num_pages)]
        for page_id in taken:
            self._ref_counts[page_id] = 1
            self._times_taken[page_id] += 1
            self.prefixes.drop(page_id)
        return taken

    def share(self, page_ids: Iterable[int]) -> None:
        """Add an owner to pages that have one, or that are free and can be found."""
        counts, free = self._ref_counts, self._free
        for page_id in page_ids:
            if not counts[page_id]:
                if not self.prefixes.holds(page_id):
                    raise RuntimeError(f"page {page_id} is free: it cannot be shared")
                del free[page_id]
            counts[page_id] += 1
            self._num_owners += 1

    def free(self, page_ids: Iterable[int]) -> None:
        """Take an owner from each page; one without owners is free again."""
        counts, free = self._ref_counts, self._free
        for page_id in page_ids:
            count = counts[page_id]
            if not count:
                raise RuntimeError(f"page {page_id} freed twice")
            counts[page_id] = count - 1
            self._num_owners -= 1
            if count == 1:
                free[page_id] = None
