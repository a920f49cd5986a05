"""A job's input: its lines, one at a time, and one pass over all of them before the job begins."""

from __future__ import annotations

import array
import hashlib
import itertools
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jbatch.errors import ConfigError, is_failure
from jbatch.jobs.files import naming
from jbatch.jobs.options import Shard
from jbatch.jobs.request_line import MAX_LINE_BYTES, LineError, RequestLine, wide_encoding
from jbatch.sampler import Sampler

BOM = b"\xef\xbb\xbf"
DIGEST_BYTES = 16  # two of 10 million ids share one by chance with probability 1.5e-25
NUM_SHOWN = 5  # duplicates that a message names
REPORT_EVERY = 1024  # lines
COPY_BYTES = 1 << 20  # at a time

Parse = Callable[[bytes], RequestLine]  # raises LineError


class InputLine(NamedTuple):
    """A line that is not blank."""

    line_no: int  # from 1, blank lines counted
    raw: bytes  # with its end; of a line that is too long, the first MAX_LINE_BYTES + 1 bytes


def open_input(path: str) -> BinaryIO:
    """The input, from its beginning. What can be read only once ("-", a pipe) is first copied to a temporary
    file without a name, as it is needed twice.

    Raises:
      ConfigError: where there is no such file, or none that may be read.
      OSError: where the machine fails, naming the file.
    """
    try:
        if path != "-" and stat.S_ISREG(os.stat(path).st_mode):
            return open(path, "rb")
        source = open(os.dup(0) if path == "-" else path, "rb")  # noqa: SIM115, closed by `_copy`
    except OSError as error:
        if is_failure(error):
            raise
        raise ConfigError("input_file", path, f"cannot be read: {error.strerror}") from error
    return _copy(source, "standard input" if path == "-" else path)


def _copy(source: BinaryIO, name: str) -> BinaryIO:
    folder = tempfile.gettempdir()
    with source, naming(folder):
        copy: Any = tempfile.TemporaryFile()  # noqa: SIM115, the caller closes it
        while block := _read(source, name):
            copy.write(block)
        copy.seek(0)
    return copy


def _read(source: BinaryIO, name: str) -> bytes:
    with naming(name):
        return source.read(COPY_BYTES)


def read_lines(file: BinaryIO, seen: Callable[[bytes], Any] = lambda data: None) -> Iterator[InputLine]:
    """All lines that are not blank, of which no more than one is in memory. A line ends with b"\\n" alone:
    U+2028 may stand in a string. `seen` gets every byte of the file, in order."""
    for line_no in itertools.count(1):
        raw = file.readline(MAX_LINE_BYTES + 1)
        if not raw:
            return
        seen(raw)
        end = raw
        while len(end) > MAX_LINE_BYTES and not end.endswith(b"\n"):  # the rest of it is not kept
            end = file.readline(MAX_LINE_BYTES + 1)
            seen(end)
        if line_no == 1:
            raw = raw.removeprefix(BOM)
        if raw.strip():
            yield InputLine(line_no, raw)


def id_of(line_no: int, custom_id: str | None) -> str:
    """What a line's result goes by: its custom_id, or its number where it names none."""
    return f"line-{line_no}" if custom_id is None else custom_id


class Ids:
    """Finds line numbers by custom_id, in 24 bytes per line, and about 50 at most while it is sorted.

    Ids are kept as 16-byte BLAKE2b digests. Feed it all ids, `sort` it, then ask.
    """

    def __init__(self) -> None:
        self._digests: Any = bytearray()
        self._line_nos: Any = array.array("q")

    def __len__(self) -> int:
        return len(self._line_nos)

    def add(self, custom_id: str, line_no: int) -> None:
        self._digests += _digest(custom_id)
        self._line_nos.append(line_no)

    def sort(self) -> None:
        digests = np.frombuffer(self._digests, f"S{DIGEST_BYTES}")
        order = np.argsort(digests, kind="stable")
        digests = digests[order]
        self._digests = digests
        self._line_nos = np.frombuffer(self._line_nos, np.int64)[order]

    def all_line_nos(self) -> np.ndarray:
        """The line numbers of all ids, in no order, once it is sorted."""
        return self._line_nos

    def duplicates(self) -> tuple[int, list[tuple[int, int]]]:
        """How many lines have the id of an earlier one, and the first NUM_SHOWN of them, each behind the line
        before it with that id."""
        at = np.flatnonzero(self._digests[1:] == self._digests[:-1])
        seconds = self._line_nos[at + 1]
        shown = np.argsort(seconds)[:NUM_SHOWN]
        firsts = self._line_nos[at[shown]]
        return len(at), list(zip(firsts.tolist(), seconds[shown].tolist(), strict=True))

    def line_nos(self, custom_ids: Iterable[str]) -> list[int]:
        """The line number of each id, 0 for one that is not there."""
        wanted = np.array([_digest(custom_id) for custom_id in custom_ids], f"S{DIGEST_BYTES}")
        if not len(self):
            return [0] * len(wanted)
        at = np.minimum(np.searchsorted(self._digests, wanted), len(self) - 1)
        return np.where(self._digests[at] == wanted, self._line_nos[at], 0).tolist()


def _digest(custom_id: str) -> bytes:
    return hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()


class Scan(NamedTuple):
    """What is known of an input after one pass over it. All but the first three fields are of one shard."""

    sha256: str
    last_line_no: int
    num_lines: int  # not blank
    num_requests: int  # lines of the shard, wrong ones included
    num_wrong: int
    num_samples: int  # that the others ask for: n for each prompt
    ids: Ids  # of the shard
    samplers: tuple[Sampler, ...]  # ascending: what the lines need to draw their tokens
    max_tokens: int  # of all lines that have it, by themselves or by default, their sum over all samples
    num_unbounded: int  # samples of the other lines: they go on to the end of the context
    num_by_room: int  # these, and samples of lines that have max_tokens by the model's default


def scan_input(
    file: BinaryIO, parse: Parse, shard: Shard, on_read: Callable[[int], None] = lambda at: None
) -> Scan:
    """Read the whole input once. Lines that are wrong are counted; their results come later.

    Args:
      on_read: gets the number of bytes read, now and then.

    Raises:
      ConfigError: for a custom_id that appears twice, in whichever shard, naming the lines; and for a file
        that is UTF-16 or UTF-32, in which no line is right.
    """
    sha256, everywhere, ids = hashlib.sha256(), Ids(), Ids()
    num_wrong = num_samples = max_tokens = num_unbounded = num_by_room = line_no = 0
    samplers: set[Sampler] = set()
    for line_no, raw in read_lines(file, sha256.update):
        if line_no == 1:
            _check_encoding(file, raw)
        custom_id, line = _id_and_line(parse, raw)
        everywhere.add(id_of(line_no, custom_id), line_no)
        if line_no % REPORT_EVERY == 0:
            on_read(file.tell())
        if not shard.holds(line_no):
            continue
        if shard.num_shards > 1:
            ids.add(id_of(line_no, custom_id), line_no)
        if line is None:
            num_wrong += 1
            continue
        params, line_samples = line.params, line.num_prompts * line.params.n
        samplers.add(params.sampler)
        num_samples += line_samples
        max_tokens += (params.max_tokens or 0) * line_samples
        num_unbounded += line_samples * (params.max_tokens is None)
        num_by_room += line_samples * params.fills_room
    _check_unique(everywhere)
    if shard.num_shards > 1:
        ids.sort()
    own = ids if shard.num_shards > 1 else everywhere
    return Scan(
        sha256=sha256.hexdigest(),
        last_line_no=line_no,
        num_lines=len(everywhere),
        num_requests=len(own),
        num_wrong=num_wrong,
        num_samples=num_samples,
        ids=own,
        samplers=tuple(sorted(samplers)),
        max_tokens=max_tokens,
        num_unbounded=num_unbounded,
        num_by_room=num_by_room,
    )


def _check_encoding(file: BinaryIO, first_line: bytes) -> None:
    """Raise ConfigError for what some editors and shells write instead of UTF-8."""
    if (encoding := wide_encoding(first_line)) is not None:
        reason = f"is {encoding}, and must be UTF-8: convert it (iconv -f {encoding} -t UTF-8)"
        raise ConfigError("input", str(getattr(file, "name", "...")), reason)


def _id_and_line(parse: Parse, raw: bytes) -> tuple[str | None, RequestLine | None]:
    """What a line is called and asks for; nothing where it is wrong."""
    try:
        line = parse(raw)
    except LineError as error:
        return error.custom_id, None
    return line.custom_id, line


def _check_unique(ids: Ids) -> None:
    """Sort the ids; raise ConfigError where two lines have one id."""
    ids.sort()
    num_twice, shown = ids.duplicates()
    if num_twice:
        lines = ", ".join(f"{first} and {second}" for first, second in shown)
        more = f" and {num_twice - len(shown)} more" if num_twice > len(shown) else ""
        raise ConfigError("custom_id", f"lines {lines}{more}", "the same id twice: every line needs its own")
