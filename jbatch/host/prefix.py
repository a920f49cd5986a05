"""Which pages hold which beginnings: full pages are found again by a hash of all tokens up to their end."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

Digest = bytes
INT32 = "i"  # the C type of a token id in what is hashed


class PrefixIndex:
    """Digests of full pages, and the pages that hold them: at most one digest a page, and one page a digest.

    A page's digest is sha256 over its parent's and its token ids: of all tokens from position 0. The root is
    over what else the keys and values depend on: a counter of what made all earlier ones stale (new weights,
    another engine on the same pages), and the request's `cache_salt`.
    """

    def __init__(self, num_pages: int):
        self._pages: dict[Digest, int] = {}
        self._digests: list[Digest | None] = [None] * num_pages
        self._generation = 0

    def __len__(self) -> int:
        return len(self._pages)

    def root(self, salt: str | None) -> Digest:
        """What the digests of a prompt begin from."""
        text = f"jbatch {self._generation}" if salt is None else f"jbatch {self._generation} {salt}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def find(self, digests: Sequence[Digest]) -> list[int]:
        """The pages of the longest beginning of `digests` that is there."""
        found: list[int] = []
        get = self._pages.get
        for digest in digests:
            if (page_id := get(digest)) is None:
                break
            found.append(page_id)
        return found

    def publish(self, digest: Digest, page_id: int) -> None:
        """From now on the page is found; where another one holds the same, that one goes on to be."""
        if digest not in self._pages and self._digests[page_id] is None:
            self._pages[digest], self._digests[page_id] = page_id, digest

    def holds(self, page_id: int) -> bool:
        """Whether the page is found by a digest."""
        return self._digests[page_id] is not None

    def drop(self, page_id: int) -> None:
        """The page is not found any more."""
        digest, self._digests[page_id] = self._digests[page_id], None
        if digest is not None:
            del self._pages[digest]

    def drop_digests(self, digests: Sequence[Digest]) -> None:
        """No page is found by these any more."""
        for digest in digests:
            if (page_id := self._pages.get(digest)) is not None:
                self.drop(page_id)

    def forget_all(self) -> None:
        """No page is found any more, nor will one be by a digest that was made before."""
        self._generation += 1
        self._pages.clear()
        self._digests = [None] * len(self._digests)


def extend_digests(digests: list[Digest], root: Digest, token_ids: Sequence[int], page_size: int) -> None:
    """Append the digests of those full pages of `token_ids` that have none yet."""
    begin, end = len(digests), len(token_ids) // page_size
    if begin >= end:
        return
    tokens = array(INT32, token_ids[begin * page_size : end * page_size]).tobytes()
    width, sha256 = page_size * array(INT32).itemsize, hashlib.sha256
    parent = digests[-1] if digests else root
    for at in range(0, len(tokens), width):
        parent = sha256(parent + tokens[at : at + width]).digest()
        digests.append(parent)
