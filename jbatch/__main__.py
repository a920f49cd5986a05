"""`python -m jbatch`."""

from jbatch.cli import main

if __name__ == "__main__":
    main()
