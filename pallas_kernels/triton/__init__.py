"""Kernels for Ampere and Hopper in Pallas Triton."""

from __future__ import annotations


def declines_device(capability: str) -> str | None:
    """Why a GPU of a compute capability cannot run the kernels, or None."""
    return None if float(capability) >= 8 else f"compute capability {capability}: at least 8.0"
