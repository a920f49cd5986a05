"""Compiles kernels and steps for GPUs that are not here, and checks the programs: `python -m tools.gate h200`."""
