"""Feed broken input to what reads files from outside: no traceback, no hang, whatever comes.

    python -m tests.long.fuzz                               # 50,000 inputs of each surface
    python -m tests.long.fuzz jsonl --count 2000 --seed 7   # of one, from another seed
    python -m tests.long.fuzz jsonl --count 1 --seed 1234   # the input that failed, again

An input is made from one integer: its seed. A line for each failure, then a summary per surface; the exit
code is 1 if there are any. The tests run the first 300 seeds of the same, `make test-long` 2,000.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def fuzz(surface: str, first: int, count: int) -> int:
    """Check a surface's inputs of these seeds; how many failed."""
    from tests.helpers.fuzz import check_of, failures

    check = check_of(surface)
    begin, bytes_before = time.monotonic(), _peak_bytes()
    num_failed = 0
    for failure in failures(check, range(first, first + count)):
        print(f"{surface}: {failure}", flush=True)
        num_failed += 1
    elapsed_s, grown = time.monotonic() - begin, _peak_bytes() - bytes_before
    print(
        f"{surface}: seeds {first} to {first + count - 1}: {num_failed} of {count} failed; "
        f"{elapsed_s:.0f} s, {grown / 2**20:.0f} MiB above the start",
        flush=True,
    )
    return num_failed


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    from tests.helpers.fuzz import SURFACES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("surfaces", nargs="*", metavar="surface", help=f"of {', '.join(SURFACES)}")
    parser.add_argument("--count", type=int, default=50_000, help="inputs of each surface")
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    args = parser.parse_args()
    for surface in args.surfaces:
        if surface not in SURFACES:
            parser.error(f"no surface {surface!r}: {', '.join(SURFACES)}")
    return sum(fuzz(surface, args.seed, args.count) for surface in args.surfaces or SURFACES) > 0


if __name__ == "__main__":
    sys.exit(main())
