"""Decides what each step computes. It never imports jax."""
