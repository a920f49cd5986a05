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

from jbatch.cli import main as cli
from jbatch.engine.engine import Engine
from jbatch.engine.intake import Intake
from jbatch.host.scheduler import Scheduler
from jbatch.jobs import command as job_cli
from jbatch.sim.fake_runner import FakeRunner, continuation
from jbatch.text.chat import check_messages
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.tokenizers import numbered, wrapped

CONFIG = dict(model_type="llama", vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, eos_token_id=2)
CONFIG |= dict(num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=128, torch_dtype="float32")
USER, ASSISTANT = 94, 95  # tokens of roles
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
    """A job's input, of all forms: lines 10, 20, ... are wrong, every seventh asks for two samples, and every
    fourth names no custom_id where its form lets it."""
    path = directory / name
    path.write_text("".join(json.dumps(line_of(number)) + "\n" for number in range(1, num_lines + 1)))
    return path


def line_of(number: int) -> dict[str, Any]:
    text = "".join(f"{token:02}." for token in prompt_of(number))
    fields: dict[str, Any] = {"max_tokens": tokens_of(number), "temperature": 0.7 * (number % 11 == 0)}
    if number % 10 == 0:
        fields["max_tokens"] = "many"
    if samples_of(number) > 1:
        fields |= {"n": samples_of(number), "temperature": 1}
    form = form_of(number)
    named = {} if id_of(number).startswith("line-") else {"custom_id": id_of(number)}
    if form == "bare":
        return {"prompt": text, **fields, **named}
    asked = {"messages": [{"role": "user", "content": text}]} if form == "chat" else {"prompt": text}
    url = "/v1/chat/completions" if form == "chat" else "/v1/completions"
    return {**named, "method": "POST", "url": url, "body": {"model": "m", **asked, **fields}}


def form_of(number: int) -> str:
    """Every third line is a completion, and some of the others are chats."""
    return "completions" if number % 3 == 0 else "chat" if number % 5 == 1 else "bare"


def samples_of(number: int) -> int:
    return 1 if number % 7 else 2


def id_of(number: int) -> str:
    return f"line-{number}" if number % 4 == 0 and form_of(number) == "bare" else f"request {number}"


def text_of(number: int, *, chat: bool = False, sample_idx: int = 0) -> str:
    """What the prompt of line `number` is answered, by the definition."""
    stop = [CONFIG["eos_token_id"]]
    prompt = [USER, *prompt_of(number), ASSISTANT] if chat else prompt_of(number)
    tokens = continuation(prompt, tokens_of(number), VOCAB_SIZE, stop, sample_idx=sample_idx)
    return "".join(f"{token:02}." for token in tokens if token not in stop)


def texts_of(number: int) -> list[str]:
    """Of all samples of line `number`."""
    chat = form_of(number) == "chat"
    return [text_of(number, chat=chat, sample_idx=idx) for idx in range(samples_of(number))]


def texts_in(record: dict[str, Any]) -> list[str]:
    """Of all samples of a record, in whichever form."""
    if "response" not in record:
        return [one["text"] for one in record.get("outputs", [record])]
    choices = record["response"]["body"]["choices"]
    return [one["message"]["content"] if "message" in one else one["text"] for one in choices]


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
            assert record.get("error") is None and texts_in(record) == texts_of(number)
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
    """A template: a token for each role, then the text, and the role of the answer."""
    token_ids = []
    for message in check_messages(messages):
        role = USER if message["role"] == "user" else ASSISTANT
        token_ids += [role, *wrapped(numbered()).encode(message["content"])]
    return [*token_ids, ASSISTANT]


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
    runner = _Runner(config.shape, VOCAB_SIZE)
    runner.faults = faults
    scheduler = Scheduler(config)
    intake = Intake(
        vocab_size=VOCAB_SIZE,
        max_seq_len=scheduler.max_seq_len,
        eos_token_ids=[CONFIG["eos_token_id"]],
        tokenizer=wrapped(numbered()),
        seed=engine_options.get("seed", 0),
    )
    engine = Engine(scheduler, runner, intake)
    yield job_cli.Model(engine, _encode_chat, lambda: 0)
    assert engine.scheduler.pool.num_used == 0 and not engine.has_unfinished, "pages are left behind"
