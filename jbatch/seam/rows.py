"""A row of device state, in columns: what the device knows of a running sequence."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jbatch.sampling_params import MAX_STOP_IDS
from jbatch.seam.fields import Ints

MIN_TOP_P = float(np.finfo(np.float32).tiny)  # a device takes a smaller one for 0, which keeps no token


class RowSetup(NamedTuple):
    """What a row begins with, in its column order. Floats travel as their int32 bits.

    What follows `min_p` is looked at by steps that change logits, and by no others.
    """

    last_token: int = 0
    length: int = 0  # tokens in the cache
    budget: int = 0  # tokens still to generate
    min_left: int = 0  # tokens to generate before a stop id may come
    finished: int = 0
    seed: int = 0  # uint32
    sample_idx: int = 0  # of the request's n samples
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    prompt_len: int = 0
    has_bias: bool = False  # whether row data of this name was put in place
    has_bad_words: bool = False
    stop_ids: tuple[int, ...] = ()  # padded with -1


COLUMNS = {name: idx for idx, name in enumerate(RowSetup._fields)}  # stop_ids: the first of theirs
NUM_SCALARS = len(RowSetup._fields) - 1
ROW_WIDTH = NUM_SCALARS + MAX_STOP_IDS
FLOAT_COLUMNS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_KINDS = ("f" if name in FLOAT_COLUMNS else "I" if name == "seed" else "i" for name in RowSetup._fields[:-1])
_ROW = struct.Struct("=" + "".join(_KINDS) + f"{MAX_STOP_IDS}i")


def row_columns(setup: RowSetup) -> Int[Ints, " row_width"]:
    """A row of device state as int32."""
    *scalars, stop_ids = setup
    padding = (-1,) * (MAX_STOP_IDS - len(stop_ids))
    return np.frombuffer(_ROW.pack(*scalars, *stop_ids, *padding), np.int32)
