"""`python -m tools.gate h200`: compiles kernels and steps for GPUs that are not here, and checks them."""
