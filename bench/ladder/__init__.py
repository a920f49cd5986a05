"""`jbatch bench batching`, `throughput` and `latency`: admission rules of one engine, compared."""
