"""Several arrays in one: where each stands in a packed array, for NumPy and JAX alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, Self, TypeVar

import numpy as np

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int32]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class Sliceable(Protocol):
    """What packed arrays of NumPy and of JAX have in common."""

    def __getitem__(self, key: slice[int, int, None], /) -> Self: ...

    def reshape(self, shape: tuple[int, ...], /) -> Self: ...


A = TypeVar("A", bound=Sliceable)


class Field(NamedTuple):
    """A part of a packed array."""

    begin: int
    end: int
    shape: tuple[int, ...]


def fields_of(shapes: Iterable[tuple[int, ...]]) -> tuple[Field, ...]:
    """Where arrays of these shapes stand, one behind the other."""
    shapes = tuple(shapes)
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    return tuple(Field(*field) for field in zip([0, *ends[:-1]], ends, shapes, strict=True))


def split(packed: A, fields: Iterable[Field]) -> Iterator[A]:
    """The parts of a packed array: views of a NumPy array, slices of a JAX one."""
    return (packed[field.begin : field.end].reshape(field.shape) for field in fields)
