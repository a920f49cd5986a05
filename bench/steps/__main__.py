"""`python -m bench.steps`."""

import sys

from bench.steps.command import main

if __name__ == "__main__":
    sys.exit(main())
