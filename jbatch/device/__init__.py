"""Computes what the host has planned: the model, the steps, and their state. It never plans."""

from jbatch.distribution import check_not_shadowed

# Whoever imports one of these two imports this package first ("from jbatch..." sorts before them).
check_not_shadowed("pallas_kernels", "weights")
