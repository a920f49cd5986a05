"""Random paged-attention problems, and their answer in float64 NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

ALIGN = 8  # of each slot's queries in the packed axis


class Case(NamedTuple):
    """A problem, whose float32 numbers are exact in `dtype`, and its answer.

    NaN is wherever nothing may be read: in cache places that nobody wrote, the null page among them, and in
    queries of no slot.
    """

    dtype: str
    q: np.ndarray  # [tokens, heads, head_dim], float32
    kv_pages: np.ndarray  # [num_pages, 2, kv_heads, page_size, head_dim], float32
    block_tables: np.ndarray
    q_starts: np.ndarray
    q_lens: np.ndarray
    kv_lens: np.ndarray
    expected: np.ndarray  # float64, zeros in rows of no slot
    magnitude: np.ndarray  # the same with |v| for v: what the error of a sum is relative to

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    @property
    def live(self) -> np.ndarray:
        """Which rows are some slot's."""
        rows = np.zeros(len(self.q), bool)
        for start, length in zip(self.q_starts, self.q_lens, strict=True):
            rows[start : start + length] = True
        return rows

    @property
    def max_error(self) -> np.ndarray:
        """What rounding may cost each element of the answer, 0 for a slot without keys.

        The inputs are exact, so this is the kernel's alone: a weight is rounded to dtype before its product
        with v, and the result once more, each by half a unit in the last place. The rest is done in float32:
        scores of some tens, summed over head_dim, are off by a few 1e-6, and the weights by as much.
        """
        info = jnp.finfo(self.dtype)
        rounding = float(info.eps) / 2
        underflow = float(info.smallest_subnormal) * self.magnitude  # weights and results near zero
        return rounding * (self.magnitude + np.abs(self.expected)) + 4e-5 * self.magnitude + underflow


class Room(NamedTuple):
    """Sizes that a program is compiled for; a case may leave a part of them unused."""

    tokens: int
    num_pages: int
    pages_per_seq: int


def make_case(
    seed: int | Sequence[int],
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    *,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    decode: bool = False,
    dtype: str = "float32",
    loudness: float = 1.0,
    shared_pages: int = 0,
    q_starts: Sequence[int] | None = None,
    room: Room | None = None,
) -> Case:
    """Sequences scattered over randomly permuted pages.

    Args:
      loudness: the standard deviation of the scores; large ones make a softmax of few keys.
      shared_pages: how many of slot 0's first pages the others share, as far as they are long enough.
      q_starts: where each slot's queries begin, or None: one slot behind the other, at multiples of 8.
      room: sizes, or None: a little more than the sequences need.
    """
    rng = np.random.default_rng(seed)
    if q_starts is None:
        widths = [1 if decode else -(-n // ALIGN) * ALIGN for n in q_lens]
        q_starts = np.cumsum([0, *widths[:-1]])
    if room is None:
        end = max(start + n for start, n in zip(q_starts, q_lens, strict=True))
        counts = [-(-n // page_size) for n in kv_lens]
        room = Room(
            len(q_lens) if decode else -(-end // ALIGN) * ALIGN + 16, sum(counts) + 3, max(counts) + 1
        )

    q = np.full((room.tokens, num_heads, head_dim), np.nan)
    kv_pages = np.full((room.num_pages, 2, kv_heads, page_size, head_dim), np.nan)
    tables = np.zeros((len(q_lens), room.pages_per_seq), np.int32)  # unused entries: the null page
    expected, magnitude = np.zeros(q.shape), np.zeros(q.shape)
    free = list(rng.permutation(np.arange(1, room.num_pages)))
    prefix = np.zeros((2, 0, kv_heads, head_dim))
    for slot, (start, q_len, kv_len) in enumerate(zip(q_starts, q_lens, kv_lens, strict=True)):
        kv = rounded(rng.standard_normal((2, kv_len, kv_heads, head_dim)), dtype)
        num_shared = min(prefix.shape[1], kv_len) // page_size
        kv[:, : num_shared * page_size] = prefix[:, : num_shared * page_size]
        num_new = -(-kv_len // page_size) - num_shared
        pages = [*tables[0, :num_shared], *(free.pop() for _ in range(num_new))]
        if slot == 0:
            prefix = kv[:, : shared_pages * page_size]
        tables[slot, : len(pages)] = pages
        kv_pages[pages] = _paged(kv, page_size)

        rows = slice(start, start + q_len)
        q[rows] = rounded(loudness * rng.standard_normal((q_len, num_heads, head_dim)), dtype)
        if q_len:
            expected[rows] = attend(q[rows], kv[0], kv[1])
            magnitude[rows] = attend(q[rows], kv[0], np.abs(kv[1]))
    ragged = (np.asarray(x, np.int32) for x in (q_starts, q_lens, kv_lens))
    return Case(
        dtype, q.astype(np.float32), kv_pages.astype(np.float32), tables, *ragged, expected, magnitude
    )


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention of a sequence's last tokens, [rows, heads, dim], over all, [len, kv_heads, dim]."""
    num_rows, num_keys, head_dim = len(q), len(k), q.shape[-1]
    grouped = q.reshape(num_rows, k.shape[1], -1, head_dim)
    scores = np.einsum("tkgd,nkd->tkgn", grouped, k, optimize=True) * head_dim**-0.5
    last_key = num_keys - num_rows + np.arange(num_rows)
    seen = np.arange(num_keys) <= last_key[:, None]
    scores = np.where(seen[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("tkgn,nkd->tkgd", weights, v, optimize=True).reshape(q.shape)


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers of a dtype, as float64."""
    return x.astype(jnp.dtype(dtype)).astype(np.float64)


def _paged(kv: np.ndarray, page_size: int) -> np.ndarray:
    """[2, len, kv_heads, head_dim] as [pages, 2, kv_heads, page_size, head_dim], NaN behind the end."""
    _, length, kv_heads, head_dim = kv.shape
    num_pages = -(-length // page_size)
    padded = np.full((2, num_pages * page_size, kv_heads, head_dim), np.nan)
    padded[:, :length] = kv
    pages = padded.reshape(2, num_pages, page_size, kv_heads, head_dim)
    return pages.transpose(1, 0, 3, 2, 4)
