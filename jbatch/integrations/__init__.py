"""jbatch inside others' frameworks."""
