"""`python -m bench.gpu_suite`."""

import sys

from bench.gpu_suite.command import main

if __name__ == "__main__":
    sys.exit(main())
