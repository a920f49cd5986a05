"""Computes what the host has planned: the model, the steps, and their state. It never plans."""
