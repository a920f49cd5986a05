"""How many tokens each user was served: what a fair policy goes by."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from types import MappingProxyType

User = str | None  # None: all requests that name none


class Served:
    """Tokens by user. A user who comes back is lifted to the least of those who have requests: having been
    away is no credit.

    Attributes:
      tokens: by user.
      named: whether any request has named its user; until then nothing is counted.
    """

    def __init__(self) -> None:
        self._tokens: dict[User, float] = {}
        self.tokens = MappingProxyType(self._tokens)
        self.named = False
        self._num_unfinished: Counter[User] = Counter()
        self._least: list[tuple[float, int, User]] = []  # a heap of counts as they once were
        self._serials = itertools.count()

    def come(self, user: User) -> None:
        """A user's request begins to wait."""
        self.named = self.named or user is not None
        if not self._num_unfinished[user]:
            self._tokens[user] = max(self.tokens.get(user, 0.0), self._least_served())
            heapq.heappush(self._least, (self.tokens[user], next(self._serials), user))
        self._num_unfinished[user] += 1

    def go(self, user: User) -> None:
        """A user's request has ended."""
        self._num_unfinished[user] -= 1

    def charge(self, user: User, num_tokens: int) -> None:
        """Count tokens that a user got."""
        self._tokens[user] += num_tokens

    def _least_served(self) -> float:
        """The tokens of the user with requests who got fewest; 0 where there is none."""
        while self._least:
            was, serial, user = self._least[0]
            if not self._num_unfinished[user]:
                heapq.heappop(self._least)
            elif self.tokens[user] > was:  # counts only grow
                heapq.heapreplace(self._least, (self.tokens[user], serial, user))
            else:
                return was
        return 0.0
