"""Measures jbatch: workloads, the batching ladder, comparisons, kernels, steps, reports."""
