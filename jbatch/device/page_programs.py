"""What changes or reads pages and block tables between two steps: programs of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from jbatch.device.programs import COPIES, READS, TABLES, StepSpec
from jbatch.device.state import EngineState

KV = Shaped[np.ndarray, "layers 2 tokens kv_heads head_dim"]
Keep = Callable[[EngineState], None]


class PagePrograms:
    """Copies pages, puts whole block tables in place, and reads pages, as many at a time as a program takes.

    A program takes the state and gives it back, so whoever has it must know of the new one before anything
    else happens: `keep` is called with it.
    """

    def __init__(self, spec: StepSpec):
        self._spec = spec
        shape = spec.shape
        self._copy: jax.stages.Compiled | None = None  # these two: until `prepare`
        self._put_tables: jax.stages.Compiled | None = None
        self._read: jax.stages.Compiled | None = None  # until the first `read`
        self._no_copies = np.array([(0, shape.num_pages)] * COPIES, np.int32)
        self._no_tables = np.zeros((TABLES, 1 + shape.pages_per_seq), np.int32)
        self._no_tables[:, 0] = shape.num_rows

    @property
    def prepared(self) -> bool:
        """Whether `change` finds its programs compiled."""
        return self._copy is not None and self._put_tables is not None

    def prepare(self) -> None:
        """Compile what `change` takes."""
        self._copy, self._put_tables = self._spec.compile_copy(), self._spec.compile_tables()

    def change(
        self, state: EngineState, tables: np.ndarray | None, copies: np.ndarray | None, keep: Keep
    ) -> EngineState:
        """Put block tables in place, and copy pages."""
        if tables is not None:
            state = self._in_parts(state, self._put_tables, tables, self._no_tables, keep)
        if copies is not None:
            state = self._in_parts(state, self._copy, copies, self._no_copies, keep)
        return state

    def warm_up(self, state: EngineState, keep: Keep) -> None:
        """Run each program that `change` takes once on padding, which changes nothing."""
        self.change(state, self._no_tables[:1], self._no_copies[:1], keep)

    @property
    def can_read(self) -> bool:
        """Whether `read` finds its program compiled."""
        return self._read is not None

    def prepare_read(self) -> None:
        """Compile what `read` takes."""
        self._read = self._spec.compile_read()

    def read(self, state: EngineState, page_ids: list[int], num_tokens: int) -> KV:
        """Keys (0) and values (1) of the first `num_tokens` tokens that these pages hold, in their order."""
        assert self._read is not None, "prepare_read comes first"
        parts = []
        for begin in range(0, len(page_ids), READS):
            part = np.zeros(READS, np.int32)  # of page 0 where there are no more
            given = page_ids[begin : begin + READS]
            part[: len(given)] = given
            parts.append(np.asarray(self._spec.call(self._read, state, part))[:, : len(given)])
        config, shape = self._spec.config, self._spec.shape
        copies = max(1, self._spec.ranks.size // config.num_kv_heads)  # of each KV head, one beside the other
        sizes = (config.num_layers, 0, 2, copies * config.num_kv_heads, shape.page_size, config.head_dim)
        pages = np.concatenate([np.zeros(sizes, state.kv_pages[0].dtype), *parts], axis=1)[:, :, :, ::copies]
        tokens = pages.transpose(0, 2, 1, 4, 3, 5)
        return tokens.reshape(config.num_layers, 2, -1, config.num_kv_heads, config.head_dim)[
            :, :, :num_tokens
        ]

    def _in_parts(
        self, state: EngineState, compiled: Any, entries: np.ndarray, nowhere: np.ndarray, keep: Keep
    ) -> EngineState:
        """Change the state by all entries, as many at a time as `nowhere` has, which is dropped."""
        for begin in range(0, len(entries), len(nowhere)):
            given, part = entries[begin : begin + len(nowhere)], nowhere.copy()
            part[: len(given)] = given
            state = self._spec.call(compiled, state, part)
            keep(state)
        return state
