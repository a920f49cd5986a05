"""The pool of KV-cache pages: who owns which. The pages' contents live on the device."""

from __future__ import annotations

from collections.abc import Iterable

NULL_PAGE = 0  # padding entries of block tables point to it; nobody ever owns it


class PagePool:
    """Pages 1 to num_pages - 1, each free or owned by `ref_count` block tables.

    Ask before you act: `allocate` needs `can_allocate`.
    """

    def __init__(self, num_pages: int, page_size: int):
        if num_pages < 2:
            raise ValueError(f"num_pages={num_pages}: must be at least 2, as page 0 is the null page")
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, NULL_PAGE, -1))  # a stack: warm pages are reused first
        self._ref_counts = [0] * num_pages

    @property
    def num_usable(self) -> int:
        return self.num_pages - 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_usable - len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def ref_count(self, page_id: int) -> int:
        return self._ref_counts[page_id]

    def can_allocate(self, num_pages: int) -> bool:
        return num_pages <= len(self._free)

    def allocate(self, num_pages: int) -> list[int]:
        """Take pages, each with one owner. Raises RuntimeError where `can_allocate` is false."""
        if not self.can_allocate(num_pages):
            raise RuntimeError(f"{num_pages} pages asked for, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(num_pages)]
        for page_id in taken:
            self._ref_counts[page_id] = 1
        return taken

    def share(self, page_ids: Iterable[int]) -> None:
        """Add an owner to pages that have one."""
        for page_id in page_ids:
            if not self._ref_counts[page_id]:
                raise RuntimeError(f"page {page_id} is free: it cannot be shared")
            self._ref_counts[page_id] += 1

    def free(self, page_ids: Iterable[int]) -> None:
        """Take an owner from each page; one without owners is free again."""
        for page_id in page_ids:
            if not self._ref_counts[page_id]:
                raise RuntimeError(f"page {page_id} freed twice")
            self._ref_counts[page_id] -= 1
            if not self._ref_counts[page_id]:
                self._free.append(page_id)
