"""jbatch: continuous batching for LLaMA inference in JAX."""
