"""What a cache that forgets nothing would have found: the rate of hits that could be reached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jbatch.host.prefix import Digest

MAX_PAGES = 2**17  # of one generation; there are two, in 25 MB at most
KEY_BYTES = 8  # of a digest: two of a million pages share them with probability 3e-8


class SeenPages:
    """Digests of the last full pages, in order of admission: 131,072 of them at least, as many again at most,
    in 25 MB. Pages of 16 tokens are 2 million tokens then."""

    def __init__(self) -> None:
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def num_seen(self, digests: Sequence[Digest]) -> int:
        """Pages of the longest beginning of `digests` that was there before."""
        for idx, digest in enumerate(digests):
            key = digest[:KEY_BYTES]
            if key not in self._young and key not in self._old:
                return idx
        return len(digests)

    def add(self, digests: Iterable[Digest]) -> None:
        """From now on these have been there."""
        self._young.update([digest[:KEY_BYTES] for digest in digests])
        if len(self._young) >= MAX_PAGES:
            self._young, self._old = set(), self._young
