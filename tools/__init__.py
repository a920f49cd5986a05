"""What is needed to make jbatch, and not to use it."""
