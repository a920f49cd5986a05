"""PyTorch on the same device, for the GPU suite: one file of `jbatch bench compare`, with few buckets.

    python -m bench.gpu_suite.compare --json FILE --arms NAME ... [--model NAME] [--steps FILE] [--tiny]

The exit status is 4 where PyTorch is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from bench.gpu_suite.ladder import LENGTH_SCALE, TINY_SCALE
from bench.gpu_suite.ladder import OPTIONS as LADDER_OPTIONS
from bench.gpu_suite.models import TINY_OPTIONS, fastest_attention
from bench.gpu_suite.parts import NOT_RUN
from bench.options import Setting
from jbatch.distribution import install_hint

OPTIONS = LADDER_OPTIONS | {"decode_buckets": (8, 16), "token_buckets": (512,)}  # each is compiled twice
NUM_PROMPTS, TINY_PROMPTS = 256, 4
FEW_PROMPTS = 64  # of transformers' arms, which take longer than the suite has for more


def main() -> int:
    """The command; the exit code is 4 where PyTorch is not installed, 1 where no arm of it ran."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--arms", nargs="+", required=True, metavar="NAME", help="of jbatch bench compare")
    parser.add_argument("--model", default="llama3.2-1b", metavar="NAME")
    parser.add_argument("--steps", type=Path, metavar="FILE", help="of bench.steps: the fastest attention")
    parser.add_argument("--tiny", action="store_true", help="the demo model, few requests: no measurement")
    args = parser.parse_args()
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{' and '.join(missing)} not installed: {install_hint('bench')}")
        return NOT_RUN
    from bench.compare.command import Comparison, compare
    from bench.compare.table import print_comparison

    options: dict[str, Any] = TINY_OPTIONS
    if not args.tiny:
        options = OPTIONS | {"attention_backend": fastest_attention(args.steps)}
    comparison = Comparison("demo" if args.tiny else args.model, arms=tuple(args.arms), output_json=args.json)
    many = FEW_PROMPTS if any(name.startswith("hf-") for name in args.arms) else NUM_PROMPTS
    setting = Setting(num_prompts=TINY_PROMPTS if args.tiny else many)
    scale = {"length_scale": TINY_SCALE if args.tiny else LENGTH_SCALE}
    results = compare(comparison, setting, options, scale)
    print_comparison(results)
    return 1 if all(arm.not_run for name, arm in results.arms.items() if name != "jbatch") else 0


if __name__ == "__main__":
    sys.exit(main())
