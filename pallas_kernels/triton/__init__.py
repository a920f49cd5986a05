"""Kernels for Ampere and Hopper in Pallas Triton."""
