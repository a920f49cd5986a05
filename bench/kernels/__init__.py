"""`python -m bench.kernels`: the attention kernels beside what the device can do at most."""
