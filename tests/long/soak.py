"""What takes too long for the tests: jobs that are killed 200 times or stopped 100 times, and many requests
through one engine.

    python -m tests.long.soak kill [POINTS]    on a fake device, at random moments and at every kind of write
    python -m tests.long.soak signals [POINTS] the same with SIGINT and SIGTERM, at random lines
    python -m tests.long.soak demo [REQUESTS]  the demo model with few pages: memory and open files stay flat
    python -m tests.long.soak engine [REQUESTS]  a tiny model's compiled steps, requests of all kinds: and
                                               the host's time for each stays flat

It needs the `test-core` extra, and says what is wrong with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jbatch.cli import main as cli
from jbatch.jobs import command as job_command
from jbatch.jobs.answerer import Answerer
from tests.helpers import fake_job
from tests.helpers.faults import BOUNDARIES, Faults
from tests.long import soak_engine
from weights.demo import tasks

DEMO = Path(tasks.__file__).parent
NUM_LINES = 120  # of a job that is killed
NUM_SAMPLES = 20  # of memory
MAX_GROWTH = 0.02  # of memory, from a quarter of the run to its end


def random_fault(rng: random.Random) -> Faults:
    """A kill at a random step, or around a random change of the disk."""
    if rng.random() < 0.3:
        return Faults(kill_at_step=rng.randint(1, 60))
    name = rng.choice(BOUNDARIES)
    whens = ("before", "torn", "after") if name == "write" else ("before", "after")
    most = NUM_LINES // 3 if name == "write" else 5
    return Faults(kill=(name, rng.randint(1, most), rng.choice(whens)))


def kill(num_points: int) -> None:
    """Jobs, each killed again and again until it is through; some sort, some run errors again."""
    rng, num_killed, num_jobs = random.Random(0), 0, 0
    begin = time.monotonic()
    while num_killed < num_points:
        num_jobs += 1
        extra = (("--ordered",), ("--retry-errors",), ())[num_jobs % 3]
        with tempfile.TemporaryDirectory() as directory:
            num_killed += kill_one_job(fake_job.make_directory(Path(directory)), rng, extra)
    print(f"{num_killed} kills in {num_jobs} jobs of {NUM_LINES} lines, {time.monotonic() - begin:.0f} s")
    print("no result lost or doubled, every text as its definition says")


def kill_one_job(place: Path, rng: random.Random, extra: tuple[str, ...]) -> int:
    """How many times it was killed before it came to its end."""
    fake_job.write_input(place, NUM_LINES)
    job = (*fake_job.JOB, *extra)
    answered: set[str] = set()
    for num_killed in range(10_000):
        ended = fake_job.run(place, *job, faults=random_fault(rng))
        now = answers(place / "out.jsonl")
        if not answered <= now.keys():
            raise SystemExit(f"lost: {sorted(answered - now.keys())} after {ended}")
        answered = set(now)
        if ended.code != -9:
            if ended.code != 1:
                raise SystemExit(f"ended with {ended}")
            fake_job.check_whole(place / "out.jsonl", range(1, NUM_LINES + 1))
            return num_killed
    raise SystemExit("it does not come to its end")


def signals(num_points: int) -> None:
    """Jobs, each asked to stop again and again, by either signal, until it is through."""
    rng, num_sent, num_jobs = random.Random(0), 0, 0
    begin = time.monotonic()
    while num_sent < num_points:
        num_jobs += 1
        with tempfile.TemporaryDirectory() as directory:
            num_sent += signal_one_job(fake_job.make_directory(Path(directory)), rng)
    print(f"{num_sent} signals in {num_jobs} jobs of {NUM_LINES} lines, {time.monotonic() - begin:.0f} s")
    print("each ended with 130 or 143; no result lost or doubled, every text as its definition says")


def signal_one_job(place: Path, rng: random.Random) -> int:
    """How many times it was stopped before it came to its end."""
    fake_job.write_input(place, NUM_LINES)
    output = place / "out.jsonl"
    for num_sent in range(10_000):
        before = fake_job.num_results(output)
        signum, wanted = rng.choice((signal.SIGINT, signal.SIGTERM)), before + rng.randint(0, 20)
        job = fake_job.Run(place, *fake_job.JOB, faults=Faults(step_s=0.002))
        fake_job.wait_for(lambda wanted=wanted, job=job: has_come(job, output, wanted))
        with suppress(ProcessLookupError):  # it has just ended
            job.send(signum)
        ended = job.wait()
        now = fake_job.num_results(output)
        if now < before or "Traceback" in ended.err:
            raise SystemExit(f"{before} results, then {now}: {ended}")
        if ended.code == 1:
            fake_job.check_whole(output, range(1, NUM_LINES + 1))
            return num_sent
        if ended.code not in (128 + signum, -signum):  # the latter once all was done, and it was ending
            raise SystemExit(f"ended with {ended}")
    raise SystemExit("it does not come to its end")


def has_come(job: fake_job.Run, output: Path, num_results: int) -> bool:
    """Whether a job has begun, and has so many results or has ended."""
    whole = min(num_results, NUM_LINES)
    return f"{NUM_LINES} requests" in job.err and fake_job.num_results(output) >= whole


def answers(path: Path) -> dict[str, dict]:
    """Whole results that are no errors; a job may remove errors, to run them again."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    results = [json.loads(line) for line in lines]
    return {result["custom_id"]: result for result in results if fake_job.error_in(result) is None}


# The long run.


class Sampler(threading.Thread):
    """Memory and open files of this process, each time so many more results are there."""

    def __init__(self, output: Path, num_requests: int):
        super().__init__(daemon=True)
        self._output, self._every, self.samples = output, num_requests // NUM_SAMPLES, []

    def run(self) -> None:
        wanted, num_results, at = self._every, 0, 0
        while True:
            time.sleep(0.05)
            if not self._output.exists():
                continue
            with self._output.open("rb") as file:
                file.seek(at)
                new = file.read()
            at, num_results = at + len(new), num_results + new.count(b"\n")
            if num_results >= wanted:
                wanted += self._every
                self.samples.append((num_results, rss_mib(), len(os.listdir("/proc/self/fd"))))
                print(
                    f"{num_results:8} results {rss_mib():8.1f} MiB {self.samples[-1][2]:4} open files",
                    flush=True,
                )


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def demo(num_requests: int) -> None:
    """Short requests on few pages, so that sequences are preempted."""
    with tempfile.TemporaryDirectory() as directory:
        source, output = Path(directory) / "in.jsonl", Path(directory) / "out.jsonl"
        write_requests(source, num_requests)
        sampler = Sampler(output, num_requests)
        engines = watch_engines()
        sampler.start()
        options = ["--max-num-seqs", "16", "--max-model-len", "64", "--page-size", "16", "--num-pages", "13"]
        options += ["--max-num-batched-tokens", "128", "--device", "cpu"]
        try:
            cli.main(["generate", str(DEMO), "-i", str(source), "-o", str(output), *options])
        except SystemExit as ended:
            if ended.code:
                raise
        check_results(output, num_requests)
    (engine,) = engines
    if engine.scheduler.pool.num_used or engine.has_unfinished:
        raise SystemExit(f"{engine.scheduler.pool.num_used} pages are still in use")
    print(f"pool empty; peak {engine.summary.peak_pages_used} of {engine.scheduler.pool.num_usable} pages")
    print(f"{engine.summary.num_preempted} preemptions")
    if not engine.summary.num_preempted:
        raise SystemExit("no sequence was preempted: there are too many pages")
    check_flat(sampler.samples)


def write_requests(path: Path, num: int) -> None:
    """Greedy ones, of a few tokens; one in four draws at random, and one in eight is long: those that run are
    more than the pages hold."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(num):
            task = rng.choice(("add", "reverse", "sort"))
            line = {"prompt": tasks.draw(task, 3, rng).prompt, "max_tokens": rng.randint(1, 6)}
            if number % 8 == 1:
                line |= {"max_tokens": 40, "ignore_eos": True}
            file.write(json.dumps(line | {"temperature": float(number % 4 == 0)}) + "\n")


def watch_engines() -> list:
    """The engines that jobs will use, as they are made."""
    engines, real = [], job_command.load_answerer

    @contextmanager
    def load(*args: object) -> Iterator[Answerer]:
        with real(*args) as answerer:
            engines.append(answerer.engine)
            yield answerer

    job_command.load_answerer = load
    return engines


def check_results(output: Path, num_requests: int) -> None:
    with output.open("rb") as file:
        ids = {json.loads(line)["custom_id"] for line in file}
    if ids != {f"line-{number}" for number in range(1, num_requests + 1)}:
        raise SystemExit(f"{len(ids)} of {num_requests} results")


def check_flat(samples: list[tuple[int, float, int]]) -> None:
    """From a quarter of the run on nothing grows."""
    _, before_mib, files_before = samples[len(samples) // 4]
    _, after_mib, files_after = samples[-1]
    growth = after_mib / before_mib - 1
    print(f"from a quarter to the end: memory {growth:+.2%}, open files {files_after - files_before:+}")
    if growth > MAX_GROWTH or files_after > files_before:
        raise SystemExit("it grows")


PARTS = {
    "kill": (kill, 200),
    "signals": (signals, 100),
    "demo": (demo, 20_000),
    "engine": (soak_engine.main, 100_000),
}


def number(text: str) -> int:
    """Of points or requests."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of 1 or more")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("number", type=number, nargs="?", help="of points or requests")
    args = parser.parse_args()
    part, size = PARTS[args.part]
    part(args.number or size)


if __name__ == "__main__":
    main()
