"""The implementations of the ops, by name. The only list of them: files are found by their names."""

from __future__ import annotations

COMPILERS = ("mosaic", "triton")  # Pallas': each has a folder of kernels; fastest first, where each can run
NAMES = (*COMPILERS, "xla")  # with plain JAX, which takes whatever the others decline
ROTATES = "triton"  # has the kernel that rotates queries and keys and writes the cache
