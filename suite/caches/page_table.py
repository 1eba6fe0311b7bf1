"""Which pages of one pool each sequence has taken, and which several share: the bookkeeping of a paged cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from suite.caches.base import CacheFull
from suite.serving_lengths import pages_for


@dataclass(frozen=True)
class Copy:
    """The first `entries` entries of a page that others still read, into one that a sequence has for itself."""

    source: int
    target: int
    entries: int


class PageTable:
    """Pages of `page_tokens` entries, at most `most` of them a sequence: token i of a sequence is entry i % page_tokens
    of its page i // page_tokens (arXiv:2309.06180, section 4.2). Only a sequence's last page may be partly filled."""

    def __init__(self, pages: int, page_tokens: int, sequences: int, most: int) -> None:
        self.page_tokens, self.most = page_tokens, most
        self.free = list(range(pages))[::-1]
        self.taken: list[list[int]] = [[] for _ in range(sequences)]
        self.lengths = [0] * sequences

    def extend(self, ends: Sequence[int]) -> tuple[Copy, ...]:
        """Take pages so that the sequences have room for so many tokens each; what must be copied before they write.

        A sequence that goes on within a page that others read too gets its own: copy on write (section 4.4), the last
        of them keeps it. CacheFull, and nothing taken, where too few pages are free or one sequence wants too many.
        """
        writes = self._writers(ends)
        wanted = [pages_for((end,), self.page_tokens) for end in ends]
        if max(wanted) > self.most:
            raise CacheFull(
                f"the cache has room for {self.most} pages of {self.page_tokens} tokens of a sequence, and"
                f" {max(ends)} tokens are there"
            )
        fresh = sum(max(0, want - len(pages)) for want, pages in zip(wanted, self.taken, strict=True)) + len(writes)
        if fresh > len(self.free):
            raise CacheFull(
                f"the cache has {len(self.free)} free pages of {self.page_tokens} tokens, and the sequences need"
                f" {fresh} more"
            )
        copies = []
        for row in writes:
            copies.append(Copy(self.taken[row][-1], self.free.pop(), self.lengths[row] % self.page_tokens))
            self.taken[row][-1] = copies[-1].target
        for pages, want in zip(self.taken, wanted, strict=True):
            pages.extend(self.free.pop() for _ in range(want - len(pages)))
        self.lengths = list(ends)
        return tuple(copies)

    def _writers(self, ends: Sequence[int]) -> list[int]:
        """Sequences that would write into a page which another reads, but for the last that does."""
        readers, writers = self.readers(), []
        for row, end in enumerate(ends):
            is_partial = self.lengths[row] % self.page_tokens != 0
            if end > self.lengths[row] and is_partial and readers[self.taken[row][-1]] > 1:
                readers[self.taken[row][-1]] -= 1
                writers.append(row)
        return writers

    def readers(self) -> Counter[int]:
        """Reference counts: page -> sequences that have it."""
        return Counter(chain.from_iterable(self.taken))

    def reorder(self, rows: Sequence[int]) -> None:
        """Let sequence i go on from what sequence rows[i] holds: it shares its pages; pages of no one are free."""
        before = self.readers()
        self.taken = [list(self.taken[row]) for row in rows]
        self.lengths = [self.lengths[row] for row in rows]
        self._give_back(before)

    def release(self, sequence: int) -> None:
        """Give back the pages of a sequence that has ended, but for those that others share."""
        before = self.readers()
        self.taken[sequence], self.lengths[sequence] = [], 0
        self._give_back(before)

    def _give_back(self, before: Counter[int]) -> None:
        self.free.extend(sorted(before.keys() - self.readers().keys(), reverse=True))
