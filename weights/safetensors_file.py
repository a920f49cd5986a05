"""One safetensors file: its header, checked before anything is believed, and its tensors, read one by one.

The format: a little-endian uint64 header length, a JSON header, then the tensors' bytes end to end.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import ml_dtypes
import numpy as np

from weights import strict_json
from weights.errors import WeightsError

MAX_HEADER_BYTES = 100_000_000  # as the safetensors library has it
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_LFS_POINTER = int.from_bytes(b"version ", "little")  # it begins with "version https://git-lfs..."
FLOATS = ("BF16", "F16", "F32", "F64")


class Tensor(NamedTuple):
    """Where a tensor lies."""

    path: Path
    offset: int  # bytes from the start of the file
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def read_header(path: Path) -> dict[str, Tensor]:
    """Name -> Tensor of everything in the file. Raises WeightsError, naming the file, for a header that
    is too long, not JSON, names a tensor twice, or does not account for every byte exactly once."""
    try:
        return _read_header(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path.name}: not a valid safetensors file: {str(error)[:300]}") from None


def read(tensor: Tensor) -> np.ndarray:
    """The tensor, in memory of its own (not mapped: mapped pages would count as this process's memory)."""
    array = aligned_empty(tensor.shape, DTYPES[tensor.dtype])
    rest = array.reshape(-1).view(np.uint8).data
    try:
        with tensor.path.open("rb", buffering=0) as file:
            file.seek(tensor.offset)
            while rest and (count := file.readinto(rest)):  # one call reads at most 2 GiB
                rest = rest[count:]
    except OSError as error:
        raise WeightsError(f"{tensor.path.name}: cannot be read: {error}") from None
    if rest:
        raise WeightsError(f"{tensor.path.name}: became shorter while it was read")
    return array


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array at an address that JAX on a CPU adopts as it is, instead of copying it."""
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def same_bytes(first: Tensor, second: Tensor, chunk: int = 2**24) -> bool:
    """Whether two tensors are equal bit for bit, without holding either in memory."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with first.path.open("rb") as a, second.path.open("rb") as b:
        a.seek(first.offset)
        b.seek(second.offset)
        for start in range(0, first.nbytes, chunk):
            size = min(chunk, first.nbytes - start)
            if a.read(size) != b.read(size):
                return False
    return True


def _read_header(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError("no such file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length == _LFS_POINTER:
            raise ValueError(
                "a pointer of Git LFS in place of the file: run `git lfs pull` in its repository"
            )
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(
                f"a header of {length} bytes in a file of {size} (truncated, or not safetensors)"
            )
        header = strict_json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {name: _entry(path, name, entry, start) for name, entry in header.items()}
    _check_layout(tensors, start, size)
    return tensors


def _entry(path: Path, name: str, entry: Any, start: int) -> Tensor:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if len(fields) != 3 or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name[:80]!r} has a malformed entry")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name[:80]!r} has the unknown dtype {str(dtype)[:20]!r}")
    tensor = Tensor(path, start + offsets[0], dtype, tuple(shape))
    if offsets[1] - offsets[0] != tensor.nbytes:
        raise ValueError(f"tensor {name[:80]!r} does not fill its {offsets[1] - offsets[0]} bytes exactly")
    return tensor


def _check_layout(tensors: dict[str, Tensor], start: int, size: int) -> None:
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != end:
            raise ValueError(f"tensor {name[:80]!r} leaves a gap or overlaps another")
        end += tensor.nbytes
    if end != size:
        raise ValueError(f"tensors end at byte {end} of {size} (truncated, or trailing bytes)")


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 2**48 for n in value)
    )
