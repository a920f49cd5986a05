"""Kernels for Hopper in Pallas Mosaic GPU."""
