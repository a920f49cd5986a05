"""`jbatch generate -i` on the fake runner, in processes that start in milliseconds and may be killed.

A server process has everything imported and forks one child per command. What a job must answer follows from
its input by the fake runner's definition.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jbatch import cli, job_cli
from jbatch.engine import Engine
from jbatch.errors import RequestError
from jbatch.fake_runner import FakeRunner, continuation
from jbatch.scheduler import Scheduler
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.tokenizers import numbered, wrapped

CONFIG = dict(model_type="llama", vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, eos_token_id=2)
CONFIG |= dict(num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=128, torch_dtype="float32")
TIMEOUT_S = 60
BOUNDARIES = ("write", "fsync", "replace", "ftruncate", "unlink")  # of what reaches the disk

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.helpers.fake_job"])


class Faults(NamedTuple):
    """What goes wrong in one run."""

    kill: tuple[str, int, str] | None = None  # a function of BOUNDARIES, its call from 1, before/torn/after
    kill_at_step: int | None = None
    fail_at_step: int | None = None  # the device raises
    step_s: float = 0.0  # how long a step takes
    fail_write: tuple[int, int] | None = None  # errno, from this record on
    file_size: int | None = None  # bytes that the system lets a file have
    pause_before: tuple[str, float] | None = None  # seconds before each call of a function of BOUNDARIES


NONE = Faults()


class Ended(NamedTuple):
    """How a run ended: its exit code, negative where a signal killed it."""

    code: int
    out: str
    err: str


class Run:
    """A command in a process of its own; relative paths are of `directory`."""

    def __init__(self, directory: Path, *args: object, faults: Faults = NONE, stdin: bytes = b""):
        number = len(list(directory.glob("*.stderr")))
        self._out, self._err = directory / f"{number}.stdout", directory / f"{number}.stderr"
        given = directory / f"{number}.stdin"
        for path, content in ((self._out, b""), (self._err, b""), (given, stdin)):
            path.write_bytes(content)
        streams = [str(path) for path in (given, self._out, self._err)]
        words = ["generate", "model", *map(str, args)]
        self._process = _processes.Process(target=_child, args=(str(directory), words, streams, faults))
        self._process.start()
        self.pid = self._process.pid

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait(self) -> Ended:
        self._process.join(TIMEOUT_S)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"it does not end: {self.err}")
        return Ended(self._process.exitcode, self._out.read_text(), self.err)


def run(directory: Path, *args: object, **options: Any) -> Ended:
    return Run(directory, *args, **options).wait()


def wait_for(condition, what: str = "it") -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} does not happen"
        time.sleep(0.005)


# Inputs, and what they must give.


def make_directory(directory: Path) -> Path:
    """A place for jobs, with a model."""
    (directory / "model").mkdir(parents=True, exist_ok=True)
    (directory / "model" / "config.json").write_text(json.dumps(CONFIG))
    return directory


def prompt_of(number: int) -> list[int]:
    return [3 + number % 90, 3 + number // 90 % 90, 5]


def tokens_of(number: int) -> int:
    return 1 + number * 7 % 9


def write_input(directory: Path, num_lines: int, name: str = "in.jsonl") -> Path:
    """A job's input: lines 10, 20, ... are wrong, every fourth names no custom_id, every third is a chat."""
    lines = []
    for number in range(1, num_lines + 1):
        text = "".join(f"{token:02}." for token in prompt_of(number))
        fields: dict[str, Any] = {"prompt": text, "max_tokens": tokens_of(number), "temperature": 0}
        if number % 10 == 0:
            fields["max_tokens"] = "many"
        if number % 4:
            fields["custom_id"] = f"request {number}"
        lines.append(json.dumps(fields))
    path = directory / name
    path.write_text("\n".join(lines) + "\n")
    return path


def id_of(number: int) -> str:
    return f"request {number}" if number % 4 else f"line-{number}"


def text_of(number: int) -> str:
    """What line `number` is answered, by the definition."""
    stop = [CONFIG["eos_token_id"]]
    tokens = continuation(prompt_of(number), tokens_of(number), VOCAB_SIZE, stop)
    return "".join(f"{token:02}." for token in tokens if token not in stop)


def check_whole(path: Path, line_numbers) -> list[dict]:
    """The records of an output, after it was found to hold each line's once, and the right one."""
    raw = path.read_bytes()
    assert not raw or raw.endswith(b"\n")
    records = [json.loads(line) for line in raw.splitlines()]
    expected = {id_of(number): number for number in line_numbers}
    counts = Counter(record["custom_id"] for record in records)
    assert counts == Counter(expected.keys()), "records are lost, doubled or strange"
    for record in records:
        number = expected[record["custom_id"]]
        if number % 10 == 0:
            assert record["error"]["line"] == number
        else:
            assert record["text"] == text_of(number)
    return records


# In the child.


def _child(directory: str, args: list[str], streams: list[str], faults: Faults) -> None:
    os.chdir(directory)
    for fd, path in enumerate(streams):
        opened = os.open(path, os.O_RDWR | (os.O_APPEND if fd else 0))
        os.dup2(opened, fd)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if faults.kill is not None:
        _arm(*faults.kill)
    if faults.fail_write is not None:
        _fail_writes(*faults.fail_write)
    if faults.pause_before is not None:
        _pause(*faults.pause_before)
    if faults.file_size is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults.file_size, faults.file_size))
    job_cli._load = lambda model, options, found: _load(faults, options)
    cli.main(args)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(name: str, call: int, when: str) -> None:
    """Kill this process at one call of a function that changes the disk; "torn": half of a write is done."""
    real, calls = getattr(os, name), Counter()

    def wrapped_call(*args, **options):
        calls[name] += 1
        if calls[name] != call:
            return real(*args, **options)
        if when == "torn":
            real(args[0], bytes(args[1])[: len(args[1]) // 2])
        elif when == "after":
            real(*args, **options)
        return _die()

    setattr(os, name, wrapped_call)


def _fail_writes(errno: int, record: int) -> None:
    """From one write on, half of it is written and the next one fails."""
    real, calls = os.write, Counter()

    def write(fd, data):
        calls["all"] += fd > 2
        if calls["all"] < record or fd <= 2:
            return real(fd, data)
        if calls["all"] == record:
            return real(fd, bytes(data)[: len(data) // 2])
        raise OSError(errno, os.strerror(errno))

    os.write = write


def _pause(name: str, seconds: float) -> None:
    real = getattr(os, name)

    def paused(*args, **options):
        time.sleep(seconds)
        return real(*args, **options)

    setattr(os, name, paused)


def _encode_chat(messages):
    raise RequestError("messages", messages, "this model has no chat template", code="no_chat_template")


class _Runner(FakeRunner):
    faults = NONE

    def submit(self, step):
        output = super().submit(step)
        if self.faults.step_s:
            time.sleep(self.faults.step_s)
        if self.num_steps == self.faults.kill_at_step:
            _die()
        if self.num_steps == self.faults.fail_at_step:
            raise RuntimeError("INTERNAL: the device is on fire")
        return output


@contextmanager
def _load(faults: Faults, engine_options: dict):
    """In place of a real model."""
    config = scheduler_config(num_pages=engine_options.get("num_pages", 17))
    sizes = config.num_rows, config.num_pages, config.page_size, config.max_model_len // config.page_size
    runner = _Runner(*sizes, VOCAB_SIZE)
    runner.faults = faults
    engine = Engine(
        Scheduler(config),
        runner,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=[CONFIG["eos_token_id"]],
        tokenizer=wrapped(numbered()),
        seed=engine_options.get("seed", 0),
    )
    yield job_cli.Model(engine, _encode_chat, lambda: 0)
    assert engine.scheduler.pool.num_used == 0 and not engine.has_unfinished, "pages are left behind"
