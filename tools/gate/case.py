"""A step that the gate compiles."""

from __future__ import annotations

from typing import NamedTuple

from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket
from jbatch.seam.shape import StateShape

PAGE_SIZE, MAX_MODEL_LEN = 64, 8192
NUM_ROWS = 256  # of the engine's state
THIN = 2  # layers of the programs that others are compared with, also over half the pool


class Case(NamedTuple):
    """A step to compile, or the program that copies pages."""

    model: str
    bucket: Bucket | None  # None: page copies
    sampler: Sampler
    attention: str
    num_layers: int = THIN
    pool_bytes: int = 34 * 10**9  # of the whole model
    layer_kernels: bool = False  # also list what a layer launches
    num_ranks: int = 1  # devices that compute it together

    @property
    def name(self) -> str:
        if self.bucket is None:
            return f"{self.model} page copies"
        among = "" if self.num_ranks == 1 else f" on {self.num_ranks}"
        slots, tokens, steps = self.bucket
        if not tokens:
            size = f"decode {slots}" if steps == 1 else f"decode {slots} x {steps}"
        else:
            size = f"mixed {slots}+{tokens}" if slots else f"prefill {tokens}"
        return f"{self.model} {size} {self.sampler.name.lower()} {self.attention}{among}"

    @property
    def slots(self) -> int:
        return self.bucket.slots if self.bucket is not None else 0

    @property
    def decodes(self) -> bool:
        """Whether it is a step of decoding sequences alone: it has less to move."""
        return self.bucket is not None and not self.bucket.tokens


def state_shape(num_pages: int) -> StateShape:
    """What the engine keeps."""
    return StateShape(NUM_ROWS, num_pages, PAGE_SIZE, MAX_MODEL_LEN // PAGE_SIZE)
