"""`python -m jbatch`."""

from jbatch.cli import main

main()
