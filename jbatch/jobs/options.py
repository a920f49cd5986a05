"""The options of a job, checked."""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import NamedTuple

from jbatch.config import check_range
from jbatch.errors import ConfigError
from jbatch.jobs.state import state_path

JOB_HELP = {
    "input_file": "JSONL requests, one a line, OpenAI's batch form or a bare one; - is standard input.",
    "output_file": "JSONL answers, written as they come; - is standard output.",
    "ordered": "Sort the answers by input line, once all are there.",
    "retry_errors": "Run the lines again whose results are errors.",
    "force": "Go on although the input, the model or options changed.",
    "shard": "Only every n-th line from the i-th on: i/n.",
    "lookahead": "Lines of which those that begin alike go together, to share the cache; 1 keeps the order.",
    "summary": "Write the figures to this JSON file, too.",
    "metrics_file": "Keep metrics in Prometheus' text form there, written anew every 5 s.",
    "trace": "Write what the scheduler decides there, for `jbatch replay`.",
}
MAX_LOOKAHEAD = 2**20


class Shard(NamedTuple):
    """Every `num_shards`-th line of a file."""

    shard_idx: int  # from 0
    num_shards: int

    def holds(self, line_no: int) -> bool:
        """Whether the shard has a line, counted from 1."""
        return (line_no - 1) % self.num_shards == self.shard_idx


def parse_shard(text: str) -> Shard:
    """The shard "i/n", i from 1 to n: lines i, i + n, i + 2 n, ... Raises ConfigError for anything else."""
    number, _, num_shards = text.partition("/")
    digits = all(part.isascii() and part.isdigit() and len(part) < 10 for part in (number, num_shards))
    if digits and 1 <= int(number) <= int(num_shards):
        return Shard(int(number) - 1, int(num_shards))
    raise ConfigError("shard", text, "must be i/n, with i from 1 to n")


@dataclasses.dataclass(frozen=True)
class JobOptions:
    """What `jbatch generate -i` takes besides the engine's and the sampling options.

    Raises:
      ConfigError: naming the option, its value and what it must be.
    """

    input_file: str | None = None
    output_file: str | None = None
    ordered: bool = False
    retry_errors: bool = False
    force: bool = False
    shard: str = "1/1"
    lookahead: int = 4096
    summary: str | None = None
    metrics_file: str | None = None
    trace: str | None = None

    def __post_init__(self) -> None:
        for name in ("input_file", "output_file"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "a job needs both -i and -o")
        parse_shard(self.shard)
        check_range("lookahead", self.lookahead, 1, MAX_LOOKAHEAD)
        if self.streams:
            for name in ("ordered", "retry_errors", "force"):
                if getattr(self, name):
                    raise ConfigError(name, True, "needs an output file, and -o is none")
        self._check_replaced()
        self._check_paths()

    def _check_replaced(self) -> None:
        """Refuse what is a device or a pipe where a file is replaced as a whole."""
        for name, path in self.replaced.items():
            named = getattr(self, name)
            if named == "-" or (os.path.exists(path) and not os.path.isfile(path)):
                raise ConfigError(name, named, "must be a file")

    def _check_paths(self) -> None:
        """Refuse to write to the input, or to one file twice; through links neither."""
        written = dict(self.replaced)
        if not self.streams:
            output = self.output_path
            written |= {"output": output, "job": state_path(output), "lock": f"{output}.lock"}
        named = {"input": self.input, **written}
        places = [(name, _place(path)) for name, path in named.items() if path != "-"]
        for number, (name, place) in enumerate(places):
            for other, other_place in places[:number]:
                if place == other_place:
                    raise ConfigError(name, named[name], f"is the same file as {other}={named[other]}")

    @property
    def input(self) -> str:
        assert self.input_file is not None, "checked"
        return self.input_file

    @property
    def parsed_shard(self) -> Shard:
        return parse_shard(self.shard)

    @property
    def streams(self) -> bool:
        """Whether the output cannot be read back: standard output, a pipe, a device."""
        if self.output_file == "-":
            return True
        try:
            return not stat.S_ISREG(os.stat(self.output_file or "").st_mode)
        except OSError:
            return False

    @property
    def summary_path(self) -> str | None:
        """The summary's file itself, where a link is named: it is replaced."""
        return None if self.summary is None else os.path.realpath(self.summary)

    @property
    def metrics_path(self) -> str | None:
        """As `summary_path`, of the metrics."""
        return None if self.metrics_file is None else os.path.realpath(self.metrics_file)

    @property
    def trace_path(self) -> str | None:
        """As `summary_path`, of the trace."""
        return None if self.trace is None else os.path.realpath(self.trace)

    @property
    def replaced(self) -> dict[str, str]:
        """Files besides the output that are replaced as a whole, by the option that names them."""
        paths = {"summary": self.summary_path, "metrics_file": self.metrics_path, "trace": self.trace_path}
        return {name: path for name, path in paths.items() if path is not None}

    @property
    def output_path(self) -> str:
        """The output file itself, where a link is named: it is replaced when it is sorted."""
        assert self.output_file is not None, "checked"
        return os.path.realpath(self.output_file)


def _place(path: str) -> object:
    """What is the same for two paths of one file; of a file that is not there yet, its path without links."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino
