"""What running sequences hold: a row each, pages, and what drawing their tokens takes."""

from __future__ import annotations

from jbatch.host.pages import PagePool
from jbatch.host.plan import TableUpdate
from jbatch.host.request import Sequence
from jbatch.sampling_params import Sampler
from jbatch.seam.shape import StateShape


class Holdings:
    """Rows and pages, free or some sequence's.

    Attributes:
      num_watched: sequences with a row each of whose tokens is looked at.
    """

    def __init__(self, shape: StateShape):
        self.pool = PagePool(shape.num_pages, shape.page_size)
        self.num_watched = 0
        self._num_expected = 0
        self._free_rows = list(range(shape.num_rows - 1, -1, -1))
        self._num_sampler = dict.fromkeys(Sampler, 0)  # sequences with a row, by what their draws take

    def take_row(self, sequence: Sequence) -> None:
        """Give a sequence a row; there must be a free one."""
        sequence.row = self._free_rows.pop()
        self._num_sampler[sequence.request.params.sampler] += 1
        self.num_watched += sequence.watched
        self._num_expected += sequence.request.expected_len

    def num_missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Pages that a sequence lacks for `num_tokens`."""
        return self.pool.pages_for(num_tokens) - len(sequence.pages)

    def take_pages(self, sequence: Sequence, num_pages: int, updates: list[TableUpdate]) -> None:
        """Give a sequence pages more; so many must be free."""
        for page_idx, page_id in enumerate(self.pool.allocate(num_pages), start=len(sequence.pages)):
            sequence.pages.append(page_id)
            updates.append(TableUpdate(sequence.row, page_idx, page_id))

    def release(self, sequence: Sequence) -> None:
        """Take all that a sequence holds."""
        self.pool.free(sequence.pages)
        sequence.pages = []
        self._free_rows.append(sequence.row)
        self._num_sampler[sequence.request.params.sampler] -= 1
        self.num_watched -= sequence.watched
        self._num_expected -= sequence.request.expected_len
        sequence.row = -1
        sequence.num_cached = sequence.num_cached_planned = 0
        sequence.decoding = False

    @property
    def mean_expected_len(self) -> float:
        """Output tokens that sequences with a row are expected to get, each."""
        return self._num_expected / max(1, sum(self._num_sampler.values()))

    @property
    def sampler(self) -> Sampler:
        """What drawing for all of them takes."""
        bits = 0
        for sampler, count in self._num_sampler.items():
            if count:
                bits |= sampler
        return Sampler(bits)
