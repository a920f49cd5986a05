"""Log-probabilities of whole sequences through the forward pass that the steps use, teacher-forced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jbatch.config import ModelConfig
from jbatch.device import model
from jbatch.device.backend import PLAIN, Attention
from jbatch.device.model import abstract_params
from jbatch.device.spans import Part, forward
from pallas_kernels import RaggedMetadata

SLOTS, CHUNK, PAGE_SIZE = 8, 32, 16


class PagedModel:
    """`slots` sequences at a time, in chunks of `CHUNK` tokens, on pages in random order full of NaN."""

    def __init__(
        self,
        config: ModelConfig,
        params: Mapping[str, jax.Array],
        max_len: int,
        attention: Attention = PLAIN,
        slots: int = SLOTS,
    ):
        self._slots = slots
        self._params = tuple(params[name] for name in abstract_params(config))
        pages_per_seq = -(-max_len // PAGE_SIZE)
        num_pages = 1 + slots * pages_per_seq
        pages = np.random.default_rng(0).permutation(np.arange(1, num_pages))
        self._tables = pages.reshape(slots, pages_per_seq).astype(np.int32)
        page_shape = (num_pages, 2, config.num_kv_heads, PAGE_SIZE, config.head_dim)
        self._kv_pages = tuple(jnp.full(page_shape, jnp.nan, config.dtype) for _ in range(config.num_layers))

        def log_probs(params, kv_pages, tokens, max_q_len):
            llama = model.build(config, params)
            part = tokens._replace(max_q_len=max_q_len)
            kv_pages, hidden = forward(llama, kv_pages, [part], attention)
            return kv_pages, jax.nn.log_softmax(llama.logits(hidden))

        self._step = jax.jit(log_probs, donate_argnums=1, static_argnums=3)

    def log_probs(
        self, sequences: Sequence[Sequence[int]], num_prefilled: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """[len, vocab] of each sequence: row i is what follows token i. The first `num_prefilled` tokens
        of each (all, by default) go through prefill in chunks, the rest through decode, one by one."""
        num_prefilled = num_prefilled or [len(s) for s in sequences]
        results = []
        for begin in range(0, len(sequences), self._slots):
            batch = slice(begin, begin + self._slots)
            ids = [np.asarray(s) for s in sequences[batch]]
            results += self._batch(ids, np.asarray(num_prefilled[batch]))
        return results

    def _batch(self, sequences: list[np.ndarray], num_prefilled: np.ndarray) -> list[np.ndarray]:
        rows: list[list[np.ndarray]] = [[] for _ in sequences]
        ends = np.asarray([len(s) for s in sequences])
        done = np.zeros(len(sequences), int)
        while (done < ends).any():
            size = CHUNK if (done < num_prefilled).any() else 1
            until = np.minimum(done + size, num_prefilled if size > 1 else ends)
            tokens = self._tokens(sequences, done, until, size)
            self._kv_pages, output = self._step(
                self._params, self._kv_pages, tokens, 1 if size == 1 else None
            )
            for slot, row in enumerate(np.asarray(output).reshape(self._slots, size, -1)[: len(sequences)]):
                rows[slot].append(row[: until[slot] - done[slot]])
            done = until
        return [np.concatenate(row) for row in rows]

    def _tokens(self, sequences: list[np.ndarray], done: np.ndarray, until: np.ndarray, size: int) -> Part:
        """Slot i's tokens from `done[i]` to `until[i]`, at i * size of the packed axis."""
        ids, positions, live = (np.zeros((self._slots, size), int) for _ in range(3))
        q_lens, kv_lens = np.zeros((2, self._slots), np.int32)
        for slot, (sequence, begin, end) in enumerate(zip(sequences, done, until, strict=True)):
            length = end - begin
            q_lens[slot], kv_lens[slot] = length, end if length else 0
            ids[slot, :length] = sequence[begin:end]
            positions[slot, :length], live[slot, :length] = np.arange(begin, end), 1
        starts = np.arange(self._slots, dtype=np.int32) * size
        slots = np.repeat(np.arange(self._slots, dtype=np.int32), size)
        flat = (a.astype(np.int32).reshape(-1) for a in (ids, positions))
        metadata = RaggedMetadata(starts, q_lens, kv_lens)
        return Part(*flat, live.astype(bool).reshape(-1), slots, self._tables, metadata, None)
