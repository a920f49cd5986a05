"""`python -m bench.gpu_suite`: everything that only a GPU can show, in one call."""
