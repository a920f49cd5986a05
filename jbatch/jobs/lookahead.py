"""The order in which a job's lines go to the engine: those whose prompts begin alike, one after the other.

Pages of a prompt's first tokens are found again while nobody else has taken them. So lines with one prefix
belong together: where many prefixes take turns, each is gone when it comes again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jbatch.jobs.input import InputLine

MAX_BYTES = 2**25  # of lines that are looked at together; the last one of them may go beyond
BLOCK = 64  # bytes of a prompt that are compared at once: a page of 16 tokens, about
MAX_BLOCKS = 256  # what begins alike so far keeps its order
PROMPT = re.compile(rb'"(?:prompt|prompt_token_ids|messages)"\s*:')


class _Alike(NamedTuple):
    """Lines, in their order, whose prompts have their first blocks in common."""

    lines: list[tuple[InputLine, int]]  # and where the prompt begins in each
    num_blocks: int
    ended: bool  # and there are no more of them


def in_groups(lines: Iterable[InputLine], most: int) -> Iterator[InputLine]:
    """All lines, so that among `most` of them (fewer, where they are long) equal beginnings are neighbours.

    None is overtaken by a line behind its window. Within one, the first line goes first; behind it come those
    that share the longest beginning with it, then those that share less, each group in the same way.
    """
    if most == 1:
        yield from lines
        return
    source = iter(lines)
    while window := _window(source, most):
        yield from _grouped(window)


def _window(lines: Iterator[InputLine], most: int) -> list[InputLine]:
    window: list[InputLine] = []
    num_bytes = 0
    for line in lines:
        window.append(line)
        num_bytes += len(line.raw)
        if len(window) >= most or num_bytes >= MAX_BYTES:
            break
    return window


def _grouped(window: list[InputLine]) -> Iterator[InputLine]:
    """A walk through the tree of beginnings, whose branches are in the order of their first lines. Bytes are
    compared, as they are written: nothing is parsed or tokenised, and an error costs an order, no answer."""
    stack = [_Alike([(line, _prompt_at(line.raw)) for line in window], 0, ended=False)]
    while stack:
        lines, num_blocks, ended = stack.pop()
        if len(lines) == 1 or ended or num_blocks == MAX_BLOCKS:
            yield from (line for line, _ in lines)
            continue
        branches: dict[bytes, list[tuple[InputLine, int]]] = {}
        for line, begin in lines:
            at = begin + num_blocks * BLOCK
            branches.setdefault(line.raw[at : at + BLOCK], []).append((line, begin))
        stack += [
            _Alike(branch, num_blocks + 1, ended=len(block) < BLOCK)
            for block, branch in reversed(branches.items())
        ]


def _prompt_at(raw: bytes) -> int:
    """Where a line's prompt begins; the end, where there is none."""
    found = PROMPT.search(raw)
    return found.end() if found else len(raw)
