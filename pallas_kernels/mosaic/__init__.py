"""Kernels for Hopper in Pallas Mosaic GPU."""

from __future__ import annotations


def declines_device(capability: str) -> str | None:
    """Why a GPU of a compute capability cannot run the kernels, or None."""
    return None if capability == "9.0" else f"compute capability {capability}: 9.0 (Hopper) only"
