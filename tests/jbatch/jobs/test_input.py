"""A job's input: lines as they are in the file, and one pass over all of them."""

import hashlib
import io
import json
import os
import threading
import tracemalloc
from pathlib import Path

import pytest

from jbatch.errors import ConfigError
from jbatch.jobs import input as job_input
from jbatch.jobs.input import Ids, id_of, open_input, read_lines, scan_input
from jbatch.jobs.options import Shard, parse_shard
from jbatch.jobs.request_line import parse_line
from jbatch.sampler import Sampler
from jbatch.sampling_params import UpTo

WHOLE = Shard(0, 1)


def lines_of(data: bytes) -> list[tuple[int, bytes]]:
    return [(line_no, raw.rstrip(b"\r\n")) for line_no, raw in read_lines(io.BytesIO(data))]


@pytest.mark.parametrize(
    "data, lines",
    [
        (b"", []),
        (b"\n\n", []),
        (b"a\nb", [(1, b"a"), (2, b"b")]),
        (b"a\r\n \t\r\nb\r\n", [(1, b"a"), (3, b"b")]),  # blank lines count
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", [(1, b"a"), (2, b"\xef\xbb\xbfb")]),  # a BOM begins a file
        ("a\u2028b\x85c\n".encode(), [(1, "a\u2028b\x85c".encode())]),  # no ends of line
        (b"\0\n\xff\n", [(1, b"\0"), (2, b"\xff")]),
    ],
)
def test_lines(data, lines):
    assert lines_of(data) == lines


def test_a_long_line_is_cut_and_the_next_one_is_whole(monkeypatch):
    monkeypatch.setattr(job_input, "MAX_LINE_BYTES", 8)
    seen = []
    data = b"12345678\n" + b"x" * 100 + b"\n1234567\n" + b"y" * 18
    lines = list(read_lines(io.BytesIO(data), seen.append))
    assert [raw for _, raw in lines] == [b"12345678\n", b"x" * 9, b"1234567\n", b"y" * 9]
    assert [line_no for line_no, _ in lines] == [1, 2, 3, 4] and b"".join(seen) == data


@pytest.mark.parametrize("text", ["1/1", "1/3", "3/3", "0012/12"])
def test_shards(text):
    shard = parse_shard(text)
    first, step = (int(part) for part in text.split("/"))
    assert [n for n in range(1, 40) if shard.holds(n)] == list(range(first, 40, step))


@pytest.mark.parametrize(
    "text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1 / 2", "²/3", "1/9999999999"]
)
def test_no_shards(text):
    with pytest.raises(ConfigError, match="shard="):
        parse_shard(text)


# Ids.


def test_ids_find_their_lines():
    ids = Ids()
    for line_no in range(1, 200):
        ids.add(f"id {line_no}", line_no)
    ids.sort()
    assert ids.duplicates() == (0, [])
    assert ids.line_nos(["id 7", "nobody", "id 199", "\ud800"]) == [7, 0, 199, 0]
    empty = Ids()
    empty.sort()
    assert (empty.duplicates(), empty.line_nos(["a"]), empty.line_nos([])) == ((0, []), [0], [])


def test_memory_per_line():
    """At most 64 bytes for each line while a file is read, its ids are compared and lines are looked up."""
    num_lines = 30_000
    lines = (
        b'{"prompt":"a","custom_id":"a long id that nobody wants to hold in memory %d"}\n' % i
        for i in range(num_lines)
    )
    file = Endless(lines)
    tracemalloc.start()
    scan_input(file, parse_line_of_id, WHOLE).ids.line_nos(["a"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 24 < peak / num_lines <= 64


def test_memory_of_duplicates():
    """Where every line has the same id, too: a message names a few of them."""
    ids = Ids()
    for line_no in range(1, 30_001):
        ids.add("x", line_no)
    ids.sort()
    tracemalloc.start()
    assert ids.duplicates() == (29_999, [(n, n + 1) for n in range(1, 6)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / 30_000 <= 40


class Endless:
    """A file of lines that are made as they are read."""

    def __init__(self, lines):
        self._lines, self._at = lines, 0

    def readline(self, limit=-1):
        line = next(self._lines, b"")
        self._at += len(line)
        return line

    def tell(self):
        return self._at


def parse_line_of_id(raw: bytes):
    """Much cheaper than the real one, whose memory is its own matter."""
    return LINE._replace(custom_id=raw[26:-3].decode())


LINE = parse_line(b'{"prompt":"a"}', {})


# The pass.


def as_file(*lines: object) -> io.BytesIO:
    return io.BytesIO(
        b"".join(json.dumps(line).encode() + b"\n" if isinstance(line, dict) else line for line in lines)
    )


def parse(raw: bytes):
    return parse_line(raw, {"temperature": 0, "max_tokens": 9})


def test_what_a_pass_finds():
    file = as_file(
        {"prompt": "a", "custom_id": "x"},
        b"\n",
        {"prompt": "a", "max_tokens": 5, "n": 2},
        {"prompt": "a", "temperature": 1},
        b"{\n",
        {"prompt": "", "custom_id": "y", "top_p": 3},
    )
    scan = scan_input(file, parse, WHOLE)
    assert scan.sha256 == hashlib.sha256(file.getvalue()).hexdigest()
    assert (scan.last_line_no, scan.num_lines, scan.num_requests, scan.num_wrong) == (6, 5, 5, 2)
    assert scan.num_samples == 1 + 2 + 1
    assert scan.samplers == (Sampler.GREEDY, Sampler.PLAIN)
    assert (scan.max_tokens, scan.num_unbounded) == (9 + 10 + 9, 0)
    assert scan.ids.line_nos(["x", "line-3", "line-5", "y", "line-6"]) == [1, 3, 5, 6, 0]


def test_a_pass_over_one_shard():
    lines = [{"prompt": "a", "custom_id": f"{n}", "temperature": n % 2} for n in range(1, 8)]
    scan = scan_input(as_file(*lines), lambda raw: parse_line(raw, {}), Shard(1, 2))
    assert (scan.num_lines, scan.num_requests, scan.samplers) == (7, 3, (Sampler.GREEDY,))
    assert (scan.max_tokens, scan.num_unbounded, scan.num_by_room) == (0, 3, 3)
    assert scan.ids.line_nos([str(n) for n in range(1, 8)]) == [0, 2, 0, 4, 0, 6, 0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_input_of_another_encoding_is_named(encoding):
    text = "".join(json.dumps({"prompt": "a"}) + "\n" for _ in range(3))
    name = encoding.removesuffix("-le").removesuffix("-be").upper()
    with pytest.raises(ConfigError, match=f"is {name}, and must be UTF-8: convert it .iconv -f {name} -t"):
        scan_input(io.BytesIO(text.encode(encoding)), parse, WHOLE)


def test_prompts_of_one_line_count_each():
    body = {"prompt": ["a", "b", [1]], "n": 2, "max_tokens": 5}
    line = {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": body}
    unbounded = {**line, "custom_id": "y", "body": {"prompt": ["a", "b"]}}
    scan = scan_input(as_file(line, unbounded), lambda raw: parse_line(raw, {}), WHOLE)
    assert (scan.num_requests, scan.num_samples) == (2, 8)
    assert (scan.max_tokens, scan.num_unbounded, scan.num_by_room) == (30, 2, 2)


def test_lengths_by_default_depend_on_the_room():
    lines = [{"prompt": "a", "max_tokens": 5}, {"prompt": "a", "n": 2, "temperature": 1}, {"prompt": "a"}]
    scan = scan_input(as_file(*lines), lambda raw: parse_line(raw, {"max_tokens": UpTo(9)}), WHOLE)
    assert (scan.max_tokens, scan.num_unbounded, scan.num_by_room) == (5 + 18 + 9, 0, 3)


def test_duplicates_are_named_with_both_lines():
    lines = [{"prompt": "a", "custom_id": name} for name in ("x", "y", "x", "z", "y", "x", "line-9")]
    with pytest.raises(ConfigError, match="custom_id='lines 1 and 3, 2 and 5, 3 and 6': the same id twice"):
        scan_input(as_file(*lines), parse, Shard(0, 4))
    with pytest.raises(ConfigError, match="lines 7 and 9'"):
        scan_input(
            as_file(lines[0], lines[1], *(b"\n" for _ in range(4)), lines[6], b"\n", {"prompt": "a"}),
            parse,
            WHOLE,
        )
    with pytest.raises(ConfigError, match=r"4 and 5, 5 and 6 and 2 more'"):
        scan_input(as_file(*[{"prompt": "a", "custom_id": "x"}] * 8), parse, WHOLE)


def test_a_line_without_an_id_goes_by_its_number():
    assert (id_of(3, None), id_of(3, "x")) == ("line-3", "x")


def test_a_pipe_is_read_once_and_used_twice(tmp_path):
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: Path(pipe).write_bytes(b"a\nb\n"))
    writer.start()
    with open_input(pipe) as file:
        assert [file.read(), file.seek(0), file.read()] == [b"a\nb\n", 0, b"a\nb\n"]
    writer.join()
    assert os.listdir(tmp_path) == ["pipe"]
