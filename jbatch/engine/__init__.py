"""Joins host and device: requests in, steps, texts out. It never imports jax."""
