"""What running sequences hold: a row each, pages, and what drawing their tokens takes."""

from __future__ import annotations

from typing import NamedTuple

from jbatch.host.pages import PagePool
from jbatch.host.plan import PageCopy, TableUpdate
from jbatch.host.prefix import PrefixIndex, extend_digests
from jbatch.host.reachable import SeenPages
from jbatch.host.request import NEVER, NOT_YET, LeftPage, Sequence
from jbatch.sampler import Sampler
from jbatch.seam.bucket import PREFIX_PAGES
from jbatch.seam.shape import StateShape


class PageChanges(NamedTuple):
    """What becomes of pages and block tables before a step."""

    updates: list[TableUpdate]
    copies: list[PageCopy]
    tables: dict[int, tuple[int, ...]]  # whole ones, by row


class Holdings:
    """Rows and pages, free or some sequence's, and full pages that are found by their tokens.

    Attributes:
      num_watched: sequences with a row each of whose tokens is looked at.
      held: pages that are kept for whoever begins with what they hold, by the id of the one who keeps them.
      changes: of pages and block tables, for the next step.
    """

    def __init__(self, shape: StateShape, *, prefix_caching: bool = True):
        self.prefixes = PrefixIndex(shape.num_pages)
        self.pool = PagePool(shape.num_pages, shape.page_size, self.prefixes)
        self.num_watched = 0
        self.held: dict[int, tuple[int, ...]] = {}
        self._seen = SeenPages()
        self._num_expected = 0
        self._prefix_caching = prefix_caching
        self.changes = PageChanges([], [], {})
        self._kept: list[int] = []  # pages that the next step copies, and nobody owns
        self._free_rows = list(range(shape.num_rows - 1, -1, -1))
        self._num_sampler = dict.fromkeys(Sampler, 0)  # sequences with a row, by what their draws take

    # Rows and pages.

    def take_row(self, sequence: Sequence) -> None:
        """Give a sequence a row; there must be a free one."""
        sequence.row = self._free_rows.pop()
        sequence.left_pages = ()
        sequence.publish_at = self.pool.page_size if self._prefix_caching else NEVER
        self._num_sampler[sequence.sampler] += 1
        self.num_watched += sequence.watched
        self._num_expected += sequence.request.expected_len

    def num_missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Pages that a sequence lacks for `num_tokens`, with a copy of the one that it writes to next where
        that is others', too."""
        return max(0, self.pool.pages_for(num_tokens) - len(sequence.pages)) + self._must_copy(sequence)

    def take_pages(self, sequence: Sequence, num_tokens: int) -> None:
        """Give a sequence the pages that it lacks for `num_tokens`; so many must be free."""
        if self._must_copy(sequence):
            page_idx = sequence.num_cached_planned // self.pool.page_size
            shared, (own,) = sequence.pages[page_idx], self.pool.allocate(1)
            sequence.pages[page_idx] = own
            self.pool.free([shared])  # it has other owners
            copied = {copy.dst: copy.src for copy in self.changes.copies}  # by this very step: not there yet
            self.changes.copies.append(PageCopy(copied.get(shared, shared), own))
            self.changes.updates.append(TableUpdate(sequence.row, page_idx, own))
        sequence.forked = False
        num_owned = len(sequence.pages)
        missing = max(0, self.pool.pages_for(num_tokens) - num_owned)
        for page_idx, page_id in enumerate(self.pool.allocate(missing), start=num_owned):
            sequence.pages.append(page_id)
            self.changes.updates.append(TableUpdate(sequence.row, page_idx, page_id))

    def _must_copy(self, sequence: Sequence) -> bool:
        """Whether the page that a sequence writes to next is others', too."""
        if not sequence.forked:
            return False
        page_idx = sequence.num_cached_planned // self.pool.page_size
        return page_idx < len(sequence.pages) and self.pool.ref_count(sequence.pages[page_idx]) > 1

    def share_prompt(self, source: Sequence, sequence: Sequence, num_tokens: int) -> None:
        """Give a sequence without pages those of another sample, which hold its first `num_tokens`."""
        sequence.pages = source.pages[: self.pool.pages_for(num_tokens)]
        self.pool.share(sequence.pages)
        self.changes.tables[sequence.row] = tuple(sequence.pages)
        sequence.num_cached_planned, sequence.num_cached = num_tokens, min(num_tokens, source.num_cached)
        num_full = num_tokens // self.pool.page_size
        sequence.digests, sequence.root = source.digests[:num_full], source.root
        if source.publish_at != NEVER:  # these are the other's to publish
            sequence.publish_at = (num_full + 1) * self.pool.page_size
        sequence.num_computed = max(sequence.num_computed, sequence.num_prompt)  # not by itself
        source.forked = sequence.forked = True

    def take_changes(self) -> PageChanges:
        """What is to be done before the step that has just been planned."""
        changes, self.changes = self.changes, PageChanges([], [], {})
        self.pool.free(self._kept)
        self._kept = []
        return changes

    def release(self, sequence: Sequence) -> None:
        """Take all that a sequence holds. Its last page is the first to be handed out: what is found of a
        beginning must be whole. A page that the next step copies is kept until that is planned: no other copy
        may write to it."""
        updates, copies, tables = self.changes
        if copies:
            copied = {copy.src for copy in copies}.intersection(sequence.pages)
            self.pool.share(copied)
            self._kept += copied
        if updates:
            updates[:] = [update for update in updates if update.row != sequence.row]
        tables.pop(sequence.row, None)
        self.pool.free(reversed(sequence.pages))
        sequence.pages, sequence.forked, sequence.prompt_step = [], False, NOT_YET
        self._free_rows.append(sequence.row)
        self._num_sampler[sequence.sampler] -= 1
        self.num_watched -= sequence.watched
        self._num_expected -= sequence.request.expected_len
        sequence.row = -1
        sequence.num_cached = sequence.num_cached_planned = 0
        sequence.publish_at = NEVER
        sequence.decoding = False

    def release_early(self, sequence: Sequence) -> None:
        """The same for one whose last steps are under way. What they fill is published once they have landed,
        in those pages that nobody has taken until then."""
        left = tuple([LeftPage(page, self.pool.times_taken(page)) for page in sequence.pages])
        publish_at = sequence.publish_at
        self.release(sequence)
        sequence.left_pages, sequence.publish_at = left, publish_at

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

    # Pages that are found again.

    def find(self, sequence: Sequence) -> list[int]:
        """Full pages that hold a waiting sequence's first tokens, but for the last token at least: it is
        computed, for its logits. At most as many as a step has room for."""
        most = self._most_found(sequence)
        if most <= 0 or not self.reads(sequence):
            return []
        return self.prefixes.find(self._digests(sequence)[:most])

    def reachable(self, sequence: Sequence) -> int:
        """Tokens of a sequence that is admitted that would be in a cache which forgets nothing, had all steps
        landed. To be asked once: from now on its own have been there."""
        most = self._most_found(sequence)
        digests = self._digests(sequence)
        num_seen = self._seen.num_seen(digests[:most])
        self._seen.add(digests[num_seen:])
        return num_seen * self.pool.page_size

    def _most_found(self, sequence: Sequence) -> int:
        most = min(sequence.num_known - 1, sequence.request.num_readable)
        return min(most // self.pool.page_size, PREFIX_PAGES)

    def reads(self, sequence: Sequence) -> bool:
        """Whether pages are looked up for a sequence."""
        return self._prefix_caching and sequence.request.num_readable > 0

    def first_digest(self, sequence: Sequence) -> bytes | None:
        """By which the first page of a waiting sequence is found: None where it is not looked up."""
        reads = self.reads(sequence) and self._most_found(sequence) > 0
        return self._digests(sequence)[0] if reads else None

    def num_unused(self, page_ids: list[int]) -> int:
        """How many of these pages are free."""
        return sum([not self.pool.ref_count(page_id) for page_id in page_ids])

    def take_found(self, sequence: Sequence, page_ids: list[int]) -> None:
        """Give a sequence that has just got its row the pages that `find` gave, with what they hold."""
        self.pool.share(page_ids)
        sequence.pages = page_ids
        self.changes.updates.extend(
            [TableUpdate(sequence.row, idx, page_id) for idx, page_id in enumerate(page_ids)]
        )
        sequence.num_cached = sequence.num_cached_planned = len(page_ids) * self.pool.page_size
        sequence.publish_at += sequence.num_cached

    def publish(self, sequence: Sequence, num_cached: int) -> None:
        """Let the full pages of a sequence's first `num_cached` tokens be found. All steps that wrote to them
        must have landed."""
        page_size = self.pool.page_size
        begin, end = sequence.publish_at // page_size - 1, num_cached // page_size
        digests = self._digests(sequence)
        self._seen.add(digests[begin:end])
        for idx in range(begin, end):
            if sequence.row >= 0:
                self.prefixes.publish(digests[idx], sequence.pages[idx])
            elif self._is_as_left(left := sequence.left_pages[idx]):
                self.prefixes.publish(digests[idx], left.page_id)
        sequence.publish_at = (end + 1) * page_size

    def find_tokens(self, token_ids: list[int], salt: str | None) -> list[int]:
        """The full pages of the longest beginning of these tokens that is there."""
        digests: list[bytes] = []
        extend_digests(digests, self.prefixes.root(salt), token_ids, self.pool.page_size)
        return self.prefixes.find(digests)

    def hold(self, hold_id: int, page_ids: list[int]) -> None:
        """Keep pages that are found: nobody else is given them until `let_go`."""
        self.pool.share(page_ids)
        self.held[hold_id] = tuple(page_ids)

    def let_go(self, hold_id: int) -> None:
        """Keep pages no longer; what is not held is ignored."""
        self.pool.free(reversed(self.held.pop(hold_id, ())))

    def distrust(self, sequence: Sequence) -> None:
        """Let no page be found that holds a sequence's tokens: they gave logits that are not finite."""
        self.prefixes.drop_digests(sequence.digests)
        sequence.publish_at = NEVER

    def forget(self, sequence: Sequence) -> None:
        """Publish nothing of what a sequence holds, and let it find nothing by the digests that it has."""
        sequence.digests, sequence.publish_at = [], NEVER

    def _is_as_left(self, left: LeftPage) -> bool:
        return self.pool.times_taken(left.page_id) == left.times_taken

    def _digests(self, sequence: Sequence) -> list[bytes]:
        """Of all full pages of a sequence's known tokens."""
        digests = sequence.digests
        if not digests:
            sequence.root = self.prefixes.root(sequence.request.cache_salt)
        extend_digests(digests, sequence.root, sequence.token_ids, self.pool.page_size)
        return digests
