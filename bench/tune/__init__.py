"""jbatch tune: an engine's options for a workload and an aim, found by simulation."""
