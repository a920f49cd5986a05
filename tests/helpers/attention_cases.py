"""Random paged-attention problems and their answer in float64 NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    q: np.ndarray  # [tokens, heads, head_dim], float32
    kv_pages: np.ndarray  # [num_pages, 2, kv_heads, page_size, head_dim], float32; NaN wherever nobody wrote
    block_tables: np.ndarray
    q_starts: np.ndarray
    q_lens: np.ndarray
    kv_lens: np.ndarray
    expected: np.ndarray  # float64, zeros in rows of no slot


def make_case(
    seed: int,
    q_lens: list[int],
    kv_lens: list[int],
    *,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    decode: bool = False,
) -> Case:
    """Sequences scattered over randomly permuted pages; every dead place of the cache holds NaN."""
    rng = np.random.default_rng(seed)
    starts = np.arange(len(q_lens)) if decode else np.cumsum([0] + [-(-n // 8) * 8 for n in q_lens[:-1]])
    num_tokens = len(q_lens) if decode else int(starts[-1]) + -(-q_lens[-1] // 8) * 8 + 16
    pages_per_seq = max(-(-n // page_size) for n in kv_lens) + 1
    num_pages = sum(-(-n // page_size) for n in kv_lens) + 3
    free = list(rng.permutation(np.arange(1, num_pages)))

    q = rng.standard_normal((num_tokens, num_heads, head_dim))
    kv_pages = np.full((num_pages, 2, kv_heads, page_size, head_dim), np.nan)
    tables = np.zeros((len(q_lens), pages_per_seq), np.int32)  # unused entries: the null page, all NaN
    expected = np.zeros(q.shape)
    for slot, (q_len, kv_len) in enumerate(zip(q_lens, kv_lens, strict=True)):
        kv = rng.standard_normal((2, kv_len, kv_heads, head_dim))
        for pos in range(kv_len):
            if pos % page_size == 0:
                tables[slot, pos // page_size] = free.pop()
            kv_pages[tables[slot, pos // page_size], :, :, pos % page_size] = kv[:, pos]
        for row in range(q_len):
            token = starts[slot] + row
            expected[token] = attend_one(q[token], *kv[:, : kv_len - q_len + row + 1])
    return Case(
        q.astype(np.float32),
        kv_pages.astype(np.float32),
        tables,
        starts.astype(np.int32),
        np.asarray(q_lens, np.int32),
        np.asarray(kv_lens, np.int32),
        expected,
    )


def attend_one(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One query [heads, head_dim] over keys and values [len, kv_heads, head_dim], dense."""
    grouped = q.reshape(k.shape[1], -1, q.shape[-1])
    scores = np.einsum("kgd,nkd->kgn", grouped, k) * q.shape[-1] ** -0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("kgn,nkd->kgd", weights, v).reshape(q.shape)
