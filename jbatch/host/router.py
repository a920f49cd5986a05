"""Which of several engines a request goes to: by what each of them has to do."""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from jbatch.errors import ConfigError
from jbatch.host.request import Request

AFFINITY_TOKENS = 64  # of a prompt's beginning: those with the same ones go to one engine
OVERLOAD = 1.5  # times the mean of what all have to do, beyond which affinity gives way


class EngineLoad(NamedTuple):
    """What an engine has to do.

    Attributes:
      num_unfinished: requests.
      tokens: of them all, prompt and expected output, that are not computed yet.
      tokens_per_s: its speed, as far as it is known; 1 for all where it is not.
    """

    num_unfinished: int
    tokens: float
    tokens_per_s: float = 1.0


class Router(Protocol):
    """Decides where requests go."""

    def route(self, request: Request, loads: Sequence[EngineLoad]) -> int:
        """The index of an engine, of one that is there."""


class RoundRobin:
    """One after the other, whatever they have to do."""

    def __init__(self) -> None:
        self._turns = itertools.count()

    def route(self, request: Request, loads: Sequence[EngineLoad]) -> int:
        """The next one's."""
        return next(self._turns) % len(loads)


class LeastTokens:
    """To the one that has fewest tokens to compute; `max_tokens` is not known to be too many."""

    def route(self, request: Request, loads: Sequence[EngineLoad]) -> int:
        """The first of those with fewest."""
        return min(range(len(loads)), key=lambda idx: (loads[idx].tokens, loads[idx].num_unfinished))


class Predicted:
    """To the one that would have computed this request first, by expected lengths and speeds."""

    def route(self, request: Request, loads: Sequence[EngineLoad]) -> int:
        """The first of those that are soonest through."""
        own = len(request.prompt_token_ids) + request.expected_len
        return min(range(len(loads)), key=lambda idx: (loads[idx].tokens + own) / loads[idx].tokens_per_s)


class PrefixAffinity:
    """Prompts with the same beginning go to the same engine, whose cache holds it; but to the one with least
    to do where that has much more to do than the others."""

    def route(self, request: Request, loads: Sequence[EngineLoad]) -> int:
        """By a hash of the first tokens and the salt, the same in every process."""
        beginning = array("i", request.prompt_token_ids[:AFFINITY_TOKENS]).tobytes()
        salt = (request.cache_salt or "").encode()
        digest = hashlib.sha256(beginning + salt).digest()
        idx = int.from_bytes(digest[:8], "big") % len(loads)
        mean = sum(load.tokens / load.tokens_per_s for load in loads) / len(loads)
        own = len(request.prompt_token_ids) + request.expected_len
        if loads[idx].tokens / loads[idx].tokens_per_s > OVERLOAD * mean + own:
            return Predicted().route(request, loads)
        return idx


ROUTERS: dict[str, Callable[[], Router]] = {
    "round-robin": RoundRobin,
    "least-tokens": LeastTokens,
    "predicted": Predicted,
    "prefix-affinity": PrefixAffinity,
}


def router_of(name: str) -> Router:
    """A router by its name. Raises ConfigError for none."""
    if name not in ROUTERS:
        raise ConfigError("router", name, f"must be one of {', '.join(ROUTERS)}")
    return ROUTERS[name]()
