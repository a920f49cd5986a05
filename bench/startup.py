"""How long a user waits for the first token: from the API and from the command line, with a cold compilation
cache and with a warm one, imports apart.

    python -m bench.startup [--model DIR] [--prompts N] [--max-num-seqs N] [--repeats N] [--json FILE]

Each start has a process of its own. Beside seconds there are CPU seconds, of all threads, and the number of
programs that were compiled or read: on a busy machine these say more.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = Path(__file__).parents[1] / "weights" / "demo"
WAYS = ("api", "cli")
GOALS_S = {"cold": 15.0, "warm": 3.0}  # to the first token, the demo model on two idle cores


class Watch:
    """Seconds and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._begin, self._cpu_begin = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """Both, by name."""
        cpu_s = time.process_time() - self._cpu_begin
        return {"s": round(time.monotonic() - self._begin, 2), "cpu_s": round(cpu_s, 2)}


def start(way: str, model: str, prompts: list[str], max_num_seqs: int | None) -> dict[str, Any]:
    """Start in this process, which must be a fresh one; the figures."""
    watch = Watch()
    import jax  # noqa: F401

    import jbatch.cli.main
    import jbatch.llm  # noqa: F401
    from jbatch.device.compile_counter import compile_counter

    imports, counter = watch.read(), compile_counter()
    watch, before = Watch(), counter.count
    first_token: Callable[[], None] = _api(model, prompts, max_num_seqs)
    if way == "cli":
        first_token = _cli(model, prompts, max_num_seqs)
    first_token()
    return {"imports": imports, "first_token": watch.read(), "programs": counter.count - before}


def _api(model: str, prompts: list[str], max_num_seqs: int | None) -> Callable[[], None]:
    def run() -> None:
        from jbatch import LLM, SamplingParams

        options: dict[str, Any] = {} if max_num_seqs is None else {"max_num_seqs": max_num_seqs}
        llm = LLM(model, device="cpu", show_progress=False, **options)
        next(iter(llm.stream(prompts, SamplingParams(temperature=0))))

    return run


def _cli(model: str, prompts: list[str], max_num_seqs: int | None) -> Callable[[], None]:
    """The whole command, whose prompts ask for two tokens: with one, it would compile less."""

    def run() -> None:
        from jbatch.cli.commands import app

        flags = [flag for prompt in prompts for flag in ("-p", prompt)]
        if max_num_seqs is not None:
            flags += ["--max-num-seqs", str(max_num_seqs)]
        args = ["generate", model, *flags, "--max-tokens", "2", "--temperature", "0", "--device", "cpu"]
        with contextlib.redirect_stdout(io.StringIO()):
            app(args, standalone_mode=False)

    return run


def measure(way: str, home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A start in a process of its own, whose caches are below `home`."""
    command = [sys.executable, "-m", "bench.startup", "--child", way, "--model", args.model]
    command += ["--prompts", str(args.prompts)]
    if args.max_num_seqs is not None:
        command += ["--max-num-seqs", str(args.max_num_seqs)]
    environment = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    done = subprocess.run(
        command, env=environment | {"HOME": str(home)}, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A cold start and `repeats` warm ones, of each way; of these the fastest counts."""
    rows = []
    for way in WAYS:
        with tempfile.TemporaryDirectory(prefix="jbatch-startup-") as home:
            cold = measure(way, Path(home), args)
            warm = [measure(way, Path(home), args) for _ in range(args.repeats)]
        best = min(warm, key=lambda row: row["first_token"]["s"])
        rows += [{"way": way, "cache": "cold", **cold}, {"way": way, "cache": "warm", **best}]
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows, for people."""
    print(f"{'way':5}{'cache':7}{'imports':>9}{'first token':>13}{'CPU':>8}{'programs':>10}{'goal':>8}")
    for row in rows:
        first, goal = row["first_token"], GOALS_S[row["cache"]]
        times = f"{row['imports']['s']:>7.2f} s{first['s']:>11.2f} s{first['cpu_s']:>6.1f} s"
        print(f"{row['way']:5}{row['cache']:7}{times}{row['programs']:>10}{goal:>6.0f} s")


def main() -> None:
    """Measure, print, and write the figures where a file is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(MODEL), metavar="DIR")
    parser.add_argument("--prompts", type=int, default=1, metavar="N")
    parser.add_argument("--max-num-seqs", type=int, metavar="N", help="[default: the engine's]")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of the warm start")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        prompts = [f"{12 + number}+345=" for number in range(args.prompts)]
        print(json.dumps(start(args.child, args.model, prompts, args.max_num_seqs)))
        return
    rows = measure_all(args)
    print_table(rows)
    if args.json is not None:
        args.json.write_text(
            json.dumps({"schema": 1, "cores": os.cpu_count(), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
