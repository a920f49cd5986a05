"""`jbatch generate -i` on the fake runner, in processes that start in milliseconds and may be killed.

A server process has everything imported and forks one child per command. What a job must answer follows from
its input by the fake runner's definition.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import typer

from jbatch.cli import main as cli
from jbatch.engine.engine import Engine
from jbatch.engine.intake import Intake
from jbatch.host.scheduler import Scheduler
from jbatch.jobs import command as job_command
from jbatch.jobs.answerer import Answerer
from jbatch.jobs.input import Parse
from jbatch.sim.fake_runner import FakeRunner, continuation
from jbatch.text.messages import check_messages
from tests.helpers.faults import NONE, Faults, die
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.tokenizers import numbered, wrapped

CONFIG = dict(model_type="llama", vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, eos_token_id=2)
CONFIG |= dict(num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=128, torch_dtype="float32")
USER, ASSISTANT = 94, 95  # tokens of roles
TIMEOUT_S = 60
ON_FIRE = "INTERNAL: the device is on fire"
JOB = ("-i", "in.jsonl", "-o", "out.jsonl")

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.helpers.fake_job"])


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


def run_here(directory: Path, *args: object, **model: Any) -> Ended:
    """`run` in this process, for what needs none of its own; an error that nobody foresaw is raised.

    Args:
      model: what `_load` takes besides.
    """
    said: list[str] = []

    def load(_, options, parse, scan):
        return _load(NONE, options, parse, **model)

    with (
        chdir(directory),
        mock.patch.object(job_command, "load_answerer", load),
        mock.patch.object(cli, "app", _command()),
        mock.patch("jbatch.cli.main.say", said.append),
        mock.patch("jbatch.cli.commands.say", said.append),
        mock.patch.object(cli, "describe_unforeseen", _raise),
    ):
        code = cli._run(["generate", "model", *map(str, args)])
    return Ended(code, "", "".join(f"{line}\n" for line in said))


@functools.cache
def _command() -> Any:
    """What typer makes of the command line at each call."""
    return typer.main.get_command(cli.app)


def _raise(error: Exception) -> str:
    raise error


def refuse(directory: Path, *args: object, **options: Any) -> str:
    """Run a command that is refused: exit code 2 and one line, which is given back."""
    ended = run(directory, *args, **options)
    last = ended.err.splitlines()[-1]
    assert (ended.code, ended.out) == (2, "") and "Traceback" not in ended.err
    return last.removeprefix("jbatch: ")


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
    text = as_text(number)
    fields: dict[str, Any] = {"max_tokens": tokens_of(number), "temperature": 0.7 * (number % 11 == 0)}
    if number % 10 == 0:
        fields["max_tokens"] = "many"
    if samples_of(number) > 1:
        fields |= {"n": samples_of(number), "temperature": 1}
    form = form_of(number)
    prompts = [as_text(key) for key in keys_of(number)]
    named = {} if id_of(number).startswith("line-") else {"custom_id": id_of(number)}
    if form == "bare":
        return {"prompt": text, **fields, **named}
    prompt: dict[str, Any] = {"prompt": text if len(prompts) == 1 else prompts}
    if form == "chat":
        prompt = {"messages": [{"role": "user", "content": text}]}
    url = "/v1/chat/completions" if form == "chat" else "/v1/completions"
    return {**named, "method": "POST", "url": url, "body": {"model": "m", **prompt, **fields}}


def form_of(number: int) -> str:
    """Every third line is a completion, and some of the others are chats."""
    return "completions" if number % 3 == 0 else "chat" if number % 5 == 1 else "bare"


def keys_of(number: int) -> list[int]:
    """Of the prompts of a line, for `prompt_of`: some completions have three."""
    return [number] if number % 9 else [number, number + 500, number + 700]


def as_text(key: int) -> str:
    return "".join(f"{token:02}." for token in prompt_of(key))


def samples_of(number: int) -> int:
    return 1 if number % 7 else 2


def id_of(number: int) -> str:
    return f"line-{number}" if number % 4 == 0 and form_of(number) == "bare" else f"request {number}"


def text_of(number: int, *, chat: bool = False, sample_idx: int = 0, key: int | None = None) -> str:
    """The text that answers a prompt of line `number`, by the definition."""
    stop, key = [CONFIG["eos_token_id"]], number if key is None else key
    prompt = [USER, *prompt_of(key), ASSISTANT] if chat else prompt_of(key)
    tokens = continuation(prompt, tokens_of(number), VOCAB_SIZE, stop, sample_idx=sample_idx)
    return "".join(f"{token:02}." for token in tokens if token not in stop)


def texts_of(number: int) -> list[str]:
    """The texts that answer line `number`, one for each sample of each prompt."""
    chat = form_of(number) == "chat"
    return [
        text_of(number, chat=chat, sample_idx=idx, key=key)
        for key in keys_of(number)
        for idx in range(samples_of(number))
    ]


def texts_in(result: dict[str, Any]) -> list[str]:
    """The texts of all samples of a result, in whichever form."""
    if "response" not in result:
        return [sample["text"] for sample in result.get("outputs", [result])]
    choices = result["response"]["body"]["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in choices]


def error_in(result: dict[str, Any]) -> dict[str, Any] | None:
    """The error of a result, in whichever form; None where it is an answer."""
    response = result.get("response")
    if response is None or response["status_code"] == 200:
        return result.get("error")
    assert result["error"] is None and response["status_code"] in (400, 500)
    return response["body"]["error"]


def num_results(path: Path) -> int:
    """Whole results in an output, if it is there."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check_whole(path: Path, line_numbers) -> list[dict]:
    """The results in an output, which must be each line's once, and the right one."""
    raw = path.read_bytes()
    assert not raw or raw.endswith(b"\n")
    results = [json.loads(line) for line in raw.splitlines()]
    expected = {id_of(number): number for number in line_numbers}
    counts = Counter(result["custom_id"] for result in results)
    assert counts == Counter(expected.keys()), "results are lost, doubled or strange"
    for result in results:
        number = expected[result["custom_id"]]
        if number % 10 == 0:
            assert error_in(result)["line"] == number
        else:
            assert error_in(result) is None and texts_in(result) == texts_of(number)
    return results


# In the child.


def _child(directory: str, args: list[str], streams: list[str], faults: Faults) -> None:
    os.chdir(directory)
    for fd, path in enumerate(streams):
        opened = os.open(path, os.O_RDWR | (os.O_APPEND if fd else 0))
        os.dup2(opened, fd)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tempfile.tempdir = directory  # for tracebacks
    faults.arm()
    job_command.load_answerer = lambda model, options, parse, scan: _load(faults, options, parse)
    cli.main(args)


def _encode_chat(messages, options):
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
            die()
        if self.num_steps == self.faults.fail_at_step:
            raise RuntimeError(ON_FIRE)
        return output


@contextmanager
def _load(faults: Faults, engine_options: dict, parse: Parse, numerics: dict | None = None):
    """In place of a real model."""
    if faults.fail_at_load:
        raise RuntimeError(ON_FIRE)
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
    yield Answerer(engine, parse, _encode_chat, lambda: 0, numerics=numerics or {})
    assert engine.scheduler.pool.num_used == 0 and not engine.has_unfinished, "pages are left behind"
