"""`python -m tools.gate TARGET`."""

import sys

from tools.gate.command import main

if __name__ == "__main__":
    sys.exit(main())
