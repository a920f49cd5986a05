"""The command line: `jbatch` and its commands."""
